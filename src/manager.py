"""The manager's shell: the net thread with all connections, and who gets which message. Decides nothing about jobs.

    net thread (this module)  ── events, requests ──▶  core thread (corethread.py)  ── mail, answers ──▶  net thread

Output of tasks goes from here straight to the spool; content (blobs) through a thread of its own (content.py).
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import threading
import time
from typing import Any

from . import keys as keyfiles
from .channel import ServerChannel
from .content import Content, Gate
from .core import events, messages
from .core.errors import MicroclusterError, StoreError
from .corethread import Core, Request
from .listen import Server
from .log import Seldom
from .loop import Loop
from .net import Conn
from .sessions import NoRoom, WorkerSession
from .spool import Blobs, Outputs
from .store import Store

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

BACKLOG_MAX = 16 << 20  # bytes that wait for the core; past it, connections that send more are not read
MESSAGE_BYTES = 4096  # what a message counts there besides its payload
CLOSE_S = 1.0  # at the end, answers that are on their way have so long to leave
FILES_MAX = 65_536
GC_EVERY = 20_000  # new objects; most are rows and messages, which are never in cycles
BLOB_KINDS = frozenset(("put", "have"))


class Manager:
    """Manager(settings).start() serves until stop(). Raises StoreError, KeyProblem, MicroclusterError (the port)."""

    def __init__(self, settings: Any) -> None:
        self.settings = settings
        self.error: Exception | None = None  # why it ended by itself
        self.keys: keyfiles.ManagerKeys | None = None
        self._thread: threading.Thread | None = None
        self._stopped = False
        self.seldom = Seldom(log)  # net thread

    # -- life ----------------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Everything but serving: store, keys, port."""
        settings = self.settings
        if not settings.insecure:
            self.keys = keyfiles.ManagerKeys.load_or_create(settings.key_home or keyfiles.home())
        self._context = keyfiles.server_context(self.keys) if self.keys is not None else None
        _more_descriptors()
        self.store = Store(settings.data)
        self.store.open()
        self.loop = Loop()
        try:
            self.blobs = Blobs(os.path.join(settings.data, "blobs"))
            self.outputs = Outputs(os.path.join(settings.data, "output"))
            self.content = Content(self.loop, self.blobs, settings.data)
            self.core = Core(self)
            self._gate = Gate(BACKLOG_MAX)
            self.server = self._listen()
            try:
                self.core.start()
            except BaseException:
                self.server.close()
                raise
        except BaseException:
            self.store.close()
            self.loop.close()
            raise
        self.content.start()

    def _listen(self) -> Server:
        host, port = self.settings.host, self.settings.port
        try:
            return Server(self.loop, host, port, lambda: ServerChannel(self._context, self.keys), self)
        except OSError as error:
            raise MicroclusterError(
                f"cannot listen on {host}:{port}: {error.strerror or error} (another port, or 0 for a free one)",
                "listen",
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
        """After the loop has stopped: what came is decided and saved, and the answers leave."""
        if self._stopped:
            return
        self._stopped = True
        self.server.close()
        self.core.stop()
        self.content.stop()
        deadline = time.monotonic() + CLOSE_S
        self.loop.turn(0.0)
        while any(conn.outbox_bytes for conn in self.server.conns) and time.monotonic() < deadline:
            self.loop.turn(0.05)
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
            conn.state = WorkerSession(self, conn)

    def closed(self, conn: Conn, error: Exception | None) -> None:
        if isinstance(conn.state, WorkerSession):
            conn.state.closed()
        else:
            self.core.post(Request(conn, "gone", {}))
        if error is not None:
            log.debug("connection ended: peer=%s error=%s", conn.address, error)

    def received(self, conn: Conn, header: dict[str, Any], payload: bytes) -> None:
        session = conn.state
        if not self._stopped and not (isinstance(session, WorkerSession) and session.holds_back(header, payload)):
            self.handle(conn, header, payload)

    def handle(self, conn: Conn, header: dict[str, Any], payload: bytes) -> None:
        """Check a message, and do what it asks."""
        kind, session = str(header.get("t")), conn.state
        try:
            messages.check("WORKER" if isinstance(session, WorkerSession) else "CLIENT", header)
            if not messages.allowed(conn.peer.role, kind):
                raise messages.BadMessage(f"a {conn.peer.role} key does not allow {kind}", "forbidden")
            if isinstance(session, WorkerSession):
                session.take(kind, header, payload)
            else:
                self._from_client(conn, kind, header, payload)
        except messages.BadMessage as error:
            self._refuse(conn, header, error)
        except NoRoom as error:
            session.wait_for_room(header, payload, error)
        except Exception:  # the net thread's one catch-all: a defect of ours must not end all connections
            log.exception("a message could not be handled: peer=%s kind=%s", conn.address, kind[:40])
            conn.abort()

    def _refuse(self, conn: Conn, header: dict[str, Any], error: messages.BadMessage) -> None:
        self.server.refused(conn.address, f"{error}")
        answer = {"t": "error", "code": error.code, "message": str(error)}
        if type(header.get("n")) is int:
            answer["n"] = header["n"]
        conn.send(answer)
        if isinstance(conn.state, WorkerSession) and error.code not in ("unknown", "forbidden"):
            conn.close(str(error))

    def post(self, conn: Conn, item: Any, size: int = 0) -> None:
        """An event or a Request of this connection, to the core."""
        size += MESSAGE_BYTES
        self._gate.enter(conn, size)
        self.core.post(item, size)

    # -- clients -------------------------------------------------------------------------------------------------------

    def _from_client(self, conn: Conn, kind: str, header: dict[str, Any], payload: bytes) -> None:
        if kind in BLOB_KINDS:
            self.content.take(conn, header, payload, "ok")
        elif kind == "get":
            self.content.get(conn, header)
        elif kind == "submit" and header.get("inline") and self.blobs.missing([one[0] for one in header["inline"]]):

            def stored(problem: dict[str, Any] | None) -> None:
                if problem is None:
                    self.post(conn, Request(conn, kind, header))
                else:
                    conn.send({**problem, "n": header["n"]})

            self.content.inline(conn, header, payload, stored)
        else:
            self.post(conn, Request(conn, kind, header))

    def deliver(
        self, mail: dict[Conn, events.WorkerMail], answers: list[tuple[Conn, dict[str, Any], Any]], size: int
    ) -> None:
        """What a committed batch brought, and how much of what waited for the core was taken. Net thread."""
        self._gate.leave(size)
        for conn, letter in mail.items():
            if conn.is_open:
                conn.state.deliver(letter)
        for conn, header, payload in answers:
            conn.send(header, payload)


def _more_descriptors() -> None:
    """As many as the system allows: a thousand clients may follow their jobs."""
    if resource is not None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = FILES_MAX if hard == resource.RLIM_INFINITY else min(hard, FILES_MAX)
        if soft != resource.RLIM_INFINITY and soft < most:
            try:
                resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            except (OSError, ValueError):
                log.debug("the limit of open files stays: soft=%d", soft)


def run_manager(settings: Any) -> int:
    """`run.py manager`: serve until SIGTERM or SIGINT; the exit code. Main thread."""
    manager = Manager(settings)
    # What is loaded stays: looking through it for garbage, again and again, takes longer than loading it.
    gc.disable()
    manager.open()
    gc.freeze()
    gc.set_threshold(GC_EVERY)
    gc.enable()
    stopping: list[int] = []

    def on_signal(number: int, _frame: Any) -> None:
        stopping.append(number)
        manager.loop.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    host = settings.host if ":" not in settings.host else f"[{settings.host}]"
    if manager.keys is None:
        log.warning("INSECURE: no keys and no encryption; whoever reaches this port controls all workers")
    else:
        folder = os.path.dirname(manager.keys.path)
        log.info("for other machines: copy %s to the same place there", os.path.join(folder, "cluster.key"))
    sys.stdout.write(f"microcluster manager listening on {host}:{manager.port}\n")
    sys.stdout.flush()
    begin = time.monotonic()
    manager.loop.call_later(0.0, lambda: on_signal(0, None) if stopping else None)  # a signal before `run` began
    manager.loop.run()
    manager.close()
    if manager.error is not None:
        raise manager.error if isinstance(manager.error, MicroclusterError) else StoreError(str(manager.error))
    log.info("manager stopped: served_s=%.0f", time.monotonic() - begin)
    return 0
