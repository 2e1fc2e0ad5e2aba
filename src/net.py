"""Connections in the event loop of manager and worker.

One thread, the loop's, calls everything here. It decides nothing about jobs.
A handler gets opened(conn), received(conn, header, payload) and closed(conn, error). `Conn.send` only queues: all that
one turn of the loop brought leaves in one write. What cannot leave waits; past OUTBOX_MAX the peer is too slow: dropped.
"""

from __future__ import annotations

import contextlib
import logging
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from .channel import Channel
from .core.errors import LinkError, MicroclusterError, Unreachable
from .core.framing import FrameError
from .loop import Loop
from .spool import FileRange

log = logging.getLogger(__name__)

READ_SIZE = 256 * 1024
READ_TURN = 1024 * 1024  # bytes of one connection in one turn: the others wait no longer than that
FILE_PIECE = 256 * 1024
OUTBOX_MAX = 8 * 1024 * 1024  # bytes that wait for a slow peer
OUTBOX_FILE = 1024 * 1024  # files are read on only while less than this waits
PING_AFTER_S = 5.0
SILENT_S = 20.0
AUTH_S = 10.0  # from accept to authenticated, in all


class Handler(Protocol):
    """What a connection tells."""

    def opened(self, conn: Conn) -> None: ...
    def received(self, conn: Conn, header: dict[str, Any], payload: bytes) -> None: ...
    def closed(self, conn: Conn, error: Exception | None) -> None: ...


class Conn:
    """One connection, through its channel."""

    def __init__(
        self, loop: Loop, sock: socket.socket, channel: Channel, handler: Handler, address: str, beats: bool = True
    ) -> None:
        self.loop, self.channel, self.handler, self.address = loop, channel, handler, address
        self.state: Any = None  # the handler's own
        self.is_open = True
        self.opened = False
        self.on_heard: Callable[[Conn], Any] | None = None  # called when bytes came, before authentication
        self.on_drained: Callable[[], Any] | None = None  # called when what waited has left
        self._sock = sock
        self._queue: deque[tuple[dict[str, Any], bytes | FileRange]] = deque()
        self._raw = b""  # sealed, and not taken by the kernel yet
        self._queued_bytes = 0
        self._mask = selectors.EVENT_READ
        self._paused = False
        self._closing: str | None = None
        self.last_heard = self._last_sent = time.monotonic()
        loop.selector.register(sock, self._mask, self._ready)
        loop.mark(self)
        if beats:
            self.start_beats()

    def __repr__(self) -> str:
        return f"<Conn {self.address} {self.peer}>"

    @property
    def peer(self) -> Any:
        return self.channel.peer

    @property
    def outbox_bytes(self) -> int:
        """What waits to leave, without files."""
        return len(self._raw) + self._queued_bytes

    def send(self, header: dict[str, Any], payload: bytes | FileRange = b"") -> None:
        """Queue a message. A FileRange leaves as one frame, or, when it is longer than FILE_PIECE, as several with the
        same header, `offset` advanced and `last` true in the last one."""
        if not self.is_open or self._closing is not None:
            return
        self._queue.append((header, payload))
        if isinstance(payload, bytes):
            self._queued_bytes += len(payload) + 64
        if self.outbox_bytes > OUTBOX_MAX:
            self._fail(LinkError(f"it does not read: {OUTBOX_MAX >> 20} MiB wait for it"))
        else:
            self.loop.mark(self)

    def start_beats(self) -> None:
        """Be heard, and notice silence, from now on; who has not authenticated by then is cut off."""
        self._beat = self.loop.call_later(AUTH_S, self._check_beat)

    def pause(self) -> None:
        """Read no more until `resume`: the peer feels it."""
        self._paused = True
        self._watch()

    def resume(self) -> None:
        self._paused = False
        self._watch()

    def close(self, why: str | None = None) -> None:
        """Send what is queued, then close. `why` is for the log."""
        if self.is_open and self._closing is None:
            self._closing = why or ""
            self.loop.mark(self)
            self.loop.call_later(2.0, lambda: self._fail(None))

    def abort(self, error: Exception | None = None) -> None:
        """Close at once."""
        self._fail(error)

    def cut_off(self) -> None:
        """It had its time to authenticate."""
        self._fail(LinkError(f"it did not authenticate within {AUTH_S:g} s"))

    # -- inside --------------------------------------------------------------------------------------------------------

    def _ready(self, mask: int) -> None:
        if mask & selectors.EVENT_WRITE:
            self.flush()
        if mask & selectors.EVENT_READ and self.is_open:
            self._read()

    def _read(self) -> None:
        taken = 0
        while taken < READ_TURN and self.is_open and not self._paused and self._closing is None:
            try:
                raw = self._sock.recv(READ_SIZE)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                self._fail(LinkError(f"the connection broke: {error.strerror or error}"))
                return
            taken += len(raw)
            self.last_heard = time.monotonic()
            try:
                messages = self.channel.receive(raw)
            except MicroclusterError as error:
                self._say_and_fail(error)
                return
            if not self.opened:
                self._greeted()
            self.loop.mark(self)
            for header, payload in messages:
                kind = header.get("t")
                if kind == "ping":
                    self.send({"t": "pong"})
                elif kind != "pong" and self.is_open:
                    self.handler.received(self, header, payload)
            if len(raw) < READ_SIZE // 4:
                return

    def _greeted(self) -> None:
        if self.channel.ready:
            self.opened, self.on_heard = True, None
            self.handler.opened(self)
        elif self.on_heard is not None:
            self.on_heard(self)

    def _say_and_fail(self, error: Exception) -> None:
        with contextlib.suppress(OSError):
            last = self.channel.outgoing()
            if last and not self._raw:
                self._sock.send(last)
        self._fail(error)

    def flush(self) -> None:
        """Seal what is queued and give the kernel as much as it takes."""
        if not self.is_open:
            return
        try:
            while True:
                self._seal()
                if not self._raw or not self.is_open:
                    break
                sent = self._sock.send(self._raw)
                self._last_sent = time.monotonic()
                self._raw = self._raw[sent:]
                if self._raw:
                    break
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as error:
            self._fail(LinkError(f"the connection broke: {error.strerror or error}"))
            return
        self._watch()
        if not self._raw and not self._queue:
            if self._closing is not None:
                self._fail(None)
            elif self.on_drained is not None:
                self.on_drained()

    def _seal(self) -> None:
        if len(self._raw) >= OUTBOX_FILE:
            return
        taken = 0
        while self._queue and self.channel.ready and taken < OUTBOX_FILE:
            header, payload = self._queue.popleft()
            if isinstance(payload, FileRange):
                header, data = self._piece(header, payload)
            else:
                data = payload
                self._queued_bytes -= len(payload) + 64
            try:
                self.channel.send(header, data)
            except FrameError as error:  # a defect of ours: it costs this connection, not all of them
                log.error("a message to %s cannot be sent: %s", self.address, error)
                self._fail(LinkError(f"a message to it cannot be sent: {error}"))
                return
            taken += len(data) + 64
        out = self.channel.outgoing()
        if out:
            self._raw = self._raw + out if self._raw else out

    def _piece(self, header: dict[str, Any], file: FileRange) -> tuple[dict[str, Any], bytes]:
        """The next piece of a file; the rest goes back to the end of the queue, so that several take turns."""
        length = min(file.length, FILE_PIECE)
        try:
            with open(file.path, "rb", buffering=0) as source:
                source.seek(file.offset)
                data = source.read(length) or b""
        except OSError:
            data = b""
        header = {**header, "offset": header.get("offset", 0)}
        rest = FileRange(file.path, file.offset + len(data), file.length - len(data))
        if rest.length and data:
            self._queue.append(({**header, "offset": header["offset"] + len(data)}, rest))
            header["last"] = False
        else:
            header["last"] = True
        return header, data

    def _watch(self) -> None:
        if not self.is_open:
            return
        mask = 0 if self._paused else selectors.EVENT_READ
        if self._raw or (self._queue and self.channel.ready):
            mask |= selectors.EVENT_WRITE
        if mask == self._mask:
            return
        if not self._mask:
            self.loop.selector.register(self._sock, mask, self._ready)
        elif mask:
            self.loop.selector.modify(self._sock, mask, self._ready)
        else:
            self.loop.selector.unregister(self._sock)
        self._mask = mask

    def _check_beat(self) -> None:
        if not self.is_open:
            return
        now = time.monotonic()
        if not self.channel.ready:
            self.cut_off()
            return
        silent = now - self.last_heard
        if silent > SILENT_S and not self._paused:
            # A loop that was stopped itself (SIGSTOP, a laptop's lid) must look at what waits before it judges.
            self._read()
            if self.is_open and time.monotonic() - self.last_heard > SILENT_S:
                self._fail(LinkError(f"it was silent for {silent:.0f} s"))
                return
        if now - self._last_sent >= PING_AFTER_S - 0.5:
            self.send({"t": "ping"})
        self._beat = self.loop.call_later(PING_AFTER_S, self._check_beat)

    def _fail(self, error: Exception | None) -> None:
        if not self.is_open:
            return
        self.is_open = False
        if self._mask:
            with contextlib.suppress(KeyError, ValueError):
                self.loop.selector.unregister(self._sock)
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()
        self._queue.clear()
        self._raw = b""
        if hasattr(self, "_beat"):
            self._beat.cancel()
        self.handler.closed(self, error)


def tune(sock: socket.socket) -> None:
    """No delay (44 ms with it, measured), and a dead peer noticed: keepalive for idle links, TCP_USER_TIMEOUT for data
    under way. A stopped peer is noticed by heartbeats alone."""
    sock.setblocking(False)
    options = [
        (socket.IPPROTO_TCP, "TCP_NODELAY", 1),
        (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
        (socket.IPPROTO_TCP, "TCP_KEEPIDLE", 10),
        (socket.IPPROTO_TCP, "TCP_KEEPINTVL", 5),
        (socket.IPPROTO_TCP, "TCP_KEEPCNT", 4),
        (socket.IPPROTO_TCP, "TCP_USER_TIMEOUT", 30_000),
    ]
    for level, name, value in options:
        if hasattr(socket, name):
            with contextlib.suppress(OSError):
                sock.setsockopt(level, getattr(socket, name), value)


def shown(address: Any) -> str:
    """HOST:PORT, [HOST]:PORT for IPv6."""
    host, port = address[0], address[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def connect(
    loop: Loop,
    host: str,
    port: int,
    make_channel: Callable[[], Channel],
    handler: Handler,
    failed: Callable[[Exception], Any],
    timeout_s: float = 10.0,
) -> None:
    """Connect in a thread (names may take long to resolve), then go on in the loop.

    `handler.opened` once authenticated, or `failed(error)` when nobody is there; later ends, a wrong key too, are
    `handler.closed`.
    """

    def work() -> None:
        try:
            sock = socket.create_connection((host, port), timeout=timeout_s)
        except OSError as error:
            problem = Unreachable(f"cannot reach {shown((host, port))}: {error.strerror or error}")
            loop.call_threadsafe(lambda: failed(problem))
            return
        loop.hand_over(sock, begin)

    def begin(sock: socket.socket) -> None:
        tune(sock)
        try:
            Conn(loop, sock, make_channel(), handler, shown((host, port)))
        except MicroclusterError as error:
            sock.close()
            failed(error)

    threading.Thread(target=work, name="connect", daemon=True).start()
