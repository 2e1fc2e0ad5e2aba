"""Starts attempts on this machine and reports how they ended. Called in the thread of the worker's loop.

Owns the guards: processes that fork and end attempts (guard.py), kept ready ahead of need. Decides only how an attempt
starts, warm or cold; knows nothing of jobs, time limits or the manager. Where there are no guards (not Linux) it starts
attempts itself, one subprocess each.

    Guards.start(plan) --> a guard that is idle --> on_started, on_exit
"""

from __future__ import annotations

import marshal
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from . import proctree

HERE = Path(__file__).resolve().parent
GUARD = str(HERE / "guard.py")
FLUSH = str(HERE / "warm" / "flush")
CONTROL_FD = 3  # where a guard finds its socket
WIRE = 2  # version of marshal that every Python reads
MESSAGE_MAX = 32 * 1024  # a larger request goes in a memfd
FAILED_STARTS = 3  # guards that end before they are ready, in a row, until we stop trying
POLL_S = 0.02  # without guards: how often an attempt's end is looked for
CLOSE_S = 5.0
STILL_S = 0.05  # between two looks for orphans of a guard that died


class AttemptPlan(NamedTuple):
    """All that it takes to start a script. The three descriptors belong to Guards from `start` on: it closes them."""

    key: Any  # whatever the caller calls it; not looked at
    python: str | None  # path of the interpreter; None: the worker's own
    script: str  # absolute path
    argv: list[str]  # without the script's name
    env: Mapping[str, str]  # complete and final
    cwd: str
    stdin: int
    stdout: int
    stderr: int
    cold: bool = False
    preload: tuple[str, ...] = ()
    buffered: bool = False
    memory: int | None = None  # bytes, for the whole tree
    timeout_s: float | None = None  # not enforced here


class ExitReport(NamedTuple):
    """How an attempt ended. Neither exit_code nor signal: it never ran, or its guard was killed; `reason` says why."""

    exit_code: int | None
    signal: int | None
    cpu_seconds: float
    max_rss_bytes: int
    reason: str | None
    never_ran: bool
    started_at: float  # wall clock
    finished_at: float


class Options(NamedTuple):
    cold: bool = False
    preload: tuple[str, ...] = ()
    env: Mapping[str, str] | None = None  # what the env of most plans will be; default: this process's, without keys


OnStarted = Callable[[int, bool, "str | None"], None]  # pid, warm, why cold
OnExit = Callable[[ExitReport], None]


class Attempt:
    """A started plan. All methods may be called at any time; after on_exit they do nothing."""

    def __init__(self, guards: Guards, plan: AttemptPlan, on_started: OnStarted, on_exit: OnExit) -> None:
        self.plan = plan
        self.runner: Any = None  # _Guard or _Process; None while none is free
        self.notified = False
        self.done = False
        self.started_at = time.time()
        self._guards = guards
        self._on_started = on_started
        self._on_exit = on_exit

    def stop(self, grace_s: float) -> None:
        """SIGTERM to the whole tree; SIGKILL to what is left of it after `grace_s`."""
        self._end(("stop", float(grace_s)))

    def kill(self) -> None:
        """SIGKILL to the whole tree."""
        self._end(("kill",))

    def _end(self, message: tuple[Any, ...]) -> None:
        if self.done:
            return
        if self.runner is not None:
            self.runner.tell(message)
        else:
            self._guards.forget(self)
            self.exited(_never("ended before it started"))

    def started(self, pid: int, warm: bool, why_cold: str | None, at: float) -> None:
        """Called by the runner."""
        self.started_at = at
        self.close_fds()
        if not self.notified:
            self.notified = True
            self._guards.count(warm, why_cold)
            self._on_started(pid, warm, why_cold)

    def exited(self, report: ExitReport) -> None:
        """Called by the runner, once."""
        self.close_fds()
        self.done = True
        self._on_exit(report)

    def close_fds(self) -> None:
        """Once: our copies of the attempt's three descriptors."""
        if self.plan.stdin >= 0:
            for fd in {self.plan.stdin, self.plan.stdout, self.plan.stderr}:
                os.close(fd)
            self.plan = self.plan._replace(stdin=-1, stdout=-1, stderr=-1)


class Guards:
    """Runs attempts, up to `slots` at a time; more wait for a free guard.

    `loop` has add_reader, remove_reader and call_later. `python` is the worker's own interpreter. The guards are
    started at once, with nothing of this process's memory and without its secret variables.
    """

    def __init__(self, loop: Any, slots: int, python: str = sys.executable, options: Options | None = None) -> None:
        self.loop = loop
        self.slots = slots
        self.python = python
        self.options = options = options or Options()
        env = os.environ if options.env is None else options.env
        self.env = {name: value for name, value in env.items() if not name.startswith("MICROCLUSTER_KEY")}
        self.closed = False
        self.guarded = proctree.LINUX and hasattr(os, "posix_spawn") and hasattr(os, "memfd_create")
        self._all: set[_Guard] = set()
        self._idle: list[_Guard] = []
        self._waiting: deque[Attempt] = deque()
        self._processes: set[_Process] = set()
        self._counts = [0, 0]
        self._reasons: Counter[str] = Counter()
        self._failed_starts = 0
        for _ in range(slots if self.guarded else 0):
            self._spawn()

    def start(self, plan: AttemptPlan, on_started: OnStarted, on_exit: OnExit) -> Attempt:
        """Begin an attempt. Both callbacks come later, from the loop: on_started at most once, then on_exit once."""
        attempt = Attempt(self, plan, on_started, on_exit)
        if self.guarded:
            self._waiting.append(attempt)
            self._hand_out()
        else:
            attempt.runner = _Process(self, attempt)
            self._processes.add(attempt.runner)
        return attempt

    def counts(self) -> dict[str, Any]:
        """Attempts started so far: {"warm": n, "cold": n, "reasons": {why cold: n}}."""
        return {"warm": self._counts[1], "cold": self._counts[0], "reasons": dict(self._reasons)}

    def pids(self) -> set[int]:
        """The guards, for proctree.sweep_orphans."""
        return {guard.pid for guard in self._all}

    def close(self) -> None:
        """End every guard, and every attempt with it, and wait for them. No callback comes any more."""
        self.closed = True
        for guard in list(self._all):
            guard.dismiss()
        for process in list(self._processes):
            process.abandon()
        for attempt in self._waiting:
            attempt.close_fds()
        deadline = time.monotonic() + CLOSE_S
        for guard in list(self._all):
            guard.bury(deadline)

    def count(self, warm: bool, why_cold: str | None) -> None:
        self._counts[warm] += 1
        if not warm:
            self._reasons[why_cold or "unknown"] += 1

    def forget(self, attempt: Attempt) -> None:
        """It no longer waits for a guard."""
        self._waiting.remove(attempt)

    def freed(self, guard: _Guard) -> None:
        """A guard is ready for the next attempt."""
        self._failed_starts = 0
        self._idle.append(guard)
        self._hand_out()

    def lost(self, guard: _Guard) -> None:
        """A guard ended that was not dismissed."""
        self._all.discard(guard)
        if guard in self._idle:
            self._idle.remove(guard)
        if self.closed:
            return
        if guard.born:
            self._spawn()
            return
        self._failed_starts += 1
        if self._failed_starts < FAILED_STARTS:
            self._spawn()
        elif not self._all:
            self._give_up("no process can be started here: " + guard.last_words())

    def orphaned(self, attempt: Attempt) -> None:
        """Its guard was killed: end what it left behind, then say so."""
        if self.closed:
            return
        if proctree.sweep_orphans(self.pids()):
            self.loop.call_later(STILL_S, lambda: self.orphaned(attempt))
        else:
            now = time.time()
            attempt.exited(ExitReport(None, None, 0.0, 0, "the process above it was killed", False, now, now))

    def retire(self, process: _Process) -> None:
        self._processes.discard(process)

    def _hand_out(self) -> None:
        while self._waiting and self._idle:
            attempt = self._waiting.popleft()
            attempt.runner = self._idle.pop()
            attempt.runner.run(attempt, "asked for" if attempt.plan.cold or self.options.cold else "not built yet")
        if self._waiting and not self._all:
            self._failed_starts = 0
            self._spawn()

    def _spawn(self) -> None:
        try:
            self._all.add(_Guard(self, [self.python, "-I", "-S", GUARD], self.env))
        except OSError as error:
            if not self._all:
                why = f"no process can be started here: {error.strerror}"
                self.loop.call_later(0, lambda: self._give_up(why))

    def _give_up(self, why: str) -> None:
        while self._waiting:
            self._waiting.popleft().exited(_never(why))


class _Guard:
    """This end of a guard process."""

    def __init__(self, guards: Guards, command: list[str], env: Mapping[str, str]) -> None:
        self.guards = guards
        self.born = False  # it has said that it is ready
        self.attempt: Attempt | None = None
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._errors, errors = os.pipe()
        try:
            self.pid = os.posix_spawn(
                command[0],
                command,
                env,
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_DUP2, errors, 1),
                    (os.POSIX_SPAWN_DUP2, errors, 2),
                    (os.POSIX_SPAWN_DUP2, theirs.fileno(), CONTROL_FD),
                ],
                setsigmask=[],
                setsigdef=[number for number in signal.valid_signals() if number not in _FIXED],
            )
        except OSError:
            self.socket.close()
            os.close(self._errors)
            raise
        finally:
            theirs.close()
            os.close(errors)
        guards.loop.add_reader(self.socket.fileno(), self._ready)

    def run(self, attempt: Attempt, why_cold: str | None) -> None:
        self.attempt = attempt
        plan = attempt.plan
        request = {
            "python": os.fsencode(plan.python or self.guards.python),
            "script": os.fsencode(plan.script),
            "args": [os.fsencode(word) for word in plan.argv],
            "env": [(os.fsencode(name), os.fsencode(value)) for name, value in plan.env.items()],
            "cwd": os.fsencode(plan.cwd),
            "cold": why_cold,
            "flush": b"" if plan.buffered else os.fsencode(FLUSH),
            "memory": plan.memory,
        }
        data = marshal.dumps(("run", request), WIRE)
        fds = [plan.stdin, plan.stdout, plan.stderr]
        try:
            if len(data) <= MESSAGE_MAX:
                socket.send_fds(self.socket, [data], fds)
                return
            with open(os.memfd_create("request"), "wb") as file:
                file.write(data)
                file.flush()
                socket.send_fds(self.socket, [b"-"], [*fds, file.fileno()])
        except OSError:
            pass  # the guard is gone: the loop is about to tell us

    def tell(self, message: tuple[Any, ...]) -> None:
        try:
            self.socket.send(marshal.dumps(message, WIRE))
        except OSError:
            pass  # as above

    def last_words(self) -> str:
        """What a guard that never was ready wrote to its stderr, in one line."""
        return self._said.decode("utf-8", "replace").strip().rpartition("\n")[2] or "it said nothing"

    _said = b""

    def dismiss(self) -> None:
        """It ends, and its attempt with it, because its socket closes."""
        self.guards.loop.remove_reader(self.socket.fileno())
        self.socket.close()
        self._close_errors()
        if self.attempt is not None:
            self.attempt.close_fds()

    def bury(self, deadline: float) -> None:
        """Wait for its end; kill it at the deadline (time.monotonic())."""
        while not self._reaped():
            if time.monotonic() > deadline:
                proctree.send([self.pid], signal.SIGKILL)
                deadline = float("inf")
            time.sleep(0.002)

    def _reaped(self) -> bool:
        try:
            return os.waitpid(self.pid, os.WNOHANG)[0] != 0
        except ChildProcessError:
            return True

    def _close_errors(self) -> None:
        if self._errors >= 0:
            os.close(self._errors)
            self._errors = -1

    def _ready(self) -> None:
        try:
            data = self.socket.recv(8192)
        except OSError:
            data = b""
        if not data:
            self._gone()
            return
        kind, *rest = marshal.loads(data)
        if kind == "ready":
            self.born = True
            self._close_errors()
            self.guards.freed(self)
        elif kind == "started" and self.attempt is not None:
            self.attempt.started(*rest)
        elif kind == "exit" and self.attempt is not None:
            self._exit(*rest)

    def _exit(self, notice: Any, end: tuple[Any, ...]) -> None:
        status, cpu, rss, over_limit, failure, finished_at, _stale = end
        attempt, self.attempt = self.attempt, None
        assert attempt is not None
        if failure is None and notice is not None:
            attempt.started(*notice[1:])
        if failure is not None:
            report = _never(failure)
        else:
            report = _report(status, cpu, rss, attempt.started_at, finished_at)
        if over_limit:
            report = report._replace(reason=f"out of memory limit {size(attempt.plan.memory or 0)}")
        self.guards.freed(self)
        attempt.exited(report)

    def _gone(self) -> None:
        if self._errors >= 0:
            os.set_blocking(self._errors, False)
            try:
                self._said = os.read(self._errors, 4096)
            except BlockingIOError:
                pass
        self.dismiss()
        self.bury(time.monotonic() + 1)
        self.guards.lost(self)
        if self.attempt is not None:
            self.guards.orphaned(self.attempt)


_FIXED = (signal.SIGKILL, signal.SIGSTOP) if hasattr(signal, "SIGKILL") else ()


class _Process:
    """An attempt without a guard: its process group ends with it, its daemons do not."""

    def __init__(self, guards: Guards, attempt: Attempt) -> None:
        self.guards = guards
        self.attempt = attempt
        self.started_at = time.time()
        self.process: subprocess.Popen[bytes] | None = None
        self._timer = guards.loop.call_later(0, self._begin)
        self._deadline: float | None = None

    def _begin(self) -> None:
        plan = self.attempt.plan
        env = dict(plan.env)
        if not plan.buffered:
            env["PYTHONPATH"] = os.pathsep.join([FLUSH, *([env["PYTHONPATH"]] if env.get("PYTHONPATH") else [])])
        try:
            self.process = subprocess.Popen(
                [plan.python or self.guards.python, plan.script, *plan.argv],
                stdin=plan.stdin,
                stdout=plan.stdout,
                stderr=plan.stderr,
                cwd=plan.cwd,
                env=env,
                start_new_session=True,
            )
        except OSError as error:
            self.guards.retire(self)
            self.attempt.exited(_never(f"cannot start: {error.strerror}"))
            return
        why = "asked for" if plan.cold or self.guards.options.cold else "no warm start on this system"
        self.attempt.started(self.process.pid, False, why, self.started_at)
        self._look()

    def tell(self, message: tuple[Any, ...]) -> None:
        self._signal(signal.SIGTERM if message[0] == "stop" else signal.SIGKILL)
        self._deadline = time.monotonic() + message[1] if message[0] == "stop" else None

    def abandon(self) -> None:
        self._timer.cancel()
        self.attempt.close_fds()
        self._signal(signal.SIGKILL)
        if self.process is not None:
            self.process.wait()

    def _signal(self, number: int) -> None:
        if self.process is None:
            return
        try:
            if hasattr(os, "killpg"):
                os.killpg(self.process.pid, number)
            else:
                self.process.terminate()
        except (ProcessLookupError, PermissionError):
            pass

    def _look(self) -> None:
        assert self.process is not None
        if self._deadline is not None and time.monotonic() > self._deadline:
            self._signal(signal.SIGKILL)
        usage: Any = None
        if hasattr(os, "wait4"):
            pid, status, usage = os.wait4(self.process.pid, os.WNOHANG)
            ended = pid != 0
        else:
            ended = self.process.poll() is not None
            status = (self.process.returncode or 0) << 8
        if not ended:
            self._timer = self.guards.loop.call_later(POLL_S, self._look)
            return
        self.process.returncode = status
        self._signal(signal.SIGKILL)
        self.guards.retire(self)
        cpu = usage.ru_utime + usage.ru_stime if usage else 0.0
        rss = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) if usage else 0
        self.attempt.exited(_report(status, cpu, rss, self.started_at, time.time()))


def _never(why: str) -> ExitReport:
    now = time.time()
    return ExitReport(None, None, 0.0, 0, why, True, now, now)


def _report(status: int, cpu: float, rss: int, started_at: float, finished_at: float) -> ExitReport:
    number = status & 0x7F
    exit_code = None if number else status >> 8
    return ExitReport(exit_code, number or None, cpu, rss, None, False, started_at, finished_at)


def size(value: int) -> str:
    """Bytes as people write them: 512M, 4G, 1000."""
    for unit, power in (("T", 40), ("G", 30), ("M", 20), ("K", 10)):
        if value and value % (1 << power) == 0:
            return f"{value >> power}{unit}"
    return str(value)
