"""Machines that come and go in good order, and machines of different Python versions: nothing is lost or repeated."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

from tests.support.leaks import Case
from tests.support.marks import linux_only, slow
from tests.support.servers import (
    background_client,
    client,
    enter,
    running_manager,
    running_worker,
    write_script,
)
from tests.support.waiting import wait_until

JOURNAL = """
import os, sys, time
index = os.environ["MICROCLUSTER_TASK_INDEX"]
os.write(os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT), (index + "\\n").encode())
time.sleep(0.05)
print("task", index)
"""


@slow
@linux_only
class TestRollingRestart(Case):
    def test_under_load_it_loses_and_repeats_nothing(self) -> None:
        manager = enter(self, running_manager())
        workers = [enter(self, running_worker(manager, slots=2)) for _ in range(2)]
        journal = manager.folder / "journal"
        script = write_script(manager, "journal.py", JOURNAL)
        running = enter(self, background_client(manager, "run", "--array", "0-199", script, str(journal)))
        wait_until(journal.exists, 60, "the first task", running.logs)
        for worker in workers:
            self.assertEqual(worker.stop(), 0)
            worker.start()
        self.assertEqual(manager.stop(), 0)
        manager.restart()
        for worker in workers:
            worker.wait_connected(2)
        self.assertEqual(running.wait(120), 0)
        self.assertEqual(running.out, "".join(f"task {index}\n" for index in range(200)))
        starts = Counter(journal.read_text().split())
        self.assertEqual(len(starts), 200)
        self.assertEqual([index for index, times in starts.items() if times > 1], [], "run twice")


def other_interpreters() -> list[str]:
    """Supported interpreters of another version than this one, newest first, by their real paths."""
    found: dict[int, str] = {}
    candidates = [shutil.which(f"python3.{minor}") for minor in range(13, 8, -1)]
    candidates += [str(path) for path in Path.home().glob(".pyenv/versions/3.*/bin/python")]
    candidates += [str(path) for path in Path(sys.base_prefix).parent.glob("3.*/bin/python")]
    for candidate in filter(None, candidates):
        probe = "import sys, sqlite3, ssl; print(sys.version_info[1], sys.executable)"
        done = subprocess.run([candidate, "-c", probe], stdin=subprocess.DEVNULL, capture_output=True, text=True)
        words = done.stdout.split(maxsplit=1)
        if done.returncode == 0 and 9 <= int(words[0]) <= 13 and int(words[0]) != sys.version_info[1]:
            found.setdefault(int(words[0]), words[1].strip())
    return [found[minor] for minor in sorted(found, reverse=True)]


@slow
@linux_only
class TestMixedVersions(Case):
    def test_manager_worker_and_client_may_differ(self) -> None:
        others = other_interpreters()
        if not others:
            self.skipTest("there is one Python only")
        newest, oldest = others[0], others[-1]
        for manager_python, worker_python in ((newest, oldest), (oldest, sys.executable)):
            with self.subTest(manager=manager_python, worker=worker_python):
                manager = enter(self, running_manager(python=manager_python))
                enter(self, running_worker(manager, python=worker_python))
                manager.python = sys.executable  # from here on: that of the clients
                script = write_script(manager, "which.py", "import sys; print(sys.executable, sys.argv[1])\n")
                done = client(manager, "run", script, "x")
                self.assertEqual((done.returncode, done.stderr), (0, ""))
                self.assertEqual(Path(done.stdout.split()[0]).resolve(), Path(worker_python).resolve())
                self.assertEqual(len(json.loads(client(manager, "workers", "--json").stdout)), 1)
