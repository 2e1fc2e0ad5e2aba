"""The core thread: it alone holds the cluster's brain and the store.

It takes all that waits, lets the brain decide, commits once, and only then lets anything leave (group commit; persist
before you speak).
"""

from __future__ import annotations

import errno
import heapq
import itertools
import logging
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from .core import events
from .core.cluster import Cluster
from .core.errors import DiskFull, StoreError
from .core.saves import DropOutput, KeepOutput, Save, StoreOutput
from .forgetting import Forgetter
from .requests import Desk
from .store import Store, StoreBroken

if TYPE_CHECKING:
    from .manager import Manager
    from .net import Conn

log = logging.getLogger(__name__)

INLINE_MAX = 64 * 1024  # a task's output up to this, both streams together, is stored beside its row
RETRY_FULL_S = 1.0
SLEEP_MAX_S = 3600.0  # of one wait: longer ones overflow
FULL_ERRNOS = frozenset((errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)))


class Request(NamedTuple):
    """A client's request, or of kind "gone": it left."""

    conn: Conn
    kind: str
    header: dict[str, Any]


class Timer:
    """A call that is due; `cancel` takes it back."""

    __slots__ = ("_timers", "fn")

    def __init__(self, timers: Timers, fn: Callable[[], Any]) -> None:
        self._timers = timers
        self.fn: Callable[[], Any] | None = fn

    def cancel(self) -> None:
        if self.fn is not None:
            self.fn = None
            self._timers.cancelled()


class Timers:
    """Calls that are due some time. Cancelled ones are thrown out before they are the half of all."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Timer]] = []
        self._serial = itertools.count()
        self._dead = 0

    def add(self, seconds: float, fn: Callable[[], Any]) -> Timer:
        timer = Timer(self, fn)
        heapq.heappush(self._heap, (time.monotonic() + seconds, next(self._serial), timer))
        return timer

    def cancelled(self) -> None:
        self._dead += 1
        if self._dead > 100 and self._dead * 2 > len(self._heap):
            self._heap = [entry for entry in self._heap if entry[2].fn is not None]
            heapq.heapify(self._heap)
            self._dead = 0

    def next_due(self) -> float | None:
        while self._heap and self._heap[0][2].fn is None:
            heapq.heappop(self._heap)
            self._dead -= 1
        return self._heap[0][0] if self._heap else None

    def run(self, now: float) -> None:
        while self._heap and self._heap[0][0] <= now:
            fn = heapq.heappop(self._heap)[2].fn
            if fn is None:
                self._dead -= 1
            else:
                fn()


class Core:
    """`post` from any thread; the rest is the core thread's."""

    def __init__(self, manager: Manager) -> None:
        self.manager = manager
        self.store: Store = manager.store
        self.outputs, self.blobs = manager.outputs, manager.blobs
        self.cluster: Cluster = Cluster(self.store, manager.settings)
        self.answers: list[tuple[Conn, dict[str, Any], Any]] = []
        self.forgetter = Forgetter(self)
        self.desk = Desk(self)
        self.full = False  # the disk: a batch waits to be stored
        self.committed = 0
        self._timers = Timers()
        self._inbox: deque[tuple[Any, int]] = deque()
        self._grown: dict[tuple[int, int], None] = {}  # tasks whose output grew
        self._wake = threading.Condition()  # guards _inbox, _grown and _stopping
        self._stopping = False
        self._aside: list[tuple[Any, int]] = []  # taken out of the inbox while the disk was full
        self._thread = threading.Thread(target=self._run, name="core", daemon=True)

    def start(self) -> None:
        now, wall = time.monotonic(), time.time()
        self.cluster.load(self.store.load(), now, wall)
        self.call_later(1.0, self.forgetter.resume)
        if self.manager.settings.keep is not None:
            self.call_later(1.0, lambda: self.forgetter.watch(self.manager.settings.keep))
        self._thread.start()

    def post(self, item: Any, size: int = 0) -> None:
        """An event or a Request; `size` comes back through Manager.deliver once it is taken. Any thread."""
        with self._wake:
            self._inbox.append((item, size))
            self._wake.notify()

    def grew(self, tasks: list[tuple[int, int]]) -> None:
        """Output of these tasks is in the spool: their readers should look. Any thread."""
        with self._wake:
            self._grown.update(dict.fromkeys(tasks))
            self._wake.notify()

    def stop(self) -> None:
        """Handle what is there, then end."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join()

    def call_later(self, seconds: float, fn: Callable[[], Any]) -> Timer:
        """Core thread."""
        return self._timers.add(seconds, fn)

    # -- the loop ------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while True:
                batch = self._take()
                if batch is None:
                    return
                self._turn(batch)
        except StoreError as error:
            self.manager.fail(error)
        except sqlite3.Error as error:
            self.manager.fail(StoreError(f"cannot read {self.store.path}: {error}; stopping, nothing is lost"))
        except Exception as error:  # the thread's one catch-all: a defect of ours ends the manager, and says where
            log.exception("the core failed")
            self.manager.fail(error)

    def _take(self) -> list[tuple[Any, int]] | None:
        """All that waits, after at least one thing came or a deadline passed; None at the end."""
        with self._wake:
            while not (self._inbox or self._aside or self._grown):
                if self._stopping:
                    return None
                due = self._next_due()
                left = None if due is None else due - time.monotonic()
                if left is not None and left <= 0:
                    break
                self._wake.wait(left if left is None else min(left, SLEEP_MAX_S))
            batch = self._aside + list(self._inbox)
            self._inbox.clear()
            grown, self._grown = self._grown, {}
        self._aside = []
        self.desk.reader.grew(grown)
        return batch

    def _next_due(self) -> float | None:
        due, mine = self.cluster.next_deadline(), self._timers.next_due()
        return due if mine is None or (due is not None and due < mine) else mine

    def _turn(self, batch: list[tuple[Any, int]]) -> None:
        now, wall = time.monotonic(), time.time()
        due = self.cluster.next_deadline()
        if due is not None and due <= now:
            self.cluster.handle(events.Tick(), now, wall)
        size = 0
        for item, item_size in batch:
            size += item_size
            event = self.desk.take(item) if isinstance(item, Request) else item
            if event is not None:
                self.cluster.handle(event, now, wall)
        effects = self.cluster.take_effects(now, wall)
        if effects.saves:
            self._commit(effects.saves)
        for line in effects.log:
            log.info("%s", line)
        for reply_to, answer in effects.replies:
            self.desk.answered(reply_to, answer)
        self.desk.after_commit(effects.notes)
        self._timers.run(now)
        self._send(effects.mail, size)

    def _send(self, mail: dict[Any, events.WorkerMail], size: int) -> None:
        """To the net thread, all of a batch at once."""
        answers, self.answers = self.answers, []
        if self.desk.drops:
            self._drop()
        for letter in mail.values():
            if letter.welcome is not None:
                jobs = {key[0] for key in letter.welcome["keep"]}
                letter.welcome["limits"] = {job: self.desk.spec(job)[0]["max_output"] for job in jobs}
        if mail or answers or size:
            manager = self.manager
            manager.loop.call_threadsafe(lambda: manager.deliver(mail, answers, size))

    # -- the store -----------------------------------------------------------------------------------------------------

    def _commit(self, saves: list[Save]) -> None:
        """All of the batch, or wait until there is room: the brain has moved on already, so nothing else may happen."""
        while True:
            try:
                self.store.apply(self._materialise(saves))
                break
            except DiskFull as error:
                self._wait_for_room(str(error))
            except OSError as error:
                if error.errno not in FULL_ERRNOS:
                    # After a failed fsync a second one may lie (the page is gone): never try again.
                    raise StoreBroken(
                        f"cannot store output below {self.outputs.folder}: {error.strerror}; stopping, nothing that was"
                        " confirmed is lost"
                    ) from None
                self._wait_for_room(f"cannot store output: {error.strerror}")
        if self.full:
            log.warning("there is room again: going on")
        self.full = False
        self.committed += 1
        self.desk.drops += [save for save in saves if isinstance(save, DropOutput)]

    def _wait_for_room(self, why: str) -> None:
        """A moment, in which nothing happens but that submissions are refused, to be repeated later."""
        if not self.full:
            log.error("%s; nothing is lost: waiting for room", why)
        self.full = True
        with self._wake:
            if self._stopping:
                raise StoreError(f"stopped while the disk was full ({why}): nothing that was confirmed is lost")
            came = list(self._inbox)
            self._inbox.clear()
        kept, self.answers = self.answers, []
        refused = 0
        for item, size in came:
            if isinstance(item, Request) and item.kind == "submit":
                self.desk.fail(item, "disk-full", "the manager's disk is full: try again later")
                refused += size
            else:
                self._aside.append((item, size))
        answers, self.answers, manager = self.answers, kept, self.manager
        if answers:
            manager.loop.call_threadsafe(lambda: manager.deliver({}, answers, refused))
        time.sleep(RETRY_FULL_S)

    def _materialise(self, saves: list[Save]) -> list[Save]:
        """KeepOutput becomes rows (small) or synced files. Raises OSError."""
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
        self.desk.drops += [DropOutput(job, pos, old) for old in range(max(1, attempt - 20), attempt)]
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
