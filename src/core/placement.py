"""Keeps the books of what is free where, and carries out plans: assigns, sends ahead, asks back, reserves.

The half of the cluster's brain that changes with every task; scheduler.py holds the rules it follows.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING

from .jobs import QUEUED, RUNNING, TaskKey, TaskRow, after
from .live import Job, Live, Shape, Worker
from .scheduler import RESERVE_AFTER_S, STALE_S, Key, Ready, Room, ahead_limit, capable, may_go_ahead, needs

if TYPE_CHECKING:
    from .cluster import Cluster

SENT_KEPT = 500  # specs that a connection is taken to have still; a worker keeps those of its last 1,000 jobs


class Placement:
    """Free resources of workers, CPUs in use by user, and the jobs that are ready."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.ready = Ready()
        self.usage: dict[str, int] = {}  # CPUs in use by user
        self._open: dict[str, Worker] = {}  # connected workers that may have a free CPU
        self._hungry: dict[str, Worker] = {}  # to which work may be sent ahead
        self._ahead = 0  # tasks ahead in all
        self._recalled = 0  # of them those that were asked back
        self._look_ahead_at: float | None = None  # when to see whether some wait for too long
        self._blocked: dict[Shape, float] = {}  # since when a shape fits nowhere while it is its turn
        self._paused: dict[str, Worker] = {}
        self._news = False

    # -- books ---------------------------------------------------------------------------------------------------------

    def consider(self, job: Job) -> None:
        """After a change in a job: it is ready, or is not."""
        if job.queued and (job.max_running is None or len(job.live) < job.max_running):
            if job.id not in self.ready:
                self.ready.add(job)
                self._hungry.update(self._cluster.workers)
            self._news = True
        else:
            self.ready.remove(job.id)

    def took(self, live: Live) -> None:
        """A task is with its worker; it holds resources unless it was sent ahead."""
        user, cpus = live.job.user, live.job.shape.cpus
        self.usage[user] = self.usage.get(user, 0) + cpus
        if live.ahead:
            self._ahead += 1
            return
        for name, n in needs(live.job.shape):
            live.worker.free[name] = live.worker.free.get(name, 0) - n
        if live.worker.free["cpus"] <= 0:
            self._open.pop(live.worker.id, None)

    def gave(self, live: Live, now: float) -> None:
        """A task left its worker."""
        user, worker = live.job.user, live.worker
        left = self.usage.get(user, 0) - live.job.shape.cpus
        if left > 0:
            self.usage[user] = left
        else:
            self.usage.pop(user, None)
        if live.ahead:
            self._not_ahead(live)
        else:
            for name, n in needs(live.job.shape):
                worker.free[name] = worker.free.get(name, 0) + n
            if self._ahead:
                self._promote(worker, now)
        if worker.paused_until > now:
            self._paused[worker.id] = worker
        self.changed(worker)

    def _not_ahead(self, live: Live) -> None:
        self._ahead -= 1
        self._recalled -= live.recalled
        live.ahead = live.recalled = False

    def _promote(self, worker: Worker, now: float) -> None:
        """As the worker itself does: what was sent ahead starts, in order, as far as it fits."""
        for live in worker.live.values():
            if not live.ahead:
                continue
            wanted = needs(live.job.shape)
            if any(worker.free.get(name, 0) < n for name, n in wanted):
                break
            self._not_ahead(live)
            live.assigned_at = now
            for name, n in wanted:
                worker.free[name] -= n

    def changed(self, worker: Worker) -> None:
        """After a change in what the worker has free or may take."""
        self._news = True
        if worker.link is not None:
            self._hungry[worker.id] = worker
            if worker.free["cpus"] > 0:
                self._open[worker.id] = worker

    def rejoined(self, worker: Worker) -> None:
        """A worker's connection is new, and so is what it said of itself: count again what it holds."""
        for live in worker.live.values():
            if live.ahead:
                self._not_ahead(live)
            for name, n in needs(live.job.shape):
                worker.free[name] = worker.free.get(name, 0) - n
        worker.reserved_for = None
        self.changed(worker)

    def left(self, worker: Worker) -> None:
        worker.reserved_for = None
        for live in worker.live.values():
            if live.recalled:  # no answer comes: who is idle asks others
                live.recalled, self._news = False, True
                self._recalled -= 1
        for where in (self._open, self._hungry, self._paused):
            where.pop(worker.id, None)

    def deadlines(self) -> list[float]:
        """When a plan may come out differently though nothing happened."""
        due = [worker.paused_until for worker in self._paused.values()]
        due += [since + RESERVE_AFTER_S for since in self._blocked.values() if since > 0]
        if self._look_ahead_at is not None:
            due.append(self._look_ahead_at)
        return due

    def wake(self, now: float) -> None:
        """A deadline came."""
        self._news = True
        for worker in [w for w in self._paused.values() if w.paused_until <= now]:
            del self._paused[worker.id]
            self.changed(worker)
        if self._look_ahead_at is not None and now >= self._look_ahead_at:
            self._look_ahead_at = now + STALE_S if self._ahead else None
            self._ask_back_stale(now)

    # -- plan ----------------------------------------------------------------------------------------------------------

    def plan(self, now: float, wall: float) -> None:
        """Give ready tasks to workers with room; send ahead what fits nowhere now; ask back for those still idle."""
        if not self._news:
            return
        self._news = False
        order = self._order()
        self._forget_reservations({shape for _, shape in order})
        if order or self._ahead:
            room = Room(self._open.values(), now)
            if order and room:
                order = self._fill(order, room, now)
            if order:
                self._send_ahead(order, now)
            if self._ahead and room:
                self._ask_back(room)
        self._hungry.clear()

    def _forget_reservations(self, wanted: set[Shape]) -> None:
        gone = [shape for shape in self._blocked if shape not in wanted]
        for shape in gone:
            del self._blocked[shape]
        if gone:
            for worker in self._cluster.workers.values():
                if worker.reserved_for is not None and worker.reserved_for[0] in gone:
                    worker.reserved_for = None

    def _order(self) -> list[tuple[Key, Shape]]:
        found = []
        for shape in self.ready.shapes():
            best = self.ready.best(shape, self.usage)
            if best is not None:
                found.append((best[0], shape))
        heapify(found)
        return found

    def _next(self, order: list[tuple[Key, Shape]]) -> tuple[Shape, Job] | None:
        """The shape whose turn it is, with its job. Keys only grow while a plan is made, so old ones are put back."""
        while order:
            key, shape = heappop(order)
            best = self.ready.best(shape, self.usage)
            if best is None:
                continue
            if best[0] != key:
                heappush(order, (best[0], shape))
                continue
            return shape, self._cluster.jobs[best[1]]
        return None

    def _fill(self, order: list[tuple[Key, Shape]], room: Room, now: float) -> list[tuple[Key, Shape]]:
        blocked: list[tuple[Key, Shape]] = []
        while room:
            found = self._next(order)
            if found is None:
                break
            shape, job = found
            past = job.past.get(job.queued.first())
            worker = room.pick(job, past.worker_id if past is not None else None)
            best = self.ready.best(shape, self.usage)
            if worker is None:
                assert best is not None
                blocked.append((best[0], shape))
                self._hold_up(shape, job.priority, now)
                continue
            self._blocked.pop(shape, None)
            if worker.reserved_for is not None and worker.reserved_for[0] == shape:
                worker.reserved_for = None
            self._assign(job, worker, now, ahead=False)
            room.back(worker)
            best = self.ready.best(shape, self.usage)
            if best is not None:
                heappush(order, (best[0], shape))
        for entry in blocked:
            heappush(order, entry)
        return order

    def _hold_up(self, shape: Shape, priority: int, now: float) -> None:
        """It is this shape's turn and it fits nowhere: after a while, keep a worker free for it."""
        since = self._blocked.get(shape)
        if since is None:
            able = any(w.usable(now) and capable(shape, w) for w in self._cluster.workers.values())
            if able:
                self._blocked[shape] = now
            return
        if since <= 0 or now - since < RESERVE_AFTER_S:
            return
        able_now = [
            w for w in self._cluster.workers.values() if w.usable(now) and not w.reserved_for and capable(shape, w)
        ]
        if able_now:
            max(able_now, key=lambda w: (w.free["cpus"], w.id)).reserved_for = (shape, priority)
            self._blocked[shape] = 0.0  # reserved: no further deadline

    def _assign(self, job: Job, worker: Worker, now: float, ahead: bool) -> None:
        pos = job.queued.first()
        job.queued.discard(pos)
        past = job.past.pop(pos, None)
        if past is None:
            row = TaskRow(
                job.id, pos, after(QUEUED, "assigned"), 1, worker.name, None, None, None, None, None, None, None,
                0, 0, 0, 0, 0, 0, None, worker.id,
            )  # fmt: skip
        else:
            row = past._replace(
                state=RUNNING, attempt=past.attempt + 1, worker=worker.name, worker_id=worker.id, reason=None
            )
        cluster = self._cluster
        live = Live(job, row, worker, now)
        live.ahead = ahead
        job.live[pos] = live
        worker.live[job.id, pos] = live
        self.took(live)
        cluster.save_task(row)
        mail = cluster.mail(worker)
        if worker.sent.pop(job.id, self) is self:
            mail.jobs[job.id] = cluster.spec_text(job.id)
        worker.sent[job.id] = None
        if len(worker.sent) > SENT_KEPT:
            del worker.sent[next(iter(worker.sent))]
        mail.run.append(TaskKey(job.id, pos, row.attempt))
        cluster.assigned(job, row)

    def _send_ahead(self, order: list[tuple[Key, Shape]], now: float) -> None:
        able = [w for w in self._hungry.values() if w.usable(now) and w.reserved_for is None and ahead_limit(w)]
        if able:
            order = [entry for entry in order if may_go_ahead(entry[1])]
            heapify(order)
        for worker in able:
            if not order:
                break
            want = ahead_limit(worker) - sum(live.ahead for live in worker.live.values())
            aside: list[tuple[Key, Shape]] = []
            while want > 0:
                found = self._next(order)
                if found is None:
                    break
                shape, job = found
                fits = capable(shape, worker)
                if fits:
                    self._assign(job, worker, now, ahead=True)
                    self._blocked.pop(shape, None)
                    want -= 1
                    if self._look_ahead_at is None:
                        self._look_ahead_at = now + STALE_S
                best = self.ready.best(shape, self.usage)
                if best is not None:
                    heappush(order, (best[0], shape)) if fits else aside.append((best[0], shape))
            for entry in aside:
                heappush(order, entry)

    def _ask_back(self, room: Room) -> None:
        """Workers are idle that could run what waits at others: take back up to half of what waits at each."""
        idle = room.cpus() - self._recalled
        stuck: set[Shape] = set()
        for worker in self._cluster.workers.values():
            if idle <= 0:
                break
            if worker.link is None:
                continue
            waiting = self._waiting(worker)
            for live in reversed(waiting[len(waiting) // 2 :]):
                if idle <= 0 or live.job.shape in stuck:
                    continue
                other = room.pick(live.job, worker.id)
                if other is None:
                    stuck.add(live.job.shape)
                    continue
                room.back(other)
                if other is not worker:
                    self._recall(live)
                    idle -= 1

    def _ask_back_stale(self, now: float) -> None:
        """What waits for long at a worker was sent there in error, as its tasks are not short any more: it must keep
        neither its place there nor others of higher priority from theirs."""
        for worker in self._cluster.workers.values():
            late = [live for live in self._waiting(worker) if now - live.assigned_at >= STALE_S]
            if late and worker.link is not None:
                worker.mean_s = max(worker.mean_s, STALE_S)
                for live in late:
                    self._recall(live)

    @staticmethod
    def _waiting(worker: Worker) -> list[Live]:
        return [live for live in worker.live.values() if live.ahead and not live.recalled]

    def _recall(self, live: Live) -> None:
        live.recalled = True
        self._recalled += 1
        key = TaskKey(live.row.job, live.row.pos, live.row.attempt)
        self._cluster.mail(live.worker).recall.append(key)

    def check(self) -> None:
        """Never more than a worker has (a worker that came back smaller excepted: it only takes no more)."""
        for worker in self._cluster.workers.values():
            used: dict[str, int] = {}
            for live in worker.live.values():
                if not live.ahead:
                    for name, n in needs(live.job.shape):
                        used[name] = used.get(name, 0) + n
            if worker.link is not None:
                for name, n in worker.total.items():
                    assert worker.free[name] == n - used.get(name, 0), (worker.name, name, worker.free, used)
        usage: dict[str, int] = {}
        for job in self._cluster.jobs.values():
            if job.live:
                usage[job.user] = usage.get(job.user, 0) + len(job.live) * job.shape.cpus
        assert usage == self.usage, (usage, self.usage)
        lives = [live for worker in self._cluster.workers.values() for live in worker.live.values()]
        assert self._ahead == sum(live.ahead for live in lives)
        assert self._recalled == sum(live.recalled for live in lives), (self._recalled, lives)
