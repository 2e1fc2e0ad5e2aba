"""Places where a test can make the world fail: `point("store.commit")` does nothing until it is armed.

MICROCLUSTER_FAULTS="store.commit:3:ENOSPC,blob.write:1:die"     the third commit fails, the first write kills us
"""

from __future__ import annotations

import errno
import os

_armed: dict[str, tuple[int, str]] = {}  # name → calls left until it fails, what happens
_counts: dict[str, int] = {}


def arm(text: str) -> None:
    """Arm the places that the text names; replaces what was armed."""
    _armed.clear()
    _counts.clear()
    for part in filter(None, text.split(",")):
        name, nth, what = part.split(":")
        _armed[name] = (int(nth), what)


def disarm() -> None:
    _armed.clear()


def point(name: str) -> None:
    """Raises OSError, or ends the process, at the armed call of this place. `any` stands for all of them."""
    if not _armed:
        return
    for known in (name, "any"):
        if known in _armed:
            nth, what = _armed[known]
            _counts[known] = _counts.get(known, 0) + 1
            if _counts[known] == nth:
                if what == "die":
                    os._exit(99)
                number = getattr(errno, what)
                raise OSError(number, os.strerror(number))


def reached(name: str) -> bool:
    """Whether an armed place came to its failing call."""
    return name in _armed and _counts.get(name, 0) >= _armed[name][0]


arm(os.environ.get("MICROCLUSTER_FAULTS", ""))
