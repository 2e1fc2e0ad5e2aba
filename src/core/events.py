"""What can happen to the cluster, in the past tense; and what it wants done, as effects.

A `link` is an opaque value of the shell for one connection of one worker; `reply_to` one for a request that waits for
its answer. The core only hands them back.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, Optional, Union

from .jobs import Finish, JobRow, TaskKey, TaskRow
from .saves import Save

Link = Any
ReplyTo = Any


class Target(NamedTuple):
    """Some tasks of a job: positions lo..hi inclusive, or all."""

    job: int
    lo: Optional[int]
    hi: Optional[int]


class JobSubmitted(NamedTuple):
    """Answer: {"id": int, "warning": str | None, "again": bool} or {"error": code, "message": str}."""

    request_id: str
    spec: dict[str, Any]  # checked
    spec_text: str
    reply_to: ReplyTo


class CancelAsked(NamedTuple):
    """Answer: {"cancelled": [(job, [(lo, hi)..] positions inclusive, whole: bool)..]}. Targets None: all that live."""

    targets: Optional[list[Target]]
    grace: Optional[float]
    reply_to: ReplyTo


class RetryAsked(NamedTuple):
    """Answer: {"queued": the same form as of CancelAsked}."""

    targets: list[Target]
    reply_to: ReplyTo


class DrainAsked(NamedTuple):
    """Answer: {"names": [..]} or {"error": "no-such-worker", "message": ..}."""

    names: list[str]
    drain: bool
    reply_to: ReplyTo


class WorkerJoined(NamedTuple):
    """`info` is the checked join message."""

    link: Link
    info: dict[str, Any]


class WorkerGone(NamedTuple):
    """The connection ended; orderly: it said bye first."""

    link: Link
    orderly: bool


class WorkerReported(NamedTuple):
    link: Link
    started: list[tuple[int, int, int, float, bool, Optional[str]]]  # job, pos, attempt, at, warm, why cold
    finished: list[Finish]
    recalled: list[TaskKey]


class WorkerStated(NamedTuple):
    """`state` is the checked state message."""

    link: Link
    state: dict[str, Any]


class Tick(NamedTuple):
    """A deadline came; `Cluster.next_deadline` told when."""


Event = Union[
    JobSubmitted, CancelAsked, RetryAsked, DrainAsked, WorkerJoined, WorkerGone, WorkerReported, WorkerStated, Tick
]


class WorkerMail:
    """All that one worker is told after one batch; becomes at most one welcome and one work message.

    jobs: specs (text) by id that this connection did not get yet · run, kill (with grace), ack, recall: task keys ·
    close: end the connection, with this reason.
    """

    __slots__ = ("welcome", "jobs", "run", "kill", "ack", "recall", "drain", "close")

    def __init__(self) -> None:
        self.welcome: Optional[dict[str, Any]] = None  # {"name", "keep": [TaskKey..], "kill": [TaskKey..]}
        self.jobs: dict[int, str] = {}
        self.run: list[TaskKey] = []
        self.kill: list[tuple[TaskKey, float]] = []
        self.ack: list[TaskKey] = []
        self.recall: list[TaskKey] = []
        self.drain: Optional[bool] = None
        self.close: Optional[str] = None


class Note(NamedTuple):
    """For whoever watches: what became of a task (pos None: of the job as a whole), with its attempt."""

    job: int
    pos: Optional[int]
    state: str
    attempt: int


class Effects(NamedTuple):
    """In this order: saves in one transaction, then everything else."""

    saves: list[Save]
    mail: dict[Link, WorkerMail]
    replies: list[tuple[ReplyTo, dict[str, Any]]]
    notes: list[Note]
    log: list[str]  # facts worth an INFO line


class History:
    """What the core may look up of jobs that it does not hold in memory. The store is one; a test has its own."""

    def job(self, job: int) -> Optional[JobRow]:
        raise NotImplementedError

    def task(self, job: int, pos: int) -> Optional[TaskRow]:
        raise NotImplementedError

    def positions(self, job: int, states: Iterable[str], lo: int, hi: int) -> list[int]:
        """Positions lo..hi that have a row in one of these states, ascending."""
        raise NotImplementedError

    def by_request(self, request_id: str) -> Optional[int]:
        raise NotImplementedError

    def by_once(self, once: str) -> Optional[int]:
        raise NotImplementedError


class Loaded(NamedTuple):
    """What a start finds in the store."""

    next_id: int
    jobs: list[JobRow]  # not finished
    tasks: list[TaskRow]  # of those jobs: running ones, and queued ones that ran before
    workers: list[tuple[str, str, bool]]  # worker_id, name, drained
