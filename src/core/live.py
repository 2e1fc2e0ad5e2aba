"""What the manager's brain holds in memory: jobs that are not finished, their running tasks, and workers.

Finished things live in the store alone. Plain holders: every decision is in cluster.py and its helpers.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from .events import Link
from .jobs import CANCELLED, FAILED, QUEUED, RUNNING, SUCCEEDED, WAITING, JobRow, TaskRow
from .ranges import RangeSet


class Shape(NamedTuple):
    """What a task needs of a worker; jobs of one shape are interchangeable for placement."""

    cpus: int
    gpus: int
    memory: int | None  # bytes
    on: tuple[str, ...]
    resources: tuple[tuple[str, int], ...]
    python: str | None
    requires_python: str | None

    @classmethod
    def of(cls, spec: dict[str, Any]) -> Shape:
        return cls(
            spec["cpus"],
            spec["gpus"],
            spec["memory"],
            tuple(sorted(spec["on"])),
            tuple(sorted(spec["resources"].items())),
            spec["python"],
            spec["requires_python"],
        )


class Live:
    """A running task: one that was given to a worker and did not end yet."""

    __slots__ = ("ahead", "assigned_at", "cancelling", "job", "recalled", "row", "started_at", "worker")

    def __init__(self, job: Job, row: TaskRow, worker: Worker, now: float) -> None:
        self.job = job
        self.row = row
        self.worker = worker
        self.assigned_at = now  # monotonic
        self.started_at: float | None = row.started_at  # wall, None until the worker said so
        self.cancelling = row.reason == CANCELLING
        self.ahead = False  # sent ahead of need: holds no resources of the worker yet
        self.recalled = False  # asked back


# The reason of a running row whose cancellation was asked for: it survives a restart of the manager.
CANCELLING = "cancelling"


class Job:
    """A job that is not finished. The counts of finished tasks are here, their rows in the store."""

    __slots__ = (
        "after", "cancelled", "cancelled_rows", "count", "each", "each_done", "each_ready", "failed", "finished_at",
        "grace", "id", "if_lost", "live", "max_fails", "max_running", "name", "past", "pending", "priority", "queued",
        "reason", "retries", "shape", "started_at", "state", "submitted_at", "succeeded", "timeout", "user", "waiting",
    )  # fmt: skip

    def __init__(self, job: int, spec: dict[str, Any], shape: Shape, wall: float) -> None:
        self.id = job
        self.name: str = spec["name"]
        self.user: str = spec["user"]
        self.priority: int = spec["priority"]
        self.count: int = spec["count"]
        self.shape = shape
        self.max_running: int | None = spec["max_running"]
        self.max_fails: int | None = spec["max_fails"]
        self.retries: int = spec["retries"]
        self.timeout: float | None = spec["timeout"]
        self.grace: float = spec["grace"]
        self.if_lost: str = spec["if_lost"]
        self.after: list[dict[str, Any]] = spec["after"]
        self.state = QUEUED
        self.submitted_at = wall
        self.started_at: float | None = None
        self.finished_at: float | None = None
        self.reason: str | None = None
        self.succeeded = 0
        self.failed = 0
        self.cancelled_rows = 0  # cancelled tasks that have a row; the others are in `cancelled`
        self.waiting = RangeSet()
        self.queued = RangeSet()
        self.cancelled = RangeSet()  # never given to a worker
        self.live: dict[int, Live] = {}
        self.past: dict[int, TaskRow] = {}  # queued tasks that ran before: their last row
        self.pending = 0  # jobs and tasks (not "each") that are waited for
        self.each = 0  # how many --after-each
        self.each_done: dict[int, int] = {}  # with several of them: how many are satisfied
        self.each_ready = RangeSet()  # positions whose "each" is satisfied while `pending` is not

    def counts(self) -> dict[str, int]:
        """Tasks by state."""
        return {
            WAITING: len(self.waiting),
            QUEUED: len(self.queued),
            RUNNING: len(self.live),
            SUCCEEDED: self.succeeded,
            FAILED: self.failed,
            CANCELLED: len(self.cancelled) + self.cancelled_rows,
        }

    def state_now(self) -> str:
        """The state of the whole, from its tasks'."""
        if self.live:
            return RUNNING
        if self.queued:
            return QUEUED
        if self.waiting:
            return WAITING
        if self.failed:
            return FAILED
        return CANCELLED if self.cancelled or self.cancelled_rows else SUCCEEDED

    def sets(self) -> str:
        """The position sets as the store keeps them."""
        return json.dumps(
            {"waiting": self.waiting.ranges(), "queued": self.queued.ranges(), "cancelled": self.cancelled.ranges()},
            separators=(",", ":"),
        )

    def columns(self) -> dict[str, Any]:
        """The columns of the job's row that change."""
        return {
            "state": self.state,
            **self.counts(),
            "sets": self.sets(),
            "started_at": self.started_at,
            "finished_at": self.finished_at,
            "reason": self.reason,
        }

    def restore(self, row: JobRow) -> None:
        """Take over what the store has of this job."""
        sets = json.loads(row.sets)
        for mine, kept in (("waiting", self.waiting), ("queued", self.queued), ("cancelled", self.cancelled)):
            for lo, hi in sets[mine]:
                kept.add(lo, hi)
        self.succeeded, self.failed = row.succeeded, row.failed
        self.cancelled_rows = row.cancelled - len(self.cancelled)
        self.state, self.submitted_at, self.started_at = row.state, row.submitted_at, row.started_at
        self.finished_at, self.reason = row.finished_at, row.reason


class Worker:
    """A worker that is connected, or was and may come back."""

    __slots__ = (
        "boot", "drained", "draining", "failures", "free", "gone_at", "id", "info", "labels", "link", "live", "lost",
        "mean_s", "name", "paused_until", "pythons", "reserved_for", "sent", "slots", "state", "total",
    )  # fmt: skip

    def __init__(self, worker_id: str, name: str, drained: bool = False) -> None:
        self.id = worker_id
        self.name = name
        self.boot = ""
        self.link: Link | None = None
        self.drained = drained  # a person said so
        self.draining = False  # it said so itself: it leaves
        self.info: dict[str, Any] = {}
        self.labels: frozenset[str] = frozenset()
        self.pythons: dict[str, str] = {}
        self.slots = 0
        self.total: dict[str, int] = {}
        self.free: dict[str, int] = {}  # may be below zero after a worker came back smaller
        self.live: dict[tuple[int, int], Live] = {}  # in the order they were given
        self.gone_at: float | None = None  # monotonic, when the connection ended
        self.lost = False
        self.failures = 0  # starts that failed in a row, not by the script's fault
        self.paused_until = 0.0
        self.mean_s = 1.0  # moving mean of how long tasks take here
        self.reserved_for: tuple[Shape, int] | None = None  # and the priority that it is kept for
        self.sent: dict[int, None] = {}  # jobs whose spec this connection has, the latest last
        self.state: dict[str, Any] = {}  # what it last said of itself

    def describe(self, info: dict[str, Any]) -> None:
        """Take over a join message."""
        self.info = info
        self.boot = info["boot"]
        self.labels = frozenset(info["labels"])
        self.pythons = {**info["pythons"], "": info["python"]}  # "": the one it runs under
        self.slots = info["slots"]
        self.total = {"cpus": info["slots"], "gpus": info["gpus"], "memory": info["memory"] or 0}
        self.total.update({"r:" + name: n for name, n in info["resources"].items()})
        self.free = dict(self.total)

    def usable(self, now: float) -> bool:
        return self.link is not None and not self.drained and not self.draining and self.paused_until <= now
