"""Content that this worker misses, fetched from the manager by hash; and the size of its cache.

    want(hashes, then) → need → blob pieces → Blobs → then(problem)

All methods belong to the loop's thread; the last piece of something large, with the check of its hash, is stored in a
helper thread. A cut connection changes nothing: on the next one what is missing is asked for again.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Optional

from .reports import Sender
from .spool import Blobs

log = logging.getLogger(__name__)

Then = Callable[[Optional[str]], None]
Helper = Callable[[Callable[[], Any], Callable[[Any, Optional[Exception]], None]], None]

AT_A_TIME = 256  # hashes asked for and not here yet: small things of other jobs get their turn
HASHES_PER_MESSAGE = 200
LARGE_BYTES = 16 << 20
TRIES = 3  # for content that arrives broken


class _Wish:
    """Somebody waits for several hashes."""

    __slots__ = ("missing", "then")

    def __init__(self, missing: set[str], then: Then) -> None:
        self.missing, self.then = missing, then


class Fetches:
    """`helper(work, done)` runs work() elsewhere, then done(result, error) here; `pinned()` gives what is in use."""

    def __init__(self, blobs: Blobs, helper: Helper, pinned: Callable[[], set[str]], limit_bytes: int) -> None:
        self.blobs = blobs
        self.cache_bytes = blobs.total_bytes()
        self._helper, self._pinned, self._limit = helper, pinned, limit_bytes
        self._evict_above = limit_bytes
        self._conn: Optional[Sender] = None
        self._wishes: dict[str, list[_Wish]] = {}  # by hash
        self._asked: set[str] = set()
        self._to_ask: deque[str] = deque()
        self._broken: dict[str, int] = {}  # how often it arrived broken
        self._make_room()

    def want(self, hashes: Iterable[str], then: Then) -> None:
        """Call then(None) once all are here (at once if they are), or then(why not)."""
        missing = set(self.blobs.missing(list(hashes)))
        if not missing:
            then(None)
            return
        wish = _Wish(missing, then)
        for name in sorted(missing):
            if name not in self._wishes:
                self._to_ask.append(name)
            self._wishes.setdefault(name, []).append(wish)
        self._ask()

    def on_welcome(self, conn: Sender) -> None:
        self._conn = conn
        self._asked.clear()
        self._to_ask = deque(self._wishes)
        self._ask()

    def on_disconnected(self) -> None:
        self._conn = None

    def _ask(self) -> None:
        names = []
        while self._conn is not None and self._to_ask and len(self._asked) < AT_A_TIME:
            name = self._to_ask.popleft()
            if name in self._wishes and name not in self._asked:
                self._asked.add(name)
                names.append(name)
        for start in range(0, len(names), HASHES_PER_MESSAGE):
            assert self._conn is not None
            self._conn.send({"t": "need", "hashes": names[start : start + HASHES_PER_MESSAGE]})

    # -- what comes ----------------------------------------------------------------------------------------------------

    def on_blob(self, name: str, size: int, offset: int, payload: bytes) -> None:
        """A piece. Those that do not go on where we are (a repeat, or one of an earlier question) change nothing."""
        if name not in self._wishes:
            return
        if size > LARGE_BYTES and offset + len(payload) >= size:
            self._helper(
                lambda: self._store(name, size, offset, payload), lambda whole, error: self._stored(name, whole, error)
            )
            return
        try:
            whole, error = self._store(name, size, offset, payload), None
        except (OSError, ValueError) as problem:
            whole, error = False, problem
        self._stored(name, whole, error)

    def _store(self, name: str, size: int, offset: int, data: bytes) -> bool:
        """Whether it is whole now. Raises OSError, ValueError."""
        stored, whole = self.blobs.upload(name, size, offset, data)
        if not whole and offset < stored < offset + len(data):  # half of this piece was here
            stored, whole = self.blobs.upload(name, size, stored, data[stored - offset :])
        if whole:
            self.cache_bytes += size
        return whole

    def _stored(self, name: str, whole: bool, error: Optional[Exception]) -> None:
        if error is None:
            if whole:
                self._settle(name, None)
            return
        if isinstance(error, ValueError):
            self._broken[name] = self._broken.get(name, 0) + 1
            if self._broken[name] < TRIES:
                self._asked.discard(name)
                self._to_ask.append(name)
                self._ask()
                return
        reason = getattr(error, "strerror", None) or str(error)
        self._settle(name, f"its files could not be stored here: {reason}")

    def on_missing(self, name: str) -> None:
        """The manager does not have it."""
        self._settle(name, "the manager does not have its files any more")

    def _settle(self, name: str, problem: Optional[str]) -> None:
        self._asked.discard(name)
        self._broken.pop(name, None)
        for wish in self._wishes.pop(name, ()):
            if problem is not None:
                then, wish.then = wish.then, _nothing
                then(problem)
                continue
            wish.missing.discard(name)
            if not wish.missing:
                wish.then(None)
        self._make_room()
        self._ask()

    # -- the cache -----------------------------------------------------------------------------------------------------

    def _make_room(self) -> None:
        """Past the limit, evict the least recently used, down to nine tenths of it; not again before it has grown by
        another tenth, should all of it be in use."""
        if self.cache_bytes <= self._evict_above:
            return
        self.blobs.evict(self._limit * 9 // 10, self._pinned() | set(self._wishes))
        self.cache_bytes = self.blobs.total_bytes()
        self._evict_above = max(self._limit, self.cache_bytes + self._limit // 10)


def _nothing(_problem: Optional[str]) -> None:
    pass
