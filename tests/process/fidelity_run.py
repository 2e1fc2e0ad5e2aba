"""Runs one script three ways, as any script of the table in fidelity_table.py and of tests/benchmarks/fidelity.py: directly
with subprocess, cold and warm through the launcher; in the same folder, with the same variables.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, Optional, Union
from unittest import mock

from src import proctree
from src.launcher import AttemptPlan, ExitReport, Guards, Options
from src.loop import Loop
from tests.process.fidelity_table import Probe

ADDRESS = re.compile(rb"0x[0-9a-fA-F]{5,}")
LIMIT_S = 60.0


class Seen(NamedTuple):
    """What a script left to see."""

    status: Optional[int]  # exit code, or minus a signal
    out: bytes
    err: bytes


class Call(NamedTuple):
    """How a script is started."""

    script: str
    args: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str
    stdin: Union[bytes, str, None] = None  # bytes for a pipe, a file's path, None: /dev/null
    stdout: str = "pipe"  # or a path
    buffered: bool = False


class Lab:
    """Runs scripts with one interpreter. Used by one thread; `close` ends its guards."""

    def __init__(self, python: str, env: Mapping[str, str]) -> None:
        self.python = python
        self.env = dict(env)
        self.loop = Loop()
        self._usual = Guards(self.loop, 1, python, Options(env=self.env))

    def close(self) -> None:
        self._usual.close()
        self.loop.close()

    def direct(self, call: Call) -> Seen:
        """`python script args`, by subprocess."""
        fds = _Ends(call)
        try:
            process = subprocess.Popen(
                [self.python, call.script, *call.args],
                env=call.env,
                cwd=call.cwd,
                stdin=fds.stdin,
                stdout=fds.stdout,
                stderr=fds.stderr,
                start_new_session=True,
            )
        finally:
            fds.close_theirs()
        self._until(lambda: fds.read_all(self.loop), fds, process.kill)
        return fds.seen(process.wait())

    def launched(self, call: Call, cold: bool) -> tuple[Seen, bool, Optional[str]]:
        """The same through Guards that expect these variables: what was seen, whether warm, why not."""
        if dict(call.env) == self.env:
            return self._launch(self._usual, call, cold)
        guards = Guards(self.loop, 1, self.python, Options(env=call.env))
        try:
            return self._launch(guards, call, cold)
        finally:
            guards.close()

    def _launch(self, guards: Guards, call: Call, cold: bool) -> tuple[Seen, bool, Optional[str]]:
        fds = _Ends(call)
        started: list[tuple[int, bool, Optional[str]]] = []
        ended: list[ExitReport] = []
        plan = AttemptPlan(
            key=None,
            python=None,
            script=call.script,
            argv=list(call.args),
            env=call.env,
            cwd=call.cwd,
            stdin=fds.stdin,
            stdout=fds.stdout,
            stderr=fds.stderr,
            cold=cold,
            buffered=call.buffered,
        )
        with mock.patch.object(proctree, "is_subreaper", lambda: True):  # as in a worker
            attempt = guards.start(plan, lambda *a: started.append(a), ended.append)
            fds.read_all(self.loop)
            self._until(lambda: ended, fds, attempt.kill)
        report = ended[0]
        status = report.exit_code if report.signal is None else -report.signal
        _, warm, why = started[0] if started else (0, False, report.reason)
        return fds.seen(status), warm, why

    def _until(self, condition: Callable[[], object], fds: _Ends, kill: Callable[[], None]) -> None:
        timer = self.loop.call_later(LIMIT_S, kill)
        while not condition() or fds.open:
            self.loop.turn(1)
        timer.cancel()


class _Ends:
    """The three descriptors for a script, and what comes out of two of them."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.data: dict[int, bytearray] = {}  # by the reading end
        self.open: set[int] = set()
        if isinstance(call.stdin, bytes):
            self.stdin, writing = os.pipe()
            os.write(writing, call.stdin)
            os.close(writing)
        else:
            self.stdin = os.open(call.stdin or os.devnull, os.O_RDONLY)
        if call.stdout == "pipe":
            self.stdout = self._pipe()
        else:
            self.stdout = os.open(call.stdout, os.O_WRONLY | os.O_CREAT, 0o666)
        self.stderr = self._pipe()

    def _pipe(self) -> int:
        reading, writing = os.pipe()
        self.data[reading] = bytearray()
        self.open.add(reading)
        return writing

    def close_theirs(self) -> None:
        for fd in (self.stdin, self.stdout, self.stderr):
            os.close(fd)

    _reading = False

    def read_all(self, loop: Loop) -> bool:
        """Have the loop read from now on."""
        if not self._reading:
            self._reading = True
            for fd in self.data:
                loop.add_reader(fd, lambda fd=fd: self._read(loop, fd))  # type: ignore[misc]
        return True

    def _read(self, loop: Loop, fd: int) -> None:
        data = os.read(fd, 1 << 16)
        self.data[fd] += data
        if not data:
            loop.remove_reader(fd)
            os.close(fd)
            self.open.discard(fd)

    def seen(self, status: Optional[int]) -> Seen:
        texts = [ADDRESS.sub(b"0x", bytes(data)) for data in self.data.values()]
        if self.call.stdout != "pipe":
            regular = os.path.isfile(self.call.stdout)
            texts.insert(0, Path(self.call.stdout).read_bytes() if regular else b"")
        return Seen(status, *texts)


def lay_out(probe: Probe, folder: str, base: Mapping[str, str]) -> Call:
    """Make `folder` anew as the probe wants it."""
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder + "/work")
    for name, content in probe.files:
        path = Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    for name, target in probe.links:
        os.symlink(target, f"{folder}/{name}")
    script = f"{folder}/{probe.file}"
    if probe.code == "ARCHIVE":
        with zipfile.ZipFile(script, "w") as archive:
            archive.writestr("__main__.py", "import sys; print(sys.argv, sys.path[0], __file__)")
    elif probe.code is not None:
        code = probe.code.encode() if isinstance(probe.code, str) else probe.code
        with open(script, "wb") as file:
            file.write(code)
    env = dict(base)
    for name, value in probe.env:
        env.pop(name, None)
        if value is not None:
            env[name] = value.replace("{folder}", folder)
    stdin: Union[bytes, str, None] = probe.stdin
    if probe.stdin_file:
        stdin = folder + "/stdin"
        Path(stdin).write_bytes(probe.stdin or b"")
    return Call(
        script=probe.script.format(folder=folder, file=probe.file),
        args=probe.args,
        env=env,
        cwd=folder + "/work",
        stdin=stdin,
        stdout=probe.stdout.format(folder=folder),
        buffered=probe.buffered,
    )
