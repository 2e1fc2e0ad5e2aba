"""What a client's process says: its name, remarks and progress on stderr, text and raw bytes on its streams."""

from __future__ import annotations

import os
import sys
import time

from .core.errors import MicroclusterError
from .core.records import TYPE_CHECKING
from .core.syntax import format_duration, format_size, hold_text

if TYPE_CHECKING:
    from typing import Any

MACHINE_VERBS = ("manager", "worker", "local", "key")  # of run.py, and of the installed command


class Broken(MicroclusterError):
    """Nobody reads our stdout any more."""


def program() -> str:
    """The name that remarks and errors begin with."""
    return os.path.basename(sys.argv[0]) or "client.py"


def mend_streams() -> None:
    """Standard streams that always exist and take any text.

    A closed one becomes the null device, as `python3 x.py >&-` shrugs it off; filling 0 to 2 also keeps a socket from
    being taken for stdout. Characters that the terminal's encoding lacks are shown as escapes.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - for the process's life
        elif mode == "w" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def say(text: str) -> None:
    """A remark of ours on stderr: one line, whatever is in it."""
    try:
        sys.stderr.write(f"{program()}: {hold_text(text)}\n")
        sys.stderr.flush()
    except OSError:
        pass  # nobody reads it


def write_all(stream: Any, data: bytes) -> None:
    """Bytes to a stream's descriptor, whatever it is; raises Broken when its reader has gone."""
    fd = stream.fileno()
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            import select

            select.select([], [fd], [], 1.0)
        except BrokenPipeError:
            raise Broken("nobody reads the output") from None


def quiet_stdout() -> int:
    """Nobody reads our stdout: the exit code of a program that SIGPIPE kills, and not a word at the end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141


def width_of(stream: Any) -> int:
    """Columns of the terminal; 80 elsewhere (or COLUMNS), so that output in a pipe is the same everywhere."""
    if not stream.isatty():
        given = os.environ.get("COLUMNS", "")
        return max(20, int(given)) if given.isdecimal() and len(given) < 6 else 80
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


class Progress:
    """One line on a terminal's stderr that replaces itself, after a second; nothing elsewhere."""

    def __init__(self) -> None:
        self.live = bool(sys.stderr.isatty())
        self._begin = time.monotonic()
        self._last = 0.0
        self._shown = False
        self._first: tuple[float, int] | None = None

    def due(self) -> bool:
        now = time.monotonic()
        return self.live and now - self._begin > 1.0 and now - self._last > 0.5

    def tasks(self, counts: dict[str, int]) -> None:
        """done/failed/running/queued, rate, time left."""
        now = time.monotonic()
        done = counts["succeeded"] + counts["failed"] + counts["cancelled"]
        if self._first is None:
            self._first = (now, done)
        rate = (done - self._first[1]) / max(0.1, now - self._first[0])
        left = counts["total"] - done
        eta = f", {format_duration(left / rate)} left" if rate > 0 and left else ""
        text = (
            f"{done}/{counts['total']} done, {counts['failed']} failed, {counts['running']} running,"
            f" {counts['queued'] + counts['waiting']} queued, {rate:.1f}/s{eta}"
        )
        self.say(text)

    def bytes(self, done: int, total: int, what: str = "sent") -> None:
        if self.due():
            self.say(f"{format_size(done)} of {format_size(total)} {what}")

    def say(self, text: str) -> None:
        """A line whose control characters are escaped already."""
        if self.live:
            self._last, self._shown = time.monotonic(), True
            sys.stderr.write(f"\r\x1b[K{text[: width_of(sys.stderr) - 1]}")
            sys.stderr.flush()

    def clear(self) -> None:
        """Before anything else is printed."""
        if self._shown:
            self._shown = False
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
