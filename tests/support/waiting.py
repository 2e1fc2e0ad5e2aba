"""Waiting for a condition with a deadline: the only place in the tests that sleeps.

MICROCLUSTER_TEST_FACTOR (a number, default 1) stretches every deadline on a slow machine.
"""

from __future__ import annotations

import os
import time
from typing import Callable, Optional, TypeVar

T = TypeVar("T")

FACTOR = float(os.environ.get("MICROCLUSTER_TEST_FACTOR", "1"))
SHORTEST_PAUSE_S = 0.001
LONGEST_PAUSE_S = 0.05


class StillWaiting(AssertionError):
    """The condition did not come true before the deadline."""


def wait_until(
    predicate: Callable[[], T],
    timeout_s: float = 20,
    what: str = "the condition",
    seen: Optional[Callable[[], object]] = None,
) -> T:
    """Call `predicate` until it gives something true; give that. Exceptions of it are passed on.

    `seen` (called once, at the deadline) describes the last state, for the message. Raises StillWaiting.
    """
    deadline = time.monotonic() + timeout_s * FACTOR
    pause_s = SHORTEST_PAUSE_S
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() >= deadline:
            last = f"; last seen: {seen()}" if seen is not None else f"; last value: {value!r}"
            raise StillWaiting(f"waited {timeout_s * FACTOR:g} s in vain for {what}{last}")
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.5, LONGEST_PAUSE_S)
