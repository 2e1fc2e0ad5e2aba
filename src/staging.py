"""Where the files of jobs lie on this machine: scripts with their modules, working folders, what was sent.

    <data>/<n>/         one worker's, locked while it lives
      scripts/<hash>/   script and modules: the same content has the same path, from job to job
      work/J.P.A        working folder of an attempt        tmp/J.P.A   its TMPDIR
      blobs/  spool/    content by hash; output kept aside  trash/      on its way out

Called by the worker's loop thread; `fill` may run in a helper thread, since it copies gigabytes. What was sent is
copied, never linked: a job may do to its files what it likes. Removing runs in a thread of its own.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import queue
import shutil
import stat
import subprocess
import tempfile
import threading
from bisect import bisect_right
from itertools import count
from pathlib import Path
from typing import Any, Optional

try:
    import fcntl
except ImportError:  # Windows: whoever starts two workers there gives them two --data folders
    fcntl = None  # type: ignore[assignment]

from .core.errors import StoreError
from .core.jobs import TaskKey, spec_blobs
from .core.messages import check_manifest
from .core.syntax import from_wire, grid_at
from .spool import Blobs

log = logging.getLogger(__name__)

SPARE_FOLDERS = 8
SCRIPTS_KEPT = 500  # laid-out scripts that no job here uses now
CHUNKS_KEPT = 4  # chunks of --each-line lines in memory, per job
LAID_OUT_NS = 10**18  # the modification time of all laid-out files; another one: a job changed it
TEMP_LENGTH = 60  # a longer TMPDIR breaks multiprocessing: a socket's path has 107 bytes in all
COPY_BYTES = 1 << 20
INLINE_BYTES = 4 << 20  # sent files up to this are copied at once, more in a helper thread
INLINE_FILES = 50


def claim(root: Path) -> tuple[Path, int]:
    """The first folder below `root` that no other living worker uses, and the descriptor that holds it until closed.

    Raises StoreError when the root cannot be used."""
    try:
        for n in count(1):
            folder = root / str(n)
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
            if fcntl is None:
                return folder, descriptor
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return folder, descriptor
            except BlockingIOError:
                os.close(descriptor)
    except OSError as error:
        raise StoreError(f"cannot use {root} (--data): {error.strerror or error}") from error
    raise AssertionError("unreachable")


class Plan:
    """What all tasks of a job share, worked out once from its spec; `load` completes it when its content is here."""

    def __init__(self, job: int, spec: dict[str, Any]) -> None:
        self.job, self.spec = job, spec
        lines = spec["lines"]["chunks"] if spec.get("lines") else []
        self._starts = [first for first, _ in lines]
        self.chunks: list[str] = [name for _, name in lines]
        self.blobs = [name for name in dict.fromkeys(spec_blobs(spec)) if name not in set(self.chunks)]
        self.name = from_wire(spec["script"]["name"])
        self.modules = [(from_wire(path), name) for path, name in spec.get("modules") or ()]
        self.returns: list[str] = spec.get("returns") or []
        self.args: list[str] = []
        self.env: dict[str, Any] = {}  # what its submitter set
        self.files: list[list[Any]] = []  # entries of the send manifest
        self.sent_bytes = 0
        self.script = ""  # where it is laid out
        self._lines: dict[int, list[bytes]] = {}

    def load(self, blobs: Blobs) -> list[str]:
        """Read the lists that travel as content. Gives the hashes of the sent files. Raises OSError, BadMessage."""
        spec = self.spec
        args, env = spec.get("args"), spec.get("env")
        if spec.get("args_blob"):
            args = json.loads(Path(blobs.path(spec["args_blob"])).read_bytes())
        if spec.get("env_blob"):
            env = json.loads(Path(blobs.path(spec["env_blob"])).read_bytes())
        self.args, self.env = [from_wire(word) for word in args or ()], env or {}
        if spec.get("send"):
            self.files = check_manifest(Path(blobs.path(spec["send"]["manifest"])).read_bytes())
        found = {entry[3]: entry[4] for entry in self.files if entry[0] == "f"}
        self.sent_bytes = sum(entry[4] for entry in self.files if entry[0] == "f")
        return list(found)

    def large(self) -> bool:
        """Whether filling a working folder takes long enough to need a helper thread."""
        return self.sent_bytes > INLINE_BYTES or len(self.files) > INLINE_FILES

    def chunk_of(self, pos: int) -> Optional[str]:
        """The hash of the lines that hold this task's one, if it has one."""
        return self.chunks[bisect_right(self._starts, pos) - 1] if self.chunks else None

    def argv(self, pos: int, blobs: Blobs) -> list[str]:
        """The arguments of a task. Raises OSError, IndexError."""
        found = list(self.args)
        if self.spec.get("grid"):
            for name, value in grid_at(self.spec["grid"], pos):
                found += (f"--{name}", value)
        if self.chunks:
            which = bisect_right(self._starts, pos) - 1
            if which not in self._lines:
                while len(self._lines) >= CHUNKS_KEPT:
                    del self._lines[next(iter(self._lines))]
                self._lines[which] = Path(blobs.path(self.chunks[which])).read_bytes().split(b"\n")
            found.append(os.fsdecode(self._lines[which][pos - self._starts[which]]))
        return found

    def pinned(self) -> set[str]:
        """Hashes that must not be evicted while the job has tasks here."""
        return {*self.blobs, *self.chunks, *(entry[3] for entry in self.files if entry[0] == "f")}


class Stage:
    """The folders of one worker below `folder`."""

    def __init__(self, folder: Path, blobs: Blobs) -> None:
        self.folder, self.blobs = folder, blobs
        self._janitor: Optional[threading.Thread] = None
        self._trash: queue.SimpleQueue[Optional[str]] = queue.SimpleQueue()
        self._serial = count(1)
        self._layouts = 0
        self._users: dict[str, int] = {}  # laid-out scripts by the number of plans that use them
        self._work = str(folder / "work")
        self._spare: tuple[list[str], list[str]] = ([], [])  # empty folders for work and tmp, kept for the next attempt
        self._temp = temp_root(folder)
        for name in ("work", "spool", "tmp"):  # of a worker that was killed
            self._throw_away(str(folder / name))
        if not self._temp.startswith(str(folder)):
            remove_tree(self._temp)
        for path in (self._work, self._temp, str(folder / "spool"), str(folder / "scripts"), str(folder / "trash")):
            os.makedirs(path, mode=0o700, exist_ok=True)
        for entry in os.listdir(folder / "trash"):
            self._remove_later(str(folder / "trash" / entry))

    # -- scripts -------------------------------------------------------------------------------------------------------

    def lay_out(self, plan: Plan) -> None:
        """Put script and modules of a plan in their place, once. Raises OSError."""
        named = json.dumps([plan.spec["script"], sorted(plan.spec.get("modules") or (), key=str)], sort_keys=True)
        key = hashlib.sha256(named.encode()).hexdigest()[:32]
        folder = self.folder / "scripts" / key
        files = [(plan.name, plan.spec["script"]["hash"]), *plan.modules]
        if not all(self._unchanged(folder / path, name) for path, name in files):
            self._throw_away(str(folder))
            aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix="new-"))
            for path, name in files:
                target = aside / path
                target.parent.mkdir(parents=True, exist_ok=True)
                copy_file(self.blobs.path(name), str(target), 0o644)
                os.utime(target, ns=(LAID_OUT_NS, LAID_OUT_NS))
            os.rename(aside, folder)
        os.utime(folder)
        if not plan.script:
            self._users[key] = self._users.get(key, 0) + 1
            self._evict()
        plan.script = str(folder / plan.name)

    def _unchanged(self, path: Path, name: str) -> bool:
        try:
            info = os.lstat(path)
            return info.st_mtime_ns == LAID_OUT_NS and info.st_size == os.stat(self.blobs.path(name)).st_size
        except OSError:
            return False

    def check_script(self, plan: Plan) -> None:
        """Before each start: a script that a job rewrote, or removed, is laid out again. Raises OSError."""
        try:
            if os.lstat(plan.script).st_mtime_ns == LAID_OUT_NS:
                return
        except FileNotFoundError:
            pass
        self.lay_out(plan)

    def release(self, plan: Plan) -> None:
        """The plan is not used any more."""
        if plan.script:
            key = os.path.basename(os.path.dirname(plan.script))
            self._users[key] -= 1
            if not self._users[key]:
                del self._users[key]

    def _evict(self) -> None:
        self._layouts += 1
        if self._layouts % max(1, SCRIPTS_KEPT // 10):
            return  # not a listing for each new script
        entries = os.scandir(self.folder / "scripts")
        found = sorted((entry.stat().st_mtime, entry.path, entry.name) for entry in entries)
        unused = [path for _, path, name in found if name not in self._users]
        for path in unused[: max(0, len(unused) - SCRIPTS_KEPT)]:
            self._throw_away(path)

    # -- working folders -----------------------------------------------------------------------------------------------

    def make(self, key: TaskKey) -> tuple[str, str]:
        """A new working folder and a new TMPDIR for an attempt. Raises OSError."""
        name = "{}.{}.{}".format(*key)
        found = (f"{self._work}/{name}", f"{self._temp}/{name}")
        for path, spare in zip(found, self._spare):
            if spare:
                os.rename(spare.pop(), path)
            else:
                os.mkdir(path, 0o700)
        return found

    def fill(self, plan: Plan, folder: str) -> None:
        """Copy what was sent into a working folder. Raises OSError. Thread: any."""
        late: list[tuple[str, int]] = []
        links: list[tuple[str, str]] = []
        for kind, wire, *rest in plan.files:
            path = f"{folder}/{from_wire(wire)}"
            if kind == "d":
                os.mkdir(path, 0o700)
                late.append((path, rest[0]))
            elif kind == "f":
                copy_file(self.blobs.path(rest[1]), path, rest[0])
            else:
                links.append((from_wire(rest[0]), path))
        for target, path in links:  # after the files: nothing is ever written through a link
            os.symlink(target, path)
        for path, mode in reversed(late):  # after what is in them: they may be read-only
            os.chmod(path, mode & 0o777)

    def clear(self, folder: str, temp: str) -> None:
        """Remove both folders of an attempt; a large tree goes out of the way at once and vanishes a little later."""
        for path, spare in zip((folder, temp), self._spare):
            if len(spare) < SPARE_FOLDERS and self._put_by(path):
                spare.append(path + "-")
            else:
                self._throw_away(path)

    def _put_by(self, path: str) -> bool:
        """Keep a folder that was left as it was made, under another name: a rename costs a third of making and removing
        (measured on ext4), and small tasks leave nothing behind."""
        try:
            info = os.lstat(path)
            if info.st_mode != stat.S_IFDIR | 0o700 or os.listdir(path):
                return False
            os.rename(path, path + "-")
        except OSError:
            return False
        return True

    def _throw_away(self, path: str) -> None:
        """Out of the way now; removed now if it is empty, else later. Never raises."""
        try:
            os.rmdir(path)
            return
        except FileNotFoundError:
            return
        except OSError:
            pass  # not empty, or not a folder
        trash = str(self.folder / "trash" / f"{os.getpid()}.{next(self._serial)}")
        try:
            os.makedirs(os.path.dirname(trash), mode=0o700, exist_ok=True)
            try:
                os.rename(path, trash)
            except PermissionError:
                os.chmod(path, 0o700)  # a read-only folder cannot be moved
                os.rename(path, trash)
        except OSError:
            trash = path  # on another disk, as a TMPDIR may be
        self._remove_later(trash)

    # -- the janitor ---------------------------------------------------------------------------------------------------

    def _remove_later(self, path: str) -> None:
        if self._janitor is None:
            self._janitor = threading.Thread(target=self._clean, name="janitor", daemon=True)
            self._janitor.start()
        self._trash.put(path)

    def _clean(self) -> None:
        while True:
            path = self._trash.get()
            if path is None:
                return
            remove_tree(path)

    def close(self) -> None:
        """Remove what is left of attempts, and wait for that."""
        for path in (self._work, self._temp, str(self.folder / "spool")):
            self._throw_away(path)
        self._trash.put(None)
        if self._janitor is not None:
            self._janitor.join()


def temp_root(folder: Path) -> str:
    """Where the TMPDIRs of attempts go: below `folder`, or, when that is too long for a socket's path, below the
    system's own, under a name that the next worker on `folder` finds again."""
    own = str(folder / "tmp")
    if len(os.fsencode(own)) <= TEMP_LENGTH:
        return own
    mark = hashlib.sha256(os.fsencode(folder)).hexdigest()[:10]
    path = os.path.join(tempfile.gettempdir(), f"mc-{mark}")
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        info = os.lstat(path)
        if not stat.S_ISDIR(info.st_mode) or (hasattr(os, "getuid") and info.st_uid != os.getuid()):
            return tempfile.mkdtemp(prefix="mc-")  # somebody else's
    return path


def copy_file(source: str, target: str, mode: int) -> None:
    """A new file with the content of another one; shares blocks where the file system can. Raises OSError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    with open(source, "rb", buffering=0) as reader:
        with open(os.open(target, flags, 0o600), "wb", buffering=0) as writer:
            if not _copy_range(reader.fileno(), writer.fileno()):
                shutil.copyfileobj(reader, writer, COPY_BYTES)
            if hasattr(os, "fchmod"):
                os.fchmod(writer.fileno(), mode & 0o777)


def _copy_range(source: int, target: int) -> bool:
    """Whether the kernel copied all of it."""
    if not hasattr(os, "copy_file_range"):
        return False
    done = 0
    try:
        while True:
            copied = os.copy_file_range(source, target, 1 << 30)
            if copied == 0:
                return done == os.fstat(source).st_size
            done += copied
    except OSError:
        if done:
            raise
        return False  # file systems that do not know it


def remove_tree(path: str) -> None:
    """Remove a file, link or folder with all in it, whatever its modes. Thread: any. Never raises."""
    try:
        if os.path.islink(path) or not os.path.isdir(path):
            os.unlink(path)
            return
        shutil.rmtree(path, ignore_errors=True)
        if os.path.lexists(path):
            _open_up(path)
            shutil.rmtree(path)
    except FileNotFoundError:
        return
    except (OSError, RecursionError) as error:
        if subprocess.call(["rm", "-rf", "--", path], stderr=subprocess.DEVNULL) != 0:
            log.warning("cannot remove %s: %s", path, error)


def _open_up(path: str) -> None:
    """Give ourselves the right to empty a folder and all below it."""
    todo = [path]
    while todo:
        folder = todo.pop()
        try:
            os.chmod(folder, 0o700)
            todo += [entry.path for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)]
        except OSError:
            continue
