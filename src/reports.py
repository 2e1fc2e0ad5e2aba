"""What a worker tells the manager, collected over one turn of the loop into as few `report` messages as possible.

Owns nothing but what is about to be sent. Starts are told a moment late, so that a task that ends at once is told in
one go. All methods belong to the loop's thread; while there is no connection everything said here is dropped, because
the next join tells it all again.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any, Optional, Protocol

from .core.jobs import TaskKey

MOMENT_S = 0.015  # a line of output may wait so long for company; twice that is far below what a person notices
PAYLOAD_BYTES = 768 * 1024  # of one message; the largest single piece on top stays below the frame's 1 MiB
ITEMS = 64  # of one message: even with long reasons, escaped, its JSON stays below the frame's 256 KiB
PATIENCE_S = 0.05  # the end of a task waits so long for others while the next ones are here: the manager need not hurry
OUTBOX_BYTES = 2 << 20  # no more output while so much waits for the network


class Sender(Protocol):
    """The part of a connection that is used here."""

    @property
    def outbox_bytes(self) -> int: ...

    def send(self, header: dict[str, Any], payload: Any = b"") -> None: ...


class Later:
    """Calls fn(item) MOMENT_S after add(item), in order, with one timer for all. Whoever loses interest in an item lets
    fn find out."""

    def __init__(self, loop: Any, fn: Callable[[Any], None]) -> None:
        self._loop, self._fn = loop, fn
        self._items: deque[tuple[float, Any]] = deque()
        self._armed = False

    def add(self, item: Any) -> None:
        self._items.append((time.monotonic() + MOMENT_S, item))
        if not self._armed:
            self._armed = True
            self._loop.call_later(MOMENT_S, self._due)

    def _due(self) -> None:
        now = time.monotonic() + 0.001
        while self._items and self._items[0][0] <= now:
            self._fn(self._items.popleft()[1])
        self._armed = bool(self._items)
        if self._armed:
            self._loop.call_later(self._items[0][0] - now, self._due)


class Reports:
    """See the module. `conn` is the connection, once welcomed, else None. `supplied` tells whether there is work here that
    waits for a slot: then nobody is idle because the manager hears of an end a moment later, and one message, one
    transaction and one acknowledgement for several ends cost a third (measured with tasks of 6 ms)."""

    def __init__(self, loop: Any, supplied: Callable[[], bool] = lambda: False) -> None:
        self.conn: Optional[Sender] = None
        self._loop = loop
        self._supplied = supplied
        self._early: dict[TaskKey, Optional[list[Any]]] = {}  # attempts that are young, and how they started
        self._armed = self._patient = False
        self._begin()

    def _begin(self) -> None:
        self._started: list[Any] = []
        self._output: list[Any] = []
        self._finished: list[Any] = []
        self._recalled: list[Any] = []
        self._pieces: list[bytes] = []  # of the outputs
        self._tails: list[bytes] = []  # of what finished; they come after all outputs
        self._bytes = 0
        self._items = 0

    def _room(self, size: int, urgent: bool = True) -> None:
        """Make sure that an item with so much payload fits, and that it leaves in time."""
        if self._items and (self._items >= ITEMS or self._bytes + size > PAYLOAD_BYTES):
            self._send()
        self._items += 1
        self._bytes += size
        if urgent or not self._supplied():
            if not self._armed:
                self._armed = True
                self._loop.call_soon(self.flush)
        elif not self._patient:
            self._patient = True
            self._loop.call_later(PATIENCE_S, self._on_patience)

    def _on_patience(self) -> None:
        self._patient = False
        self.flush()

    def young(self, key: TaskKey) -> None:
        """An attempt begins. Its start is not told before `grown` is called; not at all if it ends before."""
        self._early[key] = None

    def grown(self, key: TaskKey) -> None:
        item = self._early.pop(key, None)
        if item is not None and self.conn is not None:
            self._room(0, urgent=False)
            self._started.append(item)

    def started(self, key: TaskKey, at: float, warm: bool, why_cold: Optional[str]) -> None:
        if self.conn is None:
            return
        item = [*key, at, warm, why_cold]
        if key in self._early:
            self._early[key] = item
        else:
            self._room(0, urgent=False)
            self._started.append(item)

    def output(self, key: TaskKey, stream: int, offset: int, data: bytes) -> None:
        if self.conn is not None:
            self._room(len(data))
            self._output.append([*key, stream, offset, len(data)])
            self._pieces.append(data)

    def finished(self, fin: dict[str, Any], out: bytes, err: bytes) -> None:
        """`fin` as the protocol has it; out and err are the inline bytes that it announces."""
        self._early.pop(TaskKey(*fin["task"]), None)
        if self.conn is not None:
            self._room(len(out) + len(err), urgent=False)
            self._finished.append(fin)
            self._tails += (out, err)

    def recalled(self, key: TaskKey) -> None:
        if self.conn is not None:
            self._room(0)
            self._recalled.append(list(key))

    def full(self) -> bool:
        """Whether output should wait: there is no connection, or it is busy."""
        return self.conn is None or self.conn.outbox_bytes + self._bytes > OUTBOX_BYTES

    def flush(self) -> None:
        self._armed = False
        if self._items:
            self._send()

    def _send(self) -> None:
        header: dict[str, Any] = {"t": "report"}
        for name in ("started", "output", "finished", "recalled"):
            items = getattr(self, "_" + name)
            if items:
                header[name] = items
        payload = b"".join(self._pieces + self._tails)
        conn = self.conn
        self._begin()
        if conn is not None:
            conn.send(header, payload)

    def clear(self) -> None:
        """The connection is gone, with all that was about to be told."""
        self.conn = None
        self._early.clear()
        self._begin()
