"""A worker's connection to its manager: made, and made again after each end, with growing pauses.

    connect … opened(conn) … received … closed → pause → connect …      until `end`, a key that is refused, or the limit

Knows nothing of what is said. All methods belong to the loop's thread.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import Any, Optional, Protocol

from . import keys, net
from .channel import ClientChannel
from .core.errors import KeyProblem, Unreachable
from .loop import Loop

log = logging.getLogger(__name__)

PAUSE_FIRST_S = (
    0.25  # before the first new try; doubles, and is cut by chance: a thousand workers must not come at once
)
PAUSE_MAX_S = 15.0


class Owner(Protocol):
    """Who talks over the connection."""

    def on_connection(self, conn: net.Conn) -> None: ...
    def on_message(self, header: dict[str, Any], payload: bytes) -> None: ...
    def on_cut(self) -> None: ...
    def on_give_up(self, code: int, error: Optional[Exception]) -> None:
        """There will be no further connection. Code 0: as asked for by `end`."""


class Uplink:
    """`key` None: --insecure. `limit_s`: how long to try in vain while `may_give_up()`; None: for ever."""

    def __init__(
        self,
        loop: Loop,
        address: tuple[str, int],
        key: Optional[keys.PeerKey],
        owner: Owner,
        limit_s: Optional[float],
        may_give_up: Callable[[], bool],
    ) -> None:
        self.where = net.shown(address)
        self.conn: Optional[net.Conn] = None
        self._loop, self._address, self._key, self._owner = loop, address, key, owner
        self._context = keys.client_context() if key is not None else None
        self._limit_s, self._may_give_up = limit_s, may_give_up
        self._tries = 0
        self._away_since = time.monotonic()
        self._ending = False

    def connect(self) -> None:
        if not self._ending:
            net.connect(self._loop, *self._address, self._channel, self, self._failed)

    def _channel(self) -> ClientChannel:
        return ClientChannel(self._key, "worker", self.where, self._context)

    def welcomed(self) -> None:
        """The manager took us: pauses are short again."""
        self._tries = 0

    def end(self, last: dict[str, Any]) -> None:
        """Say `last` if there is a connection, and be done."""
        if self._ending:
            return
        self._ending = True
        if self.conn is None:
            self._owner.on_give_up(0, None)
        else:
            self.conn.send(last)
            self.conn.close("leaving")

    def abort(self) -> None:
        """At once, and without a word to anybody."""
        self._ending = True
        conn, self.conn = self.conn, None
        if conn is not None:
            conn.abort()

    def _failed(self, error: Exception) -> None:
        """There is no connection: try again after a while, or give up."""
        if self._ending:
            return
        away_s = time.monotonic() - self._away_since
        pause_s = min(PAUSE_MAX_S, PAUSE_FIRST_S * 2.0**self._tries) * random.uniform(0.5, 1.0)
        self._tries = min(self._tries + 1, 10)
        if self._limit_s is not None and self._may_give_up():
            if away_s >= self._limit_s:
                self._give_up(1, Unreachable(f"{error}; gave up after {self._limit_s:g} s (--connect-timeout)"))
                return
            pause_s = min(pause_s, max(0.05, self._limit_s - away_s))
        log.warning("%s; trying again in %.1f s", error, pause_s)
        self._loop.call_later(pause_s, self.connect)

    def _give_up(self, code: int, error: Exception) -> None:
        self._ending = True
        self._owner.on_give_up(code, error)

    # -- as the handler of its connection ------------------------------------------------------------------------------

    def opened(self, conn: net.Conn) -> None:
        self.conn = conn
        self._owner.on_connection(conn)

    def received(self, conn: net.Conn, header: dict[str, Any], payload: bytes) -> None:
        if conn is self.conn:
            self._owner.on_message(header, payload)

    def closed(self, conn: net.Conn, error: Optional[Exception]) -> None:
        if conn is self.conn:
            self.conn = None
            self._away_since = time.monotonic()
            self._owner.on_cut()
            if self._ending:
                self._owner.on_give_up(0, None)
        if self._ending:
            return
        if isinstance(error, KeyProblem):
            self._give_up(77, error)
        else:
            self._failed(error or Unreachable(f"{self.where} closed the connection"))
