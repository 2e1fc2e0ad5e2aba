"""What the core wants on disk: values that `Store.apply` writes, all of a batch in one transaction.

KeepOutput and DropOutput are for the manager's shell: it turns the first into StoreOutput (small output) or a synced
spool file before the commit, and does the second after it.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Optional, Union

from .jobs import JobRow, TaskRow


class SaveJob(NamedTuple):
    """A new job."""

    row: JobRow


class UpdateJob(NamedTuple):
    """Changed columns of a job."""

    id: int
    fields: dict[str, Any]


class SaveTask(NamedTuple):
    """A task's row, new or changed."""

    row: TaskRow


class SaveAttempt(NamedTuple):
    """History of an attempt that was not the last one."""

    job: int
    pos: int
    attempt: int
    worker: Optional[str]
    started_at: Optional[float]
    ended_at: float
    reason: str


class StoreOutput(NamedTuple):
    """The whole small output of a finished task, beside its row."""

    job: int
    pos: int
    out: bytes
    err: bytes


class ClearOutput(NamedTuple):
    """The stored output of a task that runs again."""

    job: int
    pos: int


class KeepOutput(NamedTuple):
    """The output of the attempt that counts: inline bytes, or None where the spool file has it."""

    job: int
    pos: int
    attempt: int
    out: Optional[bytes]
    err: Optional[bytes]


class DropOutput(NamedTuple):
    """The spooled output of an attempt that no longer counts."""

    job: int
    pos: int
    attempt: int


class SaveWorker(NamedTuple):
    """What is remembered of a worker: its name belongs to its id, and whether it is drained."""

    worker_id: str
    name: str
    drained: bool
    seen_at: float


class ForgetJob(NamedTuple):
    """A finished job with all that is stored of it."""

    id: int


Save = Union[
    SaveJob, UpdateJob, SaveTask, SaveAttempt, StoreOutput, ClearOutput, KeepOutput, DropOutput, SaveWorker, ForgetJob
]
