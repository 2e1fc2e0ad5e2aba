"""A manager in this process, and peers of it that do exactly what a test says: `FakeWorker`, `Link`."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import secrets
import shutil
import socket
import tempfile
import time
import unittest
from collections.abc import Iterator
from typing import Any, Optional

from src.channel import ClientChannel
from src.config import ManagerSettings
from src.core.errors import LinkError, Refused
from src.keys import PeerKey
from src.link import Link
from src.manager import Manager
from tests.support.leaks import Case
from tests.support.sim import spec
from tests.support.waiting import wait_until

Key = tuple[int, int, int]
SCRIPT = b"print('x')\n"
logging.getLogger("src").addHandler(logging.NullHandler())  # what a manager warns of is not for the tests' stderr


def hash_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def start_manager(case: unittest.TestCase, data: Optional[str] = None, **settings: Any) -> Manager:
    """Serving until the test ends, or `stop`."""
    if data is None:
        data = tempfile.mkdtemp()
        case.addCleanup(shutil.rmtree, data)
    given = {"host": "127.0.0.1", "port": 0, "insecure": True, **settings}
    manager = Manager(ManagerSettings(data=data, **given)).start()
    case.addCleanup(manager.stop)
    return manager


def connect(case: unittest.TestCase, manager: Manager, key: Optional[PeerKey] = None) -> Link:
    link = Link("127.0.0.1", manager.port, key)
    case.addCleanup(link.close)
    return link


def submit_message(request_id: str = "", **changes: Any) -> tuple[dict[str, Any], bytes]:
    job = spec(script={"name": "x.py", "hash": hash_of(SCRIPT)}, **changes)
    header = {"t": "submit", "request_id": request_id or secrets.token_hex(16), "spec": job}
    return {**header, "inline": [[hash_of(SCRIPT), len(SCRIPT)]]}, SCRIPT


def submit(link: Link, **changes: Any) -> int:
    """A new job; its id."""
    return int(link.request(*submit_message(**changes), timeout_s=60)[0]["id"])


def submit_large(link: Link, **changes: Any) -> int:
    """A new job whose description travels as content."""
    header, payload = submit_message(**changes)
    text = json.dumps(header.pop("spec"), ensure_ascii=False).encode()
    link.request({"t": "put", "hash": hash_of(text), "size": len(text), "offset": 0}, text[: 1 << 20], timeout_s=60)
    return int(link.request({**header, "spec_blob": hash_of(text)}, payload, timeout_s=60)[0]["id"])


def status(link: Link, job: int, index: Optional[int] = None) -> dict[str, Any]:
    sel = {"job": job, "lo": index, "hi": index}
    found: dict[str, Any] = link.request({"t": "status", "ids": [sel]}, timeout_s=60)[0]["jobs"][0]
    return found


def read(link: Link, job: int, **changes: Any) -> tuple[dict[str, Any], bytes]:
    return link.answer(post_read(link, job, **changes), 60)


def post_read(link: Link, job: int, **changes: Any) -> int:
    header = {
        "t": "read",
        "job": job,
        "lo": 0,
        "hi": 0,
        "pos": 0,
        "out": 0,
        "err": 0,
        "attempt": 0,
        "wait": 0,
        "live": True,
    }
    return link.post({**header, **changes})


class FakeWorker:
    """Speaks for a worker, blocking, in the test's own thread."""

    def __init__(self, manager: Manager, name: str = "w", key: Optional[PeerKey] = None, **offer: Any) -> None:
        self.sock = socket.create_connection(("127.0.0.1", manager.port))
        self.channel = ClientChannel(key, "worker", "the manager")
        self.offer = {
            "t": "join", "name": name, "worker_id": hash_of(name.encode())[:32], "boot": secrets.token_hex(16), "slots": 4,
            "cpus": 4, "memory": 1 << 30, "gpus": 0, "labels": [], "resources": {}, "pythons": {}, "version": "0.1.0",
            "python": "3.11.7", "holding": [], **offer,
        }  # fmt: skip
        self.closed = False
        self.messages: list[dict[str, Any]] = []  # all that came, but pings
        self.welcome: dict[str, Any] = {}
        self.given: list[Key] = []
        self.jobs: dict[int, dict[str, Any]] = {}
        self.acked: list[Key] = []
        self.kills: list[Key] = []
        self.got: dict[tuple[int, int, int, int], int] = {}
        self.blobs: dict[str, bytes] = {}
        self.drained: Optional[bool] = None

    def close(self) -> None:
        self.closed = True
        self.sock.close()

    def __enter__(self) -> FakeWorker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- bytes ---------------------------------------------------------------------------------------------------------

    def send(self, header: dict[str, Any], payload: bytes = b"") -> None:
        self.channel.send(header, payload)
        self._flush()

    def _flush(self) -> None:
        raw = self.channel.outgoing()
        if raw:
            self.sock.settimeout(60)
            self.sock.sendall(raw)

    def poll(self) -> None:
        """Take what is there."""
        self._flush()
        self.sock.settimeout(0.02)
        try:
            raw = self.sock.recv(1 << 20)
            messages = self.channel.receive(raw)
        except (TimeoutError, socket.timeout):  # two classes on 3.9
            return
        except (LinkError, OSError):
            self.closed = True
            return
        self._flush()
        for header, payload in messages:
            self._take(header, payload)

    def _take(self, header: dict[str, Any], payload: bytes) -> None:
        kind = header["t"]
        if kind == "ping":
            self.send({"t": "pong"})
            return
        self.messages.append(header)
        if kind == "welcome":
            self.welcome = header
        elif kind == "blob":
            assert len(self.blobs.get(header["hash"], b"")) == header["offset"]
            self.blobs[header["hash"]] = self.blobs.get(header["hash"], b"") + payload
        elif kind == "work":
            self.jobs.update((int(job), one) for job, one in header.get("jobs", {}).items())
            self.given += [(key[0], key[1], key[2]) for key in header.get("run", ())]
            self.acked += [(key[0], key[1], key[2]) for key in header.get("ack", ())]
            self.kills += [(key[0], key[1], key[2]) for key in header.get("kill", ())]
            self.got.update(((j, p, a, s), size) for j, p, a, s, size in header.get("got", ()))
            self.drained = header.get("drain", self.drained)

    def wait(self, what: Any, name: str = "the manager's message") -> Any:
        """Until what(self) is true."""

        def look() -> Any:
            found = what(self)
            if not found:
                self.poll()
            return found

        return wait_until(look, 60, name, lambda: self.messages[-5:])

    # -- what a worker does --------------------------------------------------------------------------------------------

    def join(self, holding: Optional[list[Any]] = None) -> FakeWorker:
        self.wait(lambda w: w.channel.ready, "the handshake")
        self.send({**self.offer, "holding": holding or []})
        self.wait(lambda w: w.welcome, "the welcome")
        return self

    def task(self, number: int = 0) -> Key:
        """The number-th task that it was given."""
        self.wait(lambda w: len(w.given) > number, "a task")
        return self.given[number]

    def spooled(self, key: Key, stream: int = 1) -> Optional[int]:
        """How much of its output the manager confirmed last."""
        return self.got.get((*key, stream))

    def started(self, *keys: Key) -> None:
        self.send({"t": "report", "started": [[*key, time.time(), True, None] for key in keys]})

    def output(self, key: Key, data: bytes, offset: int = 0, stream: int = 1) -> None:
        self.send({"t": "report", "output": [[*key, stream, offset, len(data)]]}, data)

    def finish(self, key: Key, out: bytes = b"", total: Optional[int] = None, **changes: Any) -> None:
        """`out`: what rides with the result, the end of `total` bytes."""
        size = len(out) if total is None else total
        fin = {
            "task": list(key), "exit_code": 0, "signal": None, "reason": None, "started_at": time.time(),
            "finished_at": time.time(), "cpu": 0.1, "rss": 1000, "out": [size, len(out)], "err": [0, 0], "dropped": 0,
            "files": None, "timed_out": False, "never_ran": False, "cancelled": False, **changes,
        }  # fmt: skip
        self.send({"t": "report", "finished": [fin]}, out)

    def done(self, key: Key, out: bytes = b"", **changes: Any) -> None:
        """Finish, and wait for the acknowledgement."""
        self.finish(key, out, **changes)
        self.wait(lambda w: key in w.acked, "the acknowledgement")


@contextlib.contextmanager
def worker(manager: Manager, name: str = "w", **offer: Any) -> Iterator[FakeWorker]:
    """One that has joined."""
    with FakeWorker(manager, name, **offer) as found:
        yield found.join()


class ManagerCase(Case):
    """A test with a manager and a link to it."""

    def setUp(self) -> None:
        self.manager = start_manager(self)
        self.link = connect(self, self.manager)

    def assert_refused(self, code: str, header: dict[str, Any], payload: bytes = b"") -> Refused:
        with self.assertRaises(Refused) as caught:
            self.link.request(header, payload, timeout_s=60)
        self.assertEqual(caught.exception.code, code, str(caught.exception))
        return caught.exception

    def restart(self) -> None:
        """Stop the manager, and start another one on its data."""
        data = self.manager.settings.data
        self.manager.stop()
        self.manager = start_manager(self, data)
        self.link = connect(self, self.manager)
