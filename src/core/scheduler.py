"""Who runs what next: `plan` pairs ready jobs with workers that have room.

Order: priority, then the user with the fewest CPUs in use (fair share), then the order of submission. Placement: the
least loaded worker that fits. A shape that fits nowhere for RESERVE_AFTER_S while others pass it gets a worker
reserved: that one takes nothing else of the same or a lower priority (but tasks whose --timeout ends in time) until it
fits. The idea is EASY backfill (Lifka, 1995). Pure; the caller (cluster.py) does what is planned.
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heapify, heappop, heappush

from .live import Job, Shape, Worker
from .syntax import version_matches

RESERVE_AFTER_S = 10.0
AHEAD_S = 0.15  # work sent to a worker ahead of need: covers the way there and back (measured: 50 ms away, still busy)
AHEAD_PER_SLOT = 32
STALE_S = 1.0  # what still waits then is asked back: ten times as long as was meant

Key = tuple[int, int, int]


def needs(shape: Shape) -> list[tuple[str, int]]:
    """The countable part of a shape, by the names of Worker.free."""
    found = [("cpus", shape.cpus)]
    if shape.gpus:
        found.append(("gpus", shape.gpus))
    if shape.memory:
        found.append(("memory", shape.memory))
    found += [("r:" + name, n) for name, n in shape.resources if n]
    return found


def capable(shape: Shape, worker: Worker) -> bool:
    """Whether the worker, empty, could run it."""
    if not worker.labels.issuperset(shape.on):
        return False
    if any(worker.total.get(name, 0) < n for name, n in needs(shape)):
        return False
    return interpreter(shape, worker.pythons) is not None


def interpreter(shape: Shape, pythons: dict[str, str]) -> str | None:
    """The name of an offered interpreter ("" : the worker's own) that suits; None when there is none."""
    if shape.python is not None:
        version = pythons.get(shape.python)
        if version is None and not shape.python.startswith("/"):
            return None
        if version is None or shape.requires_python is None or version_matches(shape.requires_python, version):
            return shape.python
        return None
    if shape.requires_python is None:
        return ""
    suited = [name for name, version in pythons.items() if version_matches(shape.requires_python, version)]
    if "" in suited or not suited:
        return "" if suited else None
    return max(suited, key=lambda name: _version(pythons[name]))


def _version(text: str) -> list[int]:
    return [int(part) for part in text.split(".") if part.isdigit()]


class Ready:
    """The jobs that could start a task now, by shape, priority and user. A job is in it once."""

    def __init__(self) -> None:
        self._shapes: dict[Shape, dict[int, dict[str, list[int]]]] = {}
        self._in: set[int] = set()

    def __len__(self) -> int:
        return len(self._in)

    def __contains__(self, job: int) -> bool:
        return job in self._in

    def shapes(self) -> list[Shape]:
        return list(self._shapes)

    def add(self, job: Job) -> None:
        if job.id not in self._in:
            self._in.add(job.id)
            levels = self._shapes.setdefault(job.shape, {})
            heappush(levels.setdefault(job.priority, {}).setdefault(job.user, []), job.id)

    def remove(self, job: int) -> None:
        """The heap entry goes when it comes to the top."""
        self._in.discard(job)

    def best(self, shape: Shape, usage: dict[str, int]) -> tuple[Key, int] | None:
        """The job of this shape that is next, with its place in the order; None when there is none."""
        levels = self._shapes.get(shape)
        while levels:
            priority = max(levels)
            users = levels[priority]
            found: tuple[Key, int] | None = None
            for user in list(users):
                heap = users[user]
                while heap and heap[0] not in self._in:
                    heappop(heap)
                if not heap:
                    del users[user]
                    continue
                key = (-priority, usage.get(user, 0), heap[0])
                if found is None or key < found[0]:
                    found = (key, heap[0])
            if found is not None:
                return found
            del levels[priority]
        self._shapes.pop(shape, None)
        return None


class Room:
    """Workers with room, the least loaded first; for one round of planning."""

    def __init__(self, workers: Iterable[Worker], now: float) -> None:
        self._now = now
        self._heap = [(self.load(w), w.id, w) for w in workers if w.usable(now) and w.free["cpus"] > 0]
        heapify(self._heap)
        self._capable: dict[tuple[Shape, str], bool] = {}

    def __bool__(self) -> bool:
        return bool(self._heap)

    def cpus(self) -> int:
        """Free ones in all."""
        return sum(worker.free["cpus"] for _, _, worker in self._heap)

    @staticmethod
    def load(worker: Worker) -> float:
        return 1.0 - worker.free["cpus"] / max(worker.slots, 1)

    def pick(self, job: Job, avoid: str | None) -> Worker | None:
        """The least loaded worker where a task of the job starts at once; `avoid` (a worker id) only if no other."""
        shape, wanted = job.shape, needs(job.shape)
        aside: list[tuple[float, str, Worker]] = []
        found: Worker | None = None
        second: Worker | None = None
        while self._heap:
            entry = heappop(self._heap)
            worker = entry[2]
            if worker.free["cpus"] <= 0:
                continue
            aside.append(entry)
            if not self._fits(shape, wanted, worker, job):
                continue
            if worker.id == avoid:
                second = worker
                continue
            found = worker
            break
        chosen = found or second
        for entry in aside:
            if entry[2] is not chosen:
                heappush(self._heap, entry)
        return chosen

    def back(self, worker: Worker) -> None:
        """After a task was placed on the worker that `pick` gave."""
        if worker.free["cpus"] > 0:
            heappush(self._heap, (self.load(worker), worker.id, worker))

    def _fits(self, shape: Shape, wanted: list[tuple[str, int]], worker: Worker, job: Job) -> bool:
        free = worker.free
        for name, n in wanted:
            if free.get(name, 0) < n:
                return False
        held = worker.reserved_for
        if held is not None and held[0] != shape and job.priority <= held[1]:
            return bool(job.timeout and self._now + job.timeout <= (free_at(worker) or 0.0))
        known = self._capable.get((shape, worker.id))
        if known is None:
            known = self._capable[shape, worker.id] = capable(shape, worker)
        return known


def free_at(worker: Worker) -> float | None:
    """When the worker will be empty at the latest, if every task on it has a --timeout (monotonic), else None."""
    ends = [live.assigned_at + live.job.timeout for live in worker.live.values() if live.job.timeout]
    return max(ends) if ends and len(ends) == len(worker.live) else None


def ahead_limit(worker: Worker) -> int:
    """How many tasks beyond its slots a worker may hold: AHEAD_S of its recent speed, none for long tasks."""
    if worker.mean_s > 5 * AHEAD_S:
        return 0
    return worker.slots * min(AHEAD_PER_SLOT, int(AHEAD_S / max(worker.mean_s, 0.001)) + 1)


def may_go_ahead(shape: Shape) -> bool:
    """Only tasks that need nothing but CPUs are sent ahead: who gets a GPU is decided when one is free."""
    return not (shape.gpus or shape.memory or shape.resources)
