"""One attempt at running a script on this machine, and the two things that can carry it out: a guard process
(guard.py), or, where there are no guards, a plain subprocess. Used by launcher.py alone, in the thread of the worker's
loop; decides nothing about which guard, or whether warm.
"""

from __future__ import annotations

import contextlib
import marshal
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from . import proctree

HERE = Path(__file__).resolve().parent
GUARD = str(HERE / "guard.py")
HOOK = str(HERE / "warm" / "hook")
FLUSH = str(HERE / "warm" / "flush")
WIRE = 2  # version of marshal that every Python reads
MESSAGE_MAX = 32 * 1024  # a larger request goes in a memfd
POLL_S = 0.02  # without guards: how often an attempt's end is looked for
LAST_WORDS = 4096
RAN_ON = ("Error in sitecustomize;", "Bad magic number", "EOF read where not expected")


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


OnStarted = Callable[[int, bool, "str | None"], None]  # pid, warm, why cold
OnExit = Callable[[ExitReport], None]


class Attempt:
    """A started plan. All methods may be called at any time; after on_exit they do nothing."""

    def __init__(
        self, plan: AttemptPlan, on_started: OnStarted, on_exit: OnExit, forget: Callable[[Attempt], None]
    ) -> None:
        self.plan = plan
        self.runner: Guard | Process | None = None  # None while it waits for a guard
        self.way: Any = None  # the owner's choice of how it starts
        self.started_at: float | None = None
        self.done = False
        self._on_started = on_started
        self._on_exit = on_exit
        self._forget = forget

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
            self._forget(self)

    def started(self, pid: int, warm: bool, why_cold: str | None, at: float) -> None:
        """Called by the runner, perhaps twice."""
        if self.started_at is None:
            self.started_at = at
            self.close_fds()
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


class Guard:
    """This end of a guard process. `owner` (Guards) hears ready, checked, freed and lost, each with the guard.

    With `warm` (None, or names of modules to import ahead) it is an interpreter that waits in its start-up. Raises
    OSError when it cannot be started.
    """

    def __init__(
        self, owner: Any, pool: Any, python: str, env: Mapping[str, str], warm: tuple[str, ...] | None
    ) -> None:
        self.owner = owner
        self.pool = pool
        self.born = False  # it has said that it is ready
        self.born_at = time.monotonic()
        self.jobs = 0
        self.attempt: Attempt | None = None
        self._file: str | None = None
        self._said = b""
        if warm is not None:
            fd, self._file = tempfile.mkstemp(prefix="microcluster-", suffix=".pyc")  # empty: it is never read
            os.close(fd)
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [python, "-I", "-S", GUARD, str(theirs.fileno())]
        if warm is not None and self._file is not None:
            command = [python, self._file]
            own = env.get("PYTHONPATH")
            path = HOOK if own is None else f"{HOOK}:{own}" if own else f"{HOOK}/"  # as warm/hook takes it apart
            env = {**env, "PYTHONPATH": path, "MICROCLUSTER_GUARD": " ".join([str(theirs.fileno()), *warm])}
        self._errors, errors = os.pipe()  # what it writes before it is ready
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                env=env,
                cwd="/",
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        except OSError:
            self.socket.close()
            self._tidy()
            raise
        finally:
            theirs.close()
            os.close(errors)
        self.pid = self._process.pid
        owner.loop.add_reader(self.socket.fileno(), self._readable)

    def run(self, attempt: Attempt, python: str, why_cold: str | None) -> bool:
        """Begin; False if the guard is gone."""
        plan = attempt.plan
        request = {
            "python": os.fsencode(python),
            "script": os.fsencode(plan.script),
            "args": [os.fsencode(word) for word in plan.argv],
            "env": [(os.fsencode(name), os.fsencode(value)) for name, value in plan.env.items()],
            "cwd": os.fsencode(plan.cwd),
            "cold": why_cold,
            "flush": b"" if plan.buffered or os.pathsep in FLUSH else os.fsencode(FLUSH),
            "memory": plan.memory,
            "swept": proctree.is_subreaper(),
        }
        data = marshal.dumps(("run", request), WIRE)
        fds = [plan.stdin, plan.stdout, plan.stderr]
        try:
            if len(data) <= MESSAGE_MAX:
                socket.send_fds(self.socket, [data], fds)
            else:
                with open(os.memfd_create("request"), "wb") as file:
                    file.write(data)
                    file.flush()
                    socket.send_fds(self.socket, [b"-"], [*fds, file.fileno()])
        except OSError:
            return False
        self.attempt = attempt
        attempt.runner = self
        self.jobs += 1
        return True

    def check(self, python: str, script: str, args: Iterable[str], env: Mapping[str, str]) -> None:
        """Have it run `script` warm and cold, and compare; `owner.checked` hears how that went."""
        request = {
            "python": os.fsencode(python),
            "script": os.fsencode(script),
            "args": [os.fsencode(word) for word in args],
            "env": [(os.fsencode(name), os.fsencode(value)) for name, value in env.items()],
            "cwd": b"/",
            "flush": os.fsencode(FLUSH),
            "memory": None,
            "swept": proctree.is_subreaper(),
        }
        self.tell(("check", request))

    def tell(self, message: tuple[Any, ...]) -> None:
        with contextlib.suppress(OSError):  # it is gone: the loop is about to tell us
            self.socket.send(marshal.dumps(message, WIRE))

    def dismiss(self) -> None:
        """It ends, and its attempt with it, because its socket closes. Once."""
        if self.socket.fileno() >= 0:
            self.owner.loop.remove_reader(self.socket.fileno())
            self.socket.close()
            self._tidy()

    def reaped(self) -> bool:
        """Whether the process has ended, and is waited for."""
        return self._process.poll() is not None

    def last_words(self) -> str:
        """What a guard that was never ready had to say, in one line."""
        lines = self._said.decode("utf-8", "replace").strip().splitlines()
        # When it runs on, it finds nothing to run in its file.
        told = [line for line in lines if "rror" in line and not any(words in line for words in RAN_ON)]
        return told[0] if told else "it did not stop in its start-up" if lines else "it said nothing"

    def _tidy(self) -> None:
        """Free what is needed only until it is ready."""
        if self._errors >= 0:
            os.close(self._errors)
            self._errors = -1
        if self._file is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._file)
            self._file = None

    def _readable(self) -> None:
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
            self._tidy()
            self.owner.ready(self)
        elif kind == "checked":
            self.owner.checked(self, *rest)
        elif kind == "started" and self.attempt is not None:
            self.attempt.started(*rest)
        elif kind == "exit" and self.attempt is not None:
            self._exit(self.attempt, *rest)

    def _exit(self, attempt: Attempt, notice: tuple[Any, ...], end: tuple[Any, ...]) -> None:
        status, cpu, rss, over_limit, failure, finished_at, stale = end
        if failure is not None:
            report = never(failure)
        else:
            attempt.started(*notice[1:])
            report = ended(status, cpu, rss, notice[4], finished_at)
        if over_limit:
            report = report._replace(reason=f"out of memory limit {size(attempt.plan.memory or 0)}")
        self.attempt = None
        self.owner.freed(self, stale)
        attempt.exited(report)

    def _gone(self) -> None:
        if self._errors >= 0:
            os.set_blocking(self._errors, False)
            with contextlib.suppress(BlockingIOError):
                self._said = os.read(self._errors, LAST_WORDS)
        self.dismiss()
        self.owner.lost(self)


class Process:
    """An attempt without a guard: its process group ends with it, its daemons do not. `owner` hears retire."""

    def __init__(self, owner: Any, attempt: Attempt, python: str, why_cold: str) -> None:
        self.owner = owner
        self.attempt = attempt
        self.started_at = time.time()
        self.process: subprocess.Popen[bytes] | None = None
        self._deadline: float | None = None
        attempt.runner = self
        self._timer = owner.loop.call_later(0, lambda: self._begin(python, why_cold))

    def _begin(self, python: str, why_cold: str) -> None:
        plan = self.attempt.plan
        env = dict(plan.env)
        if not plan.buffered:
            own = env.get("PYTHONPATH")
            env["PYTHONPATH"] = FLUSH if own is None else f"{FLUSH}{os.pathsep}{own}" if own else f"{FLUSH}/"
        try:
            self.process = subprocess.Popen(
                [python, plan.script, *plan.argv],
                stdin=plan.stdin,
                stdout=plan.stdout,
                stderr=plan.stderr,
                cwd=plan.cwd,
                env=env,
                start_new_session=True,
            )
        except OSError as error:
            why = f"cannot start: {error.strerror}"
            if not os.path.isdir(plan.cwd):
                why = f"cannot enter its working directory: {error.strerror}"
            elif isinstance(error, FileNotFoundError):
                why = f"no such interpreter: {python}"
            self.owner.retire(self)
            self.attempt.exited(never(why))
            return
        self.attempt.started(self.process.pid, False, why_cold, self.started_at)
        self._look()

    def tell(self, message: tuple[Any, ...]) -> None:
        self._signal(signal.SIGTERM if message[0] == "stop" else _kill)
        self._deadline = time.monotonic() + message[1] if message[0] == "stop" else None

    def abandon(self) -> None:
        self._timer.cancel()
        self.attempt.close_fds()
        self._signal(_kill)
        if self.process is not None:
            self.process.wait()

    def _signal(self, number: int) -> None:
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if sys.platform == "win32":
                self.process.terminate()
            else:
                os.killpg(self.process.pid, number)

    def _look(self) -> None:
        assert self.process is not None
        if self._deadline is not None and time.monotonic() > self._deadline:
            self._signal(_kill)
        cpu, rss = 0.0, 0
        if sys.platform == "win32":
            pid = 0 if self.process.poll() is None else self.process.pid
            status = (self.process.returncode or 0) << 8
        else:
            pid, status, usage = os.wait4(self.process.pid, os.WNOHANG)
            cpu = usage.ru_utime + usage.ru_stime
            rss = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        if not pid:
            self._timer = self.owner.loop.call_later(POLL_S, self._look)
            return
        self.process.returncode = status
        self._signal(_kill)
        self.owner.retire(self)
        self.attempt.exited(ended(status, cpu, rss, self.started_at, time.time()))


_kill = getattr(signal, "SIGKILL", signal.SIGTERM)


def never(why: str) -> ExitReport:
    """The report of an attempt that never ran."""
    now = time.time()
    return ExitReport(None, None, 0.0, 0, why, True, now, now)


def ended(status: int, cpu: float, rss: int, started_at: float, finished_at: float) -> ExitReport:
    """The report for a status as wait gives it."""
    number = status & 0x7F
    return ExitReport(None if number else status >> 8, number or None, cpu, rss, None, False, started_at, finished_at)


def size(value: int) -> str:
    """Bytes as people write them: 512M, 4G, 1000."""
    for unit, power in (("T", 40), ("G", 30), ("M", 20), ("K", 10)):
        if value and value % (1 << power) == 0:
            return f"{value >> power}{unit}"
    return str(value)
