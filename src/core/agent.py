"""The worker's brain: events in, commands out. Owns which attempt is where on this machine; touches nothing.

    accepted → (prepared) → queued → starting → running → closing → done, until acknowledged
                              ╰───────── given back ─────────╯ (only what did not start)

Called by the worker's loop thread (worker.py), and by the simulator. It decides nothing about jobs: it runs what it was
given, in order, as far as it fits, and keeps every result until the manager has it. `now` is monotonic; stamps that are
only stored and shown (`at`) are wall clock.
"""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush
from typing import Any, Callable, NamedTuple, Optional

from .jobs import TaskKey
from .orders import (
    Collect,
    Collected,
    Command,
    Connected,
    Discard,
    Disconnected,
    End,
    Event,
    Exited,
    Forget,
    Join,
    Learn,
    Leave,
    LeaveAsked,
    Prepare,
    Prepared,
    Reconnect,
    Resume,
    Start,
    Started,
    Stop,
    TellFinished,
    TellRecalled,
    TellStarted,
    TellState,
    Ticked,
    Welcomed,
    WorkCame,
)

TIMEOUT_GRACE_S = 5.0  # between SIGTERM and SIGKILL of a timed-out attempt, at most
LEAVE_S = 4.0  # a worker that kills its jobs and leaves waits so long for their ends and for acknowledgements
JOBS_KEPT = 1000  # specs kept of jobs without a task here: the manager sends each only once per connection
FAILING_AFTER = 3  # starts in a row that failed by the worker's fault
COLD_REASONS_KEPT = 20

QUEUED, STARTING, RUNNING, CLOSING, DONE = "queued", "starting", "running", "closing", "done"
HOLDING = {QUEUED: "queued", STARTING: "running", RUNNING: "running", CLOSING: "running", DONE: "done"}


class Capacity(NamedTuple):
    """What the worker offers; a task takes one or more of the slots as CPUs."""

    slots: int
    gpus: tuple[str, ...] = ()  # identities, as CUDA_VISIBLE_DEVICES names them
    memory: int = 0  # bytes
    resources: dict[str, int] = {}


class Wants(NamedTuple):
    """The part of a job's spec that this brain looks at."""

    needs: tuple[tuple[str, int], ...]  # by the names of Agent.free
    gpus: int
    timeout: Optional[float]
    grace: float

    @classmethod
    def of(cls, spec: dict[str, Any]) -> Wants:
        needs = [("cpus", spec["cpus"])]
        needs += [(name, spec[name]) for name in ("gpus", "memory") if spec.get(name)]
        needs += [("r:" + name, n) for name, n in (spec.get("resources") or {}).items() if n]
        return cls(tuple(needs), spec.get("gpus") or 0, spec.get("timeout"), spec.get("grace", 10.0))


class Attempt:
    __slots__ = (
        "cancelled", "doomed", "end", "exited", "gpus", "key", "phase", "ready", "started_at", "timed_out", "told",
        "wants", "warm", "why_cold",
    )  # fmt: skip

    def __init__(self, key: TaskKey, wants: Wants) -> None:
        self.key = key
        self.wants = wants
        self.phase = QUEUED
        self.ready = False
        self.gpus: tuple[str, ...] = ()
        self.started_at: Optional[float] = None  # wall
        self.warm = False
        self.why_cold: Optional[str] = None
        self.told = False  # the manager knows when it started
        self.cancelled = False  # the manager asked for its end
        self.timed_out = False
        self.doomed = False  # must end, and nobody wants to hear of it
        self.exited: Optional[Exited] = None
        self.end: Optional[End] = None

    def __repr__(self) -> str:
        return f"<attempt {self.key.job}.{self.key.pos}#{self.key.attempt} {self.phase}>"


class Agent:
    """See the module. `handle` gives the commands that follow, in order; it must not be re-entered from one."""

    def __init__(
        self, capacity: Capacity, now: float, idle_exit: float | None = None, drain_timeout: float | None = None
    ) -> None:
        self.capacity = capacity
        self.total = {"cpus": capacity.slots, "gpus": len(capacity.gpus), "memory": capacity.memory}
        self.total.update({"r:" + name: n for name, n in capacity.resources.items()})
        self.free = dict(self.total)
        self.attempts: dict[TaskKey, Attempt] = {}
        self.connected = False  # and welcomed
        self.leaving = False
        self.killing = False
        self.drained = False  # a person said so: nothing more comes until it is resumed
        self.warm = self.cold = self.failures = 0
        self.cold_reasons: dict[str, int] = {}
        self.failing: str | None = None
        self._idle_exit, self._drain_timeout = idle_exit, drain_timeout
        self._free_gpus = list(capacity.gpus)
        self._jobs: dict[int, Wants] = {}
        self._users: dict[int, int] = {}  # attempts here by job
        self._unused: dict[int, None] = {}  # jobs without one, the longest unused first
        self._ready: deque[Attempt] = deque()  # in order; those that left stay until they come to the front
        self._timeouts: list[tuple[float, TaskKey]] = []
        self._lost_after = 60.0
        self._away_since = now
        self._idle_since = now
        self._leave_by: float | None = None
        self._left = False
        self._out: list[Command] = []
        self._handlers: dict[type, Callable[[Any, float], None]] = {
            Connected: self._on_connected,
            Disconnected: self._on_disconnected,
            Welcomed: self._on_welcome,
            WorkCame: self._on_work,
            Prepared: self._on_prepared,
            Started: self._on_started,
            Exited: self._on_exited,
            Collected: self._on_collected,
            LeaveAsked: self._on_leave,
            Ticked: self._on_tick,
        }

    def handle(self, event: Event, now: float) -> list[Command]:
        """Let one event happen; gives what to do, in order."""
        self._handlers[type(event)](event, now)
        if self._ready:
            self._start_what_fits(now)
        if self.leaving:
            self._maybe_leave(now)
        out, self._out = self._out, []
        return out

    def next_deadline(self) -> float | None:
        """When (monotonic) a Ticked is due at the latest; None: never, by itself."""
        if not self._timeouts and self._leave_by is None and self._idle_exit is None:
            return None
        while self._timeouts and self._timeouts[0][1] not in self.attempts:
            heappop(self._timeouts)
        due = [self._timeouts[0][0]] if self._timeouts else []
        if self._leave_by is not None:
            due.append(self._leave_by)
        if self._idle_exit is not None and not self.attempts and not self.leaving:
            due.append(self._idle_since + self._idle_exit)
        return min(due) if due else None

    def supplied(self) -> bool:
        """Whether work is here that waits for nothing but a slot."""
        return bool(self._ready)

    def running(self) -> int:
        """Attempts that have a process, or are about to."""
        return sum(attempt.phase in (STARTING, RUNNING) for attempt in self.attempts.values())

    # -- the connection ----------------------------------------------------------------------------------------------

    def _on_connected(self, event: Connected, now: float) -> None:
        holding = []
        for attempt in self.attempts.values():
            if not attempt.doomed:
                attempt.told = attempt.started_at is not None
                holding.append((*attempt.key, HOLDING[attempt.phase], attempt.started_at))
        self._out.append(Join(holding))

    def _on_disconnected(self, event: Disconnected, now: float) -> None:
        if self.connected:
            self._away_since = now
        self.connected = False
        for job in self._unused:
            self._forget(job)
        self._unused.clear()

    def _on_welcome(self, event: Welcomed, now: float) -> None:
        self.connected = True
        self.drained = False
        self._lost_after = event.lost_after
        for key in event.kill:
            self._doom(key, now)
        for key, out, err in event.keep:
            attempt = self.attempts.get(key)
            if attempt is None:
                continue
            self._out.append(Resume(key, out, err))
            if attempt.end is not None:
                self._out.append(TellFinished(key, attempt.end))
            elif attempt.started_at is not None and not attempt.told:
                self._tell_started(attempt)
        self._out.append(TellState())

    def _doom(self, key: TaskKey, now: float) -> None:
        """End an attempt of which nobody wants to hear."""
        attempt = self.attempts.get(key)
        if attempt is None or attempt.doomed:
            return
        if attempt.phase in (STARTING, RUNNING):
            attempt.doomed = True
            self._out.append(Stop(key, 0.0, mute=True))
        else:
            self._remove(attempt, now)

    # -- what the manager says ---------------------------------------------------------------------------------------

    def _on_work(self, event: WorkCame, now: float) -> None:
        for job, spec in event.jobs.items():
            self._jobs[job] = Wants.of(spec)
            if job not in self._users:
                self._unused[job] = None
            self._out.append(Learn(job, spec))
        if event.drain is not None:
            self.drained = event.drain
        for key in event.ack:
            attempt = self.attempts.get(key)
            if attempt is not None and attempt.phase == DONE:
                self._remove(attempt, now)
        for key in event.run:
            self._accept(key, now)
        for key in event.recall:
            attempt = self.attempts.get(key)
            if attempt is not None and attempt.phase == QUEUED:
                self._give_back(attempt, now)
        for key, grace in event.kill:  # after `run`: what is given and cancelled in one breath must not start
            self._kill(key, grace, event.at)
        if event.drain:
            self._give_back_queued(now)
        while len(self._unused) > JOBS_KEPT:
            job = next(iter(self._unused))
            del self._unused[job]
            self._forget(job)

    def _accept(self, key: TaskKey, now: float) -> None:
        if key in self.attempts:
            return
        wants = self._jobs.get(key.job)
        if wants is None:  # forgotten meanwhile: a new connection brings its spec again
            self._out += [TellRecalled(key), Reconnect(f"the spec of job {key.job} is no longer here")]
            return
        if self.leaving or self.drained or any(self.total.get(name, 0) < n for name, n in wants.needs):
            self._out.append(TellRecalled(key))
            return
        self.attempts[key] = Attempt(key, wants)
        self._users[key.job] = self._users.get(key.job, 0) + 1
        self._unused.pop(key.job, None)
        self._out.append(Prepare(key))

    def _kill(self, key: TaskKey, grace: float, at: float) -> None:
        attempt = self.attempts.get(key)
        end = End(None, None, None, None, at, None, None, 0, None, False, True, True)
        if attempt is None:
            # It ended and the acknowledgement crossed, or never came here. Nothing of it runs: that much can be said.
            self._out.append(TellFinished(key, end))
            return
        if attempt.doomed or attempt.phase == DONE:
            return
        attempt.cancelled = True
        if attempt.phase == QUEUED:
            self._finish(attempt, end)
        elif attempt.phase != CLOSING:
            self._out.append(Stop(key, grace))

    def _give_back(self, attempt: Attempt, now: float) -> None:
        self._remove(attempt, now)
        if self.connected:  # else the next Join shows that it is not here
            self._out.append(TellRecalled(attempt.key))

    def _give_back_queued(self, now: float) -> None:
        for attempt in [each for each in self.attempts.values() if each.phase == QUEUED]:
            self._give_back(attempt, now)

    # -- one attempt -------------------------------------------------------------------------------------------------

    def _on_prepared(self, event: Prepared, now: float) -> None:
        attempt = self.attempts.get(event.key)
        if attempt is None or attempt.phase != QUEUED or attempt.ready:
            return
        if event.problem is None:
            attempt.ready = True
            self._ready.append(attempt)
            return
        if not event.by_job:
            self._count_failure(event.problem)
        never_ran = not event.by_job
        end = End(None, None, event.problem, None, event.at, None, None, 0, None, False, never_ran, False)
        self._finish(attempt, end)

    def _start_what_fits(self, now: float) -> None:
        """In order. What does not fit keeps its place: later ones start only beside it, never instead of it."""
        free = self.free
        if free["cpus"] <= 0:
            return
        if not self.connected and now - self._away_since > self._lost_after / 2:
            return  # the manager may be giving them to others by now
        aside: list[Attempt] = []
        while self._ready and free["cpus"] > 0:
            attempt = self._ready.popleft()
            if attempt.phase != QUEUED or self.attempts.get(attempt.key) is not attempt:
                continue
            needs = attempt.wants.needs
            for name, n in needs:
                if free[name] < n:
                    break
            else:
                self._start(attempt)
                if free is not self.free:
                    free = {name: n - dict(needs).get(name, 0) for name, n in free.items()}
                continue
            aside.append(attempt)
            free = {name: n - dict(needs).get(name, 0) for name, n in free.items()}
        self._ready.extendleft(reversed(aside))

    def _start(self, attempt: Attempt) -> None:
        for name, n in attempt.wants.needs:
            self.free[name] -= n
        if attempt.wants.gpus:
            attempt.gpus = tuple(self._free_gpus[: attempt.wants.gpus])
            del self._free_gpus[: attempt.wants.gpus]
        attempt.phase = STARTING
        self._out.append(Start(attempt.key, attempt.gpus))

    def _on_started(self, event: Started, now: float) -> None:
        attempt = self.attempts.get(event.key)
        if attempt is None or attempt.phase != STARTING:
            return
        attempt.phase = RUNNING
        attempt.started_at, attempt.warm, attempt.why_cold = event.at, event.warm, event.why_cold
        self.warm += event.warm
        self.cold += not event.warm
        if event.why_cold and (event.why_cold in self.cold_reasons or len(self.cold_reasons) < COLD_REASONS_KEPT):
            self.cold_reasons[event.why_cold] = self.cold_reasons.get(event.why_cold, 0) + 1
        self.failures, self.failing = 0, None
        if attempt.wants.timeout is not None:
            if len(self._timeouts) > 2 * len(self.attempts) + 64:
                self._timeouts = sorted(each for each in self._timeouts if each[1] in self.attempts)
            heappush(self._timeouts, (now + attempt.wants.timeout, attempt.key))
        if self.connected and not attempt.doomed:
            self._tell_started(attempt)

    def _tell_started(self, attempt: Attempt) -> None:
        attempt.told = True
        assert attempt.started_at is not None
        self._out.append(TellStarted(attempt.key, attempt.started_at, attempt.warm, attempt.why_cold))

    def _on_exited(self, event: Exited, now: float) -> None:
        attempt = self.attempts.get(event.key)
        if attempt is None or attempt.phase not in (STARTING, RUNNING):
            return
        for name, n in attempt.wants.needs:
            self.free[name] += n
        if attempt.gpus:
            self._free_gpus = sorted(
                self._free_gpus + list(attempt.gpus), key=list(self.capacity.gpus).index
            )  # the lowest first, as people expect
        attempt.phase = CLOSING
        attempt.exited = event
        if event.started_at is not None:
            attempt.started_at = event.started_at  # the moment itself, not when we heard of it
        if event.never_ran and not attempt.cancelled and not attempt.doomed:
            self._count_failure(event.reason or "could not be started")
        if attempt.doomed:
            self._remove(attempt, now)
        else:
            self._out.append(Collect(event.key))

    def _count_failure(self, reason: str) -> None:
        self.failures += 1
        if self.failures >= FAILING_AFTER:
            self.failing = reason

    def _on_collected(self, event: Collected, now: float) -> None:
        attempt = self.attempts.get(event.key)
        if attempt is None or attempt.phase != CLOSING:
            return
        exited = attempt.exited
        assert exited is not None
        reason = exited.reason
        if attempt.timed_out:
            limit = attempt.wants.timeout or 0.0
            reason = f"timed out after {int(limit) if limit.is_integer() else limit} s"
        if event.note:
            reason = f"{reason}; {event.note}" if reason else event.note
        end = End(
            exited.exit_code, exited.signal, reason, attempt.started_at, exited.at, exited.cpu, exited.rss,
            event.dropped, event.files, attempt.timed_out, exited.never_ran, attempt.cancelled,
        )  # fmt: skip
        self._finish(attempt, end)

    def _finish(self, attempt: Attempt, end: End) -> None:
        attempt.phase, attempt.end = DONE, end
        if self.connected:
            self._out.append(TellFinished(attempt.key, end))

    def _remove(self, attempt: Attempt, now: float) -> None:
        """Nothing of it is left to do here."""
        key = attempt.key
        del self.attempts[key]
        left = self._users[key.job] - 1
        if left:
            self._users[key.job] = left
        else:
            del self._users[key.job]
            if key.job in self._jobs:
                self._unused[key.job] = None
        if not self.attempts:
            self._idle_since = now
        self._out.append(Discard(key))

    def _forget(self, job: int) -> None:
        del self._jobs[job]
        self._out.append(Forget(job))

    # -- time, and the end -------------------------------------------------------------------------------------------

    def _on_tick(self, event: Ticked, now: float) -> None:
        while self._timeouts and self._timeouts[0][0] <= now:
            key = heappop(self._timeouts)[1]
            attempt = self.attempts.get(key)
            if attempt is not None and attempt.phase == RUNNING and not attempt.cancelled and not attempt.doomed:
                attempt.timed_out = True
                self._out.append(Stop(key, min(attempt.wants.grace, TIMEOUT_GRACE_S)))
        if self._leave_by is not None and now >= self._leave_by:
            if self.killing:
                self._leave()
            else:
                self._on_leave(LeaveAsked(True), now)
        if self._idle_exit is not None and not self.attempts and now >= self._idle_since + self._idle_exit:
            self._on_leave(LeaveAsked(False), now)

    def _on_leave(self, event: LeaveAsked, now: float) -> None:
        if not self.leaving:
            self.leaving = True
            self._give_back_queued(now)
            if self._drain_timeout is not None:
                self._leave_by = now + self._drain_timeout
            if self.connected:
                self._out.append(TellState())
        if event.kill and not self.killing:
            self.killing = True
            self._leave_by = now + LEAVE_S
            for key in [each.key for each in self.attempts.values() if each.phase != DONE]:
                self._doom(key, now)

    def _maybe_leave(self, now: float) -> None:
        """When nothing runs and all is reported; a worker that kills does not wait for a manager that is away."""
        if not self.attempts or (self.killing and not self.connected and not self.running()):
            self._leave()

    def _leave(self) -> None:
        if not self._left:
            self._left = True
            self._leave_by = None
            self._out.append(Leave())

    def check(self) -> None:
        """What must always hold; tests call it after every step."""
        used: dict[str, int] = {}
        gpus: list[str] = list(self._free_gpus)
        for attempt in self.attempts.values():
            if attempt.phase in (STARTING, RUNNING):
                gpus += attempt.gpus
                for name, n in attempt.wants.needs:
                    used[name] = used.get(name, 0) + n
        assert self.free == {name: n - used.get(name, 0) for name, n in self.total.items()}, (self.free, used)
        assert min(self.free.values()) >= 0, self.free
        assert sorted(gpus) == sorted(self.capacity.gpus), gpus
        users: dict[int, int] = {}
        for key in self.attempts:
            users[key.job] = users.get(key.job, 0) + 1
        assert users == self._users, (users, self._users)
        assert not set(users) & set(self._unused)
        assert set(self._jobs) >= {a.key.job for a in self.attempts.values() if a.phase != DONE}
