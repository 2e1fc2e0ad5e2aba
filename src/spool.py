"""Files: content by hash (blobs), and the output of attempts by offset. Knows nothing of jobs but their numbers.

Everything appears whole or not at all: written aside, synced, renamed. Folders 0700, files 0600.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import sys
import threading
import time
from collections import OrderedDict
from typing import NamedTuple

from . import faults

if sys.platform == "darwin":
    import fcntl

FILES_OPEN = 256  # descriptors that Outputs keeps
FRESH_S = 3600.0  # a blob younger than this is not swept: its job may be about to be submitted
_STREAMS = {1: "out", 2: "err"}
_BINARY = getattr(os, "O_BINARY", 0)  # Windows would change line ends


class FileRange(NamedTuple):
    """A part of a file, read when it is sent."""

    path: str
    offset: int
    length: int


def make_dir(path: str, durable: bool = False) -> None:
    """A private folder, if it is not there yet. durable: its name is on disk on return."""
    if not os.path.isdir(path):
        os.makedirs(path, mode=0o700, exist_ok=True)
        if durable:
            sync_dir(os.path.dirname(path))


def create_private(path: str, content: bytes = b"", new: bool = False) -> None:
    """A file that only its owner can read, with this content on disk; one that is there stays as it is, or, with new,
    is refused. Raises OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | _BINARY | (os.O_EXCL if new else 0), 0o600)
    try:
        if content:
            os.write(fd, content)
            sync_file(fd)
    finally:
        os.close(fd)


def sync_file(fd: int) -> None:
    """Make what was written durable. Raises OSError; a second try may then lie, since the pages are gone."""
    if sys.platform == "darwin":
        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)  # fsync leaves it in the drive's cache there
    else:
        os.fsync(fd)


def sync_dir(path: str) -> None:
    """Make a rename in this folder durable, where the system has that notion. Raises OSError."""
    faults.point("dir.sync")
    if hasattr(os, "O_DIRECTORY"):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


class Blobs:
    """Content by its SHA-256. `durable`: synced before it counts as there (the manager's; a worker's are a cache)."""

    def __init__(self, folder: str, durable: bool = True) -> None:
        self.folder, self.durable = folder, durable
        self._known: set[str] = set()  # durable, too
        self._synced: set[str] = set()  # folders whose names a crash of an earlier process left in doubt no more
        self._lock = threading.Lock()  # guards the names of temporary files
        self._serial = 0
        make_dir(folder)
        self._partial = os.path.join(folder, "partial")
        make_dir(self._partial)
        if durable:
            sync_dir(folder)
            sync_dir(os.path.dirname(os.path.abspath(folder)))

    def path(self, name: str) -> str:
        return os.path.join(self.folder, name[:2], name[2:])

    def has(self, name: str) -> bool:
        """Whether it is there, for good."""
        if name in self._known:
            return True
        path = self.path(name)
        if not os.path.exists(path):
            return False
        if self.durable and name[:2] not in self._synced:
            try:
                sync_dir(os.path.dirname(path))
            except OSError:
                return False  # whoever then wants to store it learns what is wrong
            self._synced.add(name[:2])
        self._known.add(name)
        return True

    def missing(self, names: list[str]) -> list[str]:
        return [name for name in names if not self.has(name)]

    def put_bytes(self, data: bytes) -> str:
        """Store; the hash. Raises OSError."""
        name = hashlib.sha256(data).hexdigest()
        if not self.has(name):
            with self._lock:
                self._serial += 1
                aside = os.path.join(self._partial, f"{os.getpid()}.{self._serial}")
            try:
                faults.point("blob.open")
                fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY, 0o600)
                with os.fdopen(fd, "wb") as file:
                    faults.point("blob.write")
                    file.write(data)
                    self._sync(file.fileno())
                self._keep(aside, name)
            except OSError:
                with contextlib.suppress(OSError):
                    os.unlink(aside)
                raise
        return name

    def _sync(self, fd: int) -> None:
        faults.point("blob.sync")
        if self.durable:
            sync_file(fd)

    def _keep(self, aside: str, name: str) -> None:
        target = self.path(name)
        make_dir(os.path.dirname(target), self.durable)
        faults.point("blob.rename")
        os.replace(aside, target)
        if self.durable:
            try:
                sync_dir(os.path.dirname(target))
            except OSError:
                self._known.discard(name)
                os.unlink(target)  # as in _sync_upload: a later sync may lie
                raise
        self._known.add(name)

    def upload(self, name: str, size: int, offset: int, data: bytes) -> tuple[int, bool]:
        """A piece of content that comes in pieces: (bytes stored so far, whole and checked). A piece that does not
        continue what is stored is not taken: the answer tells where to go on, also after a restart. One thread at a
        time. Raises ValueError when the whole does not fit its hash, OSError."""
        if self.has(name):
            return size, True
        aside = os.path.join(self._partial, name)
        stored = os.path.getsize(aside) if os.path.exists(aside) else 0
        if stored > size:
            os.unlink(aside)
            stored = 0
        if offset == stored and len(data) <= size - stored:
            faults.point("blob.open")
            fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_APPEND | _BINARY, 0o600)
            try:
                faults.point("blob.write")
                view = memoryview(data)
                while view:
                    view = view[os.write(fd, view) :]
                stored += len(data)
            finally:
                os.close(fd)
        if stored < size:
            return stored, False
        if hash_file(aside) != name:
            os.unlink(aside)
            raise ValueError("the content does not fit its hash")
        self._sync_whole(aside)
        self._keep(aside, name)
        return size, True

    def _sync_whole(self, aside: str) -> None:
        """Content that came in pieces, on disk. After a failure nothing of it may count: a second fsync would succeed
        though the pages are gone."""
        fd = os.open(aside, os.O_RDWR)
        try:
            self._sync(fd)
        except OSError:
            os.unlink(aside)
            raise
        finally:
            os.close(fd)

    def forget(self, name: str) -> int:
        """Remove; the bytes that are free now."""
        self._known.discard(name)
        try:
            size = os.path.getsize(self.path(name))
            os.unlink(self.path(name))
        except OSError:
            return 0
        return size

    def sweep(self, keep: set[str]) -> int:
        """Remove what is not in `keep` and not fresh; the bytes that are free now."""
        return sum(
            self.forget(name) for name, _, used in self.entries() if name not in keep and used < time.time() - FRESH_S
        )

    def entries(self) -> list[tuple[str, int, float]]:
        """(hash, size, last used) of all."""
        found = []
        for short in os.listdir(self.folder):
            if len(short) == 2:
                with os.scandir(os.path.join(self.folder, short)) as entries:
                    for entry in entries:
                        with contextlib.suppress(FileNotFoundError):
                            info = entry.stat()
                            found.append((short + entry.name, info.st_size, max(info.st_mtime, info.st_atime)))
        return found

    def touch(self, name: str) -> None:
        """It was used now."""
        with contextlib.suppress(OSError):
            os.utime(self.path(name))

    def evict(self, limit_bytes: int, pinned: set[str]) -> int:
        """Remove the least recently used until at most so much is left; the bytes that are free now."""
        entries = sorted(self.entries(), key=lambda entry: entry[2])
        total, freed = sum(entry[1] for entry in entries), 0
        for name, size, _ in entries:
            if total - freed <= limit_bytes:
                break
            if name not in pinned:
                freed += size if self.forget(name) or size == 0 else 0
        return freed

    def total_bytes(self) -> int:
        return sum(entry[1] for entry in self.entries())


def hash_file(path: str) -> str:
    """SHA-256 of a file."""
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while True:
            piece = file.read(1 << 20)
            if not piece:
                return found.hexdigest()
            found.update(piece)


class Outputs:
    """What attempts print, `<job>/<pos>.<attempt>.out` and `.err`. Writes come from one thread, reads from another."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._open: OrderedDict[str, tuple[int, int]] = OrderedDict()  # path → descriptor, size
        self._lock = threading.Lock()  # guards _open, held for one system call at most
        make_dir(folder)
        sync_dir(folder)

    def _path(self, job: int, pos: int, attempt: int, stream: int) -> str:
        return os.path.join(self.folder, str(job), f"{pos}.{attempt}.{_STREAMS[stream]}")

    def write(self, job: int, pos: int, attempt: int, stream: int, offset: int, data: bytes) -> int:
        """Bytes at their offset; the size now. A repeat is harmless. Raises ValueError for a gap, OSError."""
        path = self._path(job, pos, attempt, stream)
        with self._lock:
            fd, size = self._take(path)
            if offset > size:
                raise ValueError(f"a gap: {size} bytes are there, these begin at {offset}")
            new = memoryview(data)[size - offset :]
            faults.point("output.write")
            while new:
                written = os.pwrite(fd, new, size) if hasattr(os, "pwrite") else self._seek_write(fd, new, size)
                size += written
                new = new[written:]
                self._open[path] = (fd, size)
            return size

    @staticmethod
    def _seek_write(fd: int, data: memoryview, at: int) -> int:
        os.lseek(fd, at, os.SEEK_SET)
        return os.write(fd, data)

    def _take(self, path: str) -> tuple[int, int]:
        found = self._open.get(path)
        if found is not None:
            self._open.move_to_end(path)
            return found
        make_dir(os.path.dirname(path), durable=True)
        faults.point("output.open")
        fd = os.open(path, os.O_RDWR | os.O_CREAT | _BINARY, 0o600)
        while len(self._open) >= FILES_OPEN:
            os.close(self._open.popitem(last=False)[1][0])
        self._open[path] = (fd, os.fstat(fd).st_size)
        return self._open[path]

    def size(self, job: int, pos: int, attempt: int, stream: int) -> int:
        path = self._path(job, pos, attempt, stream)
        found = self._open.get(path)
        if found is not None:
            return found[1]
        try:
            return os.path.getsize(path)
        except OSError:
            return 0

    def read(self, job: int, pos: int, attempt: int, stream: int, offset: int, most: int) -> bytes:
        """At most so many bytes from there; b"" where there is nothing."""
        if most <= 0:
            return b""
        try:
            with open(self._path(job, pos, attempt, stream), "rb", buffering=0) as file:
                file.seek(offset)
                return file.read(most) or b""
        except OSError:
            return b""

    def take_small(self, job: int, pos: int, attempt: int, stream: int, most: int) -> bytes | None:
        """All of it when it is at most so large, else None."""
        if self.size(job, pos, attempt, stream) > most:
            return None
        return self.read(job, pos, attempt, stream, 0, most)

    def sync(self, job: int, pos: int, attempt: int, stream: int) -> None:
        """On disk after this. Raises OSError."""
        path = self._path(job, pos, attempt, stream)
        try:
            fd = os.open(path, os.O_RDWR | _BINARY)  # its own: a sync may take long, and must not hold up who writes
        except FileNotFoundError:
            return
        try:
            faults.point("output.sync")
            sync_file(fd)
        finally:
            os.close(fd)
        sync_dir(os.path.dirname(path))

    def remove(self, job: int, pos: int, attempt: int) -> None:
        """The output of an attempt; its job's folder too when it is empty then."""
        for stream in _STREAMS:
            path = self._path(job, pos, attempt, stream)
            with self._lock:
                found = self._open.pop(path, None)
            if found is not None:
                os.close(found[0])
            with contextlib.suppress(OSError):
                os.unlink(path)
        with contextlib.suppress(OSError):
            os.rmdir(os.path.join(self.folder, str(job)))

    def remove_job(self, job: int, most: int) -> bool:
        """Output of a job, at most so many files: there may be millions. Whether that is all that could be done."""
        folder = os.path.join(self.folder, str(job))
        with self._lock:
            for path in [path for path in self._open if os.path.dirname(path) == folder]:
                os.close(self._open.pop(path)[0])
        gone = 0
        with contextlib.suppress(OSError):
            with os.scandir(folder) as entries:
                for entry in itertools.islice(entries, most):
                    os.unlink(entry.path)
                    gone += 1
            os.rmdir(folder)
        return gone < most

    def total_bytes(self) -> int:
        """Of all output files."""
        total = 0
        for folder, _, names in os.walk(self.folder):
            for name in names:
                with contextlib.suppress(OSError):
                    total += os.path.getsize(os.path.join(folder, name))
        return total

    def close(self) -> None:
        with self._lock:
            while self._open:
                os.close(self._open.popitem()[1][0])
