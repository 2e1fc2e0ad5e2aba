"""Process trees: who descends from this process, how much memory they use, and how to end them all.

Owns the few Linux calls that the standard library lacks (prctl). Elsewhere each function does nothing and says so.
Called by the worker, and by guards (guard.py), which load this file by its path into interpreters that must show no
trace of it: it imports only C modules, and defines no class.
"""

from __future__ import annotations

import os
import sys

try:
    import _ctypes
except ImportError:  # built without libffi
    _ctypes = None  # type: ignore[assignment]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

LINUX = sys.platform.startswith("linux")
PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_CHILD_SUBREAPER = 36
SIGKILL = 9
PASSES = 1000  # of looking for descendants in one sweep; each finds only what was born since the last


def prctl(option: int, value: int) -> bool:
    """Whether the kernel did it; False where there is no prctl."""
    address = _prctl()
    # Plain ints are passed as C ints: enough for the options used here.
    return address is not None and _ctypes.call_cdeclfunction(address, (option, value, 0, 0, 0)) == 0


_found: list[int | None] = []


def _prctl() -> int | None:
    if not _found:
        address = None
        if LINUX and _ctypes is not None:
            try:
                address = _ctypes.dlsym(_ctypes.dlopen(None, 0), "prctl")  # type: ignore[arg-type]
            except OSError:
                pass  # a C library without it
        _found.append(address)
    return _found[0]


_reaps: list[bool] = []


def become_subreaper() -> bool:
    """Make this process the parent of every descendant whose own parent ends. Forks do not inherit it."""
    if prctl(PR_SET_CHILD_SUBREAPER, 1):
        _reaps[:] = [True]
    return bool(_reaps)


def is_subreaper() -> bool:
    """Whether become_subreaper has been called, and worked."""
    return bool(_reaps)


def forbid_dumping() -> bool:
    """Keep other processes of this user from reading this one's memory."""
    return prctl(PR_SET_DUMPABLE, 0)


def die_with(parent: int) -> None:
    """Called by a fresh child: be killed when `parent`, a single-threaded process, ends. Ends at once if it has."""
    prctl(PR_SET_PDEATHSIG, SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def children(pid: int) -> list[int]:
    """Present children of a process, zombies included; [] if it is gone."""
    found: list[int] = []
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return found
    for task in tasks:
        try:
            with open(f"/proc/{pid}/task/{task}/children", "rb", buffering=0) as file:
                found += map(int, (file.read() or b"").split())
        except FileNotFoundError:
            if not os.path.exists(f"/proc/self/task/{os.getpid()}/children"):
                return [child for child, parent in parents().items() if parent == pid]  # an older kernel
        except OSError:
            pass  # the thread ended
    return found


def parents() -> dict[int, int]:
    """Each process of this machine and its parent: the slow way."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb", buffering=0) as file:
                    found[int(name)] = int(file.read().rpartition(b")")[2].split()[1])
            except (OSError, IndexError):
                pass  # it ended meanwhile
    return found


def descendants(pid: int | None = None) -> list[int]:
    """Every process below `pid` (default: this one), parents first. What is born meanwhile may be missing."""
    found: list[int] = []
    todo = children(os.getpid() if pid is None else pid) if LINUX else []
    while todo:
        found += todo
        todo = [grandchild for child in todo for grandchild in children(child)]
    return found


def send(pids: Iterable[int], number: int) -> None:
    """Signal each; those that are gone, or not ours to signal, do not matter."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except (ProcessLookupError, PermissionError):
            pass


def kill_descendants() -> int:
    """SIGKILL everything below this process, however fast it forks, and give how many there were. Does not wait.

    A process with a SIGKILL pending cannot fork any more, so that each pass finds only children of those that the pass
    before missed. For a subreaper none escapes: whatever loses its parent becomes a child of this process.
    """
    seen: set[int] = set()
    for _ in range(PASSES):
        new = [pid for pid in descendants() if pid not in seen]
        if not new:
            break
        send(new, SIGKILL)
        seen.update(new)
    return len(seen)


def reap(each: Callable[[int, int, object], None]) -> bool:
    """Wait for every child that has ended: each(pid, status, resource usage). Gives whether children are left."""
    while True:
        try:
            pid, status, usage = os.wait4(-1, os.WNOHANG)
        except ChildProcessError:
            return False
        if pid == 0:
            return True
        each(pid, status, usage)


def sweep_orphans(known: Collection[int]) -> int:
    """End what was reparented to this subreaper because the process above it died; gives how many were found.

    Orphans of a guard are told from this process's own children by their session: no process can enter one that
    exists. Children in sessions of their own that shall live are in `known`. Called again until it gives 0.
    """
    if not _reaps:
        return 0
    session = os.getsid(0)
    orphans = [pid for pid in children(os.getpid()) if pid not in known and _session(pid) != session]
    for pid in orphans:
        send([*descendants(pid), pid], SIGKILL)
        try:
            os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            pass
    return len(orphans)


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return -1


def memory(pids: Iterable[int], limit_bytes: int) -> int:
    """Bytes that these processes use together, counting shared pages once if the quick sum is over the limit."""
    pids = list(pids)
    quick = sum(_resident(pid) for pid in pids)
    return quick if quick <= limit_bytes else sum(_proportional(pid) for pid in pids)


def _resident(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/statm", "rb", buffering=0) as file:
            return int(file.read().split()[1]) * PAGE
    except (OSError, IndexError):
        return 0


def _proportional(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb", buffering=0) as file:
            for line in file.read().splitlines():
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass  # an older kernel, or it ended
    return _resident(pid)
