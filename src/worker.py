"""The worker's shell: one thread, one loop. Joins the brain (core/agent.py) to connection, processes, files, signals.

    manager ⇄ Uplink ─▶ on_message ─▶ events ─▶ Agent.handle ─▶ commands ─▶ Attempts, Streams, Preparing, Reports ─▶

`Worker(settings).start()`, `stop()`, `join()` run one in a thread of its own, for tests; `run_worker(settings)` is
`run.py worker`: in the main thread, with signals. It decides nothing, and knows no job but as a number.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import re
import secrets
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Optional

from . import __version__, interpreters, jobenv, keys, machine, proctree
from .attempts import Attempts
from .core import orders
from .core.agent import Agent, Capacity
from .core.errors import MicroclusterError, UsageError
from .core.jobs import TaskKey
from .environments import Environments
from .errands import Errands
from .fetching import Fetches
from .launcher import Guards, Options
from .loop import Loop
from .net import Conn
from .preparing import Preparing
from .reports import Reports
from .spool import Blobs
from .staging import Stage, claim
from .streams import Streams
from .uplink import Uplink
from .uploads import Uploads

log = logging.getLogger(__name__)

STATE_S = 10.0  # between two looks at what to tell about ourselves
CACHE_BYTES = 20 << 30  # of fetched content, and never more than half of what the disk has for it
DISK_STEP = 256 << 20  # smaller changes of the free disk are not worth a message
REASON_CHARS = 300
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Worker:
    """See the module. `settings` is a config.WorkerSettings. All but start, stop, join belong to the loop's thread."""

    def __init__(self, settings: Any) -> None:
        self.settings = settings
        self.loop = Loop()
        self.code = 0
        self.error: Optional[Exception] = None  # why it ended, if not in good order
        self._thread: Optional[threading.Thread] = None
        self._events: deque[orders.Event] = deque()
        self._busy = False
        self._held: deque[orders.WorkCame] = deque()  # work that waits for a spec that travels as content
        self._due: Optional[float] = None
        self._told: dict[str, Any] = {}
        self._closers: list[Callable[[], None]] = [self.loop.close]
        self._commands: dict[type, Callable[[Any], None]] = {}

    # -- life ----------------------------------------------------------------------------------------------------------

    def start(self) -> Worker:
        """Open, then run in a thread of its own. Any thread."""
        self.open()
        self._thread = threading.Thread(target=self.run, name="worker", daemon=True)
        self._thread.start()
        return self

    def stop(self, kill: bool = False) -> None:
        """As the first signal does; with kill, as the second. Any thread."""
        self.loop.call_threadsafe(lambda: self.post(orders.LeaveAsked(kill)))

    def join(self) -> int:
        """Wait for the end; the exit code."""
        if self._thread is not None:
            self._thread.join()
        return self.code

    def open(self) -> None:
        """Everything but the connection. Guards come before the key: they must not have it in their memory.

        Raises MicroclusterError, OSError; then nothing is left behind."""
        settings = self.settings
        try:
            self._open_machine()
            key = None if settings.insecure else keys.load_peer_key("worker", settings.key_file)
            address, limit = (settings.host, settings.port), settings.connect_timeout
            self.uplink = Uplink(self.loop, address, key, self, limit, lambda: not self.agent.attempts)
        except (MicroclusterError, OSError):
            self.close()
            raise

    def _open_machine(self) -> None:
        settings, environ = self.settings, os.environ
        self.name = settings.name or machine.host_name()
        if not NAME.fullmatch(self.name):
            raise UsageError(f"not a name for a worker: {self.name!r} (letters, digits, . _ -; at most 64)")
        slots = settings.slots or machine.cpus()
        inherited = jobenv.of_worker(environ)
        options = Options(settings.cold, tuple(settings.preload), inherited)
        guards = Guards(self.loop, slots, sys.executable, options)
        self._closers.append(guards.close)
        root = Path(settings.data).absolute()
        folder, lock = claim(root)
        self._closers.append(lambda: os.close(lock))
        self.folder = folder
        gpus = machine.gpus(environ, settings.gpus)
        memory = settings.memory or machine.memory()
        offered = interpreters.find(settings.pythons, environ, root / "interpreters.json")
        self._describe(slots, gpus, memory, offered)
        capacity = Capacity(slots, gpus, memory or 0, dict(settings.resources))
        self.agent = Agent(capacity, time.monotonic(), settings.idle_exit, settings.drain_timeout)
        self._open_parts(guards, root, offered, inherited)

    def _describe(
        self, slots: int, gpus: tuple[str, ...], memory: Optional[int], offered: dict[str, interpreters.Interpreter]
    ) -> None:
        """The part of a join message that stays the same."""
        self._about = {
            "t": "join",
            "name": self.name,
            "worker_id": _worker_id(self.folder / "worker.id"),
            "boot": secrets.token_hex(16),
            "slots": slots,
            "cpus": machine.cpus(),
            "memory": memory,
            "gpus": len(gpus),
            "labels": list(dict.fromkeys(_sendable(each) for each in [*machine.labels(), *self.settings.labels])),
            "resources": dict(self.settings.resources),
            "pythons": {_sendable(name): each.version for name, each in offered.items()},
            "version": __version__,
            "python": interpreters.own().version,
        }

    def _open_parts(
        self,
        guards: Guards,
        root: Path,
        offered: dict[str, interpreters.Interpreter],
        inherited: dict[str, str],
    ) -> None:
        errands, builds = Errands(self.loop, "errand", 4), Errands(self.loop, "build", 2)
        blobs = Blobs(str(self.folder / "blobs"), durable=False)
        stage = Stage(self.folder, blobs)
        environments = Environments(root / "environments", inherited)
        self._closers += [stage.close, errands.close, builds.close, environments.stop]
        self.reports = Reports(self.loop, self.agent.supplied)
        self.streams = Streams(self.loop, self.folder / "spool", self.reports)
        self._closers.append(self.streams.close)
        self._closers.remove(guards.close)
        self._closers.append(guards.close)  # first of all: no process runs on in a folder that is removed
        free = machine.free_disk(str(self.folder))
        limit = min(CACHE_BYTES, (free + blobs.total_bytes()) // 2)
        self.fetches = Fetches(blobs, errands.run, self._pinned, limit)
        self.uploads = Uploads(self.loop, errands.run)
        self.preparing = Preparing(stage, self.fetches, offered, environments, builds, inherited, self.post)
        self.attempts = Attempts(guards, stage, self.streams, self.uploads, self.preparing, errands, self.post)
        self._commands = {
            orders.Join: lambda command: self._send({**self._about, "holding": command.holding}),
            orders.Learn: lambda command: self.preparing.learn(command.job, command.spec),
            orders.Forget: lambda command: self.preparing.forget(command.job),
            orders.Prepare: lambda command: self.preparing.prepare(command.key),
            orders.Start: lambda command: self.attempts.start(command.key, command.gpus),
            orders.Stop: lambda command: self.attempts.stop(command.key, command.grace, command.mute),
            orders.Collect: lambda command: self.attempts.collect(command.key),
            orders.Discard: lambda command: self.attempts.discard(command.key),
            orders.Resume: lambda command: self.streams.resume(command.key, command.out, command.err),
            orders.TellStarted: lambda command: self.reports.started(*command),
            orders.TellFinished: self._tell_finished,
            orders.TellRecalled: lambda command: self.reports.recalled(command.key),
            orders.TellState: lambda command: self._tell_state(at_once=True),
            orders.Reconnect: lambda command: self._hang_up(command.why),
            orders.Leave: lambda command: self._leave(),
        }

    def _pinned(self) -> set[str]:
        return self.preparing.pinned()

    def run(self) -> int:
        """Connect, and go on until it has left; the exit code."""
        try:
            gc.freeze()  # what is here now stays: no need to look through it again and again
            self.uplink.connect()
            self.loop.call_later(STATE_S, self._on_tick)
            self.loop.run()
        except Exception:
            # A defect of ours. The jobs end with us and run again elsewhere; going on could only make it worse.
            log.critical("the worker failed", exc_info=True)
            self.code = 1
        finally:
            self.close()
        return self.code

    def close(self) -> None:
        """End all processes of jobs, and free everything."""
        if hasattr(self, "uplink"):
            self.uplink.abort()
        for fn in reversed(self._closers):
            fn()
        self._closers.clear()

    # -- events and commands -------------------------------------------------------------------------------------------

    def post(self, event: orders.Event) -> None:
        """Let the brain know; what it wants is done before this returns, unless a command itself posted the event."""
        self._events.append(event)
        if self._busy:
            return
        self._busy = True
        try:
            while self._events:
                for command in self.agent.handle(self._events.popleft(), time.monotonic()):
                    self._commands[type(command)](command)
        finally:
            self._busy = False
        due = self.agent.next_deadline()
        if due is not None and (self._due is None or due < self._due):
            self._due = due
            self.loop.call_later(max(0.0, due - time.monotonic()), lambda: self._on_due(due))

    def _on_due(self, due: float) -> None:
        if self._due == due:
            self._due = None
            self.post(orders.Ticked())

    def _tell_finished(self, command: orders.TellFinished) -> None:
        self.streams.when_sent(command.key, lambda: self._report(command.key, command.end))

    def _report(self, key: TaskKey, end: orders.End) -> None:
        out, out_tail, err, err_tail, dropped = self.streams.tails(key)
        fin = {
            "task": list(key), "exit_code": end.exit_code, "signal": end.signal,
            "reason": _sendable(end.reason[:REASON_CHARS]) if end.reason else None, "started_at": end.started_at,
            "finished_at": end.finished_at, "cpu": end.cpu, "rss": end.rss, "out": [out, len(out_tail)],
            "err": [err, len(err_tail)], "dropped": max(end.dropped, dropped), "files": end.files,
            "timed_out": end.timed_out, "never_ran": end.never_ran, "cancelled": end.cancelled,
        }  # fmt: skip
        self.reports.finished(fin, out_tail, err_tail)

    def _state(self) -> dict[str, Any]:
        free = machine.free_disk(str(self.folder))
        return {
            "t": "state",
            "drained": self.agent.leaving,
            "free_disk": free - free % DISK_STEP if free > DISK_STEP else free,
            "cache_bytes": self.fetches.cache_bytes,
            "warm": self.agent.warm,
            "cold": self.agent.cold,
            "cold_reasons": dict(self.agent.cold_reasons),
            "failing": _sendable(self.agent.failing) if self.agent.failing else None,
        }

    def _tell_state(self, at_once: bool = False) -> None:
        state = self._state()
        if self.agent.connected and (at_once or state != self._told):
            self._told = state
            self._send(state)

    def _on_tick(self) -> None:
        self._tell_state()
        self.streams.send_again()
        self.loop.call_later(STATE_S, self._on_tick)

    def _leave(self) -> None:
        self.reports.flush()
        self.uplink.end({"t": "bye"})

    # -- the connection ------------------------------------------------------------------------------------------------

    def _send(self, header: dict[str, Any]) -> None:
        if self.uplink.conn is not None:
            self.uplink.conn.send(header)

    def _hang_up(self, why: str) -> None:
        log.warning("a new connection is needed: %s", why)
        if self.uplink.conn is not None:
            self.uplink.conn.close(why)

    def on_connection(self, conn: Conn) -> None:
        conn.on_drained = self.streams.on_drained
        self.post(orders.Connected())

    def on_cut(self) -> None:
        self._held.clear()
        self.reports.clear()
        for part in (self.streams, self.fetches, self.uploads):
            part.on_disconnected()
        self.post(orders.Disconnected())

    def on_give_up(self, code: int, error: Optional[Exception]) -> None:
        self.code, self.error = code, error
        self.loop.stop()

    def on_message(self, header: dict[str, Any], payload: bytes) -> None:
        try:
            act = self._understand(header, payload)
        except (KeyError, TypeError, IndexError, ValueError) as error:
            self._hang_up(f"the manager sent what this worker does not understand: {error!r}")
        else:
            act()

    def _understand(self, header: dict[str, Any], payload: bytes) -> Callable[[], None]:
        """What a message asks for, taken apart as far as it can be wrong. Raises KeyError and the like."""
        kind = header.get("t")
        if kind == "work":
            got = [(TaskKey(*item[:3]), item[3], item[4]) for item in header.get("got") or ()]
            event = _work_came(header) if len(header) > 1 + ("got" in header) else None
            return lambda: self._on_work(got, event)
        if kind == "blob":
            name, size, offset = header["hash"], header["size"], header["offset"]
            return lambda: self.fetches.on_blob(name, size, offset, payload)
        if kind == "noblob":
            missing = header["hash"]
            return lambda: self.fetches.on_missing(missing)
        if kind == "put_ok":
            content, stored, done = header["hash"], header["offset"], header["done"]
            return lambda: self.uploads.on_put_ok(content, stored, done)
        if kind == "welcome":
            keep = [(TaskKey(*item[:3]), item[3], item[4]) for item in header["keep"]]
            welcome = orders.Welcomed(header["lost_after"], keep, [TaskKey(*key) for key in header["kill"]])
            own_name = header["name"]
            return lambda: self._on_welcome(own_name, welcome)
        if kind == "error":
            return lambda: self._on_error(header)
        return lambda: None  # of a later version

    def _on_error(self, header: dict[str, Any]) -> None:
        log.warning("the manager says: %s", header.get("message"))
        if header.get("code") in ("blob", "disk-full"):
            self.uploads.on_error(header["code"])

    def _on_welcome(self, name: str, event: orders.Welcomed) -> None:
        conn = self.uplink.conn
        assert conn is not None
        self.uplink.welcomed()
        self.attempts.name = name
        self.reports.conn = conn
        self.streams.on_welcome()
        self.fetches.on_welcome(conn)
        self.uploads.on_welcome(conn)
        self.post(event)
        self._say_ready(name)

    def _say_ready(self, name: str) -> None:
        where, slots = self.uplink.where, self._about["slots"]
        log.info("connected to %s as %s", where, name)
        try:
            sys.stdout.write(f"microcluster worker {name} connected to {where} with {slots} slots\n")
            sys.stdout.flush()
        except (OSError, ValueError):
            pass  # nobody listens any more

    def _on_work(self, got: list[tuple[TaskKey, int, int]], event: Optional[orders.WorkCame]) -> None:
        for key, stream, size in got:
            self.streams.on_got(key, stream, size)
        if event is None:
            return
        if self._held or any("spec_blob" in spec for spec in event.jobs.values()):
            self._held.append(event)
            if len(self._held) == 1:
                self._on_specs(None)
            return
        self.post(event)

    def _on_specs(self, problem: Optional[str]) -> None:
        """Work whose specs travel as content waits for that, and what came after it waits too."""
        if problem is not None:
            self._hang_up(f"a job's description did not arrive: {problem}")
            return
        blobs = self.fetches.blobs
        while self._held:
            event = self._held[0]
            large = {job: spec["spec_blob"] for job, spec in event.jobs.items() if "spec_blob" in spec}
            if blobs.missing(list(large.values())):
                self.fetches.want(large.values(), self._on_specs)
                return
            specs = {job: json.loads(Path(blobs.path(name)).read_bytes()) for job, name in large.items()}
            self._held.popleft()
            self.post(event._replace(jobs={**event.jobs, **specs}))


def _work_came(header: dict[str, Any]) -> orders.WorkCame:
    return orders.WorkCame(
        {int(job): spec for job, spec in (header.get("jobs") or {}).items()},
        [TaskKey(*item[:3]) for item in header.get("run") or ()],
        [(TaskKey(*item[:3]), item[3]) for item in header.get("kill") or ()],
        [TaskKey(*item[:3]) for item in header.get("ack") or ()],
        [TaskKey(*item[:3]) for item in header.get("recall") or ()],
        header.get("drain"),
        time.time(),
    )


def _sendable(text: str) -> str:
    """Text without what JSON in UTF-8 cannot carry: a message may quote a path with any bytes in it."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _worker_id(path: Path) -> str:
    """The id that stays with a data folder."""
    try:
        found = path.read_text("ascii").strip()
        if re.fullmatch("[0-9a-f]{32}", found):
            return found
    except (OSError, ValueError):
        pass
    found = secrets.token_hex(16)
    path.write_text(found + "\n", "ascii")
    return found


def run_worker(settings: Any) -> int:
    """`run.py worker`: work until told to leave; the exit code. Main thread. Raises MicroclusterError, OSError."""
    proctree.become_subreaper()  # what a killed guard leaves behind comes to us, and is swept
    worker = Worker(settings)
    worker.open()
    # From now on no other process of this user may read our memory: the key is in it.
    if not proctree.forbid_dumping() and sys.platform.startswith("linux"):
        log.warning("cannot keep jobs from reading the memory of this worker")
    ours, theirs = socket.socketpair()
    for each in (ours, theirs):
        each.setblocking(False)
    signals = 0

    def on_signal(number: int, frame: Any) -> None:
        try:
            theirs.send(b"s")  # nothing more: it may have interrupted anything
        except OSError:
            pass

    def on_woken() -> None:
        nonlocal signals
        signals += len(ours.recv(100))
        log.info("leaving: %s", "now" if signals > 1 else "once what runs has finished; a second signal ends it")
        worker.post(orders.LeaveAsked(kill=signals > 1))

    worker.loop.add_reader(ours, on_woken)
    before = [(number, signal.signal(number, on_signal)) for number in (signal.SIGTERM, signal.SIGINT)]
    try:
        code = worker.run()
    finally:
        for number, handler in before:
            signal.signal(number, handler)
        ours.close()
        theirs.close()
    if worker.error is not None:
        raise worker.error
    return code
