"""A client's connection to the manager, blocking. Imports little: it decides how long `client.py run` takes.

One thread at a time reads; any thread may post. Requests carry numbers, so that several may be under way; whoever waits
for an answer reads until it is there and puts the answers of others aside.
"""

from __future__ import annotations

import _socket as socket  # socket itself brings enum and selectors, a fifth of a client's start
import time
from _thread import allocate_lock

from .channel import ClientChannel
from .core.errors import KeyProblem, LinkError, ManagerGone, ProtocolError, Refused, Unreachable
from .core.handshake import may_be
from .core.records import TYPE_CHECKING
from .core.syntax import hold_text

if TYPE_CHECKING:
    from typing import Any

    from .keys import PeerKey

    Answer = tuple[dict[str, Any], bytes]

SILENT_S = 30.0  # a manager that says nothing for so long is given up; it pings every 5 s
GREETING_S = 10.0  # from connecting to authenticated
PAUSE_FIRST_S, PAUSE_MAX_S = 0.2, 3.0
_READ = 256 * 1024


def _dial(host: str, port: int, timeout_s: float) -> socket.socket:
    """As socket.create_connection, with the options that a link wants."""
    name = host.encode("ascii") if host.isascii() else host  # a str would load the idna codec
    problem: OSError | None = None
    for family, kind, protocol, _, address in socket.getaddrinfo(name, port, 0, socket.SOCK_STREAM):
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.settimeout(timeout_s)
            sock.connect(address)
            return sock
        except OSError as error:
            problem = error
            sock.close()
        except BaseException:
            sock.close()
            raise
    raise problem or OSError("no address")


class Link:
    """Link(host, port, key): connected to a manager that proved itself, or Unreachable, KeyProblem, ProtocolError, Refused.

    Its word on our key may come with the first answer, which raises KeyProblem then: the first request need not wait.

    `connect_timeout_s`: keep trying for so long when nobody is there (0: once). `key` None: --insecure.
    """

    def __init__(self, host: str, port: int, key: PeerKey | None, connect_timeout_s: float = 0.0) -> None:
        self.host, self.port, self.key = host, port, key
        self.where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._lock = allocate_lock()  # guards the channel, _number, _answers: held for calculations, never for I/O
        self._write_lock = allocate_lock()  # held while bytes go out: they must leave in the order of their sealing
        self._read_lock = allocate_lock()  # who holds it reads from the socket
        self._number = 0
        self._answers: dict[int, Answer] = {}
        self._broken: Exception | None = None
        if key is not None and not may_be(key.role, "client"):
            raise KeyProblem(f"a {key.role} key does not let anybody join as a client")
        self._connect(connect_timeout_s)

    def __enter__(self) -> Link:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def role(self) -> str:
        """Of the key: submit, read, admin; known with the first answer."""
        peer = self._channel.peer
        return peer.role if peer is not None else ""

    # -- connecting ----------------------------------------------------------------------------------------------------

    def _connect(self, timeout_s: float) -> None:
        deadline, pause = time.monotonic() + timeout_s, PAUSE_FIRST_S
        while True:
            try:
                self._connect_once(max(3.0, deadline - time.monotonic()))
                return
            except (Unreachable, ManagerGone):
                left = deadline - time.monotonic()
                if left <= 0:
                    raise
                time.sleep(min(pause, left))
                pause = min(pause * 1.5, PAUSE_MAX_S)

    def _connect_once(self, timeout_s: float) -> None:
        try:
            sock = _dial(self.host, self.port, min(timeout_s, 10.0))
        except (socket.gaierror, UnicodeError) as error:
            why = getattr(error, "strerror", None) or "not a name"
            raise Unreachable(f"no such host: {hold_text(self.host)} ({why})") from None
        except OSError as error:
            late = isinstance(error, (socket.timeout, TimeoutError))
            why = "nobody answers there" if late else (error.strerror or str(error))
            raise Unreachable(f"no manager at {self.where}: {why} (is it running, and is the address right?)") from None
        try:
            self._sock, self._broken = sock, None
            self._channel = ClientChannel(self.key, "client", self.where)
            self._greet(time.monotonic() + GREETING_S)
        except BaseException:
            sock.close()
            raise

    def _greet(self, deadline: float) -> None:
        heard = False
        while not self._channel.proved:
            self._write()
            self._check()
            left = deadline - time.monotonic()
            try:
                self._sock.settimeout(max(0.01, left))
                raw = self._sock.recv(_READ)
            except (socket.timeout, TimeoutError):
                if heard:
                    raise ManagerGone(f"the manager at {self.where} went silent") from None
                raise ProtocolError(f"{self.where} says nothing: is that a microcluster manager?") from None
            except OSError as error:
                raise ManagerGone(f"the connection to {self.where} broke: {error.strerror}") from None
            heard = heard or bool(raw)
            try:
                self._put_aside(self._channel.receive(raw))
            except (KeyProblem, ProtocolError, Refused):
                raise
            except LinkError as error:
                raise ManagerGone(str(error)) from None
        self._write()
        self._check()

    # -- asking --------------------------------------------------------------------------------------------------------

    def request(self, header: dict[str, Any], payload: bytes = b"", timeout_s: float | None = None) -> Answer:
        """Ask and wait for the answer. Raises Refused (the manager said no), ManagerGone."""
        return self.answer(self.post(header, payload), timeout_s)

    def post(self, header: dict[str, Any], payload: bytes = b"") -> int:
        """Send a request; its number is for `answer`."""
        with self._lock:
            self._check()
            self._number += 1
            number = self._number
            self._channel.send({**header, "n": number}, payload)
        self._write()
        return number

    def answer(self, number: int, timeout_s: float | None = None) -> Answer:
        """Wait for the answer to a request. `timeout_s`: TimeoutError past it; the answer may still come."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            found = self._taken(number)
            if found is not None:
                return found
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError
            if not self._read_lock.acquire(timeout=0.05 if left is None else min(0.05, left)):
                continue
            try:
                found = self._taken(number)
                if found is not None:
                    return found
                self._read_some(left)
            finally:
                self._read_lock.release()

    def _taken(self, number: int) -> Answer | None:
        with self._lock:
            found = self._answers.pop(number, None)
            if found is None:
                self._check()
                return None
        header = found[0]
        if header.get("t") == "error":
            raise Refused(str(header.get("message")), str(header.get("code")), header)
        return found

    def _check(self) -> None:
        if self._broken is not None:
            raise ManagerGone(str(self._broken))

    def _read_some(self, limit_s: float | None) -> None:
        try:  # the socket may be closed by now: another thread could not write
            self._sock.settimeout(SILENT_S if limit_s is None else min(SILENT_S, max(0.001, limit_s)))
            raw = self._sock.recv(_READ)
        except (socket.timeout, TimeoutError):
            if limit_s is None or limit_s >= SILENT_S:
                self._break(f"the manager at {self.where} was silent for {SILENT_S:g} s")
            return
        except OSError as error:
            self._break(f"the connection to {self.where} broke: {error.strerror or error}")
            return
        try:
            with self._lock:
                messages = self._channel.receive(raw)
                self._put_aside(messages)
        except LinkError as error:
            self._break(f"the connection to {self.where} broke: {error}")
            return
        except (KeyProblem, Refused) as error:  # of our key: the manager's last word in the greeting
            self._break(str(error))
            raise
        self._write()

    def _put_aside(self, messages: list[Answer]) -> None:
        for header, payload in messages:
            if header.get("t") == "ping":
                self._channel.send({"t": "pong"})
            elif type(header.get("n")) is int:
                self._answers[header["n"]] = (header, payload)

    def _write(self) -> None:
        with self._write_lock:
            with self._lock:
                raw = self._channel.outgoing()
            if not raw:
                return
            try:
                self._sock.settimeout(SILENT_S)
                self._sock.sendall(raw)
            except OSError as error:
                self._break(f"the connection to {self.where} broke: {error.strerror or error}")

    def _break(self, why: str) -> None:
        self._broken = ManagerGone(why)
        self._sock.close()

    def close(self) -> None:
        """End the connection; answers that did not come are lost."""
        if self._broken is None:
            self._broken = ManagerGone("the connection was closed")
            self._sock.close()
