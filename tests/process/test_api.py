"""Python programs that use the API and the Executor, against a real cluster."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.support.leaks import Case
from tests.support.marks import linux_only
from tests.support.servers import enter, running_manager, running_worker
from tests.support.waiting import FACTOR

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
import json, sys
sys.path.insert(0, sys.argv[2])
from src.api import Cluster
host, port = "localhost", int(sys.argv[1])
found = {}
with Cluster(host, port) as cluster:
    job = cluster.submit("hello.py", "Ann", env={"GREETING": "Hi"})
    result = job.result(60)
    found["one"] = [result.text, result.exit_code, result.ok]
    found["map"] = [r.text for r in cluster.map("hello.py", ["a", "b c"], env={"GREETING": "Yo"})]
    array = cluster.submit("hello.py", array=range(3), env={"GREETING": "Hey"})
    found["array"] = [r.index for r in array.results()]
    failing = cluster.submit("-c.py", retries=0)
    cluster.wait([failing, array], 60)
    found["failed"] = [failing.status()["state"], failing.result().exit_code]
    found["done"] = sorted(j.id for j in cluster.as_completed([job, array, failing], 60))
    found["workers"] = len(cluster.workers())
    try:
        cluster.submit("hello.py", nonsense=1)
    except Exception as error:
        found["error"] = type(error).__name__
print(json.dumps(found))
"""

EXECUTOR = """
import sys
sys.path.insert(0, sys.argv[2])
import helper
from src.futures import Executor

def square(x):
    return x * x

def fail():
    raise ValueError("as asked")

if __name__ == "__main__":
    with Executor("localhost", int(sys.argv[1])) as pool:
        print(pool.submit(square, 7).result(60))
        print(list(pool.map(square, range(6), chunksize=2)))
        print(pool.submit(helper.double, x=21).result(60))
        try:
            pool.submit(fail).result(60)
        except ValueError as error:
            print(type(error).__name__, error, "in fail" in str(error.__cause__))
"""


@linux_only
class TestApi(Case):
    def setUp(self) -> None:
        self.manager = enter(self, running_manager())
        enter(self, running_worker(self.manager))
        self.folder = Path(self.manager.folder) / "program"
        self.folder.mkdir()
        self.write("hello.py", "import os, sys\nprint(os.environ['GREETING'], *sys.argv[1:])\n")
        self.write("-c.py", "raise SystemExit(4)\n")
        self.write("helper.py", "def double(x):\n    return 2 * x\n")

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)

    def run_program(self, text: str) -> str:
        self.write("program.py", text)
        done = subprocess.run(
            [sys.executable, "program.py", str(self.manager.port), str(ROOT)],
            cwd=self.folder,
            env={**os.environ, **self.manager.environ},
            capture_output=True,
            text=True,
            timeout=120 * FACTOR,
        )
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        return done.stdout

    def test_the_api(self) -> None:
        found = json.loads(self.run_program(PROGRAM))
        self.assertEqual(found["one"], ["Hi Ann\n", 0, True])
        self.assertEqual(found["map"], ["Yo a\n", "Yo b c\n"])
        self.assertEqual(found["array"], [0, 1, 2])
        self.assertEqual(found["failed"], ["failed", 4])
        self.assertEqual((len(found["done"]), found["workers"], found["error"]), (3, 1, "UsageError"))

    def test_the_executor(self) -> None:
        lines = self.run_program(EXECUTOR).splitlines()
        self.assertEqual(lines, ["49", "[0, 1, 4, 9, 16, 25]", "42", "ValueError as asked True"])
