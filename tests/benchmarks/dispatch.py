"""How many tasks a manager hands out and takes back, durable and encrypted, when workers do nothing; how many single
submissions it acknowledges over one connection, pipelined; and whether a task of a large array costs more than one of a
small one.

    python3 -m tests.benchmarks.dispatch [--tasks 20000] [--submits 5000] [--rounds 5]
"""

from __future__ import annotations

import argparse
import hashlib
import secrets
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from src.channel import ClientChannel
from src.config import ManagerSettings
from src.keys import PeerKey
from src.link import Link
from src.loop import Loop
from src.manager import Manager
from src.net import Conn, connect
from tests.support.sim import spec

from .clusters import Bench, row

SCRIPT = b"print('hello')\n"
DIGEST = hashlib.sha256(SCRIPT).hexdigest()
WINDOW = 1000  # submissions under way
SIZES = {100: 21, 1000: 11, 10_000: 3, 100_000: 1}  # of arrays; and how often each is measured


class IdleHands:
    """A worker that says of every task at once that it printed a line and ended well."""

    def __init__(self, loop: Loop, key: PeerKey, port: int, number: int = 0) -> None:
        self.number = number
        self.welcomed = threading.Event()
        self.error: Exception | None = None
        connect(loop, "127.0.0.1", port, lambda: ClientChannel(key, "worker", "x"), self, self._failed)

    def _failed(self, error: Exception | None) -> None:
        self.error = error
        self.welcomed.set()

    def opened(self, conn: Conn) -> None:
        conn.send(
            {
                "t": "join", "name": f"idle-hands-{self.number}", "worker_id": f"{self.number:032x}", "boot": "b" * 32,
                "slots": 2, "cpus": 2, "memory": None, "gpus": 0, "labels": [], "resources": {}, "pythons": {},
                "version": "0", "python": "3.11.7", "holding": [],
            }
        )  # fmt: skip

    def received(self, conn: Conn, header: dict[str, Any], payload: bytes) -> None:
        if header["t"] == "welcome":
            self.welcomed.set()
        keys = header.get("run") if header["t"] == "work" else None
        if keys:
            now = time.time()
            ends = [
                {
                    "task": key, "exit_code": 0, "signal": None, "reason": None, "started_at": now - 0.001,
                    "finished_at": now, "cpu": 0.01, "rss": 1, "out": [6, 6], "err": [0, 0], "dropped": 0, "files": None,
                    "timed_out": False, "never_ran": False, "cancelled": False,
                }
                for key in keys
            ]  # fmt: skip
            started = [[*key, now, True, None] for key in keys]
            conn.send({"t": "report", "started": started, "finished": ends}, b"hello\n" * len(keys))

    def closed(self, conn: Conn, error: Exception | None) -> None:
        self._failed(error)


@contextmanager
def running_loop() -> Iterator[Loop]:
    """A loop in a thread; at the end its connections are simply dropped."""
    loop = Loop()
    thread = threading.Thread(target=loop.run)
    thread.start()
    try:
        yield loop
    finally:
        loop.stop()
        thread.join()
        loop.close()


@contextmanager
def running_manager() -> Iterator[tuple[Manager, Link]]:
    """A manager in this process, and a client of it."""
    with tempfile.TemporaryDirectory() as folder:
        settings = ManagerSettings(host="127.0.0.1", port=0, data=folder + "/data", key_home=folder + "/keys")
        manager = Manager(settings).start()
        try:
            assert manager.keys is not None
            with Link("127.0.0.1", manager.port, manager.keys.peer_key("submit")) as link:
                yield manager, link
        finally:
            manager.stop()


def submission(**changes: Any) -> dict[str, Any]:
    """The request that submits a job whose script the manager has."""
    job = spec(script={"name": "x.py", "hash": DIGEST}, **changes)
    return {"t": "submit", "request_id": secrets.token_hex(16), "spec": job}


def submit_array(link: Link, tasks: int) -> int:
    """The id of a new array."""
    header = submission(count=tasks, array=f"0-{tasks - 1}")
    answer = link.request({**header, "inline": [[DIGEST, len(SCRIPT)]]}, SCRIPT)[0]
    return int(answer["id"])


def submit_many(link: Link, submits: int) -> float:
    """Single submissions, pipelined: how many are acknowledged in a second."""
    begin = time.perf_counter()
    numbers: list[int] = []
    for n in range(submits):
        numbers.append(link.post(submission()))
        if n >= WINDOW:
            link.answer(numbers[n - WINDOW])
    for number in numbers[-WINDOW:] if submits > WINDOW else numbers:
        link.answer(number)
    return submits / (time.perf_counter() - begin)


def run_array(link: Link, tasks: int) -> tuple[float, float]:
    """Tasks/s, and CPU us per task of all that is in this process."""
    begin, cpu = time.perf_counter(), time.process_time()
    job = submit_array(link, tasks)
    link.request({"t": "wait", "ids": [{"job": job}], "timeout": None})
    return tasks / (time.perf_counter() - begin), (time.process_time() - cpu) / tasks * 1e6


def one_round(tasks: int, submits: int) -> tuple[float, float, float]:
    """Tasks/s, CPU us per task of manager and worker together, submissions/s."""
    with running_manager() as (manager, link):
        assert manager.keys is not None
        with running_loop() as loop:
            hands = IdleHands(loop, manager.keys.peer_key("worker"), manager.port)
            hands.welcomed.wait()
            rate, each = run_array(link, tasks)
        return rate, each, submit_many(link, submits)


def flat() -> dict[int, float]:
    """Array size → CPU us per task, all sizes in turn."""
    found: dict[int, list[float]] = {size: [] for size in SIZES}
    with running_manager() as (manager, link), running_loop() as loop:
        assert manager.keys is not None
        IdleHands(loop, manager.keys.peer_key("worker"), manager.port).welcomed.wait()
        run_array(link, 1000)
        for turn in range(max(SIZES.values())):
            for size, times in SIZES.items():
                if turn < times:
                    found[size].append(run_array(link, size)[1])
    return {size: statistics.median(each) for size, each in found.items()}


def dispatch(bench: Bench, jobs: int, rounds: int) -> None:
    rate, each, accepted = (
        statistics.median(column) for column in zip(*(one_round(20_000, 5_000) for _ in range(rounds)))
    )
    row("dispatch: tasks/s of workers that do nothing", rate)
    row("dispatch: CPU us per task", each)
    row("dispatch: single submissions/s, pipelined, nobody works", accepted, wanted=">= 3,000")
    sizes = flat()
    base = sizes[min(sizes)]
    for size, cost in sizes.items():
        row(f"dispatch: CPU us per task of an array of {size:,}", cost, base, cost / base, "flat")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=20_000)
    parser.add_argument("--submits", type=int, default=5_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    rounds = [one_round(options.tasks, options.submits) for _ in range(options.rounds)]
    rate, each, accepted = (statistics.median(column) for column in zip(*rounds))
    print(f"dispatch: {rate:,.0f} tasks/s, {each:.0f} us of CPU per task; submissions: {accepted:,.0f}/s")


if __name__ == "__main__":
    main()
