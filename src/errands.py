"""Work that blocks, done in a few helper threads for an event loop: what is long or slow must not hold up the loop."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from typing import Any, Optional

log = logging.getLogger(__name__)

Done = Callable[[Any, Optional[Exception]], None]
CLOSE_S = 5.0


class Errands:
    """At most `most` threads, started when needed. `run` and `close` belong to the loop's thread."""

    def __init__(self, loop: Any, name: str, most: int) -> None:
        self._loop, self._name, self._most = loop, name, most
        self._queue: queue.SimpleQueue[Optional[tuple[Callable[[], Any], Done]]] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._open = 0  # errands that are not done
        self._closed = False

    def run(self, work: Callable[[], Any], done: Done) -> None:
        """Have work() done elsewhere, then done(result, None) or done(None, error) in the loop."""
        self._open += 1
        if self._open > len(self._threads) and len(self._threads) < self._most:
            thread = threading.Thread(target=self._work, name=self._name, daemon=True)
            self._threads.append(thread)
            thread.start()
        self._queue.put((work, done))

    def _work(self) -> None:
        while True:
            errand = self._queue.get()
            if errand is None:
                return
            work, done = errand
            result, error = None, None
            try:
                result = work()
            except Exception as problem:  # whatever it is belongs to whoever waits for the answer
                error = problem
            self._loop.call_threadsafe(lambda done=done, result=result, error=error: self._end(done, result, error))

    def _end(self, done: Done, result: Any, error: Optional[Exception]) -> None:
        self._open -= 1
        if not self._closed:
            done(result, error)

    def close(self) -> None:
        """No answer comes any more; waits a little for what is under way."""
        self._closed = True
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join(CLOSE_S)
