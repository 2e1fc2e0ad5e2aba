"""`Proxy`: a TCP relay in front of a manager that records, cuts, freezes and slows connections on demand.

One thread moves the bytes. The methods may be called from any other; they take effect at once.
"""

from __future__ import annotations

import selectors
import socket
import threading
from typing import Optional

CHUNK_BYTES = 65536
MOST_BUFFERED_BYTES = 1 << 20


class _Half:
    """One socket of a relayed pair, and what waits to be written to it."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.other: Optional[_Half] = None
        self.pending = bytearray()
        self.ended = False  # nothing more will come to be written: shut it down once `pending` is out


class Proxy:
    """Listens on localhost, `port`; relays to `target_port` until `close`."""

    def __init__(self, target_port: int, record: bool = False) -> None:
        self.target_port = target_port
        self.record = record
        self.recorded = bytearray()  # both directions
        self.accepted = 0
        self._refusing = False
        self._frozen = False
        self._cuts = 0
        self._stop = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._halves: set[_Half] = set()
        self._thread = threading.Thread(target=self._run, name="proxy")

    def start(self) -> Proxy:
        self._thread.start()
        return self

    def __enter__(self) -> Proxy:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._stop = True
        self._wake()
        self._thread.join()

    def cut(self) -> None:
        """Break every connection that stands now; new ones are relayed."""
        self._cuts += 1
        self._wake()

    def refuse(self, refusing: bool) -> None:
        """While refusing, new connections are closed at once (those that stand go on)."""
        self._refusing = refusing
        self._wake()

    def freeze(self, frozen: bool) -> None:
        """While frozen, everything stands and nothing moves, as with a pulled cable."""
        self._frozen = frozen
        self._wake()

    def _wake(self) -> None:
        try:
            self._wake_write.send(b"x")
        except OSError:
            pass  # closed, or full: it is awake anyhow

    def _run(self) -> None:
        selector = selectors.DefaultSelector()
        cuts_done = 0
        try:
            while not self._stop:
                if cuts_done != self._cuts:
                    cuts_done = self._cuts
                    for half in list(self._halves):
                        self._drop(half)
                self._register(selector)
                for key, mask in selector.select():
                    self._serve(key.fileobj, key.data, mask)
        finally:
            selector.close()
            for half in list(self._halves):
                self._drop(half)
            for sock in (self._listener, self._wake_read, self._wake_write):
                sock.close()

    def _register(self, selector: selectors.BaseSelector) -> None:
        """Tell the selector what is wanted now (the sets are small, so it is told afresh each turn)."""
        for key in list(selector.get_map().values()):
            selector.unregister(key.fileobj)
        selector.register(self._wake_read, selectors.EVENT_READ)
        if self._frozen:
            return
        selector.register(self._listener, selectors.EVENT_READ)
        for half in self._halves:
            assert half.other is not None
            mask = 0
            if not half.other.ended and len(half.other.pending) < MOST_BUFFERED_BYTES:
                mask |= selectors.EVENT_READ
            if half.pending:
                mask |= selectors.EVENT_WRITE
            if mask:
                selector.register(half.sock, mask, half)

    def _serve(self, sock: object, half: Optional[_Half], mask: int) -> None:
        if sock is self._wake_read:
            self._wake_read.recv(CHUNK_BYTES)
        elif sock is self._listener:
            self._accept()
        elif half is not None and half in self._halves:
            try:
                if mask & selectors.EVENT_READ:
                    self._read(half)
                if mask & selectors.EVENT_WRITE:
                    del half.pending[: half.sock.send(half.pending)]
                    self._finish(half)
            except BlockingIOError:
                pass
            except OSError:
                self._drop(half)

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        self.accepted += 1
        if self._refusing:
            sock.close()
            return
        try:
            onward = socket.create_connection(("127.0.0.1", self.target_port), timeout=10)
        except OSError:
            sock.close()
            return
        near, far = _Half(sock), _Half(onward)
        near.other, far.other = far, near
        for each in (near, far):
            each.sock.setblocking(False)
            each.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._halves.add(each)

    def _read(self, half: _Half) -> None:
        data = half.sock.recv(CHUNK_BYTES)
        assert half.other is not None
        if self.record:
            self.recorded += data
        if data:
            half.other.pending += data
        else:
            half.other.ended = True
            self._finish(half.other)

    def _finish(self, half: _Half) -> None:
        """Pass an end of stream on once all before it is written; drop the pair when both ways have ended."""
        assert half.other is not None
        if half.ended and not half.pending:
            if half.other.ended and not half.other.pending:
                self._drop(half)
            else:
                half.sock.shutdown(socket.SHUT_WR)

    def _drop(self, half: _Half) -> None:
        for each in (half, half.other):
            if each is not None:
                self._halves.discard(each)
                each.sock.close()
