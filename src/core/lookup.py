"""What the manager's brain knows, and how it is looked up; cluster.py decides on top of it.

What is finished is in the History (the store); what this batch changed and the store does not have yet is looked up in
`_fresh_tasks` and `_leaving` first. Changes nothing but its own accumulators.
"""

from __future__ import annotations

import json
from collections import deque
from typing import Any

from .events import History, Link, Note, Target, WorkerMail
from .jobs import CANCELLED, FAILED, QUEUED, RUNNING, SUCCEEDED, WAITING, TaskKey, TaskRow
from .live import Job, Live, Shape, Worker
from .ranges import RangeSet
from .saves import Save, SaveTask


class Lookup:
    """Jobs, workers and the effects of the batch. `settings` has `lost_after` (s) and `crash_limit`."""

    def __init__(self, history: History, settings: Any) -> None:
        self.history = history
        self.settings = settings
        self.jobs: dict[int, Job] = {}
        self.workers: dict[str, Worker] = {}
        self.by_link: dict[Link, Worker] = {}
        self.next_id = 1
        self._shapes: dict[Shape, Shape] = {}
        self._specs: dict[int, str] = {}
        self._ended: deque[tuple[int, int, int, str]] = deque()  # (job, lo, hi, state), not yet told to dependants
        self._begin_batch()
        self.ignored = 0  # reports of attempts that no longer count
        self.finished_tasks = 0

    def _begin_batch(self) -> None:
        self.saves: list[Save] = []
        self.outgoing: dict[Link, WorkerMail] = {}
        self._replies: list[tuple[Any, dict[str, Any]]] = []
        self._notes: list[Note] = []
        self.log: list[str] = []
        self._dirty: dict[int, Job] = {}
        self._leaving: dict[int, Job] = {}
        self._fresh_tasks: dict[tuple[int, int], TaskRow] = {}
        self._fresh_requests: dict[str, int] = {}
        self._fresh_once: dict[str, int] = {}

    # -- the batch --------------------------------------------------------------------------------------------------

    def mail(self, worker: Worker) -> WorkerMail:
        """What this worker will be told; it must be connected."""
        return self.mail_to(worker.link)

    def mail_to(self, link: Link) -> WorkerMail:
        found = self.outgoing.get(link)
        if found is None:
            found = self.outgoing[link] = WorkerMail()
        return found

    def spec_text(self, job: int) -> str:
        """The spec of a job that is not finished, as JSON."""
        text = self._specs.get(job)
        if text is None:
            row = self.history.job(job)
            text = self._specs[job] = row.spec if row is not None else "{}"
        return text

    def save_task(self, row: TaskRow) -> None:
        self.saves.append(SaveTask(row))
        self._fresh_tasks[row.job, row.pos] = row

    def reply(self, reply_to: Any, answer: dict[str, Any]) -> None:
        self._replies.append((reply_to, answer))

    def shape(self, spec: dict[str, Any]) -> Shape:
        shape = Shape.of(spec)
        return self._shapes.setdefault(shape, shape)

    @staticmethod
    def _span(job: Job, target: Target) -> tuple[int, int]:
        lo = 0 if target.lo is None else target.lo
        return lo, (job.count if target.hi is None else min(target.hi + 1, job.count))

    # -- looking ------------------------------------------------------------------------------------------------------

    def task_row(self, job: int, pos: int) -> TaskRow | None:
        """The newest row of a task, also of this batch."""
        return self._fresh_tasks.get((job, pos)) or self.history.task(job, pos)

    def _positions(self, job: int, states: tuple[str, ...], lo: int, hi: int) -> list[int]:
        found = set(self.history.positions(job, states, lo, hi))
        for (other, pos), row in self._fresh_tasks.items():
            if other == job and lo <= pos <= hi:
                (found.add if row.state in states else found.discard)(pos)
        return sorted(found)

    def positions_in(self, job: int, state: str, count: int) -> list[tuple[int, int]]:
        """Where the tasks of a job are that are in this final state, as ranges."""
        known = self.jobs.get(job) or self._leaving.get(job)
        row = None if known is not None else self.history.job(job)
        if row is not None and row.state == SUCCEEDED:
            return [(0, count)] if state == SUCCEEDED else []
        found = RangeSet((pos, pos + 1) for pos in self._positions(job, (state,), 0, count))
        if state == CANCELLED:
            extra = known.cancelled.ranges() if known is not None else json.loads(row.sets)["cancelled"] if row else []
            for lo, hi in extra:
                found.add(lo, hi)
        return found.ranges()

    def state_of(self, job: int, pos: int | None) -> str | None:
        """The state of a job or of one of its tasks; None when there is no such job."""
        known = self.jobs.get(job) or self._leaving.get(job)
        row = None if known is not None else self.history.job(job)
        if known is None and row is None:
            return None
        if pos is None:
            return known.state_now() if known is not None else row.state if row is not None else None
        if known is not None:
            for state, members in ((WAITING, known.waiting), (QUEUED, known.queued), (RUNNING, known.live)):
                if pos in members:
                    return state
        task = self.task_row(job, pos)
        return task.state if task is not None else CANCELLED

    def failed_any(self, job: int) -> str | None:
        """`failed` or `cancelled` when a task of an unfinished job ended so, else None."""
        known = self.jobs.get(job)
        if known is None:
            return None
        return FAILED if known.failed else CANCELLED if known.cancelled or known.cancelled_rows else None

    def count_of(self, job: int) -> int | None:
        """How many tasks a job has; None when there is no such job."""
        known = self.jobs.get(job) or self._leaving.get(job)
        if known is not None:
            return known.count
        row = self.history.job(job)
        return row.count if row is not None else None

    def live_task(self, job: int, pos: int) -> Live | None:
        """A running task."""
        known = self.jobs.get(job)
        return known.live.get(pos) if known is not None else None

    def counts(self) -> dict[str, int]:
        """Tasks of unfinished jobs by state."""
        total = dict.fromkeys((WAITING, QUEUED, RUNNING), 0)
        for job in self.jobs.values():
            counts = job.counts()
            for state in total:
                total[state] += counts[state]
        return total


def key_of(row: TaskRow) -> TaskKey:
    return TaskKey(row.job, row.pos, row.attempt)
