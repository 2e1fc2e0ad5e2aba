"""A cluster under fire: kills, freezes and cuts everything at random while jobs are submitted, then checks the history.

    python3 tests/benchmarks/chaos.py --minutes 10 [--seed N] [--workers 4] [--submitters 3]

Real processes and a proxy between the manager and all others. Afterwards it must be true that: every id printed
exists, each submission made one job, each job is in one terminal state with exactly the output of its winning
attempt, no attempt ran twice, and scripts ran again only as often as workers were lost. A few seconds of it are part
of the tests: tests/process/test_chaos_short.py.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple, Optional

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.support.proxy import Proxy
from tests.support.servers import (
    Manager,
    Worker,
    client,
    client_bytes,
    running_manager,
    running_worker,
    write_script,
)
from tests.support.waiting import FACTOR

SLOTS = 2
LOST_AFTER_S = 5.0
PATIENCE_S = 300.0  # how long a client keeps trying, and the cluster may take to finish once the faults stop

SCRIPT = """
import os, sys, time
key, lines, pause, journal = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4]
attempt = os.environ["MICROCLUSTER_ATTEMPT"]
file = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
os.write(file, f"{key} {attempt}\\n".encode())
print(key, "attempt", attempt)
for number in range(lines):
    print(key, number)
    print(key, number, file=sys.stderr)
    if number % 100 == 0:
        time.sleep(pause)
print(key, "done")
"""


class Submitted(NamedTuple):
    key: str
    job: Optional[str]  # None: the client gave up
    lines: int
    error: str


class Chaos:
    """One run; `problems` is what was wrong in the end."""

    def __init__(self, seed: int, workers: int, submitters: int, quiet: bool = True) -> None:
        self.random = random.Random(seed)
        self.quiet = quiet
        self.manager: Manager = running_manager("--lost-after", f"{LOST_AFTER_S:g}s", "--crash-limit", "1000")
        self.proxy: Optional[Proxy] = None
        self.workers: list[Worker] = []
        self.worker_count, self.submitter_count = workers, submitters
        self.stop = threading.Event()
        self.submitted: list[Submitted] = []
        self.faults: Counter[str] = Counter()
        self.reruns_allowed = 0
        self.problems: list[str] = []

    def run(self, seconds: float) -> list[str]:
        """Everything: start, faults for so long, quiet, check, stop. Gives the problems."""
        with self.manager:
            self.journal = self.manager.folder / "journal"
            self.script = write_script(self.manager, "chaos.py", SCRIPT)
            with Proxy(self.manager.port) as proxy:
                self.proxy = proxy
                try:
                    for number in range(self.worker_count):
                        self.workers.append(
                            running_worker(self.manager, slots=SLOTS, name=f"w{number}", port=proxy.port)
                        )
                        self.workers[-1].start()
                    self._submit_under_fire(seconds)
                    self._check()
                finally:
                    self.stop.set()
                    for worker in self.workers:
                        worker.close()
        return self.problems

    def say(self, text: str) -> None:
        if not self.quiet:
            print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)

    def _submit_under_fire(self, seconds: float) -> None:
        threads = [
            threading.Thread(target=self._submit, args=(n,), name=f"submitter-{n}") for n in range(self.submitter_count)
        ]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + seconds
        try:
            while time.monotonic() < deadline:
                self._pause(self.random.uniform(0.3, 5.0) if seconds > 60 else self.random.uniform(0.3, 2.0))
                self._do_a_fault()
        finally:
            self.stop.set()
            for thread in threads:
                thread.join()
        self.say(f"quiet now: {len(self.submitted)} jobs, faults {dict(self.faults)}")

    def _submit(self, number: int) -> None:
        """Thread: one submitter. Ends once `stop` is set and its last submission is answered."""
        chance = random.Random(number)
        assert self.proxy is not None
        for count in range(10**9):
            if self.stop.is_set():
                return
            key, lines = f"s{number}-{count}", chance.choice([1, 10, 300, 3000])
            done = client(
                self.manager,
                *("submit", "--connect-timeout", f"{PATIENCE_S * FACTOR:g}s", self.script),
                *(key, str(lines), f"{chance.choice([0, 0.01, 0.1])}", self.journal),
                timeout_s=2 * PATIENCE_S,
                port=self.proxy.port,
            )
            good = done.returncode == 0
            self.submitted.append(Submitted(key, done.stdout.strip() if good else None, lines, done.stderr))

    def _pause(self, seconds: float) -> None:
        threading.Event().wait(seconds)

    def _do_a_fault(self) -> None:
        faults = {
            "manager killed": self._kill_manager,
            "manager frozen": self._freeze_manager,
            "worker killed": self._kill_worker,
            "worker frozen": self._freeze_worker,
            "connections cut": self._cut,
            "network frozen": self._freeze_network,
        }
        name = self.random.choice(sorted(faults))
        self.faults[name] += 1
        self.say(name)
        faults[name]()

    def _kill_manager(self) -> None:
        self.manager.kill()
        self._pause(self.random.choice([0, 0, 0.5, 2]))
        self.manager.restart()

    def _freeze_manager(self) -> None:
        self._freeze_process(self.manager)

    def _kill_worker(self) -> None:
        worker = self.random.choice(self.workers)
        worker.kill()
        self.reruns_allowed += SLOTS
        self._pause(self.random.choice([0, 0, 1]))
        worker.launch()

    def _freeze_worker(self) -> None:
        self.reruns_allowed += SLOTS
        self._freeze_process(self.random.choice(self.workers))

    def _freeze_process(self, program: Any) -> None:
        program.send_signal(signal.SIGSTOP)
        self._pause(self.random.uniform(0.2, 3.0))
        program.send_signal(signal.SIGCONT)

    def _cut(self) -> None:
        assert self.proxy is not None
        self.proxy.cut()

    def _freeze_network(self) -> None:
        assert self.proxy is not None
        self.proxy.freeze(True)
        self._pause(self.random.uniform(0.2, 2.0))
        self.proxy.freeze(False)

    def _check(self) -> None:
        good = [each for each in self.submitted if each.job is not None]
        self.problems += [f"{each.key} was not accepted: {each.error}" for each in self.submitted if each.job is None]
        if not good:
            self.problems.append("nothing was submitted")
            return
        last = max(int(each.job or 0) for each in good)
        waited = client(self.manager, "wait", "--timeout", f"{PATIENCE_S:g}s", f"1-{last}", timeout_s=2 * PATIENCE_S)
        if waited.returncode == 124:
            self.problems.append("not all jobs finished")
        done = client_bytes(self.manager, "result", "--json", f"1-{last}", timeout_s=2 * PATIENCE_S)
        if not done.stdout:
            self.problems.append(f"no results: {done.stderr!r}")
            return
        views = {view["id"]: view for view in json.loads(done.stdout)}
        keys = Counter(view["args"][0] for view in views.values())
        self.problems += [f"{key} was submitted once and became {many} jobs" for key, many in keys.items() if many > 1]
        for each in good:
            self._check_job(each, views.get(each.job))
        self._check_journal({view["args"][0]: view for view in views.values()})

    def _check_job(self, each: Submitted, view: Optional[dict[str, Any]]) -> None:
        if view is None:
            self.problems.append(f"job {each.job} ({each.key}) was printed and is lost")
            return
        name = f"job {each.job} ({each.key}, attempt {view['attempt']})"
        if view["args"][0] != each.key:
            self.problems.append(f"{name} is the job of {view['args'][0]}")
        if view["state"] != "succeeded":
            self.problems.append(f"{name} is {view['state']}: {view['reason']}")
            return
        numbers = "".join(f"{each.key} {number}\n" for number in range(each.lines))
        if view["output"] != f"{each.key} attempt {view['attempt']}\n{numbers}{each.key} done\n":
            self.problems.append(f"{name} has wrong output: {view['output'][:200]!r}..{view['output'][-100:]!r}")
        if view["error"] != numbers:
            self.problems.append(f"{name} has wrong error output ({len(view['error'])} bytes)")

    def _check_journal(self, views: dict[str, dict[str, Any]]) -> None:
        starts = Counter(self.journal.read_text().splitlines())
        self.problems += [f"attempt {start} ran {times} times" for start, times in starts.items() if times > 1]
        keys = Counter(start.split()[0] for start in starts)
        extra = sum(keys.values()) - len(keys)
        self.say(f"{len(keys)} jobs ran, {extra} attempts more than jobs, {self.reruns_allowed} could be lost")
        if extra > self.reruns_allowed:
            self.problems.append(f"{extra} scripts ran again, though at most {self.reruns_allowed} were lost")
        for key, view in views.items():
            if f"{key} {view['attempt']}" not in starts:
                self.problems.append(f"{key} says attempt {view['attempt']}, which never ran")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--submitters", type=int, default=3)
    options = parser.parse_args()
    print(f"seed {options.seed}, {options.minutes:g} minutes", flush=True)
    problems = Chaos(options.seed, options.workers, options.submitters, quiet=False).run(options.minutes * 60)
    for problem in problems:
        print("PROBLEM", problem)
    print("nothing lost" if not problems else f"{len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
