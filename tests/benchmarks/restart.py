"""How long a killed manager takes to be ready again, beside many jobs.

    python3 -m tests.benchmarks.restart [--finished 100000] [--queued 100000] [--rounds 5] [--most 3.0]

The jobs are written with SQL; then a manager takes 2,000 submissions more, so that its log is not empty, and is killed with
SIGKILL. Measured: from the start of the next process to its ready line, and to its first answer. Exit 1 when a start takes
longer than --most seconds.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from src.link import Link
from tests.benchmarks.history import add_history
from tests.support.sim import spec

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = b"print('hello')\n"
DIGEST = hashlib.sha256(SCRIPT).hexdigest()
SPEC = spec(script={"name": "hello.py", "hash": DIGEST})
SUBMITS = 2000


class Started:
    """A manager process that said it is ready."""

    def __init__(self, folder: str) -> None:
        environ = {**os.environ, "MICROCLUSTER_HOME": folder + "/home"}
        command = [sys.executable, str(ROOT / "run.py"), "manager", "-q", "--insecure", "--data", folder + "/data"]
        begin = time.perf_counter()
        self.process = subprocess.Popen([*command, "localhost", "0"], env=environ, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        found = re.search(r":(\d+)$", self.process.stdout.readline().strip())
        self.ready_s = time.perf_counter() - begin
        self.ready_cpu_s = self.cpu_s()
        if found is None:
            raise SystemExit("the manager did not start")
        self.link = Link("127.0.0.1", int(found[1]), None)
        self.first_job = self.link.request({"t": "list", "last": 1}, timeout_s=60)[0]["jobs"][0]["id"]
        self.answered_s = time.perf_counter() - begin

    def cpu_s(self) -> float:
        """Linux: what it used of the processors until now; elsewhere 0."""
        try:
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def rss_mb(self) -> float:
        """Linux: the resident memory; elsewhere 0."""
        try:
            text = Path(f"/proc/{self.process.pid}/status").read_text()
        except OSError:
            return 0.0
        found = re.search(r"VmRSS:\s+(\d+)", text)
        return int(found[1]) / 1024 if found else 0.0

    def submit(self, jobs: int) -> None:
        inline = {"inline": [[DIGEST, len(SCRIPT)]]}
        numbers = [
            self.link.post({"t": "submit", "request_id": secrets.token_hex(16), "spec": SPEC, **inline}, SCRIPT)
            for _ in range(jobs)
        ]
        for number in numbers:
            self.link.answer(number, 60)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.link.close()
        assert self.process.stdout is not None
        self.process.stdout.close()


def plain_s() -> float:
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", "pass"], check=True)
    return time.perf_counter() - begin


def measure(folder: str, finished: int, queued: int, rounds: int, most: float) -> int:
    begin = time.perf_counter()
    os.mkdir(folder + "/home", 0o700)
    add_history(folder + "/data", finished, queued, json.dumps(SPEC, separators=(",", ":")))
    size = os.path.getsize(folder + "/data/jobs.db") / 1e6
    print(
        f"{finished:,} finished and {queued:,} queued jobs, {size:,.0f} MB, made in {time.perf_counter() - begin:.0f} s"
    )
    ready: list[float] = []
    answered: list[float] = []
    plain: list[float] = []
    cpu: list[float] = []
    manager = Started(folder)
    for _ in range(rounds):
        manager.submit(SUBMITS)
        manager.kill()
        plain.append(plain_s())
        manager = Started(folder)
        ready.append(manager.ready_s)
        answered.append(manager.answered_s)
        cpu.append(manager.ready_cpu_s)
    print(
        f"after SIGKILL: ready in {statistics.median(ready):.2f} s (worst {max(ready):.2f},"
        f" {statistics.median(cpu):.2f} s of CPU), first answer after"
        f" {statistics.median(answered):.2f} s; python3 -c pass {statistics.median(plain) * 1000:.0f} ms;"
        f" memory {manager.rss_mb():.0f} MB"
    )
    manager.kill()
    return max(ready) > most


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--finished", type=int, default=100_000)
    parser.add_argument("--queued", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--most", type=float, default=3.0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return measure(folder, args.finished, args.queued, args.rounds, args.most)


if __name__ == "__main__":
    sys.exit(main())
