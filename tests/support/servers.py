"""Manager, workers and clients as real processes: `run.py` and `client.py`, as a user starts them.

    with running_manager() as manager, running_worker(manager, slots=2):
        done = client(manager, "run", "hello.py", "Alice")       # client.py run HOST PORT hello.py Alice
        self.assertEqual(done.stdout, "Hello, Alice!\\n")

Each manager has a temporary folder: keys in home/ (MICROCLUSTER_HOME), data in manager/ and wN/, output in logs/,
shown when a test of `Case` fails. Ports are always picked by the system. `enter(self, ...)` is for setUp,
`enter_class(cls, ...)` for setUpClass.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import unittest
from itertools import count
from pathlib import Path
from typing import Any, Optional, TypeVar, Union

from .leaks import MARK, describe_process, marked_pids, show_with_failures
from .waiting import FACTOR, StillWaiting, wait_until

ROOT = Path(__file__).resolve().parents[2]
READY_S = 60.0
MANAGER_READY = re.compile(r"^microcluster manager listening on (.+):(\d+)$", re.MULTILINE)
WORKER_READY = re.compile(r"^microcluster worker (\S+) connected to (.+):(\d+) with (\d+) slots?$", re.MULTILINE)
LOG_TAIL = 6000  # characters of a log that are shown with a failure

Word = Union[str, bytes, "os.PathLike[str]"]
P = TypeVar("P", bound="Program")
_numbers = count(1)


class Program:
    """One process in a group of its own, with its output in files. Not started until `start` or `with`.

    `launch` starts the process; `start`, in subclasses, also waits until it says that it is ready.
    """

    def __init__(self, name: str, command: list[Word], folder: Path, environ: dict[str, str]) -> None:
        self.name = name
        self.command = command
        self.folder = folder
        self.environ = environ
        self.process: Optional[subprocess.Popen[bytes]] = None
        self.out_path = self.err_path = folder / "logs" / "never"
        self.cwd = folder

    def start(self: P) -> P:
        self.launch()
        return self

    def launch(self) -> None:
        logs = self.folder / "logs"
        logs.mkdir(exist_ok=True)
        number = next(_numbers)
        self.out_path, self.err_path = logs / f"{self.name}-{number}.out", logs / f"{self.name}-{number}.err"
        with open(self.out_path, "wb") as out, open(self.err_path, "wb") as err:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=self.cwd,
                env=self.environ,
                start_new_session=True,
            )
        show_with_failures(self, self.logs)

    def __enter__(self: P) -> P:
        return self if self.process is not None else self.start()

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        assert self.process is not None, f"{self.name} was never started"
        return self.process.pid

    @property
    def out(self) -> str:
        return self.out_path.read_text("utf-8", "replace") if self.out_path.exists() else ""

    @property
    def err(self) -> str:
        return self.err_path.read_text("utf-8", "replace") if self.err_path.exists() else ""

    def logs(self) -> str:
        state = self.process.returncode if self.process is not None else "not started"
        return f"--- {self.name} (exit {state})\nstdout: {self.out[-LOG_TAIL:]}\nstderr: {self.err[-LOG_TAIL:]}"

    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def wait_for(self, pattern: re.Pattern[str], timeout_s: float = READY_S) -> re.Match[str]:
        """The first match of `pattern` in its stdout; fails at once when the process has ended."""

        def look() -> Optional[re.Match[str]]:
            alive = self.alive()
            found = pattern.search(self.out)
            if found is None and not alive:
                raise AssertionError(f"{self.name} ended before it said {pattern.pattern!r}\n{self.logs()}")
            return found

        found = wait_until(look, timeout_s, f"{pattern.pattern!r} from {self.name}", self.logs)
        assert found is not None
        return found

    def send_signal(self, number: int) -> None:
        if self.process is not None:
            self.process.send_signal(number)

    def wait(self, timeout_s: float = READY_S) -> int:
        assert self.process is not None
        try:
            return self.process.wait(timeout_s * FACTOR)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} did not end within {timeout_s:g} s\n{self.logs()}") from None

    def stop(self, timeout_s: float = READY_S) -> int:
        """SIGTERM, then its exit code."""
        self.send_signal(signal.SIGTERM)
        return self.wait(timeout_s)

    def kill(self) -> None:
        """SIGKILL for this process alone, as a crash would: what becomes of its children is the program's affair."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def close(self) -> None:
        """End it with its whole process group, whatever state it is in."""
        if self.process is None:
            return
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except OSError:
            pass  # all gone
        self.process.wait()
        show_with_failures(self, self.logs(), closed=True)


class Manager(Program):
    """A manager with a folder of its own; `restart` keeps the data, the key and the port."""

    def __init__(self, options: tuple[str, ...], python: str, host: str) -> None:
        folder = Path(tempfile.mkdtemp(prefix="c-"))
        (folder / "home").mkdir(mode=0o700)
        (folder / "user").mkdir(mode=0o700)
        (folder / "work").mkdir()
        self.host, self.port = host, 0
        self.options = options
        self.python = python
        self.data = folder / "manager"
        self.mark = os.environ.get(MARK, "")
        environ = clean_environ(folder)
        if not self.mark:
            self.mark = environ[MARK] = f"class-{os.getpid()}-{next(_numbers)}"
        super().__init__("manager", [], folder, environ)

    def start(self) -> Manager:
        self.command = [self.python, str(ROOT / "run.py"), "manager", "--data", str(self.data)]
        self.command += [*self.options, self.host, str(self.port)]
        self.launch()
        self.port = int(self.wait_for(MANAGER_READY).group(2))
        return self

    def restart(self) -> None:
        """Start it again (after `kill` or `stop`) on the same port with the same data."""
        assert not self.alive(), "the manager is still running"
        self.start()

    def close(self) -> None:
        super().close()
        try:
            wait_until(lambda: not self.strays(), READY_S, "the processes of the cluster to end")
        except StillWaiting:
            strays = [describe_process(pid) for pid in self.strays()]
            for pid in self.strays():
                os.kill(pid, signal.SIGKILL)
            raise AssertionError("the cluster left processes behind:\n  " + "\n  ".join(strays)) from None
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    def strays(self) -> set[int]:
        """Processes of this class's cluster that still live (those of one test are found by the test's leak check)."""
        return marked_pids(self.mark) if self.mark.startswith("class-") else set()


class Worker(Program):
    """A worker process of a manager's cluster."""

    def __init__(
        self, manager: Manager, options: tuple[str, ...], slots: int, name: str, port: int, python: str
    ) -> None:
        data = manager.folder / name
        words = [
            python or manager.python,
            str(ROOT / "run.py"),
            "worker",
            "--data",
            str(data),
            "--name",
            name,
            "--slots",
            str(slots),
        ]
        words += [*options, manager.host, str(port or manager.port)]
        super().__init__(name, list(words), manager.folder, manager.environ)
        self.data = data

    def start(self) -> Worker:
        self.launch()
        self.wait_for(WORKER_READY)
        return self

    def wait_connected(self, times: int, timeout_s: float = READY_S) -> None:
        """Until it said `times` times that it is connected."""
        wait_until(
            lambda: len(WORKER_READY.findall(self.out)) >= times, timeout_s, f"{self.name} to connect", self.logs
        )


def clean_environ(folder: Path) -> dict[str, str]:
    """This process's environment without settings of microcluster and Python, with a home of its own below `folder`."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("MICROCLUSTER_", "PYTHON"))}
    environ.update(MICROCLUSTER_HOME=str(folder / "home"), HOME=str(folder / "user"))
    environ.pop("XDG_CONFIG_HOME", None)
    if MARK in os.environ:
        environ[MARK] = os.environ[MARK]
    return environ


def running_manager(*options: str, python: str = sys.executable, host: str = "localhost") -> Manager:
    """A manager, not started yet: use it in `with`, or through `enter` and `enter_class`."""
    return Manager(options, python, host)


def running_worker(
    manager: Manager, *options: str, slots: int = 2, name: str = "", port: int = 0, python: str = ""
) -> Worker:
    """A worker of `manager` (of a proxy in front of it when `port` is given), not started yet."""
    return Worker(manager, options, slots, name or f"w{next(_numbers)}", port, python)


def enter(case: unittest.TestCase, program: P) -> P:
    """Start `program` now; it is ended after the test."""
    case.addCleanup(program.close)
    return program.start()


def enter_class(cls: type[unittest.TestCase], program: P) -> P:
    """Start `program` now; it is ended after the last test of the class."""
    cls.addClassCleanup(program.close)
    return program.start()


def client_command(manager: Optional[Manager], *argv: Word, port: int = 0) -> list[Word]:
    """The words of `client.py VERB HOST PORT REST..`; without a manager, HOST PORT are left out."""
    words: list[Word] = [manager.python if manager else sys.executable, str(ROOT / "client.py"), *argv[:1]]
    if manager is not None:
        words += [manager.host, str(port or manager.port)]
    return words + list(argv[1:])


def client_bytes(
    manager: Manager,
    *argv: Word,
    stdin: bytes = b"",
    timeout_s: float = 120.0,
    environ: Optional[dict[str, str]] = None,
    cwd: Optional[Path] = None,
    port: int = 0,
) -> subprocess.CompletedProcess[bytes]:
    """Run client.py to its end. Raises AssertionError with what it said so far when that takes over `timeout_s`."""
    command = client_command(manager, *argv, port=port)
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=cwd or manager.folder / "work",
        env={**manager.environ, **(environ or {})},
        start_new_session=True,
    )
    try:
        out, err = process.communicate(stdin, timeout_s * FACTOR)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"client.py {argv} took over {timeout_s:g} s; {out[-2000:]!r} {err[-2000:]!r}") from None
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def client(manager: Manager, *argv: Word, stdin: str = "", **more: Any) -> subprocess.CompletedProcess[str]:
    """As `client_bytes`, with text."""
    done = client_bytes(manager, *argv, stdin=stdin.encode("utf-8", "surrogateescape"), **more)
    out, err = (part.decode("utf-8", "surrogateescape") for part in (done.stdout, done.stderr))
    return subprocess.CompletedProcess(done.args, done.returncode, out, err)


def background_client(manager: Manager, *argv: Word, name: str = "client", port: int = 0) -> Program:
    """client.py as a Program, not started yet."""
    command = client_command(manager, *argv, port=port)
    program = Program(name, command, manager.folder, manager.environ)
    program.cwd = manager.folder / "work"
    return program


def submit(manager: Manager, *argv: Word, **more: Any) -> str:
    """The id of a new job; fails with the client's own words."""
    done = client(manager, "submit", *argv, **more)
    assert done.returncode == 0, f"submit {argv}: exit {done.returncode}: {done.stderr}"
    return done.stdout.strip()


def status(manager: Manager, job: str) -> dict[str, Any]:
    """`status --json` of one job or task."""
    done = client(manager, "status", "--json", job)
    assert done.returncode == 0, f"status {job}: exit {done.returncode}: {done.stderr}"
    (view,) = json.loads(done.stdout)
    assert isinstance(view, dict)
    return view


def wait_state(manager: Manager, job: str, *states: str, timeout_s: float = 60) -> dict[str, Any]:
    """Until the job is in one of `states`; fails early when it ended in another one."""

    def look() -> Optional[dict[str, Any]]:
        view = status(manager, job)
        if view["state"] in states:
            return view
        if view["state"] in ("succeeded", "failed", "cancelled"):
            raise AssertionError(f"job {job} is {view['state']}, not {' or '.join(states)}: {view}")
        return None

    found = wait_until(look, timeout_s, f"job {job} to be {' or '.join(states)}", lambda: status(manager, job))
    assert found is not None
    return found


def write_script(manager: Manager, name: str, source: str) -> Path:
    """A script in the folder that clients run in."""
    path = manager.folder / "work" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source, "utf-8")
    return path
