"""What people type: durations, sizes, selectors, grids, version specifiers; and text as it travels.

Owns the grammar of each, both ways (parse and format). Pure: every parser takes text and raises UsageError with the
accepted form in the message. Called by the client (options), the manager (validation, views) and the worker (indices,
grids, versions).
"""

from __future__ import annotations

from .errors import UsageError
from .records import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import re
    from collections.abc import Callable, Sequence
    from typing import Any

MAX_TASKS = 10_000_000  # of one job
MAX_INDEX = 10**15  # far below 2^63: an index is an SQLite integer and survives any JSON reader
MAX_GRID_VALUES = 100_000  # of one name: the values are listed in the job's spec
MAX_DURATION_S = 100 * 366 * 86_400.0

# Patterns stay texts, compiled at their first use: most commands need none, and importing re takes 5 ms.
_CONTROL = "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]"
_DURATION = r"(?:([0-9]{1,9})d)?(?:([0-9]{1,9})h)?(?:([0-9]{1,9})m)?(?:([0-9]{1,12}(?:\.[0-9]{1,9})?)s)?"
_PLAIN_DURATION = r"([0-9]{1,12}(?:\.[0-9]{1,9})?)([smhd]?)"
_UNIT_S = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_SIZE = r"(?i)([0-9]{1,18}(?:\.[0-9]{1,6})?)([kmgtp]?)(?:i?b)?"
_GRID_NAME = r"[A-Za-z_][A-Za-z0-9_-]{0,99}"
_NUMBER = r"-?[0-9]{1,15}(?:\.[0-9]{1,12})?"
_GRID_RANGE = rf"({_NUMBER})\.\.({_NUMBER})(?:\.\.({_NUMBER}))?"
_VERSION = r"v?([0-9]{1,9}(?:\.[0-9]{1,9}){0,7})(?:[._-]?(a|b|c|rc)[._-]?([0-9]{1,9})?)?\+?"
_SPECIFIER = r"(~=|===|==|!=|<=|>=|<|>)\s*([0-9A-Za-z.+_-]+(?:\.\*)?)"


def _match(pattern: str, text: str) -> re.Match[str] | None:
    import re

    return re.fullmatch(pattern, text, re.ASCII)


def shown(text: str) -> str:
    """The text quoted for a message: short, and no control characters."""
    return ascii(text if len(text) <= 60 else text[:57] + "...")


def hold_text(text: str) -> str:
    """The text with control and direction characters shown as escapes: safe for a terminal and for one line."""
    if text.isprintable():
        return text
    import re

    return re.sub(_CONTROL, lambda found: found.group().encode("unicode_escape").decode("ascii"), text)


# -- durations and sizes ----------------------------------------------------------------------------------------------


def parse_duration(text: str) -> float:
    """Seconds of `90`, `90s`, `10m`, `2h`, `1d`, `1h30m`, also `0.5`, `1.5h`."""
    seconds = -1.0
    plain = _match(_PLAIN_DURATION, text)
    parts = _match(_DURATION, text)
    if plain:
        seconds = float(plain.group(1)) * _UNIT_S[plain.group(2)]
    elif text and parts:
        seconds = sum(float(part or 0) * unit for part, unit in zip(parts.groups(), (86_400.0, 3600.0, 60.0, 1.0)))
    if not 0 <= seconds <= MAX_DURATION_S:
        raise UsageError(f"not a duration: {shown(text)} (use 90, 90s, 10m, 2h, 1d or 1h30m)")
    return seconds


def format_duration(seconds: float) -> str:
    """Seconds for people, short: `0.4s`, `12s`, `1m03s`, `2h05m`, `3d04h`."""
    if seconds < 9.95:
        return f"{max(seconds, 0.0):.1f}s"
    total = round(seconds)
    if total < 60:
        return f"{total}s"
    if total < 3600:
        return f"{total // 60}m{total % 60:02d}s"
    if total < 86_400:
        return f"{total // 3600}h{total % 3600 // 60:02d}m"
    return f"{total // 86_400}d{total % 86_400 // 3600:02d}h"


def parse_size(text: str) -> int:
    """Bytes of `4096`, `64K`, `512M`, `4G`, `1.5T` (powers of 1024)."""
    found = _match(_SIZE, text)
    size = -1
    if found:
        size = int(float(found.group(1)) * 1024 ** " kmgtp".index(found.group(2).lower() or " "))
        if "." not in found.group(1) and not found.group(2):
            size = int(found.group(1))  # exact: a float has 53 bits
    if not 0 <= size < 2**62:
        raise UsageError(f"not a size: {shown(text)} (use bytes, or 64K, 512M, 4G)")
    return size


def format_size(size_bytes: float) -> str:
    """Bytes for people: `0`, `512`, `1.5K`, `20M`, `4.0G`."""
    size = float(size_bytes)
    for unit in ("", "K", "M", "G", "T"):
        if size < 1000 or unit == "T":
            return f"{size:.0f}" if not unit else f"{size:.1f}{unit}" if size < 9.95 else f"{size:.0f}{unit}"
        size /= 1024
    raise AssertionError("unreachable")


# -- selectors --------------------------------------------------------------------------------------------------------


class Selector(NamedTuple):
    """An ID as typed: a job, jobs `job`..`to`, or the tasks with an index from `lo` to `hi`."""

    job: int | str  # an id, or "last"
    to: int | None = None
    lo: int | None = None
    hi: int | None = None

    @property
    def one_task(self) -> bool:
        return self.lo is not None and self.lo == self.hi

    @property
    def text(self) -> str:
        if self.to is not None:
            return f"{self.job}-{self.to}"
        if self.lo is None:
            return str(self.job)
        return f"{self.job}.{self.lo}" if self.one_task else f"{self.job}.{self.lo}-{self.hi}"

    def wire(self) -> dict[str, Any]:
        if self.to is not None:
            return {"job": self.job, "to": self.to}
        return {"job": self.job, "lo": self.lo, "hi": self.hi}


def parse_selector(text: str) -> Selector:
    """From `7`, `7.3`, `7-9`, `7.0-99`, `last` (also `last.3`)."""
    problem = UsageError(f"not an id: {shown(text)} (use 7, 7.3, 7-9, 7.0-99 or last)")
    jobs, dot, indexes = text.partition(".")
    first, dash, last = (indexes if dot else jobs).partition("-")
    job: int | str | None = "last" if (jobs if dot else first) == "last" else _natural(jobs if dot else first)
    low = _natural(first) if dot else None
    high = _natural(last) if dash else low
    if not job or (dot and low is None) or (dash and high is None):
        raise problem
    if dot:
        if low is None or high is None or not low <= high <= MAX_INDEX:
            raise problem
        return Selector(job, None, low, high)
    if high is not None and (isinstance(job, str) or high < job):
        raise problem
    return Selector(job, high)


def _natural(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 18 else None


# -- small values -----------------------------------------------------------------------------------------------------


def at_least(least: int, most: int = 10**15) -> Callable[[str], int]:
    """A parser of whole numbers from `least` to `most`."""

    def parse(text: str) -> int:
        digits = text[1:] if text[:1] in ("-", "+") else text
        value = int(text) if digits.isascii() and digits.isdecimal() and len(digits) < 20 else least - 1
        if not least <= value <= most:
            span = f"from {least} on" if most == 10**15 else f"from {least} to {most}"
            raise UsageError(f"not a whole number {span}: {shown(text)}")
        return value

    return parse


def parse_label(text: str) -> str:
    """A label of a worker, as `gpu` or `os=linux`."""
    good = 0 < len(text) <= 200 and text.isascii() and all(c.isalnum() or c in "._=+:/@-" for c in text)
    if not good or not text[0].isalnum():
        raise UsageError(f"not a label: {shown(text)} (letters, digits, . _ = + : / @ -)")
    return text


def parse_resource(text: str) -> tuple[str, int]:
    """From `licence=2`."""
    name, _, number = text.partition("=")
    good = 0 < len(name) <= 64 and name.isascii() and name[0].isalnum() and all(c.isalnum() or c in "._-" for c in name)
    if not good or not (number.isascii() and number.isdecimal() and len(number) < 16):
        raise UsageError(f"not NAME=N: {shown(text)} (for example --resource licence=2)")
    return name, int(number)


# -- grids ------------------------------------------------------------------------------------------------------------


def parse_grid(text: str) -> tuple[str, list[str]]:
    """Name and values of `lr=0.1,0.01`, `seed=1..9`, `x=0..1..0.1` (ranges include their end, and stay exact)."""
    name, equals, listed = text.partition("=")
    form = "use NAME=V1,V2,.. or NAME=1..9 or NAME=0..1..0.1"
    if not equals or not _match(_GRID_NAME, name):
        raise UsageError(f"not a grid: {shown(text)} ({form})")
    values: list[str] = []
    for part in listed.split(","):
        found = _match(_GRID_RANGE, part)
        if not part:
            raise UsageError(f"an empty value in the grid {shown(text)} ({form})")
        values += _grid_range(text, *found.groups()) if found else [part]
        if len(values) > MAX_GRID_VALUES:
            raise UsageError(f"more than {MAX_GRID_VALUES:,} values in the grid {shown(text)}")
    return name, values


def _grid_range(text: str, first: str, last: str, step: str | None) -> list[str]:
    """Whole-number arithmetic on the shifted decimals: 0..1..0.1 has 11 exact values, written as `seq` writes them."""
    places = max(len(part.partition(".")[2]) for part in (first, last, step or ""))

    def shifted(number: str) -> int:
        whole, _, fraction = number.partition(".")
        return int(whole + fraction.ljust(places, "0"))

    low, high = shifted(first), shifted(last)
    stride = abs(shifted(step or "1"))
    if not stride:
        raise UsageError(f"the step is 0 in the grid {shown(text)}")
    if abs(high - low) // stride >= MAX_GRID_VALUES:
        raise UsageError(f"more than {MAX_GRID_VALUES:,} values in the grid {shown(text)}")
    numbers = range(low, high + 1, stride) if low <= high else range(low, high - 1, -stride)
    if not places:
        return [str(number) for number in numbers]
    return [f"{'-' if n < 0 else ''}{abs(n) // 10**places}.{abs(n) % 10**places:0{places}d}" for n in numbers]


def grid_count(grid: Sequence[Sequence[Any]]) -> int:
    """How many combinations a spec's grid has."""
    count = 1
    for _, values in grid:
        count *= len(values)
    return count


def grid_at(grid: Sequence[Sequence[Any]], position: int) -> list[tuple[str, str]]:
    """The (name, value) pairs of a combination; the last name runs fastest."""
    pairs: list[tuple[str, str]] = []
    for name, values in reversed(grid):
        position, which = divmod(position, len(values))
        pairs.append((name, values[which]))
    return pairs[::-1]


def grid_variable(name: str) -> str:
    """The environment variable of a grid's name: MICROCLUSTER_ and the name in capitals, other characters as _."""
    return "MICROCLUSTER_" + "".join(c if c.isascii() and c.isalnum() else "_" for c in name.upper())


# -- versions ---------------------------------------------------------------------------------------------------------


def _version_key(text: str) -> tuple[list[int], tuple[int, int]]:
    found = _match(_VERSION, text)
    if not found:
        raise UsageError(f"not a Python version: {shown(text)} (use for example >=3.9 or ==3.12.*)")
    release = [int(part) for part in found.group(1).split(".")]
    while len(release) > 1 and release[-1] == 0:
        release.pop()
    stage = {"a": 0, "b": 1, "c": 2, "rc": 2}.get(found.group(2) or "", 3)
    return release, (stage, int(found.group(3) or 0))


def _clauses(specifier: str) -> list[tuple[str, str]]:
    clauses: list[tuple[str, str]] = []
    for part in specifier.split(","):
        found = _match(_SPECIFIER, part.strip())
        if not found and part.strip():
            raise UsageError(f"not a version specifier: {shown(specifier)} (use for example >=3.9,<3.13)")
        if found:
            operator, version = found.groups()
            wild = version.endswith(".*")
            _version_key(version[:-2] if wild else version)
            if (wild and operator not in ("==", "!=")) or (operator == "~=" and "." not in version):
                raise UsageError(f"not a version specifier: {shown(specifier)}: {operator} {version}")
            clauses.append((operator, version))
    return clauses


def check_specifier(specifier: str) -> None:
    """Raises UsageError unless the text is a specifier that `version_matches` understands."""
    _clauses(specifier)


def version_matches(specifier: str, version: str) -> bool:
    """Whether an interpreter's version (`3.12.1`, `3.14.0rc1`) fits a requires-python specifier (PEP 440)."""
    return all(_clause_matches(operator, wanted, version) for operator, wanted in _clauses(specifier))


def _prefixed(version: str, prefix: str) -> bool:
    have = (_match(_VERSION, version) or [version, version])[1].split(".")
    want = prefix.lstrip("v").split(".")
    have += ["0"] * (len(want) - len(have))
    return [int(part) for part in have[: len(want)]] == [int(part) for part in want]


def _clause_matches(operator: str, wanted: str, version: str) -> bool:
    if wanted.endswith(".*"):
        return _prefixed(version, wanted[:-2]) == (operator == "==")
    have, want = _version_key(version), _version_key(wanted)
    if operator == "~=":
        release = wanted.split(".")[:-1] if want[1][0] == 3 else (_match(_VERSION, wanted) or "")[1].split(".")[:-1]
        return have >= want and _prefixed(version, ".".join(release))
    if operator == "<":  # 3.14.0rc1 is not < 3.14
        return have < want and not (have[0] == want[0] and want[1][0] == 3)
    return {
        "==": have == want,
        "===": version == wanted,
        "!=": have != want,
        "<=": have <= want,
        ">=": have >= want,
        ">": have > want,
    }[operator]


# -- text on the wire -------------------------------------------------------------------------------------------------


def to_wire(text: str) -> Any:
    """A str as JSON can carry it: itself, or {"b64": its bytes} when it stands for bytes that are not UTF-8."""
    try:
        text.encode("utf-8")
        return text
    except UnicodeEncodeError:
        try:
            raw = text.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            raise UsageError(f"not text that a program can be given: {shown(text)}") from None
        import base64

        return {"b64": base64.b64encode(raw).decode("ascii")}


def from_wire(value: Any) -> str:
    """The str of `to_wire`'s value (bytes as surrogate escapes); raises UsageError for anything else."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict) and len(value) == 1 and isinstance(value.get("b64"), str):
        import base64

        try:
            return base64.b64decode(value["b64"], validate=True).decode("utf-8", "surrogateescape")
        except ValueError:
            pass
    raise UsageError(f"not a text value: {shown(repr(value))}")
