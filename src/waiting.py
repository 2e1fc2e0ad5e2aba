"""`wait`: long polls that are answered when all that was named is finished. Core thread.

A thousand clients that wait cost nothing until a task of theirs ends: they are found by job, then by task.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from .core import events
from .core.jobs import CANCELLED, FAILED, TERMINAL
from .core.ranges import RangeSet

if TYPE_CHECKING:
    from .corethread import Request, Timer
    from .requests import Desk

SHOWN = ("id", "state", "exit_code", "signal", "reason", "timed_out", "dropped_bytes")


class _Wait:
    """One client that waits; `unfinished`: the targets that are."""

    __slots__ = ("request", "targets", "timer", "unfinished")

    def __init__(self, request: Request, targets: list[events.Target]) -> None:
        self.request, self.targets = request, targets
        self.unfinished: set[events.Target] = set()
        self.timer: Timer | None = None


class Waits:
    """All clients that wait, by what they wait for."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        # job → position (-1: the whole job or a range of it) → target and who waits for it
        self._by: dict[int, dict[int, dict[tuple[_Wait, events.Target], None]]] = {}
        self._of: dict[Any, dict[_Wait, None]] = {}  # by connection

    def take(self, request: Request) -> None:
        targets = self._desk.targets(request.header["ids"])
        wait = _Wait(request, targets)
        wait.unfinished = {target for target in targets if not self._finished(target)}
        timeout = request.header.get("timeout")
        if not wait.unfinished or timeout == 0:
            self._answer(wait)
            return
        for target in wait.unfinished:
            self._by.setdefault(target.job, {}).setdefault(_place(target), {})[wait, target] = None
        self._of.setdefault(request.conn, {})[wait] = None
        if timeout is not None:
            wait.timer = self._desk.core.call_later(timeout, lambda: self._give_up(wait))

    def _finished(self, target: events.Target) -> bool:
        if target.lo is None or target.hi is None:
            return self._desk.cluster.state_of(target.job, None) in (None, *TERMINAL)
        job = self._desk.cluster.jobs.get(target.job)
        if job is None:
            return True
        lo, hi = target.lo, target.hi
        if job.queued.within(lo, hi + 1) or job.waiting.within(lo, hi + 1):
            return False
        return lo not in job.live if lo == hi else not any(lo <= pos <= hi for pos in job.live)

    def wake(self, notes: list[events.Note]) -> None:
        """Tasks and jobs that ended."""
        if not self._by:
            return
        ranged: dict[int, None] = {}
        for note in notes:
            waiting = self._by.get(note.job)
            if waiting is None or note.state not in TERMINAL:
                continue
            if note.pos is None:
                for place in list(waiting):
                    self._ended(note.job, place, list(waiting[place]))
            else:
                if note.pos in waiting:
                    self._ended(note.job, note.pos, list(waiting[note.pos]))
                ranged[note.job] = None
        for job in ranged:
            self._look(job, -1)

    def look_again(self, job: int) -> None:
        """Many of its tasks may have ended without a note for each."""
        for place in list(self._by.get(job, ())):
            self._look(job, place)

    def _look(self, job: int, place: int) -> None:
        waiting = self._by.get(job, {}).get(place)
        if waiting:
            self._ended(job, place, [entry for entry in waiting if self._finished(entry[1])])

    def _ended(self, job: int, place: int, entries: list[tuple[_Wait, events.Target]]) -> None:
        for wait, target in entries:
            self._forget(wait, target)
            wait.unfinished.discard(target)
            if not wait.unfinished:
                self._leave(wait)
                self._answer(wait)

    def _forget(self, wait: _Wait, target: events.Target) -> None:
        places = self._by.get(target.job, {})
        waiting = places.get(_place(target), {})
        waiting.pop((wait, target), None)
        if not waiting:
            places.pop(_place(target), None)
            if not places:
                self._by.pop(target.job, None)

    def _leave(self, wait: _Wait) -> None:
        """It waits no more."""
        for target in wait.unfinished:
            self._forget(wait, target)
        mine = self._of.get(wait.request.conn, {})
        mine.pop(wait, None)
        if not mine:
            self._of.pop(wait.request.conn, None)
        if wait.timer is not None:
            wait.timer.cancel()

    def gone(self, conn: Any) -> None:
        for wait in list(self._of.get(conn, ())):
            self._leave(wait)

    def _give_up(self, wait: _Wait) -> None:
        self._leave(wait)
        self._answer(wait)

    # -- the answer ----------------------------------------------------------------------------------------------------

    def _answer(self, wait: _Wait) -> None:
        total, failed, results = 0, 0, []
        for target in wait.targets:
            row = self._desk.store.job(target.job)
            if row is None:
                continue
            if target.lo is None or target.hi is None:
                total += row.count
                failed += row.failed + row.cancelled
            else:
                total += target.hi - target.lo + 1
                failed += self._failed(target.job, target.lo, target.hi, row.sets)
            if len(wait.targets) == 1 and total == 1:
                view = self._desk.looks.task_view(target.job, target.lo or 0)
                results.append({key: view.get(key) for key in SHOWN})
        answer = {"done": not wait.unfinished, "total": total, "failed": failed, "results": results}
        self._desk.answer(wait.request, answer)

    def _failed(self, job: int, lo: int, hi: int, sets: str) -> int:
        """How many tasks lo..hi failed or were cancelled, those that never ran (which have no row) too."""
        never = RangeSet(json.loads(sets)["cancelled"]).within(lo, hi + 1)
        rows = self._desk.store.positions(job, (FAILED, CANCELLED), lo, hi)
        return len(rows) + sum(b - a for a, b in never)


def _place(target: events.Target) -> int:
    return target.lo if target.lo is not None and target.lo == target.hi else -1
