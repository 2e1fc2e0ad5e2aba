"""Places where a test can make the world fail: `point("store.commit")` does nothing until it is armed.

MICROCLUSTER_FAULTS="store.commit:3:ENOSPC,blob.write:1:die"     the third commit fails, the first write kills us
"""

from __future__ import annotations

import errno
import os

DIED = 99  # exit status of a process that a fault ended

_armed: dict[str, tuple[int, str]] = {}  # name → which call of it fails, what happens then
_counts: dict[str, int] = {}


def arm(text: str) -> None:
    """Arm the places that the text names; replaces what was armed. `any` stands for all of them."""
    disarm()
    for part in filter(None, text.split(",")):
        name, nth, what = part.split(":")
        _armed[name] = (int(nth), what)


def disarm() -> None:
    _armed.clear()
    _counts.clear()


def point(name: str) -> None:
    """Raises OSError, or ends the process, at the armed call of this place."""
    if not _armed:
        return
    for known in (name, "any"):
        if known in _armed:
            nth, what = _armed[known]
            _counts[known] = _counts.get(known, 0) + 1
            if _counts[known] == nth:
                if what == "die":
                    os._exit(DIED)
                number = getattr(errno, what)
                raise OSError(number, os.strerror(number))


def passed(name: str) -> int:
    """How often an armed place was come to."""
    return _counts.get(name, 0)


def reached(name: str) -> bool:
    """Whether an armed place came to its failing call."""
    return name in _armed and passed(name) >= _armed[name][0]


arm(os.environ.get("MICROCLUSTER_FAULTS", ""))
