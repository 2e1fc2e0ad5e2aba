"""What a client's process says: its name, remarks on stderr, raw bytes on its streams."""

from __future__ import annotations

import os
import select
import sys
from typing import Any

MACHINE_VERBS = ("manager", "worker", "local", "key")  # of run.py, and of the installed command


class Broken(Exception):
    """Nobody reads our stdout any more."""


def program() -> str:
    """The name that remarks and errors begin with."""
    return os.path.basename(sys.argv[0]) or "client.py"


def say(text: str) -> None:
    """A remark of ours on stderr."""
    sys.stderr.write(f"{program()}: {text}\n")
    sys.stderr.flush()


def write_all(stream: Any, data: bytes) -> None:
    """Bytes to a stream's descriptor, whatever it is; raises Broken when its reader has gone."""
    fd = stream.fileno()
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            select.select([], [fd], [], 1.0)
        except BrokenPipeError:
            raise Broken from None


def quiet_stdout() -> int:
    """Nobody reads our stdout: the exit code of a program that SIGPIPE kills, and not a word at the end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141
