"""Strangers at the manager's port: do jobs run as usual, and is everything as before when they are gone?

    python3 -m tests.benchmarks.flood [--seconds 60] [--idle 500] [--garbage 50] [--every 3]

--idle connections are held all the time (half of them before TLS, half after it, before authentication; one that is closed
is made again at once), --garbage more come each second: random bytes, huge lengths, broken TLS, HTTP, truncated frames
inside true TLS, single bytes now and then. Meanwhile a job runs every few seconds, and a client connects. Exit 1 when a job
failed, a client was not let in within 2 s, memory grew by 50 MB or did not return, descriptors did not return, or a log
holds a traceback. Linux.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import select
import socket
import ssl
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from src.core.errors import MicroclusterError
from src.keys import ManagerKeys, PeerKey
from src.link import Link
from tests.support.servers import Manager, Worker, client, running_manager, running_worker, write_script
from tests.support.waiting import StillWaiting, wait_until

GROWTH_MB, LEFT_MB = 50.0, 10.0
LET_IN_S = 2.0
SETTLE_S = 30.0  # for what the flood left: connections that nobody closed are cut off after 10 s
SLOW_MAX = 100


class Stranger(threading.Thread):
    """Does something at the port again and again until the event is set."""

    def __init__(self, port: int, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.port, self.stopping = port, stop
        self.opened = 0
        self._context = ssl._create_unverified_context()

    def connect(self, tls: bool) -> socket.socket:
        self.opened += 1
        sock = socket.create_connection(("localhost", self.port), timeout=5)
        if not tls:
            return sock
        try:
            return self._context.wrap_socket(sock)
        except BaseException:
            sock.close()
            raise


class Holder(Stranger):
    """Holds connections, and says nothing on them."""

    def __init__(self, port: int, stop: threading.Event, count: int, tls: bool) -> None:
        super().__init__(port, stop)
        self._count, self._tls = count, tls
        self.held: dict[int, socket.socket] = {}

    def run(self) -> None:
        poll = select.poll()
        while not self.stopping.is_set():
            while len(self.held) < self._count and not self.stopping.is_set():
                try:
                    sock = self.connect(self._tls)
                except (OSError, ssl.SSLError):
                    break
                self.held[sock.fileno()] = sock
                poll.register(sock, select.POLLIN)
            for fd, _ in poll.poll(20):
                self._read(poll, fd)
        for sock in self.held.values():
            sock.close()

    def _read(self, poll: Any, fd: int) -> None:
        sock = self.held[fd]
        sock.setblocking(False)
        try:
            if sock.recv(4096):
                return
        except (BlockingIOError, ssl.SSLWantReadError):
            return
        except OSError:
            pass
        poll.unregister(fd)
        del self.held[fd]
        sock.close()


class Garbage(Stranger):
    """So many connections a second that bring what nobody wants."""

    def __init__(self, port: int, stop: threading.Event, per_second: float) -> None:
        super().__init__(port, stop)
        self._pause = 1.0 / per_second
        self._chance = random.Random(1)
        self._slow: list[socket.socket] = []

    def run(self) -> None:
        kinds: list[Callable[[], None]] = [
            self._random, self._huge, self._broken_tls, self._http, self._truncated, self._huge_inside, self._drip,
        ]  # fmt: skip
        due = time.monotonic()
        while not self.stopping.is_set():
            for kind in kinds:
                with contextlib.suppress(OSError, ssl.SSLError):
                    kind()
                for sock in list(self._slow):
                    self._one_byte(sock)
                due += self._pause
                self.stopping.wait(max(0.0, due - time.monotonic()))
        for sock in self._slow:
            sock.close()

    def _bring(self, data: bytes, tls: bool = False) -> None:
        with self.connect(tls) as sock:
            sock.sendall(data)
            if self._chance.random() < 0.5:  # the others leave at once
                sock.settimeout(1.0)
                while sock.recv(4096):
                    pass

    def _random(self) -> None:
        self._bring(bytes(self._chance.randrange(256) for _ in range(self._chance.randrange(1, 2000))))

    def _huge(self) -> None:
        self._bring(b"\xff\xff\xff\xff" * 4 + b"x" * 1000)

    def _broken_tls(self) -> None:
        self._bring(b"\x16\x03\x01\x40\x00" + bytes(self._chance.randrange(256) for _ in range(3000)))

    def _http(self) -> None:
        self._bring(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")

    def _truncated(self) -> None:
        self._bring(b"\0\0\1\0\0\0\0\0" + b'{"t":"hello","protocol":1,"role":', tls=True)

    def _huge_inside(self) -> None:
        self._bring(b"\x7f\xff\xff\xff\x7f\xff\xff\xff" + b"x" * 5000, tls=True)

    def _drip(self) -> None:
        if len(self._slow) < SLOW_MAX:
            self._slow.append(self.connect(False))

    def _one_byte(self, sock: socket.socket) -> None:
        try:
            sock.settimeout(0.0)
            sock.send(b"\x16")
        except BlockingIOError:
            pass
        except OSError:
            self._slow.remove(sock)
            sock.close()


class Watch(threading.Thread):
    """The most memory and descriptors of a process."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid = pid
        self.ended = threading.Event()
        self.peak_mb, self.peak_fds = 0.0, 0

    def rss_mb(self) -> float:
        found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{self._pid}/status").read_text())
        return int(found[1]) / 1024 if found else 0.0

    def fds(self) -> int:
        return len(os.listdir(f"/proc/{self._pid}/fd"))

    def run(self) -> None:
        while not self.ended.wait(0.1):
            self.peak_mb, self.peak_fds = max(self.peak_mb, self.rss_mb()), max(self.peak_fds, self.fds())


class Users:
    """True clients: they run a job, and connect and ask."""

    def __init__(self, manager: Manager, key: PeerKey) -> None:
        self._manager, self._key = manager, key
        self._script = write_script(manager, "ok.py", "print('ok')\n")
        self.jobs: list[float] = []
        self.connects: list[float] = []
        self.problems: list[str] = []

    def once(self) -> None:
        begin = time.perf_counter()
        try:
            link = Link("localhost", self._manager.port, self._key)
            link.request({"t": "list", "last": 1})
            link.close()
            self.connects.append(time.perf_counter() - begin)
        except MicroclusterError as error:
            self.problems.append(f"a client was not let in: {error}")
        begin = time.perf_counter()
        done = client(self._manager, "run", self._script)
        self.jobs.append(time.perf_counter() - begin)
        if (done.returncode, done.stdout) != (0, "ok\n"):
            self.problems.append(f"a job failed: exit {done.returncode}: {done.stderr.strip()[-300:]}")

    def report(self, when: str) -> None:
        parts = [
            f"{what} median {statistics.median(took) * 1000:.0f} ms, worst {max(took) * 1000:.0f} ms"
            for what, took in (("a job", self.jobs), ("a connection with an answer", self.connects))
            if took
        ]
        print(f"{when}: {'; '.join(parts)} ({len(self.jobs)} times)", flush=True)
        slow = [took for took in self.connects if took > LET_IN_S]
        if slow:
            self.problems.append(f"{len(slow)} clients were not let in within {LET_IN_S:g} s: worst {max(slow):.1f} s")


def flood(manager: Manager, users: Users, args: argparse.Namespace) -> None:
    stop = threading.Event()
    half = args.idle // 2
    strangers = [Holder(manager.port, stop, half, False), Holder(manager.port, stop, args.idle - half, True)]
    every = [*strangers, Garbage(manager.port, stop, args.garbage)]
    for stranger in every:
        stranger.start()
    end = time.monotonic() + args.seconds
    while time.monotonic() < end:
        due = time.monotonic() + args.every
        users.once()
        stop.wait(max(0.0, min(due, end) - time.monotonic()))
    print(f"held at the end: {len(strangers[0].held)} before TLS, {len(strangers[1].held)} after it", flush=True)
    stop.set()
    for stranger in every:
        stranger.join()
    print(f"strangers' connections: {sum(stranger.opened for stranger in every)}", flush=True)


def settled(watch: Watch, rss_mb: float, fds: int) -> list[str]:
    """What is not as before once the flood has gone."""
    with contextlib.suppress(StillWaiting):
        wait_until(lambda: watch.rss_mb() <= rss_mb + LEFT_MB and watch.fds() <= fds, SETTLE_S, "all to be as before")
    problems = []
    if watch.rss_mb() > rss_mb + LEFT_MB:
        problems.append(f"memory did not return: {rss_mb:.0f} MB before, {watch.rss_mb():.0f} MB after")
    if watch.fds() > fds:
        problems.append(f"descriptors did not return: {fds} before, {watch.fds()} after")
    return problems


def measure(manager: Manager, worker: Worker, args: argparse.Namespace) -> int:
    key = ManagerKeys.load_or_create(str(manager.folder / "home")).peer_key("submit")
    watch, users = Watch(manager.pid), Users(manager, key)
    for _ in range(5):
        users.once()
    users.report("before the flood")
    rss_mb, fds = watch.rss_mb(), watch.fds()
    watch.start()
    users.jobs, users.connects = [], []
    flood(manager, users, args)
    users.report("during the flood")
    problems = users.problems + settled(watch, rss_mb, fds)
    watch.ended.set()
    watch.join()
    print(f"memory: {rss_mb:.1f} MB before, {watch.peak_mb:.1f} MB at most, {watch.rss_mb():.1f} MB after")
    print(f"descriptors: {fds} before, {watch.peak_fds} at most, {watch.fds()} after")
    print(f"log lines of the manager: {len(manager.err.splitlines())}")
    if watch.peak_mb - rss_mb >= GROWTH_MB:
        problems.append(f"memory grew by {watch.peak_mb - rss_mb:.0f} MB")
    problems += [f"{one.name}: a traceback\n{one.err[-3000:]}" for one in (manager, worker) if "Traceback" in one.err]
    for problem in problems:
        print(f"PROBLEM: {problem}")
    return 1 if problems else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--idle", type=int, default=500)
    parser.add_argument("--garbage", type=float, default=50.0)
    parser.add_argument("--every", type=float, default=3.0)
    with running_manager() as manager, running_worker(manager) as worker:
        return measure(manager, worker, parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
