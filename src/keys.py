"""Keys: the files, who may be what with them, and TLS contexts.

`manager.key` (never copied): a 256-bit master secret, the TLS key and its certificate. `cluster.key` (the one file to
copy): a worker key, a submit key, and the certificate's SHA-256, the pin. Role keys are derived from the master. A key
is one line, `mc1.<role>.<kid>.<base64url(32 bytes of key, 32 bytes of pin)>`. No secret is ever logged or printed, but
by `run.py key`, which is asked to. Any thread may call; nothing here keeps state.
"""

from __future__ import annotations

import binascii
import os
import stat

from .core.digest import hmac_sha256, same_bytes, sha256
from .core.errors import KeyProblem
from .core.records import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping
    from typing import Any

ROLES = ("worker", "submit", "read", "admin")
FILE_MAX = 16 * 1024
_MASTER = "mc1-master "
_URL_SAFE, _FROM_URL_SAFE = bytes.maketrans(b"+/", b"-_"), bytes.maketrans(b"-_", b"+/")


def home(environ: Mapping[str, str] | None = None) -> str:
    """The folder of the key files: MICROCLUSTER_HOME, else microcluster below XDG_CONFIG_HOME or ~/.config."""
    env = os.environ if environ is None else environ
    if env.get("MICROCLUSTER_HOME"):
        return env["MICROCLUSTER_HOME"]
    base = env.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
    return os.path.join(base, "microcluster")


class PeerKey(NamedTuple):
    """What a worker or a client holds."""

    role: str
    kid: str
    secret: bytes
    pin: bytes  # SHA-256 of the manager's certificate (DER)

    def __repr__(self) -> str:
        return f"PeerKey({self.role}, {self.kid})"

    def text(self) -> str:
        """The one line that carries it."""
        body = (
            binascii.b2a_base64(self.secret + self.pin, newline=False).translate(_URL_SAFE).decode("ascii").rstrip("=")
        )
        return f"mc1.{self.role}.{self.kid}.{body}"

    @classmethod
    def parse(cls, text: str, where: str) -> PeerKey:
        """Raises KeyProblem, which names `where` and never the text."""
        parts = text.strip().split(".")
        if len(parts) == 4 and parts[0] == "mc1" and parts[1] in ROLES:
            try:
                body = binascii.a2b_base64(parts[3].encode("ascii").translate(_FROM_URL_SAFE) + b"==")
            except ValueError:
                body = b""
            if len(body) == 64:
                return cls(parts[1], parts[2], body[:32], body[32:])
        raise KeyProblem(f"{where} holds no key: a key is one line that begins with mc1. (copy it again)")


def read_key_file(path: str) -> str:
    """The text of a key file; raises KeyProblem when it is missing, a link, somebody else's, or open to others.

    The open descriptor is checked, not the name: nobody can exchange the file in between.
    """
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        fd = os.open(path, flags)
    except FileNotFoundError:
        raise KeyProblem(
            f"no key: {path} is not there; copy cluster.key from the manager's machine to it (or --insecure, if it has none)"
        ) from None
    except OSError as error:
        if os.path.islink(path):
            raise KeyProblem(f"{path} is a link: a key file must be the file itself") from None
        raise KeyProblem(f"cannot read {path}: {error.strerror}") from None
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise KeyProblem(f"{path} is not a regular file")
        if hasattr(os, "getuid"):
            if found.st_uid not in (os.getuid(), 0):
                raise KeyProblem(f"{path} belongs to somebody else: a key file must be yours")
            if found.st_mode & 0o077:
                raise KeyProblem(f"{path} can be read by others: run  chmod 600 {path}")
        if found.st_size > FILE_MAX:
            raise KeyProblem(f"{path} is too large for a key file")
        return os.read(fd, FILE_MAX).decode("utf-8", "replace")
    finally:
        os.close(fd)


def load_peer_key(wanted: str, key_file: str | None = None, environ: Mapping[str, str] | None = None) -> PeerKey:
    """The key to join with as `wanted` ("worker" or "client"); raises KeyProblem.

    From MICROCLUSTER_KEY (the text), else `key_file` or MICROCLUSTER_KEY_FILE, else the key files of `home()`, where a
    client on the manager's own machine is admin.
    """
    env = os.environ if environ is None else environ
    if env.get("MICROCLUSTER_KEY"):
        return _suited([env["MICROCLUSTER_KEY"]], wanted, "MICROCLUSTER_KEY")
    named = key_file or env.get("MICROCLUSTER_KEY_FILE")
    if not named and wanted == "client" and os.path.exists(os.path.join(home(env), "manager.key")):
        return ManagerKeys.load(home(env)).peer_key("admin")
    path = named or os.path.join(home(env), "cluster.key")
    text = read_key_file(path)
    if text.startswith(_MASTER):
        raise KeyProblem(f"{path} is a manager.key: it stays on the manager's machine; copy cluster.key instead")
    return _suited(text.splitlines(), wanted, path)


def _suited(lines: list[str], wanted: str, where: str) -> PeerKey:
    found = [PeerKey.parse(line, where) for line in lines if line.strip() and not line.startswith("#")]
    order = ("worker",) if wanted == "worker" else ("admin", "submit", "read")
    for role in order:
        for key in found:
            if key.role == role:
                return key
    if not found:
        raise KeyProblem(f"{where} holds no key: copy cluster.key from the manager's machine again")
    raise KeyProblem(f"{where} holds a {found[0].role} key, which does not let anybody join as a {wanted}")


class ManagerKeys(NamedTuple):
    """The manager's secrets."""

    master: bytes
    pin: bytes
    path: str  # of manager.key, which OpenSSL reads the TLS key and certificate from

    def __repr__(self) -> str:
        return f"ManagerKeys({self.path})"

    def secret(self, role: str) -> bytes:
        return hmac_sha256(self.master, b"mc/v1/role/" + role.encode())

    def peer_key(self, role: str) -> PeerKey:
        """The key of a role."""
        secret = self.secret(role)
        return PeerKey(role, sha256(b"kid" + secret).hexdigest()[:16], secret, self.pin)

    def find(self, kid: str) -> PeerKey | None:
        """The key with this id."""
        for role in ROLES:
            key = self.peer_key(role)
            if same_bytes(key.kid.encode(), kid.encode("utf-8", "replace")):
                return key
        return None

    @classmethod
    def load(cls, folder: str) -> ManagerKeys:
        """Raises KeyProblem."""
        path = os.path.join(folder, "manager.key")
        text = read_key_file(path)
        begin, end = text.find("-----BEGIN CERTIFICATE-----"), text.find("-----END CERTIFICATE-----")
        first = text.splitlines()[0] if text else ""
        try:
            master = bytes.fromhex(first[len(_MASTER) :])
            body = "".join(text[begin:end].splitlines()[1:])
            der = binascii.a2b_base64(body)
            if binascii.b2a_base64(der, newline=False).decode("ascii") != body:
                raise ValueError
        except ValueError:
            master, der = b"", b""
        if not first.startswith(_MASTER) or len(master) != 32 or begin < 0 or not der:
            raise KeyProblem(f"{path} is damaged: restore it from a backup, or move it away to start with new keys")
        return cls(master, sha256(der).digest(), path)

    @classmethod
    def load_or_create(cls, folder: str) -> ManagerKeys:
        """Load the keys of this user, or make them: racing first starts agree on one. Raises KeyProblem."""
        path = os.path.join(folder, "manager.key")
        if not os.path.lexists(path):
            try:
                os.makedirs(folder, mode=0o700, exist_ok=True)
                _create(path, f"{_MASTER}{os.urandom(32).hex()}\n{_certificate()}")
            except OSError as error:
                raise KeyProblem(f"cannot make {path}: {error.strerror}") from None
        keys = cls.load(folder)
        shared = os.path.join(folder, "cluster.key")
        if not os.path.lexists(shared):
            _create(shared, "".join(keys.peer_key(role).text() + "\n" for role in ("worker", "submit")))
        elif _suited(read_key_file(shared).splitlines(), "worker", shared).pin != keys.pin:
            raise KeyProblem(f"{shared} belongs to another manager than {path}: move it away, or set MICROCLUSTER_HOME")
        return keys


def _certificate() -> str:
    """A new P-256 key and its self-signed certificate, as PEM, from the openssl command."""
    import subprocess

    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -sha256 -days 36500"
        " -subj /CN=microcluster -keyout - -out -"
    ).split()
    try:
        made = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)
    except FileNotFoundError:
        raise KeyProblem(
            "the openssl command is needed once, to make the keys: install it, or copy manager.key and cluster.key"
            " from a machine that has it, or use --insecure on a closed network"
        ) from None
    text = made.stdout.decode("ascii", "replace")
    if made.returncode != 0 or "PRIVATE KEY" not in text or "CERTIFICATE" not in text:
        last = (made.stderr.decode("utf-8", "replace").strip().splitlines() or ["it printed nothing"])[-1]
        raise KeyProblem(f"the openssl command could not make a certificate: {last[:200]}")
    return text


def _create(path: str, text: str) -> None:
    """Write a new file, 0600, that appears whole or not at all; a file that is there already stays."""
    temporary = f"{path}.{os.getpid()}.{os.urandom(6).hex()}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            if hasattr(os, "fchmod"):
                os.fchmod(fd, 0o600)
            file.write(text.encode())
            file.flush()
            os.fsync(fd)
        try:
            os.link(temporary, path)
        except FileExistsError:
            pass
        except (OSError, AttributeError):  # a file system without hard links
            if not os.path.lexists(path):
                os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)
    if hasattr(os, "O_DIRECTORY"):
        folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def server_context(keys: ManagerKeys) -> ssl.SSLContext:
    """TLS 1.3 with the manager's certificate, no session tickets."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0
    try:
        context.load_cert_chain(keys.path)
    except ssl.SSLError:
        raise KeyProblem(f"{keys.path} is damaged: OpenSSL cannot read its certificate") from None
    return context


def client_context() -> Any:
    """TLS 1.3; the certificate is checked against the pin by `check_pin`, and by nothing else.

    The C class below ssl.SSLContext, where it is as it has been from Python 3.9 on: ssl itself takes 10 ms to import, a
    third of a client's life. `client_tls` uses either.
    """
    import _ssl

    kind: Any = getattr(_ssl, "_SSLContext", None)
    if not hasattr(kind, "_wrap_bio"):
        import ssl

        kind = ssl.SSLContext
    context = kind(_ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = _ssl.CERT_NONE
    context.minimum_version = _ssl.PROTO_TLSv1_3
    if context.minimum_version != _ssl.PROTO_TLSv1_3:
        raise KeyProblem("this Python's OpenSSL has no TLS 1.3: use another one (or --insecure on a closed network)")
    return context


def client_tls(context: Any, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO) -> Any:
    """The client's end of a connection: do_handshake, read, write, getpeercert, and shutdown or unwrap."""
    wrap = getattr(context, "wrap_bio", None) or context._wrap_bio
    return wrap(incoming, outgoing, False)


def check_pin(certificate: bytes | None, pin: bytes) -> bytes:
    """The SHA-256 of the certificate (DER); raises KeyProblem unless it is the pinned one. The one such check."""
    found = sha256(certificate or b"").digest()
    if not certificate or not same_bytes(found, pin):
        raise KeyProblem(
            "the manager there has another key than the one in cluster.key: copy cluster.key from its machine again"
        )
    return found
