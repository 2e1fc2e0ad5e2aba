"""Output of tasks to where it belongs, in order, byte for byte, to the end and no further.

Pulls by offset with one request ahead. A connection that breaks is made again, for as long as allowed, and reading goes
on at the byte where it was: a broken connection never passes for the end of a job.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from .console import say, write_all
from .core.errors import LinkError
from .core.jobs import SIGNALS
from .link import Link

POLL_S = 25.0
RETRY_S = 300.0


class Connection:
    """A link that comes back: `retry_s` is how long it may take, in all, each time."""

    def __init__(self, make: Callable[[float], Link], link: Link, retry_s: float, say: Callable[[str], Any]) -> None:
        self._make, self.link, self._retry_s, self._say = make, link, retry_s, say

    def again(self, error: LinkError) -> None:
        """After a break: connect again, or raise what went wrong."""
        if self._retry_s <= 0:
            raise error
        self._say(f"{error}; connecting again")
        self.link.close()
        self.link = self._make(self._retry_s)
        self._say("connected again")

    def request(self, header: dict[str, Any], payload: bytes = b"") -> tuple[dict[str, Any], bytes]:
        """Ask, across breaks: only for what may be asked twice."""
        while True:
            try:
                return self.link.request(header, payload)
            except LinkError as error:
                self.again(error)


class Follower:
    """Reads tasks lo..hi of a job; `emit(segment, out, err)` gets each piece."""

    def __init__(self, connection: Connection, job: int, lo: int, hi: int, live: bool, wait: bool) -> None:
        self.connection = connection
        self.job, self.lo, self.hi, self.live, self.wait = job, lo, hi, live, wait
        self.pos, self.attempt, self.out, self.err = lo, 0, 0, 0
        self.idle: Callable[[], Any] | None = None  # called about twice a second while nothing comes

    def run(self, emit: Callable[[dict[str, Any], bytes, bytes], Any]) -> bool:
        """Until all is read (True), or, without `wait`, there is nothing more yet (False)."""
        while True:
            try:
                if self._run(emit):
                    return True
                if not self.wait:
                    return False
            except LinkError as error:
                self.connection.again(error)

    def _header(self) -> dict[str, Any]:
        return {
            "t": "read", "job": self.job, "lo": self.lo, "hi": self.hi, "pos": self.pos, "out": self.out,
            "err": self.err, "attempt": self.attempt, "wait": POLL_S if self.wait else 0, "live": self.live,
        }  # fmt: skip

    def _run(self, emit: Callable[[dict[str, Any], bytes, bytes], Any]) -> bool:
        number = self.connection.link.post(self._header())
        while True:
            answer, payload = self._answer(number)
            segments = answer["tasks"]
            done = bool(answer["done"])
            self._advance(segments)
            broken: LinkError | None = None
            if not done and segments:
                try:
                    number = self.connection.link.post(self._header())
                except LinkError as error:
                    broken = error  # what came already is given out first: we will not ask for it again
            at = 0
            for segment in segments:
                out = payload[at : at + segment["out"][1]]
                at += segment["out"][1]
                err = payload[at : at + segment["err"][1]]
                at += segment["err"][1]
                emit(segment, out, err)
            if broken is not None:
                raise broken
            if done:
                return True
            if not segments:
                return False

    def _answer(self, number: int) -> tuple[dict[str, Any], bytes]:
        link = self.connection.link
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

    def __call__(self, segment: dict[str, Any], out: bytes, err: bytes) -> None:
        self._clear()
        pos, attempt = segment["pos"], segment["attempt"]
        if self._attempt[0] == pos and 0 < self._attempt[1] < attempt:
            say(f"attempt {attempt} of the task begins: what came before is of an attempt that was lost or failed")
        self._attempt = (pos, attempt)
        if out:
            write_all(sys.stdout, out)
        if err:
            write_all(sys.stderr, err)
        if segment["end"] is not None:
            self.end = segment["end"]
            self.count += 1
            self.failed += segment["end"]["state"] != "succeeded"
            if segment["end"]["dropped_bytes"]:
                say(
                    f"output limit: {segment['end']['dropped_bytes']} bytes of the task's output were dropped (--max-output)"
                )


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
    for number, known in SIGNALS.items():
        if known == name:
            return number
    return int(name.split()[-1]) if name.split()[-1].isdecimal() else 9
