"""Who is there: mutual challenge and response over any byte stream, as values. No I/O, no clock, no chance of its own.

    peer → manager   hello      protocol number, version, role wanted, key id, nonce
    manager → peer   challenge  nonce, proof that it has the key
    peer → manager   proof      proof that it has the key
    manager → peer   ready      the key's role

Each proof is HMAC-SHA256 over a direction label, the role wanted, the key id, both nonces and the hash of the manager's
certificate, each with its length before it: a proof is of no use in the other direction, for another role, over another
certificate or a second time.
"""

from __future__ import annotations

from .digest import hmac_sha256, same_bytes
from .records import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

PROTOCOL = 1
CLIENT_ROLES = ("submit", "read", "admin")


def proof(key: bytes, label: str, wanted: str, kid: str, nonces: tuple[str, str], certificate: bytes) -> str:
    """The proof, as hex."""
    parts = [label.encode(), wanted.encode(), kid.encode(), nonces[0].encode(), nonces[1].encode(), certificate]
    text = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    return hmac_sha256(key, text).hex()


def same(one: str, two: Any) -> bool:
    """Compare proofs in constant time."""
    return isinstance(two, str) and same_bytes(one.encode(), two.encode("utf-8", "replace"))


def hello(version: str, wanted: str, kid: str | None, nonce: str | None) -> dict[str, Any]:
    """The first message; without a key: kid and nonce None."""
    if kid is None:
        return {"t": "hello", "mc": PROTOCOL, "version": version, "role": wanted, "insecure": True}
    return {"t": "hello", "mc": PROTOCOL, "version": version, "role": wanted, "kid": kid, "nc": nonce}


def hello_problem(message: dict[str, Any], secure: bool) -> tuple[str, str] | None:
    """What is wrong with a hello, as (code, one line for the other side), or None."""
    theirs = message.get("mc")
    if message.get("t") != "hello" or type(theirs) is not int:
        return "protocol", "this is a microcluster manager: it expects its own protocol"
    if theirs != PROTOCOL:
        older = "upgrade this side" if theirs < PROTOCOL else "upgrade the manager"
        return "protocol", f"the manager speaks protocol {PROTOCOL}, this side {theirs}: {older}"
    if message.get("role") not in ("worker", "client"):
        return "protocol", "unknown role"
    if secure and message.get("insecure"):
        return "insecure", "this manager uses keys: leave out --insecure and copy cluster.key from its machine"
    if not secure and not message.get("insecure"):
        return "insecure", "this manager runs with --insecure: use --insecure here too, or start it without"
    kid, nonce = message.get("kid"), message.get("nc")
    if secure and not (isinstance(kid, str) and len(kid) <= 64 and isinstance(nonce, str) and len(nonce) == 64):
        return "protocol", "a malformed hello"
    return None


def may_be(key_role: str, wanted: str) -> bool:
    """Whether a key of this role lets its holder join as `wanted` (worker or client)."""
    return key_role == "worker" if wanted == "worker" else key_role in CLIENT_ROLES
