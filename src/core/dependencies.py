"""Which jobs wait for which: --after (ok), --after-any (any), --after-each (each: task i after task i).

Kept as lists at the job that is waited for, so that an end costs only those whom it concerns. Pure; cluster.py calls
`enter` for a new job, `on_ends` for positions that reached a final state and `on_job_end` for the whole.
"""

from __future__ import annotations

from typing import Any, Protocol

from .jobs import CANCELLED, FAILED, SUCCEEDED, TERMINAL
from .live import Job
from .ranges import RangeSet

_WORDS = {FAILED: "failed", CANCELLED: "was cancelled"}


class World(Protocol):
    """What this module needs of the cluster."""

    jobs: dict[int, Job]

    def state_of(self, job: int, pos: int | None) -> str | None: ...
    def positions_in(self, job: int, state: str, count: int) -> list[tuple[int, int]]: ...
    def failed_any(self, job: int) -> str | None: ...
    def count_of(self, job: int) -> int | None: ...
    def release(self, job: Job, ranges: list[tuple[int, int]]) -> None: ...
    def cancel_pending(self, job: Job, ranges: list[tuple[int, int]], reason: str) -> None: ...


class Dependencies:
    """Who waits for whom, among jobs that are not finished."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._whole: dict[int, list[tuple[int, str]]] = {}  # job → (dependant, kind)
        self._single: dict[tuple[int, int], list[tuple[int, str]]] = {}
        self._each: dict[int, list[int]] = {}  # job → dependants

    def problem(self, spec: dict[str, Any]) -> str | None:
        """Why this job cannot be accepted, in one line, or None."""
        for dep in spec["after"]:
            count = self._world.count_of(dep["job"])
            if count is None:
                return f"there is no job {dep['job']} to wait for"
            if dep["pos"] is not None and not 0 <= dep["pos"] < count:
                return f"job {dep['job']} has no such task to wait for"
            if dep["kind"] == "each" and count != spec["count"]:
                return f"--after-each {dep['job']}: it has {count} tasks and this job {spec['count']}; must be equal"
        return None

    def enter(self, job: Job) -> None:
        """Put a job's tasks (all in `waiting`) where they belong, now and as other jobs end."""
        job.pending, job.each = 0, 0
        job.each_done, job.each_ready = {}, RangeSet()
        for dep in job.after:
            if dep["kind"] != "each" and not self._enter_one(job, dep["job"], dep["pos"], dep["kind"]):
                return
        eaches = [dep["job"] for dep in job.after if dep["kind"] == "each"]
        job.each = len(eaches)
        if not eaches:
            self._maybe_release(job, job.waiting.ranges())
            return
        for other in eaches:
            if self._world.state_of(other, None) not in TERMINAL:
                self._each.setdefault(other, []).append(job.id)
            for state in (FAILED, CANCELLED):
                self._each_never(job, other, state, self._world.positions_in(other, state, job.count))
            self._each_met(job, self._world.positions_in(other, SUCCEEDED, job.count))

    def _enter_one(self, job: Job, other: int, pos: int | None, kind: str) -> bool:
        """False when the job was cancelled because of it."""
        state = self._world.state_of(other, pos)
        if kind == "ok":
            cause = state if state in _WORDS else (self._world.failed_any(other) if pos is None else None)
            if cause is not None:
                self._never(job, other, pos, cause)
                return False
        if state is None or state in TERMINAL:  # forgotten ones were finished
            return True
        job.pending += 1
        if pos is None:
            self._whole.setdefault(other, []).append((job.id, kind))
        else:
            self._single.setdefault((other, pos), []).append((job.id, kind))
        return True

    def _never(self, job: Job, other: int, pos: int | None, state: str) -> None:
        what = f"job {other}" if pos is None else f"a task of job {other}"
        reason = f"{what} {_WORDS[state]}, and this waited for its success"
        self._world.cancel_pending(job, job.waiting.ranges(), reason)

    def _each_never(self, job: Job, other: int, state: str, ranges: list[tuple[int, int]]) -> None:
        parts = [part for lo, hi in ranges for part in job.waiting.within(lo, hi)]
        if parts:
            reason = f"its task of job {other} {_WORDS[state]}, and it waited for its success"
            self._world.cancel_pending(job, parts, reason)

    def _each_met(self, job: Job, ranges: list[tuple[int, int]]) -> None:
        parts = [part for lo, hi in ranges for part in job.waiting.within(lo, hi)]
        if job.each > 1:
            met: list[tuple[int, int]] = []
            for lo, hi in parts:
                for pos in range(lo, hi):
                    job.each_done[pos] = job.each_done.get(pos, 0) + 1
                    if job.each_done[pos] == job.each:
                        del job.each_done[pos]
                        met.append((pos, pos + 1))
            parts = met
        self._maybe_release(job, parts)

    def _maybe_release(self, job: Job, ranges: list[tuple[int, int]]) -> None:
        if job.pending:
            if job.each:
                for lo, hi in ranges:
                    job.each_ready.add(lo, hi)
        elif ranges:
            self._world.release(job, ranges)

    def _one_less(self, job: Job) -> None:
        job.pending -= 1
        if job.pending == 0:
            self._maybe_release(job, job.each_ready.ranges() if job.each else job.waiting.ranges())

    def on_ends(self, job: int, lo: int, hi: int, state: str) -> None:
        """Tasks lo..hi-1 of the job reached this final state."""
        if state in _WORDS and job in self._whole:
            waiters = self._whole[job]
            self._whole[job] = [waiter for waiter in waiters if waiter[1] != "ok"]
            for dependant, _ in (waiter for waiter in waiters if waiter[1] == "ok"):
                other = self._world.jobs.get(dependant)
                if other is not None and other.waiting:
                    self._never(other, job, None, state)
        if self._single:
            for pos in range(lo, hi) if hi - lo < len(self._single) else [p for j, p in self._single if j == job]:
                if lo <= pos < hi:
                    self._single_end(job, pos, state)
        for dependant in self._each.get(job, ()):
            other = self._world.jobs.get(dependant)
            if other is not None:
                if state == SUCCEEDED:
                    self._each_met(other, [(lo, hi)])
                else:
                    self._each_never(other, job, state, [(lo, hi)])

    def _single_end(self, job: int, pos: int, state: str) -> None:
        for dependant, kind in self._single.pop((job, pos), ()):
            other = self._world.jobs.get(dependant)
            if other is None or not other.waiting:
                continue
            if kind == "ok" and state != SUCCEEDED:
                self._never(other, job, pos, state)
            else:
                self._one_less(other)

    def on_job_end(self, job: int) -> None:
        """Every task of the job is in a final state."""
        self._each.pop(job, None)
        for dependant, _ in self._whole.pop(job, ()):
            other = self._world.jobs.get(dependant)
            if other is not None and other.waiting:
                self._one_less(other)

    def waits_for(self, job: Job) -> list[int]:
        """The jobs that this one still waits for, for the explanation."""
        return [dep["job"] for dep in job.after if self._world.state_of(dep["job"], dep["pos"]) not in TERMINAL]
