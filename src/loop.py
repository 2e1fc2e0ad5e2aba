"""The event loop of manager and worker: readiness, timers, calls from other threads.

One thread, the loop's, calls everything here but `call_threadsafe` and `stop`.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol


class Sending(Protocol):
    """What has something to send at the end of a turn."""

    def flush(self) -> None: ...


class Timer:
    """A call that is due; `cancel` takes it back."""

    __slots__ = ("cancelled", "fn")

    def __init__(self, fn: Callable[[], Any]) -> None:
        self.fn = fn
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True
        self.fn = _nothing  # the timer stays until it would be due, what it was to call need not


def _nothing() -> None:
    pass


class Loop:
    """Readiness, timers, and calls from other threads."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, Timer]] = []
        self._serial = itertools.count()
        self._calls: deque[Callable[[], Any]] = deque()
        self._wake_r, self._wake_w = socket.socketpair()
        self._wake_r.setblocking(False)
        self._wake_w.setblocking(False)
        self._awake = False
        self._lock = threading.Lock()  # guards _awake against the writer of the wake-up byte, and the two below
        self._handed: set[socket.socket] = set()  # sockets on their way to this thread
        self._closed = False
        self._running = False
        self._dirty: dict[Any, None] = {}  # connections with something to send
        self._after: list[Callable[[], Any]] = []
        self.selector.register(self._wake_r, selectors.EVENT_READ, self._drain_wake)

    def run(self) -> None:
        """Until `stop`."""
        self._running = True
        while self._running:
            self.turn(None)

    def turn(self, limit_s: float | None) -> None:
        """Wait for what comes, at most `limit_s`, and handle it."""
        for key, mask in self.selector.select(self._timeout(limit_s)):
            key.data(mask)
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            timer = heapq.heappop(self._timers)[2]
            if not timer.cancelled:
                timer.fn()
        for _ in range(len(self._calls)):
            self._calls.popleft()()
        after, self._after = self._after, []
        for fn in after:
            fn()
        while self._dirty:
            dirty, self._dirty = self._dirty, {}
            for conn in dirty:
                conn.flush()

    def _timeout(self, limit_s: float | None) -> float | None:
        if self._calls or self._dirty or self._after:
            return 0.0
        while self._timers and self._timers[0][2].cancelled:
            heapq.heappop(self._timers)
        if self._timers:
            due = max(0.0, self._timers[0][0] - time.monotonic())
            return due if limit_s is None else min(due, limit_s)
        return limit_s

    def _drain_wake(self, _mask: int) -> None:
        with self._lock:
            self._awake = False
            with contextlib.suppress(BlockingIOError):
                self._wake_r.recv(4096)

    def stop(self) -> None:
        """End `run` after the present turn. Any thread, and signal handlers."""
        self._running = False
        with contextlib.suppress(OSError):
            self._wake_w.send(b"s")

    def close(self) -> None:
        """Free the loop's descriptors, and the sockets that did not arrive any more; it must not run."""
        with self._lock:
            self._closed = True
            handed, self._handed = self._handed, set()
        for sock in handed:
            sock.close()
        self.selector.close()
        self._wake_r.close()
        self._wake_w.close()

    def call_threadsafe(self, fn: Callable[[], Any]) -> None:
        """Have the loop's thread call fn() soon. Any thread."""
        self._calls.append(fn)
        with self._lock:
            if self._awake:
                return
            self._awake = True
            with contextlib.suppress(BlockingIOError, OSError):
                self._wake_w.send(b"w")

    def hand_over(self, sock: socket.socket, fn: Callable[[socket.socket], Any]) -> None:
        """Have the loop's thread call fn(sock) soon; the socket is closed if the loop ends before that. Any thread."""
        with self._lock:
            if not self._closed:
                self._handed.add(sock)
        if self._closed:
            sock.close()
            return

        def take() -> None:
            with self._lock:
                self._handed.discard(sock)
            fn(sock)

        self.call_threadsafe(take)

    def call_soon(self, fn: Callable[[], Any]) -> None:
        """At the end of this turn, before what was queued is sent."""
        self._after.append(fn)

    def call_later(self, seconds: float, fn: Callable[[], Any]) -> Timer:
        timer = Timer(fn)
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._serial), timer))
        return timer

    def add_reader(self, fd: Any, fn: Callable[[], Any]) -> None:
        """fn() whenever fd can be read."""
        self.selector.register(fd, selectors.EVENT_READ, lambda _mask: fn())

    def remove_reader(self, fd: Any) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self.selector.unregister(fd)

    def mark(self, conn: Sending) -> None:
        self._dirty[conn] = None
