"""What can happen to a worker, in the past tense; and what its brain (agent.py) wants done, in the imperative.

Values only. A command that names events as its answer is followed by one of them, sooner or later, unless the attempt
is discarded first. Stamps called `at` are wall clock.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Optional, Union

from .jobs import TaskKey

# -- events ----------------------------------------------------------------------------------------------------------


class Connected(NamedTuple):
    """A connection stands; nothing was said yet."""


class Disconnected(NamedTuple):
    pass


class Welcomed(NamedTuple):
    """The answer to a Join: what goes on, with the output sizes that the manager has; what must end unreported."""

    lost_after: float
    keep: list[tuple[TaskKey, int, int]]
    kill: list[TaskKey]


class WorkCame(NamedTuple):
    """One `work` message, without what concerns output only."""

    jobs: dict[int, dict[str, Any]]
    run: list[TaskKey]
    kill: list[tuple[TaskKey, float]]  # and the grace in seconds
    ack: list[TaskKey]
    recall: list[TaskKey]
    drain: Optional[bool]
    at: float


class Prepared(NamedTuple):
    """All that an attempt needs is on this machine; or why it never will be, and whether the job is to blame."""

    key: TaskKey
    at: float
    problem: Optional[str] = None
    by_job: bool = False


class Started(NamedTuple):
    key: TaskKey
    at: float
    warm: bool
    why_cold: Optional[str]


class Exited(NamedTuple):
    """No process of the attempt is left."""

    key: TaskKey
    started_at: Optional[float]  # None: it never ran
    at: float
    exit_code: Optional[int]
    signal: Optional[int]
    cpu: Optional[float]
    rss: Optional[int]
    reason: Optional[str]
    never_ran: bool


class Collected(NamedTuple):
    """Its output is complete, its returned files are with the manager, its folder is gone."""

    key: TaskKey
    files: Optional[str]
    note: Optional[str]
    dropped: int


class LeaveAsked(NamedTuple):
    """By a signal: finish what runs, or, with kill, give it back at once."""

    kill: bool


class Ticked(NamedTuple):
    """A deadline came; `Agent.next_deadline` told when."""


Event = Union[
    Connected, Disconnected, Welcomed, WorkCame, Prepared, Started, Exited, Collected, LeaveAsked, Ticked
]  # fmt: skip


# -- commands --------------------------------------------------------------------------------------------------------


class Join(NamedTuple):
    holding: list[tuple[int, int, int, str, Optional[float]]]


class Learn(NamedTuple):
    """A job's spec; it is needed until Forget."""

    job: int
    spec: dict[str, Any]


class Forget(NamedTuple):
    job: int


class Prepare(NamedTuple):
    """Get what this attempt needs; answer: Prepared."""

    key: TaskKey


class Start(NamedTuple):
    """Answers: Started, then Exited; or Exited alone."""

    key: TaskKey
    gpus: tuple[str, ...]


class Stop(NamedTuple):
    """SIGTERM, and SIGKILL after the grace; 0: SIGKILL at once. Mute: its output is of no more use. Answer: Exited."""

    key: TaskKey
    grace: float
    mute: bool = False


class Collect(NamedTuple):
    """Answer: Collected."""

    key: TaskKey


class Discard(NamedTuple):
    """Forget output, folder and result of an attempt; no process of it is left."""

    key: TaskKey


class Resume(NamedTuple):
    """On a new connection: the manager has so many bytes of its output."""

    key: TaskKey
    out: int
    err: int


class TellStarted(NamedTuple):
    key: TaskKey
    at: float
    warm: bool
    why_cold: Optional[str]


class End(NamedTuple):
    """How an attempt ended; its output is the shell's."""

    exit_code: Optional[int]
    signal: Optional[int]
    reason: Optional[str]
    started_at: Optional[float]
    finished_at: float
    cpu: Optional[float]
    rss: Optional[int]
    dropped: int
    files: Optional[str]
    timed_out: bool
    never_ran: bool
    cancelled: bool


class TellFinished(NamedTuple):
    key: TaskKey
    end: End


class TellRecalled(NamedTuple):
    key: TaskKey


class TellState(NamedTuple):
    pass


class Reconnect(NamedTuple):
    why: str


class Leave(NamedTuple):
    """Say bye if connected, and end."""


Command = Union[
    Join, Learn, Forget, Prepare, Start, Stop, Collect, Discard, Resume, TellStarted, TellFinished, TellRecalled,
    TellState, Reconnect, Leave,
]  # fmt: skip
