"""One connection without its socket: raw bytes in and messages out, or the other way.

TLS through SSLObject and two MemoryBIOs, then the handshake, then frames. Two threads must never use one at once (net.py
has one thread; link.py holds a lock): an OpenSSL object is not made for that, and CPython crashes (measured).

    channel.receive(raw) → messages;  channel.send(header, payload);  channel.outgoing() → raw to write
"""

from __future__ import annotations

import os

from . import __version__
from .core import framing, handshake
from .core.errors import KeyProblem, LinkError, ProtocolError, Refused, Unreachable
from .core.records import TYPE_CHECKING, NamedTuple
from .keys import check_pin, client_context, client_tls

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable
    from typing import Any

    from .keys import ManagerKeys, PeerKey

    MakeTls = Callable[[ssl.MemoryBIO, ssl.MemoryBIO], Any]
    Message = tuple[dict[str, Any], bytes]
_AUTH_HEADER_MAX = 1024  # bytes of a message before authentication
_AUTH_RAW_MAX = 32 * 1024  # bytes of TLS before authentication
_AHEAD_MAX = 16 * 1024  # bytes of messages that follow our proof at once: with all before, the other side takes them
_READ = 256 * 1024


class Peer(NamedTuple):
    """Who is at the other end."""

    role: str  # of the key: worker, submit, read, admin
    kid: str
    version: str
    wanted: str  # worker or client


class Channel:
    """What both sides share; see ServerChannel and ClientChannel."""

    def __init__(self, tls: MakeTls | None) -> None:
        self.peer: Peer | None = None
        self._decoder = framing.Decoder(_AUTH_HEADER_MAX, 0)
        self._out = bytearray()  # raw, without TLS
        self._tls: Any = None  # an SSLObject, or the C object in one
        self._tls_ready = True
        self._early = 0
        self._queued: list[bytes] = []
        if tls is not None:
            self._begin_tls(tls)

    def _begin_tls(self, tls: MakeTls) -> None:
        import _ssl as ssl

        self._incoming, self._sealed = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = tls(self._incoming, self._sealed)
        self._tls_ready = False

    @property
    def ready(self) -> bool:
        """Whether both sides have proved themselves."""
        return self.peer is not None

    @property
    def proved(self) -> bool:
        """Whether the other side has proved itself."""
        return self.ready

    # -- bytes ---------------------------------------------------------------------------------------------------------

    def receive(self, raw: bytes) -> list[Message]:
        """The messages that are complete with these bytes. b"" means the end. Raises LinkError, KeyProblem, Refused;
        what `outgoing` has then may still be sent (an error for the other side) before the connection is closed."""
        if not raw:
            self._ended()
        try:
            return self._messages(self._open(raw))
        except framing.FrameError as error:
            raise ProtocolError(f"the other side sent what is not allowed: {error}") from None

    def _open(self, raw: bytes) -> list[bytes]:
        if not self.proved:
            self._early += len(raw)
            if self._early > _AUTH_RAW_MAX:
                raise ProtocolError("too much was sent before authentication")
        if self._tls is None:
            return [raw]
        import _ssl as ssl

        self._incoming.write(raw)
        found: list[bytes] = []
        try:
            if not self._tls_ready:
                self._tls.do_handshake()
                self._tls_ready = True
                self._tls_done()
            while True:
                data = self._tls.read(_READ)
                if not data:
                    raise ssl.SSLZeroReturnError
                found.append(data)
        except ssl.SSLWantReadError:
            return found
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            if not found:
                try:
                    (getattr(self._tls, "unwrap", None) or self._tls.shutdown)()  # answers the other side's farewell
                except ssl.SSLError:
                    pass
                self._ended()
            return found
        except ssl.SSLError as error:
            raise self._tls_problem(error) from None

    def _messages(self, pieces: list[bytes]) -> list[Message]:
        found: list[Message] = []
        for piece in pieces:
            while self.peer is None:  # one by one: what the next may be depends on it
                frames = self._decoder.feed(piece, 1)
                if not frames:
                    break
                piece = b""
                self._greet(frames[0][0])
            else:
                found += self._decoder.feed(piece)
        return found

    def send(self, header: dict[str, Any], payload: bytes = b"") -> None:
        """Queue a message; before authentication is through it waits."""
        frame = framing.encode(header, payload)
        if self.peer is None:
            self._queued.append(frame)
        else:
            self._write(frame)

    def send_frames(self, frames: bytes) -> None:
        """Queue frames that are encoded already; only once `ready`."""
        self._write(frames)

    def _write(self, data: bytes) -> None:
        if self._tls is None:
            self._out += data
        else:
            self._tls.write(data)

    def _authenticated(self, peer: Peer) -> None:
        self.peer = peer
        self._decoder.header_max, self._decoder.payload_max = framing.HEADER_MAX, framing.PAYLOAD_MAX
        queued, self._queued = self._queued, []
        for frame in queued:
            self._write(frame)

    def outgoing(self) -> bytes:
        """Raw bytes to write to the socket; each is given once."""
        if self._tls is not None:
            return self._sealed.read()
        data = bytes(self._out)
        self._out.clear()
        return data

    # -- what the two sides do differently -----------------------------------------------------------------------------

    def _ended(self) -> None:
        raise LinkError("the connection ended")

    def _tls_problem(self, error: ssl.SSLError) -> LinkError:
        return ProtocolError(f"TLS: {error.reason or error}")

    def _tls_done(self) -> None:
        raise NotImplementedError

    def _greet(self, header: dict[str, Any]) -> None:
        raise NotImplementedError


class ServerChannel(Channel):
    """The manager's end. context and keys None: --insecure."""

    def __init__(self, context: ssl.SSLContext | None, keys: ManagerKeys | None) -> None:
        make = None
        if context is not None:

            def make(incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO) -> ssl.SSLObject:
                return context.wrap_bio(incoming, outgoing, server_side=True)

        super().__init__(None)
        self._make_tls: MakeTls | None = make  # not before something came that can be TLS: idlers are to cost little
        self._keys = keys
        self._first = True
        self._key: PeerKey | None = None
        self._hello: dict[str, Any] = {}
        self._nonce = ""

    def _open(self, raw: bytes) -> list[bytes]:
        if self._first and raw:
            self._first = False
            is_tls = raw[0] == 0x16
            if is_tls != (self._make_tls is not None):
                if is_tls:
                    self._plain_error("insecure", "this manager runs with --insecure: use --insecure here too")
                    raise ProtocolError("a peer with keys (TLS) spoke to this manager, which runs with --insecure")
                code = "insecure" if raw[:4] == b"\0\0\0\0" or raw[0] == 0 else "protocol"
                self._plain_error(
                    code, "this manager uses keys: leave out --insecure and copy cluster.key from its machine"
                )
                raise ProtocolError("a peer without TLS spoke to this manager, which uses keys")
            if self._make_tls is not None:
                self._begin_tls(self._make_tls)
        return super()._open(raw)

    def _plain_error(self, code: str, message: str) -> None:
        """One fixed answer outside TLS, so that the other side can say what is wrong."""
        self._out += framing.encode({"t": "error", "code": code, "message": message})

    def _tls_done(self) -> None:
        pass

    def _refuse(self, code: str, message: str) -> None:
        self._write(framing.encode({"t": "error", "code": code, "message": message}))
        raise ProtocolError(f"refused before authentication ({code})")

    def _greet(self, header: dict[str, Any]) -> None:
        if not self._hello:
            problem = handshake.hello_problem(header, self._keys is not None)
            if problem is not None:
                self._refuse(*problem)
            self._hello = header
            if self._keys is None:
                role = "worker" if header["role"] == "worker" else "admin"
                self._welcome(Peer(role, "insecure", str(header.get("version"))[:40], header["role"]))
                return
            # An unknown key id takes the same way with a key that nobody has: same time, same error.
            self._key = self._keys.find(header["kid"])
            self._nonce = os.urandom(32).hex()
            self._write(framing.encode({"t": "challenge", "ns": self._nonce, "mac": self._proof("server")}))
            return
        good = handshake.same(self._proof("client"), header.get("mac"))
        if header.get("t") != "proof" or not good or self._key is None:
            self._refuse("key", "the key does not fit this manager: copy cluster.key from its machine again")
        assert self._key is not None
        if not handshake.may_be(self._key.role, self._hello["role"]):
            self._refuse("key", f"a {self._key.role} key does not let anybody join as a {self._hello['role']}")
        version = str(self._hello.get("version"))[:40]
        self._welcome(Peer(self._key.role, self._key.kid, version, self._hello["role"]))

    def _proof(self, label: str) -> str:
        assert self._keys is not None
        secret = self._key.secret if self._key is not None else os.urandom(32)
        nonces = (self._hello["nc"], self._nonce)
        return handshake.proof(secret, label, self._hello["role"], self._hello["kid"], nonces, self._keys.pin)

    def _welcome(self, peer: Peer) -> None:
        self._write(framing.encode({"t": "ready", "version": __version__, "role": peer.role}))
        self._authenticated(peer)


class ClientChannel(Channel):
    """A worker's or a client's end. key None: --insecure. `where` (HOST:PORT) is for messages."""

    def __init__(self, key: PeerKey | None, wanted: str, where: str, context: Any = None) -> None:
        make = None
        if key is not None:
            chosen = context or client_context()

            def make(incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO) -> Any:
                return client_tls(chosen, incoming, outgoing)

        super().__init__(make)
        self._key, self._wanted, self._where = key, wanted, where
        self._nonce = os.urandom(32).hex()
        self._certificate = b""
        self._first = True
        self._challenged = False
        self._ahead = 0
        if self._tls is None:
            self._write(framing.encode(handshake.hello(__version__, wanted, None, None)))
        else:
            self._start_tls()

    @property
    def proved(self) -> bool:
        """Whether the manager has. What is sent from then on may leave at once, behind our own proof."""
        return self._challenged or self.ready

    def send(self, header: dict[str, Any], payload: bytes = b"") -> None:
        frame = framing.encode(header, payload)
        if self.ready or (self._challenged and not self._queued and self._ahead + len(frame) <= _AHEAD_MAX):
            self._ahead += len(frame)
            self._write(frame)
        else:
            self._queued.append(frame)

    def _start_tls(self) -> None:
        import _ssl as ssl

        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            pass

    def _open(self, raw: bytes) -> list[bytes]:
        if self._first and raw:
            self._first = False
            self._check_first(raw)
        return super()._open(raw)

    def _check_first(self, raw: bytes) -> None:
        for start, what in ((b"HTTP/", "HTTP"), (b"SSH-", "ssh"), (b"220", "mail"), (b"<", "HTTP")):
            if raw.startswith(start):
                raise ProtocolError(f"{self._where} speaks {what}, not microcluster: check host and port")
        if self._tls is not None and raw[0] not in (0x16, 0x15):
            if raw[0] == 0:  # a frame outside TLS: the manager says what it is
                self._tls = None
                return
            raise ProtocolError(f"{self._where} does not speak microcluster: check host and port")
        if self._tls is None and raw[0] in (0x16, 0x15):
            raise KeyProblem(f"{self._where} uses TLS: leave out --insecure and copy cluster.key from its machine")

    def _tls_problem(self, error: ssl.SSLError) -> LinkError:
        return ProtocolError(
            f"{self._where} does not speak microcluster (TLS: {error.reason or error}): check host and port"
        )

    def _ended(self) -> None:
        if self.peer is None:
            raise LinkError(
                f"{self._where} closed the connection before it said what it is: is that a microcluster manager?"
            )
        raise LinkError("the connection ended")

    def _tls_done(self) -> None:
        assert self._key is not None
        self._certificate = check_pin(self._tls.getpeercert(True), self._key.pin)
        self._write(framing.encode(handshake.hello(__version__, self._wanted, self._key.kid, self._nonce)))

    def _greet(self, header: dict[str, Any]) -> None:
        kind = header.get("t")
        if kind == "error":
            self._refused(header)
        if kind == "challenge" and self._key is not None and self._tls is not None and not self._challenged:
            nonces = (self._nonce, str(header.get("ns")))
            if len(nonces[1]) != 64 or not handshake.same(self._proof("server", nonces), header.get("mac")):
                raise KeyProblem(
                    f"{self._where} does not have this key: copy cluster.key from the manager's machine again"
                )
            self._write(framing.encode({"t": "proof", "mac": self._proof("client", nonces)}))
            self._challenged = True
        elif kind == "ready" and (self._challenged or self._key is None):
            self._authenticated(Peer(str(header.get("role")), "", str(header.get("version")), self._wanted))
        else:
            raise ProtocolError(f"{self._where} does not speak microcluster: check host and port")

    def _proof(self, label: str, nonces: tuple[str, str]) -> str:
        assert self._key is not None
        return handshake.proof(self._key.secret, label, self._wanted, self._key.kid, nonces, self._certificate)

    def _refused(self, header: dict[str, Any]) -> None:
        code, text = str(header.get("code")), str(header.get("message"))[:300]
        message = f"{self._where}: {''.join(c if c.isprintable() else '?' for c in text)}"
        if code in ("key", "insecure"):
            raise KeyProblem(message)
        if code == "protocol":
            raise ProtocolError(message)
        if code == "busy":
            raise Unreachable(message)
        raise Refused(message, code)
