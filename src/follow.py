"""Output of tasks to where it belongs, in order, byte for byte, to the end and no further.

Pulls by offset with one request ahead. A connection that breaks is made again, for as long as allowed, and reading goes
on at the byte where it was: a broken connection never passes for the end of a job.
"""

from __future__ import annotations

import sys
import time
from _thread import allocate_lock

from .console import Broken, say, write_all
from .core.errors import LinkError
from .core.records import TYPE_CHECKING
from .link import PAUSE_MAX_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from .link import Link

POLL_S = 25.0


class Connection:
    """A link that comes back. `retry_s`: how long the manager may be away, counted from the last answer. Any thread."""

    def __init__(self, make: Callable[[float], Link], link: Link, retry_s: float, say: Callable[[str], Any]) -> None:
        self._make, self.link, self._retry_s, self._say = make, link, retry_s, say
        self._lock = allocate_lock()  # held while connecting again: one thread does it, the others use what it made
        self._since: float | None = None  # monotonic time of the first break since the last answer
        self._pause_s = 0.0

    def again(self, error: LinkError, broken: Link | None = None) -> None:
        """After a break of `broken` (default: the link that there is): connect again, or raise what went wrong."""
        with self._lock:
            if broken is not None and self.link is not broken:
                return
            now = time.monotonic()
            self._since = now if self._since is None else self._since
            left = self._since + self._retry_s - now
            if left <= 0:
                raise error
            self._say(f"{error}; connecting again")
            self.link.close()
            time.sleep(min(self._pause_s, left))  # a manager that breaks off each time is not stormed
            self._pause_s = min(self._pause_s * 2 + 0.1, PAUSE_MAX_S)
            self.link = self._make(left)
            self._say("connected again")

    def answered(self) -> None:
        """An answer came: a later break has all the time again."""
        self._since, self._pause_s = None, 0.0

    def request(self, header: dict[str, Any], payload: bytes = b"") -> tuple[dict[str, Any], bytes]:
        """Ask, across breaks: only for what may be asked twice."""
        while True:
            link = self.link
            try:
                answer = link.request(header, payload)
                self.answered()
                return answer
            except LinkError as error:
                self.again(error, link)


class Follower:
    """Reads tasks lo..hi of a job, from `pos` on. Goes on at the same byte after a break of the connection."""

    def __init__(self, connection: Connection, job: int, lo: int, hi: int, live: bool, wait: bool) -> None:
        self.connection = connection
        self.job, self.lo, self.hi, self.live, self.wait = job, lo, hi, live, wait
        self.pos, self.attempt, self.out, self.err = lo, 0, 0, 0
        self.done = False  # all is read
        self.idle: Callable[[], Any] | None = None  # called about twice a second while nothing comes

    def run(self, emit: Callable[[dict[str, Any], bytes, bytes], Any]) -> bool:
        """emit(segment, out, err) for each piece; whether all is read (without `wait`: or there is no more yet)."""
        for segment, out, err in self.pieces():
            emit(segment, out, err)
        return self.done

    def pieces(self) -> Iterator[tuple[dict[str, Any], bytes, bytes]]:
        """(segment, out, err), until all is read or, without `wait`, there is nothing more yet."""
        while not self.done:
            link = self.connection.link
            try:
                yield from self._pieces(link)
                if not self.wait:
                    return
            except LinkError as error:
                self.connection.again(error, link)

    def _header(self) -> dict[str, Any]:
        return {
            "t": "read", "job": self.job, "lo": self.lo, "hi": self.hi, "pos": self.pos, "out": self.out,
            "err": self.err, "attempt": self.attempt, "wait": POLL_S if self.wait else 0, "live": self.live,
        }  # fmt: skip

    def _pieces(self, link: Link) -> Iterator[tuple[dict[str, Any], bytes, bytes]]:
        number = link.post(self._header())
        while True:
            answer, payload = self._answer(link, number)
            self.connection.answered()
            segments = answer["tasks"]
            self.done = bool(answer["done"])
            self._advance(segments)
            broken: LinkError | None = None
            if segments and not self.done:
                try:
                    number = link.post(self._header())  # one ahead: it travels while this one is printed
                except LinkError as error:
                    broken = error  # after what has arrived: it counts as read
            at = 0
            for segment in segments:
                middle, end = at + segment["out"][1], at + segment["out"][1] + segment["err"][1]
                yield segment, payload[at:middle], payload[middle:end]
                at = end
            if broken is not None:
                raise broken
            if self.done or not segments:
                return

    def _answer(self, link: Link, number: int) -> tuple[dict[str, Any], bytes]:
        if self.idle is None:
            return link.answer(number)
        while True:
            try:
                return link.answer(number, 0.5)
            except TimeoutError:
                self.idle()

    def _advance(self, segments: list[dict[str, Any]]) -> None:
        for segment in segments:
            if segment["end"] is not None:
                self.pos, self.attempt, self.out, self.err = segment["pos"] + 1, 0, 0, 0
            else:
                self.pos, self.attempt = segment["pos"], segment["attempt"]
                self.out = segment["out"][0] + segment["out"][1]
                self.err = segment["err"][0] + segment["err"][1]


class Printer:
    """Where pieces go: stdout and stderr of this process. Remembers how the last task ended."""

    def __init__(self, clear: Callable[[], Any]) -> None:
        self.end: dict[str, Any] | None = None
        self.failed = 0
        self.count = 0
        self.job = 0
        self._clear = clear
        self._attempt = (-1, 0)
        self._deaf = False

    def __call__(self, segment: dict[str, Any], out: bytes, err: bytes) -> None:
        self._clear()
        pos, attempt = segment["pos"], segment["attempt"]
        if self._attempt[0] == pos and 0 < self._attempt[1] < attempt:
            say(f"attempt {attempt} of the task begins: what came before is of an attempt that was lost or failed")
        self._attempt = (pos, attempt)
        if out:
            write_all(sys.stdout, out)
        if err and not self._deaf:
            try:
                write_all(sys.stderr, err)
            except Broken:
                self._deaf = True  # nobody reads what the script complains about: no reason to end it
        if segment["end"] is not None:
            self.end = segment["end"]
            self.count += 1
            self.failed += segment["end"]["state"] != "succeeded"
            if segment["end"]["dropped_bytes"]:
                dropped = segment["end"]["dropped_bytes"]
                say(f"output limit: {dropped} bytes of the task's output were dropped (--max-output)")


def exit_code(end: dict[str, Any]) -> int:
    """The exit code that stands for how a task ended."""
    if end["state"] == "cancelled":
        return 143
    if end.get("timed_out"):
        return 124
    signal = end.get("signal")
    if signal is not None:
        return 128 + (signal if isinstance(signal, int) else _number(signal))
    if end.get("exit_code") is None:
        return 125 if end["state"] != "succeeded" else 0
    return int(end["exit_code"]) & 0xFF


def _number(name: str) -> int:
    from .core.jobs import SIGNALS  # only for a script that was killed

    for number, known in SIGNALS.items():
        if known == name:
            return number
    return int(name.split()[-1]) if name.split()[-1].isdecimal() else 9
