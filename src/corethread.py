"""The core thread: it alone holds the cluster's brain and the store.

It takes all that waits, lets the brain decide, commits once, and only then lets anything leave (group commit; persist
before you speak).
"""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from .core import events
from .core.cluster import Cluster
from .core.errors import DiskFull, StoreError
from .core.saves import DropOutput, ForgetJob, KeepOutput, Save, StoreOutput
from .requests import Desk

if TYPE_CHECKING:
    from .manager import Manager
    from .net import Conn

log = logging.getLogger(__name__)

INLINE_MAX = 64 * 1024  # a task's output up to this, both streams together, is stored beside its row
RETRY_FULL_S = 1.0
SWEEP_S = 60.0  # how often --keep is looked at


class Request(NamedTuple):
    """A client's request (or news of the net thread, with conn None)."""

    conn: Conn | None
    kind: str
    header: dict[str, Any]
    payload: bytes


class Core:
    """`post` from any thread; the rest is the core thread's."""

    def __init__(self, manager: Manager) -> None:
        self.manager = manager
        self.store, self.outputs, self.blobs = manager.store, manager.outputs, manager.blobs
        self.cluster = Cluster(self.store, manager.settings)
        self.answers: list[tuple[Conn, dict[str, Any], Any]] = []
        self.desk = Desk(self)
        self.full = False  # the disk: a batch waits to be stored
        self.committed = 0
        self._inbox: deque[Any] = deque()
        self._wake = threading.Condition()  # guards _inbox's emptiness and _stopping
        self._stopping = False
        self._timers: list[tuple[float, int, Any]] = []
        self._serial = itertools.count()
        self._thread = threading.Thread(target=self._run, name="core", daemon=True)

    def start(self) -> None:
        now, wall = time.monotonic(), time.time()
        self.cluster.load(self.store.load(), now, wall)
        if self.manager.settings.keep is not None:
            self.call_later(1.0, self._sweep)
        self._thread.start()

    def post(self, item: Any) -> None:
        """An event or a Request. Any thread."""
        self._inbox.append(item)
        with self._wake:
            self._wake.notify()

    def stop(self) -> None:
        """Handle what is there, then end."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join()

    def call_later(self, seconds: float, fn: Any) -> None:
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._serial), fn))

    # -- the loop ------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while True:
                batch = self._take()
                if batch is None:
                    return
                self._turn(batch)
        except StoreError as error:
            log.error("%s", error)
            self.manager.fail(error)
        except Exception as error:
            log.exception("the core failed")
            self.manager.fail(error)

    def _take(self) -> list[Any] | None:
        """All that waits, after at least one thing came or a deadline passed; None at the end."""
        with self._wake:
            while not self._inbox:
                if self._stopping:
                    return None
                due = self._next_due()
                left = None if due is None else due - time.monotonic()
                if left is not None and left <= 0:
                    break
                self._wake.wait(left)
        return [self._inbox.popleft() for _ in range(len(self._inbox))]

    def _next_due(self) -> float | None:
        due = self.cluster.next_deadline()
        if self._timers and (due is None or self._timers[0][0] < due):
            due = self._timers[0][0]
        return due

    def _turn(self, batch: list[Any]) -> None:
        now, wall = time.monotonic(), time.time()
        due = self.cluster.next_deadline()
        if due is not None and due <= now:
            self.cluster.handle(events.Tick(), now, wall)
        for item in batch:
            if isinstance(item, Request):
                self.desk.take(item, now, wall)
            else:
                self.cluster.handle(item, now, wall)
        effects = self.cluster.take_effects(now, wall)
        if effects.saves:
            self._commit(effects.saves)
        for line in effects.log:
            log.info("%s", line)
        for reply_to, answer in effects.replies:
            self.desk.answered(reply_to, answer)
        self.desk.after_commit(effects.notes)
        while self._timers and self._timers[0][0] <= now:
            heapq.heappop(self._timers)[2]()
        self._send(effects.mail)

    def _send(self, mail: dict[Any, events.WorkerMail]) -> None:
        answers, self.answers = self.answers, []
        if self.desk.drops:
            self._drop()
        if mail or answers:
            manager = self.manager
            manager.loop.call_threadsafe(lambda: manager.deliver(mail, answers))

    # -- the store -----------------------------------------------------------------------------------------------------

    def _commit(self, saves: list[Save]) -> None:
        """All of the batch, or wait until there is room: the brain has moved on already, so nothing else may happen."""
        while True:
            try:
                ready = self._materialise(saves)
                self.store.apply(ready)
                break
            except DiskFull as error:
                self._say_full(str(error))
            except OSError as error:
                self._say_full(f"cannot store output: {error.strerror}")
        if self.full:
            log.warning("there is room again: going on")
        self.full = False
        self.committed += 1
        self.desk.drops += [save for save in saves if isinstance(save, DropOutput)]

    def _say_full(self, why: str) -> None:
        if not self.full:
            log.error("%s; nothing is lost: waiting for room", why)
        self.full = True
        with self._wake:
            if self._stopping:
                raise StoreError(f"stopped while the disk was full: {why}")
        waiting = [item for item in self._inbox if isinstance(item, Request) and item.kind == "submit"]
        for item in waiting:
            self._inbox.remove(item)
            self.desk.fail(item, "disk-full", "the manager's disk is full: try again later")
        self._send({})
        time.sleep(RETRY_FULL_S)

    def _materialise(self, saves: list[Save]) -> list[Save]:
        """KeepOutput becomes rows (small) or synced files."""
        ready: list[Save] = []
        for save in saves:
            if isinstance(save, KeepOutput):
                kept = self._keep(save)
                if kept is not None:
                    ready.append(kept)
            else:
                ready.append(save)
        return ready

    def _keep(self, save: KeepOutput) -> StoreOutput | None:
        job, pos, attempt = save.job, save.pos, save.attempt
        if save.out is not None and save.err is not None and len(save.out) + len(save.err) <= INLINE_MAX:
            return StoreOutput(job, pos, save.out, save.err) if save.out or save.err else None
        small: list[bytes] = []
        for stream, data in ((1, save.out), (2, save.err)):
            if data is None:
                data = self.outputs.take_small(job, pos, attempt, stream, INLINE_MAX)
            if data is not None:
                small.append(data)
        if len(small) == 2 and len(small[0]) + len(small[1]) <= INLINE_MAX:
            self.desk.drops.append(DropOutput(job, pos, attempt))
            return StoreOutput(job, pos, small[0], small[1])
        for stream, data in ((1, save.out), (2, save.err)):
            if data:
                self.outputs.write(job, pos, attempt, stream, 0, data)
            self.outputs.sync(job, pos, attempt, stream)
        return None

    def _drop(self) -> None:
        drops, self.desk.drops = self.desk.drops, []
        for drop in drops:
            self.outputs.remove(drop.job, drop.pos, drop.attempt)

    def forget(self, before: float) -> int:
        """Jobs that finished before this wall time go, with their output. How many."""
        count = 0
        while True:
            ids = self.store.finished_before(before, 1000)
            if not ids:
                break
            self.store.apply([ForgetJob(job) for job in ids])
            for job in ids:
                self.outputs.remove_job(job)
            count += len(ids)
        if count:
            self.blobs.sweep(set(self.store.live_blobs()))
        return count

    def _sweep(self) -> None:
        count = self.forget(time.time() - self.manager.settings.keep)
        if count:
            log.info("forgot %d jobs (--keep)", count)
        self.call_later(SWEEP_S, self._sweep)
