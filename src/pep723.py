"""Inline script metadata (PEP 723): the `# /// script` block, its requires-python and dependencies."""

from __future__ import annotations

import re
import sys
from typing import Any, NamedTuple

from .core.errors import UsageError

_BLOCK = re.compile(r"(?m)^# /// (?P<type>[a-zA-Z0-9-]+)$\s(?P<content>(^#(| .*)$\s)+)^# ///$")


class Metadata(NamedTuple):
    """What a script says that it needs."""

    requires_python: str | None
    dependencies: list[str]


def read(source: bytes) -> Metadata | None:
    """The metadata of a script, or None without any. Raises UsageError for a block that cannot be understood."""
    if b"# /// script" not in source:
        return None
    text = source.decode("utf-8", "replace").replace("\r\n", "\n")
    blocks = [found for found in _BLOCK.finditer(text) if found.group("type") == "script"]
    if not blocks:
        return None
    if len(blocks) > 1:
        raise UsageError("the script has two `# /// script` blocks; one is allowed")
    lines = blocks[0].group("content").splitlines()
    content = "\n".join(line[2:] if line.startswith("# ") else line[1:] for line in lines) + "\n"
    values = _load(content)
    python, needs = values.get("requires-python"), values.get("dependencies", [])
    if python is not None and not isinstance(python, str):
        raise UsageError("requires-python of the script's metadata is not a text")
    if not isinstance(needs, list) or not all(isinstance(need, str) and "\n" not in need for need in needs):
        raise UsageError("dependencies of the script's metadata are not a list of texts")
    return Metadata(python, needs)


def _load(text: str) -> dict[str, Any]:
    if sys.version_info < (3, 11):
        return small_toml(text)
    import tomllib  # type: ignore[import-not-found]  # 3.11; the type check speaks for 3.10

    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"the script's metadata is not TOML: {error}") from None


_KEY = re.compile(r"(?P<key>[A-Za-z0-9_-]+)\s*=\s*")
_STRING = re.compile(r'"(?P<basic>(?:[^"\\\n]|\\.)*)"|\'(?P<literal>[^\'\n]*)\'')
_GAP = re.compile(r"(?:\s|#[^\n]*)*")


def small_toml(text: str) -> dict[str, Any]:
    """The part of TOML that such blocks use, for Pythons without tomllib: keys with a text or a list of texts. Tables
    (`[tool.x]` and what follows) are passed over. Anything else before them raises UsageError."""
    found: dict[str, Any] = {}
    at = 0
    while True:
        at = _gap(text, at)
        if at >= len(text) or text[at] == "[":
            return found
        key = _KEY.match(text, at)
        if key is None:
            raise UsageError(f"the script's metadata is not understood at: {text[at:].splitlines()[0]!r}")
        at = key.end()
        if text.startswith("[", at):
            found[key.group("key")], at = _texts(text, at + 1)
        else:
            found[key.group("key")], at = _text(text, at)


def _gap(text: str, at: int) -> int:
    gap = _GAP.match(text, at)
    return gap.end() if gap else at


def _text(text: str, at: int) -> tuple[str, int]:
    value = _STRING.match(text, at)
    if value is None:
        raise UsageError(f"the script's metadata is not understood at: {text[at:].splitlines()[0]!r}")
    basic = value.group("basic")
    if basic is None:
        return value.group("literal"), value.end()
    return basic.encode("latin-1", "backslashreplace").decode("unicode_escape"), value.end()


def _texts(text: str, at: int) -> tuple[list[str], int]:
    values: list[str] = []
    while True:
        at = _gap(text, at)
        if text.startswith("]", at):
            return values, at + 1
        value, at = _text(text, at)
        values.append(value)
        at = _gap(text, at)
        if text.startswith(",", at):
            at += 1
        elif not text.startswith("]", at):
            raise UsageError("a list in the script's metadata does not end")
