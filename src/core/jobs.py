"""The nouns: states of a task, the table of what may become of them, and what is remembered of jobs and tasks.

A job is one script with `count` tasks (1 unless it is an array). A task is known as (job, pos), pos = 0..count-1;
what people call its index is `Indexes.at(pos)` (core.syntax). Each execution of a task is an attempt, numbered from 1.
JobRow and TaskRow are the persistent part, as the database holds them; a task has a row once it was given to a worker.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Optional

WAITING = "waiting"  # for other jobs
QUEUED = "queued"  # for a free place on a worker
RUNNING = "running"  # given to a worker
SUCCEEDED = "succeeded"
FAILED = "failed"
CANCELLED = "cancelled"

STATES = (WAITING, QUEUED, RUNNING, SUCCEEDED, FAILED, CANCELLED)
TERMINAL = frozenset((SUCCEEDED, FAILED, CANCELLED))

# What happens to a task, in the past tense, and where it leads. A pair that is not listed is a defect of ours.
TRANSITIONS: dict[tuple[str, str], str] = {
    (WAITING, "released"): QUEUED,
    (WAITING, "cancelled"): CANCELLED,
    (QUEUED, "assigned"): RUNNING,
    (QUEUED, "cancelled"): CANCELLED,
    (QUEUED, "finished elsewhere"): RUNNING,  # the attempt thought lost reports after all, before the next one left
    (RUNNING, "succeeded"): SUCCEEDED,
    (RUNNING, "failed"): FAILED,
    (RUNNING, "cancelled"): CANCELLED,
    (RUNNING, "lost"): QUEUED,  # its worker went away
    (RUNNING, "given back"): QUEUED,  # by a worker that leaves in good order
    (RUNNING, "never began"): QUEUED,  # says its worker: it was only sent ahead, or did not arrive
    (RUNNING, "failed, again"): QUEUED,  # --retries
    (FAILED, "retried"): QUEUED,  # by a person: `client.py retry`
    (CANCELLED, "retried"): QUEUED,
}


class IllegalTransition(AssertionError):
    """A defect: the table has no such pair. The message tells the task and what happened to it."""


def after(state: str, happening: str) -> str:
    """The state that `happening` leads to from `state`; raises IllegalTransition when the table has no such pair."""
    try:
        return TRANSITIONS[state, happening]
    except KeyError:
        raise IllegalTransition(f"a {state} task cannot have {happening!r} happen to it") from None


class TaskKey(NamedTuple):
    """One execution of one task."""

    job: int
    pos: int
    attempt: int


class JobRow(NamedTuple):
    """A job as the database has it. Times are wall clock seconds."""

    id: int
    request_id: str  # the client's; the same one again is the same job
    once: Optional[str]  # --once KEY
    name: str
    user: str
    priority: int
    state: str  # running when any task runs, else queued, waiting; ended: failed > cancelled > succeeded
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody needs
    waiting: int
    queued: int
    running: int
    succeeded: int
    failed: int
    cancelled: int
    spec: str  # JSON text
    sets: str  # JSON text {"waiting": [[lo, hi)..], "queued": .., "cancelled": ..}: positions without a row
    submitted_at: float
    started_at: Optional[float]
    finished_at: Optional[float]
    reason: Optional[str]


class TaskRow(NamedTuple):
    """A task that was given to a worker at least once. `attempt` is the one that counts (fencing)."""

    job: int
    pos: int
    state: str
    attempt: int
    worker: Optional[str]  # name
    started_at: Optional[float]  # None until the worker said so
    finished_at: Optional[float]
    exit_code: Optional[int]
    signal: Optional[int]
    reason: Optional[str]
    cpu_seconds: Optional[float]
    max_rss_bytes: Optional[int]
    output_bytes: int
    error_bytes: int
    dropped_bytes: int
    retries: int  # used of --retries
    crashes: int  # workers lost under it
    timed_out: int  # 1: --timeout ran out
    files: Optional[str]  # hash of the manifest of returned files
    worker_id: Optional[str]


class Finish(NamedTuple):
    """What a worker says of an attempt that ended."""

    job: int
    pos: int
    attempt: int
    exit_code: Optional[int]
    signal: Optional[int]
    reason: Optional[str]
    started_at: Optional[float]
    finished_at: float
    cpu_seconds: Optional[float]
    max_rss_bytes: Optional[int]
    output_bytes: int
    error_bytes: int
    dropped_bytes: int
    files: Optional[str]
    timed_out: bool
    never_ran: bool  # not the script's fault
    cancelled: bool  # ended by a kill that the manager asked for
    out: Optional[bytes]  # the whole stream when it is small and was never sent before, else None: the spool has it
    err: Optional[bytes]


def spec_blobs(spec: dict[str, Any]) -> list[str]:
    """Every content hash that the spec itself names (the files of a send manifest come on top)."""
    found: list[str] = [spec["script"]["hash"]]
    found += [item[1] for item in spec.get("modules") or ()]
    found += [spec[key] for key in ("args_blob", "env_blob", "stdin") if spec.get(key)]
    if spec.get("send"):
        found.append(spec["send"]["manifest"])
    if spec.get("lines"):
        found += [chunk[1] for chunk in spec["lines"]["chunks"]]
    return found


# Linux numbers: what a worker on another system calls differently it names itself in the reason.
SIGNALS = {
    1: "SIGHUP", 2: "SIGINT", 3: "SIGQUIT", 4: "SIGILL", 5: "SIGTRAP", 6: "SIGABRT", 7: "SIGBUS", 8: "SIGFPE",
    9: "SIGKILL", 10: "SIGUSR1", 11: "SIGSEGV", 12: "SIGUSR2", 13: "SIGPIPE", 14: "SIGALRM", 15: "SIGTERM",
    16: "SIGSTKFLT", 17: "SIGCHLD", 18: "SIGCONT", 19: "SIGSTOP", 20: "SIGTSTP", 21: "SIGTTIN", 22: "SIGTTOU",
    23: "SIGURG", 24: "SIGXCPU", 25: "SIGXFSZ", 26: "SIGVTALRM", 27: "SIGPROF", 28: "SIGWINCH", 29: "SIGIO",
    30: "SIGPWR", 31: "SIGSYS",
}  # fmt: skip


def signal_name(number: int) -> str:
    """`SIGKILL` for 9; `signal 40` for one without a name."""
    return SIGNALS.get(number) or f"signal {number}"
