"""Bytes to frames and back: two 4-byte lengths, a JSON object, a raw payload.

Strict: sizes are checked before memory is taken, depth before parsing; duplicate keys, NaN, surrogates, NUL and
over-long integers are refused.
"""

from __future__ import annotations

from .jsontext import Decoder as JsonDecoder
from .jsontext import encode as _encode
from .records import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

HEADER_MAX = 256 * 1024  # bytes of JSON: 1 MiB of `[],` costs 23 times its size (measured)
PAYLOAD_MAX = 1024 * 1024
DEPTH_MAX = 32
# A text that does not end must match too: else the search starts again at each quote in it, for minutes.
_TOKENS = rb'"[^"\\]*(?:\\.[^"\\]*)*"?|[\[{]|[\]}]'


class FrameError(ValueError):
    """The peer's bytes are not a frame that is allowed here; one line says why. The connection must end."""


def encode(header: dict[str, Any], payload: bytes = b"") -> bytes:
    """One frame. Raises FrameError when a peer would not accept it."""
    try:
        text = _encode(header).encode("utf-8")
    except ValueError as error:  # NaN, or a surrogate
        raise FrameError(f"a message cannot be sent: {error}"[:200]) from None
    if len(text) > HEADER_MAX or len(payload) > PAYLOAD_MAX:
        raise FrameError(f"a message of {len(text)} + {len(payload)} bytes is too large")
    return (len(text) << 32 | len(payload)).to_bytes(8, "big") + text + payload


def _integer(text: str) -> int:
    if len(text) > 19:
        raise FrameError("an integer is too long")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise FrameError("a number is too large")
    return value


def _no_constant(text: str) -> Any:
    raise FrameError(f"{text} is not JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise FrameError("a key stands twice")
    return found


_decoder = JsonDecoder(_unique, _integer, _finite, _no_constant)


def _check_depth(raw: bytes) -> None:
    if raw.count(b"[") + raw.count(b"{") <= DEPTH_MAX:
        return
    import re

    depth = 0
    for token in re.findall(_TOKENS, raw, re.DOTALL):
        if token in (b"[", b"{"):
            depth += 1
            if depth > DEPTH_MAX:
                raise FrameError("nested too deeply")
        elif token in (b"]", b"}"):
            depth -= 1


def parse_header(raw: bytes) -> dict[str, Any]:
    """The JSON object of a frame; raises FrameError for anything that is not exactly that."""
    _check_depth(raw)
    try:
        text = raw.decode("utf-8")
        value = _decoder.decode(text)
    except FrameError:
        raise
    except (ValueError, RecursionError) as error:
        raise FrameError(f"not JSON: {error}"[:200]) from None
    if type(value) is not dict:
        raise FrameError("not a JSON object")
    if "\\u" in text:  # only an escape can make these: strict UTF-8 cannot
        _check_text(value)
    elif "\x00" in text:
        raise FrameError("a NUL in a text")
    return value


def _check_text(value: Any) -> None:
    if type(value) is str:
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise FrameError("a text holds a surrogate") from None
        if "\0" in value:
            raise FrameError("a text holds a NUL")
    elif type(value) is list:
        for item in value:
            _check_text(item)
    elif type(value) is dict:
        for key, item in value.items():
            _check_text(key)
            _check_text(item)


class Decoder:
    """Frames out of a stream of bytes, however it is cut. `header_max` and `payload_max` may be raised later (after
    authentication)."""

    __slots__ = ("_buffer", "_need", "header_max", "payload_max")

    def __init__(self, header_max: int = HEADER_MAX, payload_max: int = PAYLOAD_MAX) -> None:
        self.header_max, self.payload_max = header_max, payload_max
        self._buffer = bytearray()
        self._need = 8

    def feed(self, data: bytes, most: int = 1 << 30) -> list[tuple[dict[str, Any], bytes]]:
        """The frames that are complete now, at most so many: `feed(b"")` gives the next ones. Raises FrameError."""
        buffer = self._buffer
        buffer += data
        if len(buffer) < self._need:
            return []
        found: list[tuple[dict[str, Any], bytes]] = []
        start, size = 0, len(buffer)
        view = memoryview(buffer)
        try:
            while size - start >= 8 and len(found) < most:
                sizes = int.from_bytes(view[start : start + 8], "big")
                header_size, payload_size = sizes >> 32, sizes & 0xFFFFFFFF
                if header_size > self.header_max or payload_size > self.payload_max:
                    raise FrameError(f"a message of {header_size} + {payload_size} bytes is not allowed here")
                end = start + 8 + header_size + payload_size
                if size < end:
                    self._need = end - start
                    break
                middle = start + 8 + header_size
                found.append((parse_header(bytes(view[start + 8 : middle])), bytes(view[middle:end])))
                start, self._need = end, 8
        finally:
            view.release()
        if start:
            del buffer[:start]
        return found

    @property
    def pending(self) -> int:
        """Bytes of a frame that is not complete."""
        return len(self._buffer)
