"""`wait`: long polls that are answered when all that was named is finished. Core thread."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .core import events
from .core.jobs import SUCCEEDED, TERMINAL

if TYPE_CHECKING:
    from .corethread import Request
    from .requests import Desk


class _Wait:
    """One client that waits; `open` counts the targets that are not finished, by (job, pos) or (job, None)."""

    __slots__ = ("done", "request", "targets", "unfinished")

    def __init__(self, request: Request, targets: list[events.Target]) -> None:
        self.request, self.targets = request, targets
        self.unfinished: set[tuple[int, int | None]] = set()
        self.done = False


class Waits:
    """All clients that wait, by what they wait for."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._by: dict[tuple[int, int | None], set[_Wait]] = {}

    def take(self, request: Request) -> None:
        targets = self._desk.targets(request.header["ids"])
        wait = _Wait(request, targets)
        for target in targets:
            for key in self._keys(target):
                if self._desk.cluster.state_of(*key) not in TERMINAL:
                    wait.unfinished.add(key)
        timeout = request.header.get("timeout")
        if not wait.unfinished or timeout == 0:
            self._answer(wait)
            return
        for key in wait.unfinished:
            self._by.setdefault(key, set()).add(wait)
        if timeout is not None:
            self._desk.core.call_later(timeout, lambda: self._answer(wait))

    @staticmethod
    def _keys(target: events.Target) -> list[tuple[int, int | None]]:
        if target.lo is None or target.hi is None:
            return [(target.job, None)]
        return [(target.job, pos) for pos in range(target.lo, target.hi + 1)]

    def wake(self, notes: list[events.Note]) -> None:
        """Tasks and jobs that ended."""
        if not self._by:
            return
        for note in notes:
            if note.state in TERMINAL:
                keys: list[tuple[int, int | None]] = [(note.job, note.pos)]
                if note.pos is None:
                    keys += [key for key in self._by if key[0] == note.job]
                for key in keys:
                    for wait in self._by.pop(key, ()):
                        wait.unfinished.discard(key)
                        if not wait.unfinished:
                            self._answer(wait)

    def gone(self, conn: Any) -> None:
        for wait in [wait for waits in self._by.values() for wait in waits if wait.request.conn is conn]:
            self._forget(wait)

    def _forget(self, wait: _Wait) -> None:
        wait.done = True
        for key in list(wait.unfinished):
            waits = self._by.get(key)
            if waits is not None:
                waits.discard(wait)
                if not waits:
                    del self._by[key]

    def _answer(self, wait: _Wait) -> None:
        if wait.done:
            return
        done = not wait.unfinished
        self._forget(wait)
        total, failed, results = 0, 0, []
        for target in wait.targets:
            row = self._desk.store.job(target.job)
            if row is None:
                continue
            if target.lo is None or target.hi is None:
                total += row.count
                failed += row.failed + row.cancelled
                if row.count == 1:
                    results.append(self._result(target.job, 0))
            else:
                total += target.hi - target.lo + 1
                states = [self._desk.cluster.state_of(target.job, pos) for pos in range(target.lo, target.hi + 1)]
                failed += sum(state in TERMINAL and state != SUCCEEDED for state in states)
                if target.lo == target.hi:
                    results.append(self._result(target.job, target.lo))
        answer = {"done": done, "total": total, "failed": failed, "results": results if total == 1 else []}
        self._desk.answer(wait.request, answer)

    def _result(self, job: int, pos: int) -> dict[str, Any]:
        view = self._desk.task_view(job, pos)
        return {
            key: view.get(key) for key in ("id", "state", "exit_code", "signal", "reason", "timed_out", "dropped_bytes")
        }
