"""Logs: one line each on stderr: time, level, message with its facts as key=value. Control characters are escaped, so
that nobody's name or error can forge a line or move the cursor."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

from .core.syntax import hold_text

LINE_MAX = 2000
SELDOM_S = 10.0


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = hold_text(record.getMessage())[:LINE_MAX]
        seconds = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        line = f"{seconds}.{int(record.msecs):03d} {record.levelname} {text}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


class Seldom:
    """For what may happen a thousand times a second: each kind of message (its format) at most once in SELDOM_S, with
    how many more there were. One thread."""

    def __init__(self, logger: logging.Logger) -> None:
        self._log = logger
        self._said: dict[str, tuple[float, int]] = {}

    def warning(self, message: str, *args: Any) -> None:
        now = time.monotonic()
        since, more = self._said.get(message, (now - SELDOM_S, 0))
        if now - since < SELDOM_S:
            self._said[message] = (since, more + 1)
            return
        self._said[message] = (now, 0)
        self._log.warning(message + (f" (and {more} more)" if more else ""), *args)


def set_up(verbose: int = 0, quiet: int = 0) -> None:
    """-v shows more, -q only warnings, -qq only errors."""
    level = logging.INFO - 10 * verbose + 10 * quiet
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(logging.DEBUG, min(level, logging.ERROR)))
