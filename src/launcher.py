"""Starts attempts on this machine and reports how they ended. Called in the thread of the worker's loop.

Owns the guards, kept ready ahead of need, and decides only how an attempt starts: warm, from an interpreter that waits
for it, or cold, as a new one. Every doubt is cold, and counted. Knows nothing of jobs, time limits or the manager.

    Guards.start(plan) --> the pool of its interpreter --> an idle guard of it: warm     --> on_started, on_exit
                                                      `--> a guard of the home pool: cold
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Mapping
from typing import Any, NamedTuple

from . import jobenv, proctree
from .runners import FLUSH, HERE, Guard, OnExit, OnStarted, Process, never
from .runners import Attempt as Attempt
from .runners import AttemptPlan as AttemptPlan
from .runners import ExitReport as ExitReport

log = logging.getLogger(__name__)

SELFTEST = str(HERE / "warm" / "selftest.py")
AHEAD = 2  # guards of the worker's own interpreter that wait for an attempt
POOLS = 3  # other interpreters (or settings of them) that are kept warm
POOLS_KNOWN = 64  # and those that are remembered, to see which are used again
POOL_KEPT_S = 30.0  # a pool used since then is not given up for another
UNUSED_S = 600.0  # then another interpreter's guards end
GUARD_JOBS = 1000  # then a guard is replaced: what all its children share (hash seed, address layout) changes
GUARD_S = 600.0  # the same, looked at when an attempt ends: an idle worker does nothing
FAILED_STARTS = 3  # guards in a row that end before they are ready
START_S = 30.0  # for a guard to be ready and checked
CLOSE_S = 10.0
PAUSE_S = 0.05  # between two looks at processes that are about to end

# Variables that act at an interpreter's start-up: each combination needs its own warm interpreter.
STARTUP = ("PYTHON", "LC_", "LANG", "LD_", "MALLOC_", "GLIBC_", "COVERAGE_", "SETUPTOOLS_")
LIBRARIES = ("OMP_", "OPENBLAS_", "MKL_", "BLIS_", "GOTO_", "KMP_", "NUMEXPR_", "VECLIB_")  # for preloaded modules
# With these a script is to see an interpreter start, or one that does not start as usual.
COLD_VARIABLES = (
    "PYTHONPROFILEIMPORTTIME",
    "PYTHONVERBOSE",
    "PYTHONINSPECT",
    "PYTHONDUMPREFS",
    "PYTHONDUMPREFSFILE",
    "PYTHONHOME",
    "PYTHONPLATLIBDIR",
)

Key = tuple[str, "tuple[str, ...]", "tuple[tuple[str, str], ...]"]


class Options(NamedTuple):
    cold: bool = False
    preload: tuple[str, ...] = ()  # for every attempt
    env: Mapping[str, str] | None = None  # what the env of most plans will be; default: this process's, without keys


class Pool:
    """Guards of one interpreter with one set of start-up variables."""

    def __init__(self, key: Key, env: Mapping[str, str]) -> None:
        self.python, self.preload, _ = self.key = key
        self.env = env
        self.guards: set[Guard] = set()
        self.idle: list[Guard] = []
        self.warm = True  # False: its guards are plain ones
        self.verified = False  # a warm start looked the same as a cold one
        self.broken: str | None = None  # why it cannot be warm
        self.failed_starts = 0
        self.used_at = 0.0

    def starting(self) -> int:
        return sum(not guard.born for guard in self.guards)


class Guards:
    """Runs attempts, up to `slots` at a time; more wait for a free guard.

    `loop` has add_reader, remove_reader and call_later. `python` is the worker's own interpreter. Guards are started
    at once and ahead of need, by exec: with nothing of this process's memory, and without its key variables.
    """

    def __init__(self, loop: Any, slots: int, python: str = sys.executable, options: Options | None = None) -> None:
        self.loop = loop
        self.slots = slots
        self.python = python
        self.options = options or Options()
        self.guarded = proctree.LINUX and hasattr(os, "memfd_create")
        self.closed = False
        env = os.environ if self.options.env is None else self.options.env
        env = {name: value for name, value in env.items() if not name.startswith("MICROCLUSTER_KEY")}
        if self.options.preload:
            env.update((name, "1") for name in jobenv.THREADS)  # as a job that asks for one CPU has them
        self.home = Pool(self._key(python, self.options.preload, env), env)
        self.home.warm = not self.options.cold and os.pathsep not in FLUSH
        self._pools = {self.home.key: self.home}
        self._dying: set[Guard] = set()
        self._waiting: deque[Attempt] = deque()
        self._processes: set[Process] = set()
        self._counts = [0, 0]
        self._reasons: Counter[str] = Counter()
        if self.guarded:
            self._fill_home()

    def start(self, plan: AttemptPlan, on_started: OnStarted, on_exit: OnExit) -> Attempt:
        """Begin an attempt. Both callbacks come from the loop: on_started at most once, then on_exit once."""

        def started(pid: int, warm: bool, why_cold: str | None) -> None:
            self._counts[warm] += 1
            if not warm:
                self._reasons[why_cold or "unknown"] += 1
            on_started(pid, warm, why_cold)

        attempt = Attempt(plan, started, on_exit, self._forget)
        if self.guarded:
            attempt.way = self._choose(plan)
            self._waiting.append(attempt)
            self._hand_out()
        else:
            why = "asked for" if plan.cold or self.options.cold else "no warm start on this system"
            self._processes.add(Process(self, attempt, plan.python or self.python, why))
        return attempt

    def counts(self) -> dict[str, Any]:
        """Attempts started so far: {"warm": n, "cold": n, "reasons": {why cold: n}}."""
        return {"warm": self._counts[1], "cold": self._counts[0], "reasons": dict(self._reasons)}

    def pids(self) -> set[int]:
        """The guards, for proctree.sweep_orphans."""
        return {guard.pid for pool in self._pools.values() for guard in pool.guards} | {g.pid for g in self._dying}

    def close(self) -> None:
        """End every guard, and every attempt with it, and wait for them. No callback comes any more."""
        self.closed = True
        for pool in self._pools.values():
            for guard in list(pool.guards):
                if guard.attempt is not None:
                    guard.attempt.close_fds()
                self._dismiss(guard)
        for process in list(self._processes):
            process.abandon()
        while self._waiting:
            self._waiting.popleft().close_fds()
        deadline = time.monotonic() + CLOSE_S
        while self._bury():
            if time.monotonic() > deadline:
                proctree.send([guard.pid for guard in self._dying], proctree.SIGKILL)
            time.sleep(0.002)

    def _forget(self, attempt: Attempt) -> None:
        """Called by an attempt that is to end while it waits for a guard."""
        if attempt in self._waiting:
            self._waiting.remove(attempt)
            self.loop.call_later(0, lambda: attempt.exited(never("ended before it started")))

    # --- which guard, and whether warm ---

    def _hand_out(self) -> None:
        """Give waiting attempts to guards, in order, as long as there are free ones."""
        while self._waiting:
            pool, why_cold = self._waiting[0].way
            if why_cold is None and not pool.warm:
                why_cold = pool.broken or "no warm start here"
            if why_cold is None and not pool.idle and pool is not self.home:
                self._grow(pool)
                why_cold = "its warm interpreter is not ready"
            source = pool if why_cold is None else self.home
            if not source.idle:
                break
            attempt = self._waiting.popleft()
            if not source.idle.pop().run(attempt, attempt.plan.python or self.python, why_cold):
                self._waiting.appendleft(attempt)  # that guard is gone
        self._fill_home()

    def _choose(self, plan: AttemptPlan) -> tuple[Pool, str | None]:
        """The pool that the plan needs, and why it cannot start warm at all."""
        if plan.cold or self.options.cold:
            return self.home, "asked for"
        for name in COLD_VARIABLES:
            if plan.env.get(name):
                return self.home, f"{name} is set"
        path = plan.env.get("PYTHONPATH")
        if path and not all(part.startswith("/") for part in path.split(":")):
            return self.home, "PYTHONPATH is relative"
        key = self._key(plan.python or self.python, (*self.options.preload, *plan.preload), plan.env)
        pool = self._pools.get(key)
        if pool is None:
            # What every plan has, and what acts at start-up: the rest of this plan's variables are nobody else's.
            shared = dict(item for item in self.home.env.items() if plan.env.get(item[0]) == item[1])
            self._remember(Pool(key, {**shared, **dict(key[2])}))
            return self.home, "first use of this interpreter"
        pool.used_at = time.monotonic()
        return pool, None

    @staticmethod
    def _key(python: str, preload: tuple[str, ...], env: Mapping[str, str]) -> Key:
        wanted = STARTUP + LIBRARIES if preload else STARTUP
        settings = [item for item in env.items() if item[0].startswith(wanted) or item[0] == "HOME"]
        settings.sort()
        return python, preload, tuple(settings)

    def _remember(self, pool: Pool) -> None:
        if len(self._pools) > POOLS_KNOWN:
            self._pools.pop(next(key for key, old in self._pools.items() if old is not self.home and not old.guards))
        pool.used_at = time.monotonic()
        self._pools[pool.key] = pool

    def _grow(self, pool: Pool) -> None:
        """Start another guard for another interpreter than the worker's, in the background."""
        if pool.starting() or len(pool.guards) >= self.slots or (pool.guards and not pool.verified):
            return
        kept = [other for other in self._pools.values() if other.guards and other not in (self.home, pool)]
        if len(kept) >= POOLS:
            oldest = min(kept, key=lambda other: other.used_at)
            if time.monotonic() - oldest.used_at < POOL_KEPT_S:
                return
            self._give_up_pool(oldest)
        if not pool.guards:
            self.loop.call_later(UNUSED_S, lambda: self._expire(pool))
        self._spawn(pool)

    def _expire(self, pool: Pool) -> None:
        if self.closed or not pool.guards:
            return
        if time.monotonic() - pool.used_at > UNUSED_S:
            self._give_up_pool(pool)
        else:
            self.loop.call_later(UNUSED_S, lambda: self._expire(pool))

    def _give_up_pool(self, pool: Pool) -> None:
        """End its idle guards; the others end with their attempts, because they are too old."""
        for guard in list(pool.guards):
            if guard.attempt is None:
                self._dismiss(guard)
            guard.jobs = GUARD_JOBS

    # --- guards come and go ---

    def _fill_home(self) -> None:
        pool = self.home
        busy = sum(guard.attempt is not None for guard in pool.guards)
        wanted = min(self.slots, busy + len(self._waiting) + AHEAD)
        if pool.warm and not pool.verified:
            wanted = min(wanted, 1)  # the first one shows whether it is worth while
        while len(pool.guards) < wanted and not self.closed:
            if not self._spawn(pool):
                break

    def _spawn(self, pool: Pool) -> bool:
        try:
            guard = Guard(self, pool, pool.python, pool.env, pool.preload if pool.warm else None)
        except OSError as error:
            self._failed(pool, f"it cannot be started: {error.strerror}")
            return False
        pool.guards.add(guard)
        self.loop.call_later(START_S, lambda: self._hurry(guard))
        return True

    def _hurry(self, guard: Guard) -> None:
        if guard in guard.pool.guards and not (guard.born and (guard.pool.verified or not guard.pool.warm)):
            proctree.send([guard.pid], proctree.SIGKILL)

    def ready(self, guard: Guard) -> None:
        """Called by the guard: it waits for attempts."""
        pool = guard.pool
        if pool.warm and not pool.verified:
            guard.check(pool.python, SELFTEST, ["a", "b c", *(["ahead"] if pool.preload else [])], pool.env)
        else:
            self._idle(guard)

    def checked(self, guard: Guard, same: bool, difference: str) -> None:
        """Called by the guard: whether its warm start cannot be told from a cold one."""
        guard.pool.verified = same
        if same:
            self._idle(guard)
        else:
            self._dismiss(guard)
            self._never_warm(guard.pool, f"the self-test differs: {difference}")

    def freed(self, guard: Guard, stale: bool) -> None:
        """Called by the guard: its attempt ended. `stale`: a new interpreter would be another one."""
        if stale or guard.jobs >= GUARD_JOBS or time.monotonic() - guard.born_at > GUARD_S:
            guard.pool.verified = guard.pool.verified and not stale
            self._dismiss(guard)
            if guard.pool is not self.home and guard.jobs < GUARD_JOBS:
                self._grow(guard.pool)
            self._hand_out()
        else:
            self._idle(guard)

    def _idle(self, guard: Guard) -> None:
        guard.pool.failed_starts = 0
        guard.pool.idle.append(guard)
        self._hand_out()

    def lost(self, guard: Guard) -> None:
        """Called by the guard: it ended, not because we wanted it to."""
        pool = guard.pool
        self._dismiss(guard)
        if guard.attempt is not None:
            self._orphaned(guard, guard.attempt)
        if self.closed:
            return
        if guard.born and (pool.verified or not pool.warm):
            self._fill_home()
        else:
            self._failed(pool, guard.last_words())

    def _failed(self, pool: Pool, why: str) -> None:
        """A guard did not come up."""
        pool.failed_starts += 1
        if pool.failed_starts < FAILED_STARTS:
            if pool is self.home:
                self.loop.call_later(0, self._fill_home)
        elif pool.warm:
            self._never_warm(pool, why)
        elif not pool.guards:
            pool.failed_starts = 0
            waiting, self._waiting = self._waiting, deque()
            for attempt in waiting:
                attempt.exited(never(f"no process can be started here: {why}"))

    def _never_warm(self, pool: Pool, why: str) -> None:
        log.warning("no warm start for %s: %s", pool.python, why)
        pool.warm, pool.broken, pool.failed_starts = False, f"no warm start: {why}", 0
        self.loop.call_later(0, self._hand_out)

    def _orphaned(self, guard: Guard, attempt: Attempt) -> None:
        """Its guard was killed: end what it left behind, then say so."""
        if self.closed:
            attempt.close_fds()
        elif not guard.reaped() or proctree.sweep_orphans(self.pids()):  # orphans become ours after its socket closed
            self.loop.call_later(PAUSE_S, lambda: self._orphaned(guard, attempt))
        else:
            now = time.time()
            started_at = attempt.started_at or now
            attempt.exited(ExitReport(None, None, 0.0, 0, "the process above it was killed", False, started_at, now))

    def _dismiss(self, guard: Guard) -> None:
        guard.pool.guards.discard(guard)
        if guard in guard.pool.idle:
            guard.pool.idle.remove(guard)
        guard.dismiss()
        if not self._dying:
            self.loop.call_later(PAUSE_S, self._bury)
        self._dying.add(guard)

    def _bury(self) -> bool:
        """Wait for dismissed guards that have ended; whether some have not."""
        self._dying = {guard for guard in self._dying if not guard.reaped()}
        if self._dying and not self.closed:
            self.loop.call_later(PAUSE_S, self._bury)
        return bool(self._dying)

    def retire(self, process: Process) -> None:
        """Called by a Process when its attempt ended."""
        self._processes.discard(process)
