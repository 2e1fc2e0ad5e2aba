"""The manager's shell: the net thread with all connections, and who gets which message. Decides nothing about jobs.

    net thread (this module)  ── events, requests ──▶  core thread (corethread.py)  ── mail, answers ──▶  net thread

Output of tasks goes from here straight to the spool; content (blobs) through one thread of its own, since hashing and
syncing a large file takes long.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from . import keys as keyfiles
from .channel import ServerChannel
from .core import events, messages
from .core.errors import DiskFull, MicroclusterError, StoreError, UsageError
from .core.jobs import Finish, TaskKey
from .corethread import Core, Request
from .loop import Loop
from .net import Conn, Server
from .spool import Blobs, FileRange, Outputs
from .store import Store

log = logging.getLogger(__name__)

WORK_CHARS = 150_000  # of specs in one work message
WORK_ITEMS = 2000  # task keys in one work message
BLOB_KINDS = frozenset(("put", "have"))


class WorkerSession:
    """What the net thread knows of a worker's connection: the attempts that it may report on."""

    __slots__ = ("assigned", "orderly", "welcomed")

    def __init__(self) -> None:
        self.assigned: set[tuple[int, int, int]] = set()
        self.orderly = False
        self.welcomed = False


class Manager:
    """Manager(settings).start() serves until stop(). Raises StoreError, KeyProblem, UsageError (the port) at start."""

    def __init__(self, settings: Any) -> None:
        self.settings = settings
        self.loop = Loop()
        self.error: Exception | None = None  # why it ended by itself
        self._thread: threading.Thread | None = None
        self._blob_jobs: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self._stopped = False

    # -- life ----------------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Everything but serving: store, keys, port."""
        settings = self.settings
        self.keys = None
        if not settings.insecure:
            self.keys = keyfiles.ManagerKeys.load_or_create(settings.key_home or keyfiles.home())
        self._context = keyfiles.server_context(self.keys) if self.keys is not None else None
        self.store = Store(os.path.join(settings.data))
        self.store.open()
        try:
            self.blobs = Blobs(os.path.join(settings.data, "blobs"))
            self.outputs = Outputs(os.path.join(settings.data, "output"))
            self.core = Core(self)
            self.server = self._listen()
        except BaseException:
            self.store.close()
            raise
        self._blob_thread = threading.Thread(target=self._run_blobs, name="blobs", daemon=True)
        self._blob_thread.start()
        self.core.start()

    def _listen(self) -> Server:
        host, port = self.settings.host, self.settings.port
        try:
            return Server(self.loop, host, port, lambda: ServerChannel(self._context, self.keys), self)
        except OSError as error:
            raise UsageError(
                f"cannot listen on {host}:{port}: {error.strerror or error} (another port, or 0 for a free one)"
            ) from None

    @property
    def port(self) -> int:
        return self.server.address[1]

    def start(self) -> Manager:
        """Serve from a thread of its own."""
        self.open()
        self._thread = threading.Thread(target=self.loop.run, name="net", daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        """Stop taking connections, save, close. Workers keep their jobs. Any thread but the net thread."""
        self.loop.stop()
        if self._thread is not None:
            self._thread.join()
        self.close()

    def close(self) -> None:
        """After the loop has stopped."""
        if self._stopped:
            return
        self._stopped = True
        self.server.close()
        self.core.stop()
        self._blob_jobs.put(None)
        self._blob_thread.join()
        for conn in list(self.server.conns):
            conn.abort()
        self.store.close()
        self.outputs.close()
        self.loop.close()

    def fail(self, error: Exception) -> None:
        """The core thread cannot go on."""
        self.error = error
        self.loop.stop()

    # -- connections ---------------------------------------------------------------------------------------------------

    def opened(self, conn: Conn) -> None:
        if conn.peer.wanted == "worker":
            conn.state = WorkerSession()

    def closed(self, conn: Conn, error: Exception | None) -> None:
        session = conn.state
        if isinstance(session, WorkerSession):
            if session.welcomed:
                self.core.post(events.WorkerGone(conn, session.orderly))
        else:
            self.core.post(Request(conn, "gone", {}, b""))
        if error is not None:
            log.debug("connection of %s ended: %s", conn.address, error)

    def received(self, conn: Conn, header: dict[str, Any], payload: bytes) -> None:
        kind = str(header.get("t"))
        is_worker = isinstance(conn.state, WorkerSession)
        try:
            messages.check("WORKER" if is_worker else "CLIENT", header)
            if not messages.allowed(conn.peer.role, kind):
                raise messages.BadMessage(f"a {conn.peer.role} key does not allow {kind}", "forbidden")
            if is_worker:
                self._from_worker(conn, kind, header, payload)
            elif kind in BLOB_KINDS:
                self._blob_jobs.put(lambda: self._blob_request(conn, kind, header, payload))
            elif kind == "get":
                self._get(conn, header)
            else:
                self.core.post(Request(conn, kind, header, payload))
        except messages.BadMessage as error:
            self._refuse(conn, header, error)

    def _refuse(self, conn: Conn, header: dict[str, Any], error: messages.BadMessage) -> None:
        self.server.refused(conn.address, f"{error}")
        answer = {"t": "error", "code": error.code, "message": str(error)}
        if type(header.get("n")) is int:
            answer["n"] = header["n"]
        conn.send(answer)
        if isinstance(conn.state, WorkerSession) and error.code not in ("unknown", "forbidden"):
            conn.close(str(error))

    # -- workers -------------------------------------------------------------------------------------------------------

    def _from_worker(self, conn: Conn, kind: str, header: dict[str, Any], payload: bytes) -> None:
        session: WorkerSession = conn.state
        if kind == "join":
            if session.welcomed:
                raise messages.BadMessage("joined twice")
            session.welcomed = True
            self.core.post(events.WorkerJoined(conn, {**header, "address": conn.address, "connected_at": time.time()}))
        elif not session.welcomed:
            raise messages.BadMessage(f"{kind} before join")
        elif kind == "report":
            self._report(conn, session, header, payload)
        elif kind == "need":
            self._need(conn, header["hashes"])
        elif kind == "put":
            self._blob_jobs.put(lambda: self._blob_request(conn, kind, header, payload))
        elif kind == "state":
            self.core.post(events.WorkerStated(conn, header))
        elif kind == "bye":
            session.orderly = True

    def _report(self, conn: Conn, session: WorkerSession, header: dict[str, Any], payload: bytes) -> None:
        """Output into the spool, the rest to the core; only of what this worker was given."""
        at, got, grew = 0, [], []
        view = memoryview(payload)
        for job, pos, attempt, stream, offset, length in header.get("output") or ():
            data, at = view[at : at + length], at + length
            if (job, pos, attempt) not in session.assigned:
                continue
            if len(data) != length:
                raise messages.BadMessage("output is shorter than it says")
            size = self._spool(job, pos, attempt, stream, offset, bytes(data))
            if size is None:
                continue
            got.append([job, pos, attempt, stream, size])
            grew.append((job, pos))
        finished: list[Finish] = []
        for fin in header.get("finished") or ():
            out, at = view[at : at + fin["out"][1]], at + fin["out"][1]
            err, at = view[at : at + fin["err"][1]], at + fin["err"][1]
            if tuple(fin["task"]) in session.assigned:
                finished.append(self._finish(fin, bytes(out), bytes(err)))
        if at > len(payload):
            raise messages.BadMessage("the payload is shorter than it says")
        if got:
            conn.send({"t": "work", "got": got})
            self.core.post(Request(None, "grew", {"tasks": grew}, b""))
        started = [tuple(item) for item in header.get("started") or () if tuple(item[:3]) in session.assigned]
        recalled = [TaskKey(*key) for key in header.get("recalled") or () if tuple(key) in session.assigned]
        if started or finished or recalled:
            self.core.post(events.WorkerReported(conn, started, finished, recalled))

    def _spool(self, job: int, pos: int, attempt: int, stream: int, offset: int, data: bytes) -> int | None:
        """None: not stored (a full disk); the worker keeps it and sends it again later."""
        try:
            return self.outputs.write(job, pos, attempt, stream, offset, data)
        except ValueError:
            return self.outputs.size(job, pos, attempt, stream)
        except OSError as error:
            self.server.refused("spool", f"cannot store output: {error.strerror}")
            return None

    def _finish(self, fin: dict[str, Any], out: bytes, err: bytes) -> Finish:
        job, pos, attempt = fin["task"]
        kept: list[bytes | None] = []
        for stream, data, (total, inline) in ((1, out, fin["out"]), (2, err, fin["err"])):
            if inline < total:
                if inline:
                    self._spool(job, pos, attempt, stream, total - inline, data)
                kept.append(None)
            else:
                kept.append(data)
        return Finish(
            job, pos, attempt, fin["exit_code"], fin["signal"], fin["reason"], fin["started_at"], fin["finished_at"],
            fin["cpu"], fin["rss"], fin["out"][0], fin["err"][0], fin["dropped"], fin["files"], fin["timed_out"],
            fin["never_ran"], fin["cancelled"], kept[0], kept[1],
        )  # fmt: skip

    def _need(self, conn: Conn, hashes: list[str]) -> None:
        for name in hashes:
            if self.blobs.has(name):
                path = self.blobs.path(name)
                size = os.stat(path).st_size
                conn.send({"t": "blob", "hash": name, "size": size, "offset": 0}, FileRange(path, 0, size))
            else:
                conn.send({"t": "noblob", "hash": name})

    def deliver(self, mail: dict[Conn, events.WorkerMail], answers: list[tuple[Conn, dict[str, Any], Any]]) -> None:
        """What a committed batch brought. Net thread."""
        for conn, letter in mail.items():
            if conn.is_open:
                self._deliver(conn, letter)
        for conn, header, payload in answers:
            conn.send(header, payload)

    def _deliver(self, conn: Conn, mail: events.WorkerMail) -> None:
        session: WorkerSession = conn.state
        if mail.close is not None:
            conn.send({"t": "error", "code": "replaced", "message": mail.close})
            conn.close(mail.close)
            return
        if mail.welcome is not None:
            keep = [
                [*key, *(self.outputs.size(key[0], key[1], key[2], stream) for stream in (1, 2))]
                for key in mail.welcome["keep"]
            ]
            session.assigned.update(tuple(key) for key in mail.welcome["keep"])
            # What is to be killed may be finished: its report must still be acknowledged.
            session.assigned.update(tuple(key) for key in mail.welcome["kill"])
            welcome = {**mail.welcome, "t": "welcome", "lost_after": self.settings.lost_after, "keep": keep}
            conn.send(welcome)
        session.assigned.update(mail.run)
        for work in _work_messages(mail, self.blobs):
            conn.send(work)
        session.assigned.difference_update(mail.ack)

    # -- content -------------------------------------------------------------------------------------------------------

    def _run_blobs(self) -> None:
        while True:
            job = self._blob_jobs.get()
            if job is None:
                return
            job()

    def _blob_request(self, conn: Conn, kind: str, header: dict[str, Any], payload: bytes) -> None:
        """Blob thread."""
        try:
            if kind == "have":
                answer: dict[str, Any] = {"missing": self.blobs.missing(header["hashes"])}
            else:
                offset, done = self.blobs.upload(header["hash"], header["size"], header["offset"], payload)
                answer = {"hash": header["hash"], "offset": offset, "done": done}
        except ValueError as error:
            answer = {"t": "error", "code": "blob", "message": str(error)}
        except (OSError, DiskFull) as error:
            text = getattr(error, "strerror", None) or str(error)
            answer = {
                "t": "error",
                "code": "disk-full",
                "message": f"the manager cannot store it: {text}; try again later",
            }
        is_worker = isinstance(conn.state, WorkerSession)
        answer.setdefault("t", "put_ok" if is_worker else "ok")
        if "n" in header:
            answer["n"] = header["n"]
        self.loop.call_threadsafe(lambda: conn.send(answer))

    def _get(self, conn: Conn, header: dict[str, Any]) -> None:
        name, n = header["hash"], header["n"]
        if not self.blobs.has(name):
            conn.send({"t": "error", "n": n, "code": "no-blob", "message": "the manager does not have this content"})
            return
        path = self.blobs.path(name)
        size = os.stat(path).st_size
        length = max(0, min(header["max"], 256 * 1024, size - header["offset"]))
        answer = {"t": "ok", "n": n, "size": size, "offset": header["offset"]}
        conn.send(answer, FileRange(path, header["offset"], length))


def _work_messages(mail: events.WorkerMail, blobs: Blobs) -> list[dict[str, Any]]:
    """The letter as few messages, each within a frame."""
    found: list[dict[str, Any]] = []
    now: dict[str, Any] = {"t": "work"}
    size = 0
    for job, text in mail.jobs.items():
        if size + len(text) > WORK_CHARS and "jobs" in now:
            found.append(now)
            now, size = {"t": "work"}, 0
        large = len(text) > WORK_CHARS
        value = {"spec_blob": blobs.put_bytes(text.encode())} if large else json.loads(text)
        now.setdefault("jobs", {})[str(job)] = value
        size += 100 if large else len(text)
    lists: list[tuple[str, list[Any]]] = [
        ("ack", mail.ack),
        ("kill", [[*key, grace] for key, grace in mail.kill]),
        ("recall", mail.recall),
        ("run", mail.run),
    ]
    if mail.drain is not None:
        now["drain"] = mail.drain
    room = WORK_ITEMS
    for name, items in lists:
        while items:
            part, items = items[:room], items[room:]
            now[name] = part
            room -= len(part)
            if room == 0:
                found.append(now)
                now, room = {"t": "work"}, WORK_ITEMS
    if len(now) > 1:
        found.append(now)
    return found


def run_manager(settings: Any) -> int:
    """`run.py manager`: serve until SIGTERM or SIGINT; the exit code. Main thread."""
    manager = Manager(settings)
    manager.open()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: manager.loop.stop())
    host = settings.host if ":" not in settings.host else f"[{settings.host}]"
    if manager.keys is None:
        log.warning("INSECURE: no keys and no encryption; whoever reaches this port controls all workers")
    else:
        folder = os.path.dirname(manager.keys.path)
        log.info("for other machines: copy %s to the same place there", os.path.join(folder, "cluster.key"))
    sys.stdout.write(f"microcluster manager listening on {host}:{manager.port}\n")
    sys.stdout.flush()
    begin = time.monotonic()
    manager.loop.run()
    manager.close()
    log.info("manager stopped after %.0f s", time.monotonic() - begin)
    if manager.error is not None:
        raise manager.error if isinstance(manager.error, MicroclusterError) else StoreError(str(manager.error))
    return 0
