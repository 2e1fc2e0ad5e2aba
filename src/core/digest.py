"""SHA-256 and HMAC from OpenSSL, as hashlib and hmac take them, without what these import besides (1 ms of a client's 25)."""

from __future__ import annotations

from _operator import _compare_digest as same_bytes

try:
    from _hashlib import hmac_digest
    from _hashlib import openssl_sha256 as sha256
except ImportError:  # a Python without OpenSSL
    from hashlib import sha256
    from hmac import digest as hmac_digest  # type: ignore[assignment]

__all__ = ("hmac_sha256", "same_bytes", "sha256")


def hmac_sha256(key: bytes, text: bytes) -> bytes:
    return hmac_digest(key, text, "sha256")
