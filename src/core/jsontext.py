"""JSON text without spaces, and back. Uses the C part of json alone where it can: json itself imports re, and both take a
client longer than reaching the manager. The fallback is json, and does the same.
"""

from __future__ import annotations

from .records import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    encode_basestring: Any
    make_encoder: Any
    make_scanner: Any
else:
    try:
        from _json import encode_basestring, make_encoder, make_scanner
    except ImportError:
        encode_basestring = make_encoder = make_scanner = None


def _unknown(value: Any) -> Any:
    raise TypeError(f"{type(value).__name__} is not a kind of JSON value")


def _encoder() -> Callable[[Any], str]:
    try:
        # no marks of what is visited, default, texts, no indent, separators, unsorted, no key left out, no NaN
        make = make_encoder(None, _unknown, encode_basestring, None, ":", ",", False, False, False)
    except TypeError:  # it is not there, or a later Python calls it differently
        import json

        return json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode
    return lambda value: "".join(make(value, 0))


class Decoder:
    """Decoder(..).decode(text) → value; raises ValueError, RecursionError. The hooks are those of json.JSONDecoder."""

    strict, object_hook = True, None  # the C scanner looks here

    def __init__(
        self,
        object_pairs_hook: Callable[[list[tuple[str, Any]]], Any],
        parse_int: Callable[[str], Any],
        parse_float: Callable[[str], Any],
        parse_constant: Callable[[str], Any],
    ) -> None:
        self.object_pairs_hook, self.parse_int = object_pairs_hook, parse_int
        self.parse_float, self.parse_constant = parse_float, parse_constant
        if make_scanner is None:
            import json

            self.decode = json.JSONDecoder(**vars(self)).decode  # type: ignore[method-assign,assignment]
        else:
            self._scan = make_scanner(self)

    def decode(self, text: str) -> Any:
        text = text.strip(" \t\n\r")
        try:
            value, end = self._scan(text, 0)
        except StopIteration:
            raise ValueError("a value is missing") from None
        if end != len(text):
            raise ValueError("there is more after the value")
        return value


encode = _encoder()
