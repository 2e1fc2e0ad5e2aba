"""Virtual environments for jobs that name packages: one per interpreter and set of requirements, made once, reused.

    <root>/<key>/            the environment; `complete.json` in it, written last, makes it one
    <root>/<key>.lock        held exclusively while it is built or removed, shared by each worker that uses it

`build` blocks for minutes and runs in a helper thread; everything else is quick and belongs to the worker's loop
thread. Several workers may share a root. uv builds when it is there, else venv and pip.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: one worker per root, then
    fcntl = None  # type: ignore[assignment]

from .interpreters import Interpreter

MARKER = "complete.json"
KEPT = 20  # environments, the least recently used go first
KEPT_BYTES = 20 << 30
FAILURE_KEPT_S = 30.0  # the other tasks of an array do not each try again what just failed
WORDS = 400  # characters of what the builder said last


class EnvironmentFailed(Exception):
    """It cannot be made; the message is pip's own last words."""


def requirement_lines(text: str) -> list[str]:
    """The requirements in a text, sorted, without comments and blank lines."""
    lines = (line.split(" #")[0].strip() for line in text.splitlines())
    return sorted({line for line in lines if line and not line.startswith("#")})


def key_of(interpreter: Interpreter, requirements: Iterable[str]) -> str:
    """The name of the environment's folder."""
    text = json.dumps([os.path.realpath(interpreter.path), interpreter.version, sorted(requirements)])
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:24]


class Environments:
    """The environments below `root`. `environ` is what the builders run with."""

    def __init__(self, root: Path, environ: Mapping[str, str], kept: int = KEPT, kept_bytes: int = KEPT_BYTES) -> None:
        self.root = root
        self._environ = dict(environ)
        self._kept, self._kept_bytes = kept, kept_bytes
        self._locks: dict[str, int] = {}  # shared locks of those in use here
        self._failed: dict[str, tuple[float, str]] = {}
        self._guard = threading.Lock()  # guards _failed and _builders
        self._builders: set[subprocess.Popen[bytes]] = set()
        self._stopped = False

    def folder(self, key: str) -> Path:
        return self.root / key

    def python(self, key: str) -> str:
        """The interpreter of an environment."""
        return str(self.folder(key) / "bin" / "python")

    def use(self, key: str) -> bool:
        """Whether the environment is there; then it is kept until `release`."""
        if key not in self._locks:
            if not (self.folder(key) / MARKER).exists():
                return False
            lock = self._lock(key, exclusive=False)
            if lock is None or not (self.folder(key) / MARKER).exists():
                if lock is not None:
                    os.close(lock)
                return False
            self._locks[key] = lock
        try:
            os.utime(self.folder(key) / MARKER)
        except OSError:
            pass  # its age is only for eviction
        return True

    def release(self, key: str) -> None:
        lock = self._locks.pop(key, None)
        if lock is not None:
            os.close(lock)

    def build(self, interpreter: Interpreter, requirements: list[str]) -> str:
        """Make sure that the environment is complete; gives its key. Raises EnvironmentFailed.

        Thread: any. Waits while another thread or worker builds the same one.
        """
        key = key_of(interpreter, requirements)
        if (self.folder(key) / MARKER).exists():
            return key
        with self._guard:
            failed = self._failed.get(key)
        if failed is not None and time.monotonic() < failed[0] + FAILURE_KEPT_S:
            raise EnvironmentFailed(failed[1])
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = self._lock(key, exclusive=True, wait=True)
            try:
                if not (self.folder(key) / MARKER).exists():
                    self._make(key, interpreter, requirements)
            finally:
                if lock is not None:
                    os.close(lock)
        except OSError as error:
            raise EnvironmentFailed(f"the environment could not be made: {error.strerror or error}") from error
        except EnvironmentFailed as error:
            with self._guard:
                self._failed[key] = (time.monotonic(), str(error))
            raise
        self._evict(key)
        return key

    def stop(self) -> None:
        """End builds that are under way, and release everything. Thread: the loop's."""
        with self._guard:
            self._stopped = True
            for process in self._builders:
                process.kill()
        for key in list(self._locks):
            self.release(key)

    # -- building ------------------------------------------------------------------------------------------------------

    def _make(self, key: str, interpreter: Interpreter, requirements: list[str]) -> None:
        folder, python = self.folder(key), self.python(key)
        shutil.rmtree(folder, ignore_errors=True)
        listed = self.root / f"{key}.txt"
        listed.write_text("".join(line + "\n" for line in requirements), "utf-8")
        uv = shutil.which("uv", path=self._environ.get("PATH"))
        if uv is not None:
            make = [uv, "venv", "--quiet", "--python", interpreter.path, str(folder)]
            install = [uv, "pip", "install", "--quiet", "--python", python]
        else:
            make = [interpreter.path, "-m", "venv", str(folder)]
            install = [python, "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check"]
        try:
            self._run(make)
            self._run([*install, "-r", str(listed)])
            marker = json.dumps({"requirements": requirements, "size": _size(folder)})
            (folder / MARKER).write_text(marker, "utf-8")
        finally:
            listed.unlink()
            if not (folder / MARKER).exists():
                shutil.rmtree(folder, ignore_errors=True)

    def _run(self, command: list[str]) -> None:
        """Run a builder; raises EnvironmentFailed with what it said last."""
        with self._guard:
            if self._stopped:
                raise EnvironmentFailed("the worker is stopping")
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={**self._environ, "PYTHONNOUSERSITE": "1"},
                cwd=self.root,
            )
            self._builders.add(process)
        try:
            said, _ = process.communicate()
        finally:
            with self._guard:
                self._builders.discard(process)
        if process.returncode != 0:
            raise EnvironmentFailed(f"the environment could not be made: {last_words(said)}")

    # -- the cache -----------------------------------------------------------------------------------------------------

    def _lock(self, key: str, exclusive: bool, wait: bool = False) -> int | None:
        """A descriptor that holds the lock until it is closed; None: somebody else has it, or there are no locks."""
        descriptor = os.open(self.root / f"{key}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        if fcntl is None:
            return descriptor
        try:
            kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
            fcntl.flock(descriptor, kind if wait else kind | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return descriptor

    def _evict(self, keep: str) -> None:
        """Remove what is over the limits and that nobody uses, the least recently used first."""
        found = []
        for marker in self.root.glob(f"*/{MARKER}"):
            try:
                found.append(
                    (marker.stat().st_mtime, marker.parent.name, json.loads(marker.read_text("utf-8"))["size"])
                )
            except (OSError, ValueError, KeyError):
                continue
        count, total = len(found), sum(size for _, _, size in found)
        for _, key, size in sorted(found):
            if count <= self._kept and total <= self._kept_bytes:
                break
            if key != keep and self._remove(key):
                count, total = count - 1, total - size

    def _remove(self, key: str) -> bool:
        lock = self._lock(key, exclusive=True)
        if lock is None:
            return False
        try:
            (self.folder(key) / MARKER).unlink()
            shutil.rmtree(self.folder(key), ignore_errors=True)
        except OSError:
            return False
        finally:
            os.close(lock)
        return True


def last_words(said: bytes) -> str:
    """What pip or uv said about the failure: its ERROR lines, else its last line."""
    lines = [line.strip() for line in said.decode("utf-8", "replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith(("error", "× ", "╰─▶"))]
    text = " ".join(errors[-3:] or lines[-1:]) or "the builder ended without a word"
    printable = "".join(char if char.isprintable() else "?" for char in text)
    return printable if len(printable) <= WORDS else printable[: WORDS - 3] + "..."


def _size(folder: Path) -> int:
    """Bytes of the files below a folder; links are not followed."""
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(where, name)).st_size
            except OSError:
                continue
    return total
