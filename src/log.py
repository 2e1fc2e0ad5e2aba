"""Logs: one line each on stderr: time, level, message. Control characters are escaped, so that nobody's name or error
can forge a line or move the cursor."""

from __future__ import annotations

import logging
import sys
import time

from .core.messages import hold_text

LINE_MAX = 2000


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = hold_text(record.getMessage())[:LINE_MAX]
        seconds = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        line = f"{seconds}.{int(record.msecs):03d} {record.levelname} {text}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def set_up(verbose: int = 0, quiet: int = 0) -> None:
    """-v shows more, -q only warnings, -qq only errors."""
    level = logging.INFO - 10 * verbose + 10 * quiet
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(logging.DEBUG, min(level, logging.ERROR)))
