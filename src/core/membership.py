"""Workers that come, go, come back, are lost; what they hold is reconciled with what they were given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import events, outcome
from .jobs import QUEUED, TaskKey, after
from .live import Live, Worker
from .lookup import key_of
from .saves import SaveWorker

if TYPE_CHECKING:
    from .cluster import Cluster

WORKER_FORGOTTEN_S = 3600.0  # a lost worker is listed for so long


class Membership:
    """The part of the cluster's brain that follows workers."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def worker(self, worker_id: str, name: str) -> Worker:
        if worker_id not in self._cluster.workers:
            self._cluster.workers[worker_id] = Worker(worker_id, name)
        return self._cluster.workers[worker_id]

    def on_join(self, event: events.WorkerJoined, now: float, wall: float) -> None:
        info, link = event.info, event.link
        worker_id = info["worker_id"]
        worker = self._cluster.workers.get(worker_id)
        if worker is not None and worker.link is not None and worker.boot != info["boot"]:
            # A cloned machine, or one that was restarted so quickly that its old connection is not known to be dead:
            # another worker, for the rest of this connection. The old one's tasks wait for the old one.
            worker_id = f"{worker_id}.{info['boot'][:8]}"
            worker = self._cluster.workers.get(worker_id)
        if worker is None:
            worker = self._cluster.workers[worker_id] = Worker(worker_id, info["name"])
        if worker.link is not None:
            self._cluster.mail_to(worker.link).close = "replaced by a newer connection of the same worker"
            self._cluster.by_link.pop(worker.link, None)
        same_process = worker.boot == info["boot"]
        worker.describe(info)
        worker.name = self._free_name(info["name"], worker)
        worker.link, worker.gone_at, worker.lost, worker.draining = link, None, False, False
        worker.sent = {}
        self._cluster.by_link[link] = worker
        self._cluster.placement.rejoined(worker)
        self._cluster.saves.append(SaveWorker(worker.id, worker.name, worker.drained, wall))
        keep, kill = self._reconcile(worker, info["holding"], same_process, now, wall)
        mail = self._cluster.mail(worker)
        mail.welcome = {"name": worker.name, "keep": keep, "kill": kill}
        for live in worker.live.values():
            if live.cancelling:
                mail.kill.append((key_of(live.row), live.job.grace))
        if worker.drained:
            mail.drain = True
        self._cluster.log.append(f"worker {worker.name} joined with {worker.slots} slots")

    def _free_name(self, wanted: str, worker: Worker) -> str:
        taken = {w.name for w in self._cluster.workers.values() if w is not worker and (w.link is not None or w.live)}
        name, n = wanted, 1
        while name in taken:
            n += 1
            name = f"{wanted}-{n}"
        return name

    def _reconcile(
        self, worker: Worker, holding: list[Any], same_process: bool, now: float, wall: float
    ) -> tuple[list[TaskKey], list[TaskKey]]:
        keep: list[TaskKey] = []
        kill: list[TaskKey] = []
        held = set()
        for job_id, pos, attempt, _state, started_at in holding:
            key = TaskKey(job_id, pos, attempt)
            live = worker.live.get((job_id, pos))
            if live is None or live.row.attempt != attempt:
                live = self.take_back(worker, key, now)
            if live is None:
                kill.append(key)
                continue
            held.add((job_id, pos))
            live.started_at = started_at if started_at is not None else live.started_at
            keep.append(key)
        for live in [live for at, live in worker.live.items() if at not in held]:
            if same_process:  # it never arrived there
                self._cluster.requeue(live, "never began", None, now, wall)
            else:
                self._cluster.lose(live, now, wall)
        return keep, kill

    def take_back(self, worker: Worker, key: TaskKey, now: float) -> Live | None:
        """A worker thought lost holds the newest attempt of a task that did not start again yet: let it go on."""
        job = self._cluster.jobs.get(key.job)
        row = job.past.get(key.pos) if job is not None else None
        if job is None or row is None or row.attempt != key.attempt or row.worker_id != worker.id:
            return None
        if key.pos not in job.queued or row.reason != outcome.LOST:
            return None
        if job.max_running is not None and len(job.live) >= job.max_running:
            return None  # others took its place: it ends there, and waits for its turn like any other
        del job.past[key.pos]
        job.queued.discard(key.pos)
        return self._cluster.begin(
            job, row._replace(state=after(QUEUED, "finished elsewhere"), reason=None), worker, now
        )

    def on_gone(self, event: events.WorkerGone, now: float, wall: float) -> None:
        worker = self._cluster.by_link.pop(event.link, None)
        self._cluster.outgoing.pop(event.link, None)
        if worker is None:
            return
        worker.link, worker.gone_at = None, now
        self._cluster.placement.left(worker)
        if event.orderly:
            for live in list(worker.live.values()):
                self._cluster.requeue(live, "given back", "its worker left", now, wall)
        self._cluster.log.append(f"worker {worker.name} {'left' if event.orderly else 'is away: the connection broke'}")

    def on_state(self, event: events.WorkerStated) -> None:
        worker = self._cluster.by_link.get(event.link)
        if worker is not None:
            worker.state = event.state
            worker.draining = bool(event.state.get("drained")) or worker.draining

    def on_drain(self, event: events.DrainAsked, wall: float) -> None:
        by_name = {worker.name: worker for worker in self._cluster.workers.values()}
        unknown = [name for name in event.names if name not in by_name]
        if unknown:
            self._cluster.reply(
                event.reply_to, {"error": "no-such-worker", "message": f"there is no worker {unknown[0]}"}
            )
            return
        for name in event.names:
            worker = by_name[name]
            worker.drained = event.drain
            if not event.drain:
                worker.paused_until, worker.failures = 0.0, 0
            self._cluster.placement.changed(worker)
            self._cluster.saves.append(SaveWorker(worker.id, worker.name, worker.drained, wall))
            if worker.link is not None:
                self._cluster.mail(worker).drain = event.drain
        self._cluster.reply(event.reply_to, {"names": event.names})

    def patience(self, worker: Worker) -> float:
        return float(self._cluster.settings.lost_after) if not worker.lost and worker.live else WORKER_FORGOTTEN_S

    def on_tick(self, now: float, wall: float) -> None:
        for worker in list(self._cluster.workers.values()):
            if worker.gone_at is None or now < worker.gone_at + self.patience(worker):
                continue
            if worker.live:
                worker.lost = True
                self._cluster.log.append(
                    f"worker {worker.name} is lost: away for longer than {self._cluster.settings.lost_after:g} s"
                )
                for live in list(worker.live.values()):
                    self._cluster.lose(live, now, wall)
            elif now >= worker.gone_at + WORKER_FORGOTTEN_S and not worker.drained:
                del self._cluster.workers[worker.id]
            else:
                worker.gone_at = now
        self._cluster.placement.wake(now)
