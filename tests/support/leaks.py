"""`Case`: a TestCase that fails when a test leaves a thread, a process, a descriptor or a temporary file behind.

Every test outside tests/core derives from it. Each test gets a temporary folder of its own as `tempfile.gettempdir()`
and TMPDIR; what is made in setUpClass belongs to the class and is not looked at. Processes are found even when they are
orphans: each inherits MICROCLUSTER_TEST_MARK from the test that started it.
"""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
import tempfile
import threading
import unittest
from itertools import count
from pathlib import Path
from typing import Any, Callable, Optional, Union

from .waiting import StillWaiting, wait_until

MARK = "MICROCLUSTER_TEST_MARK"
PROC = Path("/proc")
SETTLE_S = 10.0  # threads and processes that are on their way out get so long
IGNORED_FILES = ("/dev/urandom",)  # opened once by the interpreter, for good

_numbers = count(1)
_evidence: dict[object, tuple[Union[str, Callable[[], str]], bool]] = {}


def show_with_failures(key: object, text: Union[str, Callable[[], str]], closed: bool = False) -> None:
    """Print `text` when the running test fails, and those after it unless `closed`. A new text replaces the old one."""
    _evidence[key] = (text, closed)


class Case(unittest.TestCase):
    """Takes a snapshot before each test and compares after its last cleanup."""

    maxDiff = 4000

    def run(self, result: Optional[unittest.TestResult] = None) -> Optional[unittest.TestResult]:
        temp = tempfile.mkdtemp(prefix="mct-")
        saved = {name: os.environ.get(name) for name in ("TMPDIR", MARK)}
        saved_tempdir = tempfile.tempdir
        mark = f"{os.getpid()}-{next(_numbers)}"
        os.environ.update({"TMPDIR": temp, MARK: mark})
        tempfile.tempdir = temp
        before = (set(threading.enumerate()), child_pids(), open_files())
        gc.freeze()  # the collection after the test looks through what the test made, not through all modules
        self.addCleanup(_check, self, temp, mark, before)  # registered first, so it runs last
        for key in [key for key, (_, closed) in _evidence.items() if closed]:
            del _evidence[key]
        bad = len(result.failures) + len(result.errors) if result is not None else 0
        try:
            return super().run(result)
        finally:
            if result is not None and len(result.failures) + len(result.errors) > bad:
                _show_evidence(self)
            tempfile.tempdir = saved_tempdir
            for name, value in saved.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
            shutil.rmtree(temp, ignore_errors=True)


def _show_evidence(case: unittest.TestCase) -> None:
    print(f"\n=== evidence for {case.id()}", file=sys.stderr)
    for text, _ in _evidence.values():
        print(text if isinstance(text, str) else text(), file=sys.stderr)


def child_pids() -> set[int]:
    """Processes whose parent is this one, zombies included; empty where /proc is missing."""
    found: set[int] = set()
    for tasks in PROC.glob("self/task/*/children"):
        try:
            found.update(int(pid) for pid in tasks.read_text().split())
        except OSError:
            continue
    return found


def open_files() -> dict[int, str]:
    """Open descriptors of this process and what they point at."""
    found: dict[int, str] = {}
    for entry in PROC.glob("self/fd/*"):
        try:
            found[int(entry.name)] = os.readlink(entry)
        except OSError:
            continue  # the descriptor of the listing itself
    return {fd: target for fd, target in found.items() if target not in IGNORED_FILES}


def marked_pids(mark: str) -> set[int]:
    """Living processes, other than this one, that inherited `mark`."""
    wanted = f"{MARK}={mark}".encode()
    found: set[int] = set()
    for entry in PROC.iterdir() if PROC.is_dir() else ():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                found.add(int(entry.name))
        except OSError:
            continue  # it ended, or it is not ours to look at
    return found


def describe_process(pid: int) -> str:
    try:
        words = (PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()
        state = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return f"{pid} (ended meanwhile)"
    return f"{pid} {words or '(no command line)'} [state {state}{': not waited for' if state == 'Z' else ''}]"


def _check(case: unittest.TestCase, temp: str, mark: str, before: tuple[Any, ...]) -> None:
    threads, children, files = before

    def left() -> list[str]:
        found = [f"thread {thread.name}" for thread in set(threading.enumerate()) - threads if thread.is_alive()]
        pids = (child_pids() - children) | marked_pids(mark)
        found += [f"process {describe_process(pid)}" for pid in sorted(pids)]
        found += [f"descriptor {fd} -> {to}" for fd, to in open_files().items() if files.get(fd) != to]
        # of workers that were killed: TMPDIRs of jobs (their successor tidies them up), the file that starts a guard
        files_left = [
            path for path in sorted(Path(temp).iterdir()) if not path.name.startswith(("mc-", "microcluster-"))
        ]
        return found + [f"file {path}" for path in files_left]

    gc.collect()  # a socket in a cycle would otherwise be found or not by chance
    try:
        wait_until(lambda: not left(), SETTLE_S, "the test's leftovers to go")
    except StillWaiting:
        remains = left()
        for pid in marked_pids(mark):
            _kill(pid)
        if remains:
            case.fail("the test left behind:\n  " + "\n  ".join(remains))


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except OSError:
        pass  # it ended by itself
