"""Content by its hash over connections: what comes in goes through a thread of its own, since hashing and syncing a
large file takes long; what goes out is read piece by piece as the network takes it.

    net thread ── have, put, inline blobs ──▶ blob thread ── answers ──▶ net thread

Used by the manager's net thread, which calls everything but `_run` and what `_run` calls.
"""

from __future__ import annotations

import logging
import os
import queue
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from .core.errors import DiskFull
from .loop import Loop
from .net import FILE_PIECE, Conn
from .spool import Blobs, FileRange

log = logging.getLogger(__name__)

WAITING_MAX = 32 << 20  # bytes of uploads that wait for the thread; past it, their connections are not read
FILES_AT_ONCE = 4  # large ones that go to a worker by turns
SMALL_AT_ONCE = 1 << 20  # bytes of small ones
WANTED_MAX = 1_000_000  # files that a worker may ask for before it has them
RESERVE_BYTES = 64 << 20  # of the disk: for the job table and output, not for uploads
RESERVE_OUTPUT_BYTES = 8 << 20  # for the job table alone: a job that prints too much must be cancelled still
OUTPUT_STEP = 4 << 20  # bytes of output between two looks at the disk
MEASURE_S = 60.0  # the size of all output is measured at most so often
GET_MAX = 256 * 1024

Answer = Callable[[Conn, dict[str, Any]], None]


class Gate:
    """Stops reading connections while too much of what came is not handled yet. Net thread."""

    def __init__(self, most: int) -> None:
        self._most, self._now = most, 0
        self._held: dict[Conn, None] = {}

    def enter(self, conn: Conn, size: int) -> None:
        self._now += size
        if self._now > self._most:
            conn.pause()
            self._held[conn] = None

    def leave(self, size: int) -> None:
        self._now -= size
        if self._held and self._now * 2 <= self._most:
            held, self._held = self._held, {}
            for conn in held:
                conn.resume()


class Content:
    """See the module. `folder` is where the data lies, for the room on its disk."""

    def __init__(self, loop: Loop, blobs: Blobs, folder: str) -> None:
        self._loop, self._blobs, self._folder = loop, blobs, folder
        self._gate = Gate(WAITING_MAX)
        self._jobs: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="blobs", daemon=True)
        self.output_bytes = 0
        self._measured = 0.0
        self._output_left = 0  # bytes of output until the disk is looked at again

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Any thread. What is being hashed may take longer than one can wait."""
        self._jobs.put(None)
        self._thread.join(3.0)

    def _run(self) -> None:
        while True:
            job = self._jobs.get()
            if job is None:
                return
            job()

    def _later(self, conn: Conn, size: int, work: Callable[[], Any], then: Callable[[Any], None]) -> None:
        """work() in the blob thread, then(its result) in the net thread."""
        self._gate.enter(conn, size)

        def job() -> None:
            result = work()
            self._loop.call_threadsafe(lambda: done(result))

        def done(result: Any) -> None:
            self._gate.leave(size)
            then(result)

        self._jobs.put(job)

    def measure(self, outputs: Any) -> None:
        """Have the size of all output measured again, if that was long ago. Core thread."""
        now = time.monotonic()
        if not self._measured or now - self._measured > MEASURE_S:
            self._measured = now

            def job() -> None:
                self.output_bytes = outputs.total_bytes()

            self._jobs.put(job)

    # -- coming in -----------------------------------------------------------------------------------------------------

    def take(self, conn: Conn, header: dict[str, Any], payload: bytes, done_kind: str) -> None:
        """`have` and `put`: answered, by a message of kind `done_kind`, once it is looked up or stored."""

        def answer(found: dict[str, Any]) -> None:
            found.setdefault("t", done_kind)
            if "n" in header:
                found["n"] = header["n"]
            conn.send(found)

        work = self._have if header["t"] == "have" else self._put
        self._later(conn, len(payload) + 4096, lambda: self._tried(work, header, payload), answer)

    def inline(self, conn: Conn, header: dict[str, Any], payload: bytes, then: Callable[[Any], None]) -> None:
        """The small blobs of a submission, of which some are not here: then(None), or then(error answer)."""
        work = self._inline
        self._later(conn, len(payload) + 4096, lambda: self._tried(work, header, payload), then)

    @staticmethod
    def _tried(work: Callable[..., Any], header: dict[str, Any], payload: bytes) -> Any:
        """Blob thread."""
        try:
            return work(header, payload)
        except ValueError as error:
            return {"t": "error", "code": "blob", "message": str(error)}
        except (OSError, DiskFull) as error:
            why = getattr(error, "strerror", None) or str(error)
            text = f"the manager cannot store it: {why}; try again later"
            return {"t": "error", "code": "disk-full", "message": text}

    def _have(self, header: dict[str, Any], _payload: bytes) -> dict[str, Any]:
        return {"missing": self._blobs.missing(header["hashes"])}

    def _put(self, header: dict[str, Any], payload: bytes) -> dict[str, Any]:
        name = header["hash"]
        if not self._blobs.has(name):
            self._check_room(header["size"] - header["offset"])
        offset, done = self._blobs.upload(name, header["size"], header["offset"], payload)
        if done:
            self._blobs.touch(name)  # it is needed soon: not to be swept away as old
        return {"hash": name, "offset": offset, "done": done}

    def _inline(self, header: dict[str, Any], payload: bytes) -> None:
        self._check_room(len(payload))
        at = 0
        for name, size in header["inline"]:
            data = payload[at : at + size]
            at += size
            if not self._blobs.has(name) and self._blobs.put_bytes(data) != name:
                raise ValueError("a file's content does not fit its hash")

    def _check_room(self, size: int) -> None:
        total, _, free = shutil.disk_usage(self._folder)
        if free - size < min(RESERVE_BYTES, total // 20):
            raise DiskFull(f"its disk has only {free >> 20} MiB left")

    def output_fits(self, size: int) -> bool:
        """Whether there is room for so much more output. Net thread."""
        if size > self._output_left:
            total, _, free = shutil.disk_usage(self._folder)
            self._output_left = min(OUTPUT_STEP, free - min(RESERVE_OUTPUT_BYTES, total // 100))
        self._output_left -= size
        return self._output_left >= 0

    # -- going out -----------------------------------------------------------------------------------------------------

    def get(self, conn: Conn, header: dict[str, Any]) -> None:
        """A piece for a client."""
        n, size = header["n"], self._size(header["hash"])
        if size is None:
            conn.send({"t": "error", "n": n, "code": "no-blob", "message": "the manager does not have this content"})
            return
        offset = min(header["offset"], size)
        length = min(header["max"], GET_MAX, size - offset)
        answer = {"t": "ok", "n": n, "size": size, "offset": offset}
        conn.send(answer, FileRange(self._blobs.path(header["hash"]), offset, length))

    def _size(self, name: str) -> int | None:
        try:
            return os.stat(self._blobs.path(name)).st_size
        except OSError:
            return None

    def send_wanted(self, conn: Conn, wanted: deque[str]) -> None:
        """The next files that a worker needs; more when these have left."""
        large, small = 0, 0
        conn.on_drained = (lambda: self.send_wanted(conn, wanted)) if wanted else None
        while wanted and large < FILES_AT_ONCE and small < SMALL_AT_ONCE:
            name = wanted.popleft()
            size = self._size(name)
            if size is None:
                conn.send({"t": "noblob", "hash": name})
                small += 100
                continue
            header = {"t": "blob", "hash": name, "size": size, "offset": 0}
            conn.send(header, FileRange(self._blobs.path(name), 0, size))
            large += size > FILE_PIECE
            small += min(size, FILE_PIECE) + 100
