"""1,000 workers with nothing to do, on one manager, then 1,000 clients that follow a job besides: what the manager needs
for them, and how it hands out work to so many. The workers are connections of this process that speak the protocol."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from src.channel import ClientChannel
from src.follow import POLL_S
from src.keys import PeerKey, load_peer_key
from src.link import Link
from src.loop import Loop
from src.net import Conn, connect

from .clusters import Bench, Cluster, cpu_seconds, private_mb, resident_mb, row
from .dispatch import DIGEST, SCRIPT, IdleHands, running_loop, submission, submit_array

COUNT = 1000
AT_ONCE = 100  # connections that are being made; a manager lets in so many strangers at a time, and some more
SETTLE_S = 6.0  # connections made in a burst beat in a burst at first
WATCH_S = 30.0
TASKS = 20_000


class Follower:
    """A client that waits for the output of a job that does not start, with one long poll after the other."""

    def __init__(self, loop: Loop, key: PeerKey, port: int, job: int) -> None:
        self.job = job
        self.polls = 0
        self.welcomed = threading.Event()
        self.error: Exception | None = None
        connect(loop, "127.0.0.1", port, lambda: ClientChannel(key, "client", "x"), self, self._failed)

    def _failed(self, error: Exception | None) -> None:
        self.error = error
        self.welcomed.set()

    def opened(self, conn: Conn) -> None:
        self._ask(conn)
        self.welcomed.set()

    def _ask(self, conn: Conn) -> None:
        self.polls += 1
        conn.send(
            {
                "t": "read", "n": self.polls, "job": self.job, "lo": 0, "hi": 0, "pos": 0, "out": 0, "err": 0, "attempt": 0,
                "wait": POLL_S, "live": True,
            }
        )  # fmt: skip

    def received(self, conn: Conn, header: dict[str, Any], payload: bytes) -> None:
        if header["t"] == "ok":
            self._ask(conn)
        elif header["t"] == "error":
            self.error = RuntimeError(header["message"])

    def closed(self, conn: Conn, error: Exception | None) -> None:
        self._failed(error or ConnectionError("closed"))


def scale(bench: Bench, jobs: int, rounds: int) -> None:
    with Cluster(bench, slots=0) as cluster, running_loop() as loop:
        port, pid = cluster.port, cluster.manager.pid
        worker, client = (load_peer_key(role, environ=bench.environ) for role in ("worker", "client"))
        before, cpu, begin = private_mb([pid]), cpu_seconds(pid), time.monotonic()
        workers = _crowd(lambda n: IdleHands(loop, worker, port, n))
        row("scale: 1,000 workers join, s", time.monotonic() - begin)
        row("scale: CPU ms of the manager for each", (cpu_seconds(pid) - cpu) / COUNT * 1e3)
        _watch("1,000 idle workers", pid, "<= 150 (80)", "<= 3 (1)")
        row("scale: private memory for each, kB", (private_mb([pid]) - before) * 1e3 / COUNT)
        with Link("127.0.0.1", port, client) as link:
            _work(pid, link)
            header = {**submission(on=["nowhere"]), "inline": [[DIGEST, len(SCRIPT)]]}
            job = link.request(header, SCRIPT)[0]["id"]
        followers = _crowd(lambda _: Follower(loop, client, port, job))
        _watch("and 1,000 followers", pid, "", "")
        broken = [each.error for each in [*workers, *followers] if each.error is not None]
        if broken:
            raise SystemExit(f"{len(broken)} connections broke: {broken[0]}")


def _crowd(make: Callable[[int], Any]) -> list[Any]:
    found: list[Any] = []
    for n in range(COUNT):
        found.append(make(n))
        if n >= AT_ONCE:
            found[n - AT_ONCE].welcomed.wait()
    for each in found:
        each.welcomed.wait()
    return found


def _watch(name: str, pid: int, memory: str, share: str) -> None:
    pause = threading.Event()  # nothing to wait for: time itself is measured
    pause.wait(SETTLE_S)
    cpu, begin = cpu_seconds(pid), time.monotonic()
    pause.wait(WATCH_S)
    percent = (cpu_seconds(pid) - cpu) / (time.monotonic() - begin) * 100
    row(f"scale: {name}: CPU % of the manager", percent, wanted=share)
    row(f"scale: {name}: resident memory of the manager, MB", resident_mb(pid), wanted=memory)
    row(f"scale: {name}: of that private", private_mb([pid]))


def _work(pid: int, link: Link) -> None:
    cpu, begin = cpu_seconds(pid), time.perf_counter()
    job = submit_array(link, TASKS)
    link.request({"t": "wait", "ids": [{"job": job}], "timeout": None})
    row("scale: tasks/s on 1,000 workers that do nothing", TASKS / (time.perf_counter() - begin))
    row("scale: CPU us of the manager per task", (cpu_seconds(pid) - cpu) / TASKS * 1e6)
