"""What the benchmarks share: a folder with a clean interpreter, clusters as processes, CPU and memory of all of them.

Interpreters are started by their real path, in an environment of their own: a shim script or an import-heavy
site-packages makes everybody else look slow, and us good.
"""

from __future__ import annotations

import getpass
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any, Optional

from tests.support.waiting import StillWaiting, wait_until

ROOT = Path(__file__).resolve().parents[2]
HELLO = "print('hello')\n"
END_S = 20.0  # a program that was asked to end and did not is killed after so long

Usage = tuple[float, float]  # CPU seconds, wall seconds


class Program:
    """A process of ours that says on stdout when it is ready."""

    def __init__(self, command: list[str], environ: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environ, text=True
        )
        self.pid = self.process.pid
        assert self.process.stdout is not None
        self.said = self.process.stdout.readline()
        if not self.said:
            self.end()
            raise SystemExit(f"{command} ended at once")

    def end(self) -> float:
        """Ask it to end; CPU seconds of it and of all that it waited for."""

        def look() -> Any:
            pid, *found = os.wait4(self.pid, os.WNOHANG)
            return found if pid else None

        self.process.terminate()
        try:
            status, usage = wait_until(look, END_S, "it to end")
        except StillWaiting:
            self.process.kill()
            _, status, usage = os.wait4(self.pid, 0)
        self.process.returncode = os.waitstatus_to_exitcode(status)
        assert self.process.stdout is not None
        self.process.stdout.close()
        seconds: float = usage.ru_utime + usage.ru_stime
        return seconds


class Cluster:
    """A manager and, unless slots is 0, a worker of it (of a relay in front of it when `through` names its port)."""

    def __init__(
        self, bench: Bench, slots: int = 2, python: str = "", through: Optional[Callable[[int], int]] = None
    ) -> None:
        self.python = python or bench.python
        self.cpu = 0.0  # of all that has ended
        self._programs: list[Program] = []
        data = bench.data()
        run = [self.python, str(ROOT / "run.py")]
        self.manager = self._start([*run, "manager", "--data", str(data / "m"), "127.0.0.1", "0"], bench)
        self.port = int(self.manager.said.rsplit(":", 1)[1])
        try:
            where = str(through(self.port) if through else self.port)
            if slots:
                words = ["worker", "--slots", str(slots), "--data", str(data / "w"), "127.0.0.1", where]
                self.worker = self._start([*run, *words], bench)
        except BaseException:
            self.end()
            raise

    def _start(self, command: list[str], bench: Bench) -> Program:
        program = Program(command, bench.environ)
        self._programs.append(program)
        return program

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> float:
        """CPU seconds of manager and worker, with guards and jobs."""
        while self._programs:
            self.cpu += self._programs.pop().end()
        return self.cpu

    def client(self, verb: str, *words: str) -> list[str]:
        """The command line `client.py VERB HOST PORT WORDS..`."""
        return [self.python, str(ROOT / "client.py"), verb, "127.0.0.1", str(self.port), *words]


class Bench:
    """The folder, its interpreter, its scripts. Nothing of it is left after `with`."""

    def __enter__(self) -> Bench:
        self.folder = Path(tempfile.mkdtemp(prefix="b-"))
        self._serial = 0
        try:
            self.python = self.interpreter("venv")
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        self.hello = self.write("hello.py", HELLO)
        names = ("PATH", "HOME", "LANG", "TMPDIR")
        self.environ = {name: os.environ[name] for name in names if name in os.environ}
        self.environ["USER"] = getpass.getuser()  # as every login has it
        self.key_home = str(self.folder / "keys")
        self.environ["MICROCLUSTER_HOME"] = self.key_home
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def interpreter(self, name: str, packages: Iterable[Path] = ()) -> str:
        """A new environment of this Python that has these packages and no other; the path of its interpreter."""
        venv.create(self.folder / name, symlinks=True)
        python = str(self.folder / name / "bin" / "python")
        for package in packages:
            (target,) = (self.folder / name / "lib").glob("python*/site-packages")
            os.symlink(package, target / package.name)
        return python

    def write(self, name: str, text: str) -> str:
        path = self.folder / name
        path.write_text(text)
        return str(path)

    def data(self) -> Path:
        """A folder for the data of one more cluster."""
        self._serial += 1
        return self.folder / f"data{self._serial}"

    def cpu(self, command: list[str], stdin: bytes = b"", stdout: Any = subprocess.DEVNULL) -> Usage:
        """What a command used with all that it waited for."""
        begin = time.perf_counter()
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=stdout, env=self.environ)
        try:
            pipe: Optional[IO[bytes]] = process.stdin
            assert pipe is not None
            pipe.write(stdin)
            pipe.close()
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            process.wait()
            raise
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{command}: exit code {process.returncode}")
        return usage.ru_utime + usage.ru_stime, time.perf_counter() - begin

    def cluster(self, work: Callable[[Cluster], Usage], python: str = "", warm_up: str = "") -> Usage:
        """A cluster for one piece of work, after one job so that all is warm: CPU of everything, wall of the work."""
        with Cluster(self, python=python) as cluster:
            self.cpu(cluster.client("run", warm_up or self.hello))
            cpu, wall = work(cluster)
            return cpu + cluster.end(), wall

    def empty(self, python: str = "") -> float:
        """CPU seconds of starting and stopping a cluster that runs one job."""
        return statistics.median(self.cluster(lambda _: (0.0, 0.0), python)[0] for _ in range(3))


# -- what the kernel says of processes ------------------------------------------------------------------------------------


def family(pid: int) -> list[int]:
    """The process and all below it."""
    found = [pid]
    for each in found:
        for task in Path(f"/proc/{each}/task").glob("*/children"):
            found += [int(child) for child in task.read_text().split()]
    return found


def private_mb(pids: Iterable[int]) -> float:
    """Memory that no other process shares: what would be free without them, in MB of a million bytes."""
    kib = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith(("Private_Clean:", "Private_Dirty:")):
                kib += int(line.split()[1])
    return kib * 1024 / 1e6


def resident_mb(pid: int) -> float:
    (line,) = (x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if x.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024 / 1e6


def cpu_seconds(pid: int) -> float:
    """CPU of one process that runs, in the scheduler's own nanoseconds."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


# -- tables ---------------------------------------------------------------------------------------------------------------


def row(name: str, mine: float, other: Optional[float] = None, ratio: Optional[float] = None, wanted: str = "") -> None:
    """One line: the figure, what it is compared with, their ratio, what was wanted."""
    against = f"{other:12,.3f}" if other is not None else " " * 12
    share = f"{ratio:8.2f}" if ratio is not None else " " * 8
    print(f"{name:58} {mine:12,.3f} {against} {share}   {wanted}".rstrip(), flush=True)


def heading() -> None:
    print(f"Python {sys.version.split()[0]}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}")
    print(f"{'medians of interleaved rounds':58} {'ours':>12} {'theirs':>12} {'ratio':>8}   wanted")


def ratios(name: str, pairs: list[tuple[float, float]], wanted: str = "") -> None:
    """The medians of both columns, and the median of the ratios of neighbours."""
    mine, other = (statistics.median(column) for column in zip(*pairs))
    row(name, mine, other, statistics.median(one / two for one, two in pairs), wanted)
