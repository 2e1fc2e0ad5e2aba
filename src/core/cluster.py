"""The manager's brain: events in, effects out. Decides which task is where; touches nothing.

    handle(event, now, wall)*  →  take_effects(now, wall)  →  the shell commits `saves`, then sends the rest

Called by the manager's core thread alone (and by the simulator). `now` is monotonic and decides; `wall` is only stored
and shown. What it knows is in lookup.py, workers coming and going in membership.py, who runs what in placement.py.
"""

from __future__ import annotations

import json
from typing import Any

from . import events, outcome
from .dependencies import Dependencies
from .events import Effects, History, Loaded, Note, Target
from .explain import why_none_can, why_queued, why_waiting
from .jobs import CANCELLED, FAILED, QUEUED, RUNNING, SUCCEEDED, TERMINAL, WAITING, JobRow, TaskKey, TaskRow, after
from .live import CANCELLING, Job, Live, Worker
from .lookup import Lookup, key_of
from .membership import Membership
from .placement import Placement
from .ranges import RangeSet
from .saves import ClearOutput, DropOutput, SaveAttempt, SaveJob, UpdateJob

SPECS_KEPT = 2000  # specs of recent jobs kept in memory; older ones are read back when they start


class Cluster(Lookup):
    """See the module."""

    def __init__(self, history: History, settings: Any) -> None:
        super().__init__(history, settings)
        self.placement = Placement(self)
        self.dependencies = Dependencies(self)
        self.membership = Membership(self)

    # -- the door ------------------------------------------------------------------------------------------------------

    def load(self, loaded: Loaded, now: float, wall: float) -> None:
        """Take over what the store has, once, before the first event. Workers that run something have `lost_after`
        from now on to come back."""
        self.next_id = loaded.next_id
        for worker_id, name, drained in loaded.workers:
            self.workers[worker_id] = Worker(worker_id, name, drained)
        for row in loaded.jobs:
            spec = json.loads(row.spec)
            job = Job(row.id, spec, self.shape(spec), row.submitted_at)
            job.restore(row)
            self.jobs[job.id] = job
        for task in loaded.tasks:
            job = self.jobs[task.job]
            if task.state == RUNNING:
                worker = self.membership.worker(task.worker_id or "", task.worker or "?")
                worker.gone_at = now
                live = Live(job, task, worker, now)
                job.live[task.pos] = live
                worker.live[task.job, task.pos] = live
                self.placement.took(live)
            elif task.state == QUEUED:
                job.past[task.pos] = task
        for job in list(self.jobs.values()):
            if job.waiting:
                self.dependencies.enter(job)
            self.refresh(job, changed=bool(job.waiting))
        self._settle(now, wall)

    def handle(self, event: events.Event, now: float, wall: float) -> None:
        """Let one event happen; what follows of it collects until `take_effects`."""
        if isinstance(event, events.WorkerReported):
            self._on_report(event, now, wall)
        elif isinstance(event, events.JobSubmitted):
            self._on_submit(event, now, wall)
        elif isinstance(event, events.WorkerJoined):
            self.membership.on_join(event, now, wall)
        elif isinstance(event, events.WorkerGone):
            self.membership.on_gone(event, now, wall)
        elif isinstance(event, events.WorkerStated):
            self.membership.on_state(event)
        elif isinstance(event, events.CancelAsked):
            self._on_cancel(event, now, wall)
        elif isinstance(event, events.RetryAsked):
            self._on_retry(event)
        elif isinstance(event, events.DrainAsked):
            self.membership.on_drain(event, wall)
        else:
            self.membership.on_tick(now, wall)
        self._settle(now, wall)

    def take_effects(self, now: float, wall: float) -> Effects:
        """Plan, and hand over all that this batch brought; a new batch begins."""
        self.placement.plan(now, wall)
        self._settle(now, wall)
        for job in self._dirty.values():
            self.saves.append(UpdateJob(job.id, job.columns()))
        effects = Effects(self.saves, self.outgoing, self._replies, self._notes, self.log)
        for old in list(self._specs)[: max(0, len(self._specs) - SPECS_KEPT)]:
            del self._specs[old]
        self._begin_batch()
        return effects

    def next_deadline(self) -> float | None:
        """When (monotonic) a Tick is due at the latest; None: never, by itself."""
        due = [w.gone_at + self.membership.patience(w) for w in self.workers.values() if w.gone_at is not None]
        due += self.placement.deadlines()
        return min(due) if due else None

    # -- submit, cancel, retry -----------------------------------------------------------------------------------------

    def _on_submit(self, event: events.JobSubmitted, now: float, wall: float) -> None:
        spec, once = event.spec, event.spec.get("once")
        known = self._fresh_requests.get(event.request_id) or self.history.by_request(event.request_id)
        if known is None and once:
            known = self._fresh_once.get(once) or self.history.by_once(once)
        if known is not None:
            self.reply(event.reply_to, {"id": known, "warning": None, "again": True})
            return
        problem = self.dependencies.problem(spec)
        if problem is not None:
            self.reply(event.reply_to, {"error": "no-such-job", "message": problem})
            return
        job = Job(self.next_id, spec, self.shape(spec), wall)
        self.next_id += 1
        self.jobs[job.id] = job
        self._specs[job.id] = event.spec_text
        self._fresh_requests[event.request_id] = job.id
        if once:
            self._fresh_once[once] = job.id
        (job.waiting if job.after else job.queued).add(0, job.count)
        counts = job.counts()
        row = JobRow(
            job.id, event.request_id, once, job.name, job.user, job.priority, job.state_now(), job.count,
            counts[WAITING], counts[QUEUED], 0, 0, 0, 0, event.spec_text, job.sets(), wall, None, None, None,
        )  # fmt: skip
        self.saves.append(SaveJob(row))
        if job.after:
            self.dependencies.enter(job)
        self.refresh(job, changed=bool(job.after))
        warning = why_none_can(job.shape, self.workers.values())
        self.reply(event.reply_to, {"id": job.id, "warning": warning, "again": False})

    def _on_cancel(self, event: events.CancelAsked, now: float, wall: float) -> None:
        targets = event.targets
        if targets is None:
            targets = [Target(job, None, None) for job in self.jobs]
        done: list[tuple[int, list[tuple[int, int]], bool]] = []
        for target in targets:
            job = self.jobs.get(target.job)
            if job is None:
                continue
            lo, hi = self._span(job, target)
            hit = RangeSet(job.queued.within(lo, hi) + job.waiting.within(lo, hi))
            self.cancel_pending(job, hit.ranges(), None)
            for pos in [pos for pos in job.live if lo <= pos < hi]:
                live = job.live[pos]
                self.kill(live, job.grace if event.grace is None else event.grace)
                hit.add(pos, pos + 1)
            if hit:
                done.append((job.id, [(a, b - 1) for a, b in hit.ranges()], len(hit) == job.count))
        self.reply(event.reply_to, {"cancelled": done})

    def kill(self, live: Live, grace: float) -> None:
        """End a running task; its worker is told now, or when it comes back."""
        if not live.cancelling:
            live.cancelling = True
            live.row = live.row._replace(reason=CANCELLING)
            self.save_task(live.row)
        if live.worker.link is not None:
            self.mail(live.worker).kill.append((key_of(live.row), grace))

    def cancel_pending(self, job: Job, ranges: list[tuple[int, int]], reason: str | None) -> None:
        """Cancel tasks that do not run (each must be queued or waiting)."""
        for lo, hi in ranges:
            job.queued.remove(lo, hi)
            job.waiting.remove(lo, hi)
            begin = lo
            for pos in sorted(pos for pos in job.past if lo <= pos < hi):
                row = job.past.pop(pos)
                after(row.state, "cancelled")
                self.save_task(row._replace(state=CANCELLED, reason=reason))
                job.cancelled_rows += 1
                job.cancelled.add(begin, pos)
                begin = pos + 1
            job.cancelled.add(begin, hi)
            self._ended.append((job.id, lo, hi, CANCELLED))
            if reason is not None:
                job.reason = reason
            if hi - lo <= 10_000:
                self._notes.extend(Note(job.id, pos, CANCELLED, 0) for pos in range(lo, hi))
        if ranges:
            self.refresh(job)

    def release(self, job: Job, ranges: list[tuple[int, int]]) -> None:
        """Nothing is waited for any more by these tasks."""
        for lo, hi in ranges:
            job.waiting.remove(lo, hi)
            job.queued.add(lo, hi)
        self.refresh(job)

    def _on_retry(self, event: events.RetryAsked) -> None:
        done: list[tuple[int, list[tuple[int, int]], bool]] = []
        for target in event.targets:
            job = self.jobs.get(target.job) or self._revive(target.job)
            if job is None:
                continue
            lo, hi = self._span(job, target)
            again = RangeSet(job.cancelled.within(lo, hi))
            job.cancelled.remove(lo, hi)
            for pos in self._positions(job.id, (FAILED, CANCELLED), lo, hi - 1):
                row = self.task_row(job.id, pos)
                if row is None or row.state not in (FAILED, CANCELLED):
                    continue
                job.failed -= row.state == FAILED
                job.cancelled_rows -= row.state == CANCELLED
                row = row._replace(
                    state=after(row.state, "retried"), reason=None, exit_code=None, signal=None, finished_at=None,
                    started_at=None, retries=0, crashes=0, timed_out=0, files=None,
                )  # fmt: skip
                job.past[pos] = row
                self.save_task(row)
                self.saves.append(ClearOutput(job.id, pos))
                self.saves.append(DropOutput(job.id, pos, row.attempt))
                again.add(pos, pos + 1)
            if again:
                job.finished_at = job.reason = None
                for a, b in again.ranges():
                    job.queued.add(a, b)
                self.jobs[job.id] = job
                self._leaving.pop(job.id, None)
                self.refresh(job)
                done.append((job.id, [(a, b - 1) for a, b in again.ranges()], len(again) == job.count))
        self.reply(event.reply_to, {"queued": done})

    def _revive(self, job_id: int) -> Job | None:
        if job_id in self._leaving:
            return self._leaving[job_id]
        row = self.history.job(job_id)
        if row is None:
            return None
        spec = json.loads(row.spec)
        job = Job(row.id, spec, self.shape(spec), row.submitted_at)
        job.restore(row)
        return job

    # -- ends of attempts ----------------------------------------------------------------------------------------------

    def _on_report(self, event: events.WorkerReported, now: float, wall: float) -> None:
        worker = self.by_link.get(event.link)
        if worker is None:
            return
        for job_id, pos, attempt, at, _warm, _why in event.started:
            live = worker.live.get((job_id, pos))
            if live is not None and live.row.attempt == attempt:
                live.started_at = at
                worker.failures = 0
                if live.job.started_at is None:
                    live.job.started_at = at
                    self._dirty[job_id] = live.job
                self._notes.append(Note(job_id, pos, RUNNING, attempt))
        for fin in event.finished:
            key = TaskKey(fin.job, fin.pos, fin.attempt)
            self.mail(worker).ack.append(key)
            live = worker.live.get((fin.job, fin.pos))
            if live is None or live.row.attempt != fin.attempt:
                live = self.membership.take_back(worker, key, now)
            if live is None:
                self.ignored += 1
                row = self.task_row(fin.job, fin.pos)
                if row is None or row.attempt != fin.attempt:
                    self.saves.append(DropOutput(*key))
                continue
            outcome.finish(self, live, fin, now, wall)
        for key in event.recalled:
            live = worker.live.get((key.job, key.pos))
            if live is not None and live.row.attempt == key.attempt:
                self.requeue(live, "never began", None, now, wall)

    def lose(self, live: Live, now: float, wall: float) -> None:
        """The worker of a running task is lost, or came back without it."""
        outcome.lose(self, live, now, wall)

    def requeue(self, live: Live, happening: str, reason: str | None, now: float, wall: float, **columns: Any) -> None:
        """A running task goes back to the queue; as a cancelled one when its cancellation was asked for. The number of an
        attempt that never began is free again: its worker, which has said so, will not speak of it any more."""
        row = live.row
        if live.cancelling:
            self.end(live, row._replace(reason=None, finished_at=wall), CANCELLED, "cancelled", now)
            return
        self.detach(live, now)
        began = happening != "never began"
        if began and reason is not None:
            ended = SaveAttempt(row.job, row.pos, row.attempt, row.worker, live.started_at, wall, reason)
            self.saves.append(ended)
        row = row._replace(state=after(RUNNING, happening), reason=reason, started_at=None, **columns)
        if not began:
            row = row._replace(attempt=row.attempt - 1, worker=None, worker_id=None)
        job = live.job
        job.past[row.pos] = row
        job.queued.add(row.pos, row.pos + 1)
        self.save_task(row)
        if began and reason != outcome.LOST:  # the lost one may yet come back with its output
            self.saves.append(DropOutput(row.job, row.pos, row.attempt))
        self._notes.append(Note(row.job, row.pos, QUEUED, row.attempt))
        self.refresh(job)

    def end(self, live: Live, row: TaskRow, state: str, happening: str, now: float) -> None:
        """A running task reached its final state; `row` has all but the state."""
        self.detach(live, now)
        job = live.job
        self.save_task(row._replace(state=after(RUNNING, happening)))
        job.succeeded += state == SUCCEEDED
        job.failed += state == FAILED
        job.cancelled_rows += state == CANCELLED
        self.finished_tasks += 1
        self._ended.append((row.job, row.pos, row.pos + 1, state))
        self._notes.append(Note(row.job, row.pos, state, row.attempt))
        if state == FAILED and job.max_fails is not None and job.failed >= job.max_fails:
            self.cancel_rest(job)
        self.refresh(job)

    def cancel_rest(self, job: Job) -> None:
        """--max-fails was reached."""
        reason = f"{job.failed} of its tasks failed (--max-fails {job.max_fails})"
        self.cancel_pending(job, job.queued.ranges() + job.waiting.ranges(), reason)
        for live in list(job.live.values()):
            self.kill(live, job.grace)
        job.reason = reason

    def detach(self, live: Live, now: float) -> None:
        """Take a task off its worker."""
        del live.job.live[live.row.pos]
        del live.worker.live[live.row.job, live.row.pos]
        self.placement.gave(live, now)

    def _settle(self, now: float, wall: float) -> None:
        """Tell dependants of what ended, until nothing follows; jobs whose tasks have all ended leave."""
        while self._ended:
            touched: dict[int, None] = {}
            while self._ended:
                job_id, lo, hi, state = self._ended.popleft()
                self.dependencies.on_ends(job_id, lo, hi, state)
                touched[job_id] = None
            for job_id in touched:
                job = self.jobs.get(job_id)
                if job is not None and job.state_now() in TERMINAL:
                    self._leave(job, wall)

    def _leave(self, job: Job, wall: float) -> None:
        job.state, job.finished_at = job.state_now(), wall
        del self.jobs[job.id]
        self._leaving[job.id] = job
        self._dirty[job.id] = job
        self._notes.append(Note(job.id, None, job.state, 0))
        self.dependencies.on_job_end(job.id)

    def refresh(self, job: Job, changed: bool = True) -> None:
        """After anything changed in a job: its state, whether it can start a task, and that it must be saved."""
        state = job.state_now()
        if state not in TERMINAL:
            job.state = state
        self.placement.consider(job)
        if changed:
            self._dirty[job.id] = job

    def begin(self, job: Job, row: TaskRow, worker: Worker, now: float) -> Live:
        """A task is with a worker from now on."""
        live = Live(job, row, worker, now)
        job.live[row.pos] = live
        worker.live[row.job, row.pos] = live
        self.placement.took(live)
        self.save_task(row)
        self.assigned(job, row)
        return live

    def assigned(self, job: Job, row: TaskRow) -> None:
        """A task was given to a worker."""
        self._notes.append(Note(row.job, row.pos, RUNNING, row.attempt))
        self.refresh(job)

    # -- views and checks ----------------------------------------------------------------------------------------------

    def why_waiting(self, job: int, now: float) -> str | None:
        """Why a job has no task running now, in plain words; None when it has, or is finished."""
        known = self.jobs.get(job)
        if known is None or (known.live and not known.queued):
            return None
        if known.queued:
            return why_queued(known, self.workers.values(), now)
        kinds = {dep["kind"] for dep in known.after}
        return why_waiting(self.dependencies.waits_for(known), kinds)

    def worker_views(self, now: float) -> list[dict[str, Any]]:
        """Raw facts of every worker, by name, for core.views."""
        return [
            {
                "id": worker.id,
                "name": worker.name,
                "link": worker.link,
                "state": self._worker_state(worker, now),
                "slots": worker.slots,
                "slots_used": worker.slots - worker.free.get("cpus", 0) if worker.slots else 0,
                "labels": sorted(worker.labels),
                "running": [key_of(live.row) for live in worker.live.values()],
                "info": worker.info,
                "said": worker.state,
                "failures": worker.failures,
            }
            for worker in sorted(self.workers.values(), key=lambda w: w.name)
            if worker.link is not None or worker.live or worker.drained or worker.gone_at is not None
        ]

    @staticmethod
    def _worker_state(worker: Worker, now: float) -> str:
        if worker.link is None:
            return "lost" if worker.lost else "away"
        if worker.draining or worker.drained:
            return "draining" if worker.live else "drained"
        if worker.paused_until > now:
            return "paused"
        return "busy" if worker.live else "idle"

    def check(self) -> None:
        """Raise AssertionError when the state contradicts itself. Tests call it after every step."""
        for job in self.jobs.values():
            assert sum(job.counts().values()) == job.count, (job.id, job.counts(), job.count)
            assert job.state_now() not in TERMINAL, f"job {job.id} ended and did not leave"
            assert job.max_running is None or len(job.live) <= job.max_running, job.id
            assert all(pos in job.queued or pos in job.waiting for pos in job.past), job.id
            for pos, live in job.live.items():
                assert live.worker.live[job.id, pos] is live
                assert pos not in job.queued and pos not in job.waiting and pos not in job.cancelled
        for worker in self.workers.values():
            for (job_id, pos), live in worker.live.items():
                assert self.jobs[job_id].live[pos] is live
        self.placement.check()
