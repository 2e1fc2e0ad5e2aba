"""The manager's port: who may connect, how many at once, and who makes room for others before they have proved themselves.

Authenticated connections are the handler's. All in the loop's thread; see net.py.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable
from typing import Any

from . import net
from .channel import Channel
from .core import framing
from .core.errors import LinkError
from .loop import Loop
from .net import Conn, Handler, shown, tune

log = logging.getLogger(__name__)

SILENT_MAX = 1024  # connections that said nothing yet
GREETING_MAX = 256  # those that did, and have not authenticated yet; they have their TLS state, some 20 KB each
ACCEPTS_A_TURN = 64
SPARE_FDS = 64  # for files, when connections take all others
SAY_AGAIN_S = 10.0
SAID_MAX = 1000  # addresses


class Pending:
    """Connections before authentication. Whoever has a key proves it within a few round trips, each at once; so when there
    are too many, the one that was silent longest goes. Those that said nothing yet have places of their own: they cost
    little, and a client may take a moment for its first byte."""

    def __init__(self) -> None:
        self._since: dict[Conn, float] = {}  # all; in each the oldest first
        self._silent: dict[Conn, None] = {}
        self._spoke: dict[Conn, None] = {}

    def __len__(self) -> int:
        return len(self._since)

    def add(self, conn: Conn) -> None:
        if len(self._silent) >= SILENT_MAX:
            self.make_room()
        self._since[conn] = time.monotonic()
        self._silent[conn] = None
        conn.on_heard = self._heard

    def _heard(self, conn: Conn) -> None:
        self._silent.pop(conn, None)
        self._spoke.pop(conn, None)
        self._spoke[conn] = None
        if len(self._spoke) > GREETING_MAX:
            _make_way(next(iter(self._spoke)))

    def remove(self, conn: Conn) -> None:
        self._since.pop(conn, None)
        self._silent.pop(conn, None)
        self._spoke.pop(conn, None)

    def oldest(self) -> tuple[Conn, float] | None:
        """And since when it is here."""
        return next(iter(self._since.items()), None)

    def make_room(self) -> bool:
        """Close one; whether there was one."""
        conn = next(iter(self._silent or self._spoke), None)
        if conn is not None:
            _make_way(conn)
        return conn is not None


def _make_way(conn: Conn) -> None:
    conn.abort(LinkError("it did not authenticate, and others wait"))


class Server:
    """Listens. Before authentication a connection has net.AUTH_S in all, and there are so many of them at most: beyond
    that, newcomers take the places of others. One log line per address and ten seconds about what was refused."""

    def __init__(self, loop: Loop, host: str, port: int, make_channel: Callable[[], Channel], handler: Handler) -> None:
        self._loop, self._make, self._handler = loop, make_channel, handler
        self._pending = Pending()
        self._watching = False
        self.conns: dict[Conn, None] = {}
        self._said: dict[str, tuple[float, int]] = {}
        self._sockets = _listen(host, port)
        self.address: tuple[str, int] = self._sockets[0].getsockname()[:2]
        self._spare = os.open(os.devnull, os.O_RDONLY)
        for sock in self._sockets:
            loop.add_reader(sock, lambda sock=sock: self._accept(sock))  # type: ignore[misc]

    def close(self) -> None:
        """Listen no more; connections stay."""
        for sock in self._sockets:
            self._loop.remove_reader(sock)
            sock.close()
        if self._spare >= 0:
            os.close(self._spare)
        self._sockets, self._spare = [], -1

    def _accept(self, sock: socket.socket) -> None:
        for _ in range(ACCEPTS_A_TURN):
            try:
                new, address = sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._out_of_descriptors(sock, error)
                return
            where = shown(address)
            tune(new)
            if new.fileno() > _fd_limit() and not self._pending.make_room():
                self._turn_away(new, where)
                continue
            conn = Conn(self._loop, new, self._make(), self, where, beats=False)
            self._pending.add(conn)
            self.conns[conn] = None
            if not self._watching:
                self._watch()

    def _watch(self) -> None:
        """Cut off those whose time is over, now and later: with one timer for all, since thousands may come and go."""
        while True:
            oldest = self._pending.oldest()
            self._watching = oldest is not None
            if oldest is None:
                return
            left = oldest[1] + net.AUTH_S - time.monotonic()
            if left > 0:
                self._loop.call_later(left, self._watch)
                return
            oldest[0].cut_off()

    def _turn_away(self, sock: socket.socket, where: str) -> None:
        with contextlib.suppress(OSError):
            text = "the manager has too many connections: try again later"
            sock.send(framing.encode({"t": "error", "code": "busy", "message": text}))
            sock.shutdown(socket.SHUT_WR)
            sock.recv(4096)  # what is unread when it is closed would make the kernel drop the answer
        sock.close()
        self.refused(where, "too many connections at once")

    def _out_of_descriptors(self, sock: socket.socket, error: OSError) -> None:
        """Take the newcomer with the spare descriptor and close it: else accept fails in a circle at full CPU."""
        if self._spare >= 0:
            os.close(self._spare)
            self._spare = -1
            with contextlib.suppress(OSError):
                sock.accept()[0].close()
            with contextlib.suppress(OSError):
                self._spare = os.open(os.devnull, os.O_RDONLY)
        self._pending.make_room()
        self.refused("accept", error.strerror or str(error))

    def refused(self, where: str, why: str) -> None:
        """Say, at most once in ten seconds for an address, that somebody was turned away."""
        host = where.rsplit(":", 1)[0]
        now = time.monotonic()
        if len(self._said) > SAID_MAX:
            self._said = {key: value for key, value in self._said.items() if now - value[0] < SAY_AGAIN_S}
        since, more = self._said.get(host, (0.0, 0))
        if now - since < SAY_AGAIN_S and host in self._said:
            self._said[host] = (since, more + 1)
            return
        log.warning("refused %s: %s%s", where, why, f" (and {more} more)" if more else "")
        self._said[host] = (now, 0)

    # as the handler of its connections, until they are authenticated

    def opened(self, conn: Conn) -> None:
        self._pending.remove(conn)
        conn.start_beats()
        self._handler.opened(conn)

    def received(self, conn: Conn, header: dict[str, Any], payload: bytes) -> None:
        self._handler.received(conn, header, payload)

    def closed(self, conn: Conn, error: Exception | None) -> None:
        self._pending.remove(conn)
        self.conns.pop(conn, None)
        if conn.opened:
            self._handler.closed(conn, error)
        elif error is not None:
            self.refused(conn.address, str(error))


def _fd_limit() -> int:
    try:
        import resource
    except ImportError:
        return 1 << 30
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return (1 << 30) if soft == resource.RLIM_INFINITY else soft - SPARE_FDS


def _listen(host: str, port: int) -> list[socket.socket]:
    """Sockets on every address of the host; the first one's port for all. Raises OSError."""
    found: list[socket.socket] = []
    infos = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    try:
        for family, kind, proto, _, address in dict.fromkeys(infos):
            if found and found[0].family == family:
                continue
            if found:
                address = (address[0], found[0].getsockname()[1], *address[2:])
            sock = socket.socket(family, kind, proto)
            try:
                if os.name == "posix":
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.bind(address)
                sock.listen(1024)
                sock.setblocking(False)
            except OSError:
                sock.close()
                if not found:
                    raise
                continue
            found.append(sock)
    except OSError:
        for sock in found:
            sock.close()
        raise
    found.sort(key=lambda sock: sock.family != socket.AF_INET)
    return found
