"""What people type: durations, sizes, index specs, selectors, grids, version specifiers; and text as it travels.

Owns the grammar of each, both ways (parse and format). Pure: every parser takes text and raises UsageError with the
accepted form in the message. Called by the client (options), the manager (validation, views) and the worker (indices,
grids, versions).
"""

from __future__ import annotations

import base64
import binascii
import functools
import math
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from .errors import UsageError

MAX_TASKS = 10_000_000  # of one job
MAX_INDEX = 10**15  # far below 2^63: an index is an SQLite integer and survives any JSON reader
MAX_OVERLAPPING = 1_000  # ranges that interleave are compared in pairs; this bounds the work for a hostile spec
MAX_GRID_VALUES = 100_000  # of one name: the values are listed in the job's spec
MAX_DURATION_S = 100 * 366 * 86_400.0

# Patterns stay texts, compiled at their first use: most commands need two of them, and compiling all takes 2 ms.
_DURATION = r"(?:([0-9]{1,9})d)?(?:([0-9]{1,9})h)?(?:([0-9]{1,9})m)?(?:([0-9]{1,12}(?:\.[0-9]{1,9})?)s)?"
_PLAIN_DURATION = r"([0-9]{1,12}(?:\.[0-9]{1,9})?)([smhd]?)"
_UNIT_S = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_SIZE = r"(?ai)([0-9]{1,18}(?:\.[0-9]{1,6})?)([kmgtp]?)(?:i?b)?"
_RANGE = r"([0-9]{1,16})(?:-([0-9]{1,16})(?::([0-9]{1,16}))?)?"
_SELECTOR = r"(last|[0-9]{1,18})(?:-([0-9]{1,18})|\.([0-9]{1,16})(?:-([0-9]{1,16}))?)?"
_GRID_NAME = r"[A-Za-z_][A-Za-z0-9_-]{0,99}"
_NUMBER = r"-?[0-9]{1,15}(?:\.[0-9]{1,12})?"
_GRID_RANGE = rf"({_NUMBER})\.\.({_NUMBER})(?:\.\.({_NUMBER}))?"
_VERSION = r"v?([0-9]{1,9}(?:\.[0-9]{1,9}){0,7})(?:[._-]?(a|b|c|rc)[._-]?([0-9]{1,9})?)?\+?"
_SPECIFIER = r"(~=|===|==|!=|<=|>=|<|>)\s*([0-9A-Za-z.+_-]+(?:\.\*)?)"


def shown(text: str) -> str:
    """The text quoted for a message: short, and no control characters."""
    return ascii(text if len(text) <= 60 else text[:57] + "...")


# -- durations and sizes ----------------------------------------------------------------------------------------------


def parse_duration(text: str) -> float:
    """Seconds of `90`, `90s`, `10m`, `2h`, `1d`, `1h30m`, also `0.5`, `1.5h`."""
    seconds = -1.0
    plain = re.fullmatch(_PLAIN_DURATION, text)
    parts = re.fullmatch(_DURATION, text)
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
    found = re.fullmatch(_SIZE, text)
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


# -- indices of an array ----------------------------------------------------------------------------------------------


class _Span(NamedTuple):
    """One range of an index spec; `last` is an element."""

    first: int
    last: int
    step: int

    @property
    def size(self) -> int:
        return (self.last - self.first) // self.step + 1

    def up_to(self, index: int) -> int:
        """How many elements are at most `index`."""
        return 0 if index < self.first else (min(index, self.last) - self.first) // self.step + 1

    def has(self, index: int) -> bool:
        return self.first <= index <= self.last and (index - self.first) % self.step == 0


def _common(one: _Span, two: _Span) -> int | None:
    """The smallest index in both spans (Chinese remainder), or None."""
    low, high = max(one.first, two.first), min(one.last, two.last)
    divisor = math.gcd(one.step, two.step)
    if low > high or (two.first - one.first) % divisor:
        return None
    period = two.step // divisor
    times = (two.first - one.first) // divisor * pow(one.step // divisor, -1, period) % period if period > 1 else 0
    lcm = one.step // divisor * two.step
    candidate = one.first + times * one.step
    candidate += -((candidate - low) // lcm) * lcm
    return candidate if candidate <= high else None


class Indexes:
    """The indices of an array in ascending order, never listed: position <-> index by arithmetic.

    Immutable. Positions run from 0 to len-1 in index order, so that an index range is always a position range.
    """

    __slots__ = ("text", "_groups", "_starts", "_lows", "_count")

    def __init__(self, spans: Sequence[tuple[int, int, int]], text: str) -> None:
        self.text = text
        self._groups: list[list[_Span]] = []
        high = -1
        for span in sorted(_Span(*each) for each in spans):
            if span.first > high:
                self._groups.append([])
            self._groups[-1].append(span)
            high = max(high, span.last)
        self._starts: list[int] = []
        self._lows = [group[0].first for group in self._groups]
        self._count = 0
        for group in self._groups:
            self._starts.append(self._count)
            self._count += sum(span.size for span in group)

    @classmethod
    def parse(cls, text: str) -> Indexes:
        """From `0-99`, `1-9:2`, `1,5,7` or a mixture; raises UsageError, also for an index given twice."""
        return _parse_indexes(text)

    @classmethod
    def first(cls, count: int) -> Indexes:
        """0 .. count-1."""
        return cls([(0, count - 1, 1)] if count else [], f"0-{count - 1}" if count > 1 else "0")

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[int]:
        return (self.at(position) for position in range(self._count))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Indexes) and self._groups == other._groups

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return f"Indexes({self.text if len(self.text) < 60 else self.text[:57] + '...'}: {self._count})"

    def at(self, position: int) -> int:
        """The index at a position; raises IndexError."""
        if not 0 <= position < self._count:
            raise IndexError(position)
        which = bisect_right(self._starts, position) - 1
        group, offset = self._groups[which], position - self._starts[which]
        if len(group) == 1:
            return group[0].first + offset * group[0].step
        low, high = group[0].first, max(span.last for span in group)
        while low < high:  # the smallest index with more than `offset` elements up to it
            middle = (low + high) // 2
            if sum(span.up_to(middle) for span in group) > offset:
                high = middle
            else:
                low = middle + 1
        return low

    def position(self, index: int) -> int | None:
        """The position of an index, or None when the array has no such index."""
        which = bisect_right(self._lows, index) - 1
        if which < 0 or not any(span.has(index) for span in self._groups[which]):
            return None
        return self._up_to(index) - 1

    def span(self, low: int, high: int) -> tuple[int, int] | None:
        """First and last position of the indices in low..high, or None when there are none."""
        first, last = self._up_to(low - 1), self._up_to(high) - 1
        return (first, last) if first <= last else None

    def _up_to(self, index: int) -> int:
        which = bisect_right(self._lows, index) - 1
        return 0 if which < 0 else self._starts[which] + sum(span.up_to(index) for span in self._groups[which])


def _refuse_twice(indexes: Indexes) -> None:
    for group in indexes._groups:
        if len(group) > MAX_OVERLAPPING:
            raise UsageError(f"more than {MAX_OVERLAPPING} ranges of the array overlap; write it with fewer")
        for number, one in enumerate(group):
            for two in group[number + 1 :]:
                if two.first > one.last:
                    break  # sorted by first
                index = _common(one, two)
                if index is not None:
                    raise UsageError(f"index {index} is twice in the array {shown(indexes.text)}")


@functools.lru_cache(maxsize=256)
def _parse_indexes(text: str) -> Indexes:
    spans: list[tuple[int, int, int]] = []
    count = 0
    form = "use 0-99, 1-9:2 or 1,5,7"
    for part in text.split(","):
        found = re.fullmatch(_RANGE, part.strip(" "))
        if not found:
            raise UsageError(f"not an array: {shown(text)} ({form})")
        low = int(found.group(1))
        high = int(found.group(2) or low)
        step = int(found.group(3) or 1)
        if high < low or not step or high > MAX_INDEX:
            why = f"an index is at most {MAX_INDEX}" if high > MAX_INDEX else f"the range {part.strip()} is empty"
            raise UsageError(f"not an array: {shown(text)}: {why if step else 'the step is 0'} ({form})")
        span = _Span(low, low + (high - low) // step * step, step)
        count += span.size
        spans.append(span if span.size > 1 else _Span(low, low, 1))
    if count > MAX_TASKS:
        raise UsageError(f"the array {shown(text)} has {count:,} tasks; at most {MAX_TASKS:,} are allowed")
    indexes = Indexes(spans, ",".join(part.strip(" ") for part in text.split(",")))
    _refuse_twice(indexes)
    return indexes


def spec_indices(spec: dict[str, Any]) -> Indexes:
    """The user-visible indices of a job spec: those of its array, else 0 .. count-1."""
    array = spec.get("array")
    return _parse_indexes(array) if array is not None else _first(int(spec.get("count", 1)))


@functools.lru_cache(maxsize=256)
def _first(count: int) -> Indexes:
    return Indexes.first(count)


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
    found = re.fullmatch(_SELECTOR, text)
    problem = f"not an id: {shown(text)} (use 7, 7.3, 7-9, 7.0-99 or last)"
    if not found:
        raise UsageError(problem)
    job: int | str = found.group(1) if found.group(1) == "last" else int(found.group(1))
    to, lo, hi = (None if part is None else int(part) for part in found.groups()[1:])
    if job == 0 or (to is not None and (job == "last" or not isinstance(job, int) or to < job)):
        raise UsageError(problem)
    if lo is not None and hi is None:
        hi = lo
    if lo is not None and hi is not None and (hi < lo or hi > MAX_INDEX):
        raise UsageError(problem)
    return Selector(job, to, lo, hi)


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
    if not equals or not re.fullmatch(_GRID_NAME, name):
        raise UsageError(f"not a grid: {shown(text)} ({form})")
    values: list[str] = []
    for part in listed.split(","):
        found = re.fullmatch(_GRID_RANGE, part)
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
    return math.prod(len(values) for _, values in grid)


def grid_at(grid: Sequence[Sequence[Any]], position: int) -> list[tuple[str, str]]:
    """The (name, value) pairs of a combination; the last name runs fastest."""
    pairs: list[tuple[str, str]] = []
    for name, values in reversed(grid):
        position, which = divmod(position, len(values))
        pairs.append((name, values[which]))
    return pairs[::-1]


def grid_variable(name: str) -> str:
    """The environment variable of a grid's name: MICROCLUSTER_ and the name in capitals, other characters as _."""
    return "MICROCLUSTER_" + re.sub(r"[^A-Z0-9]", "_", name.upper())


# -- versions ---------------------------------------------------------------------------------------------------------


def _version_key(text: str) -> tuple[list[int], tuple[int, int]]:
    found = re.fullmatch(_VERSION, text)
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
        found = re.fullmatch(_SPECIFIER, part.strip())
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
    have = (re.fullmatch(_VERSION, version) or [version, version])[1].split(".")
    want = prefix.lstrip("v").split(".")
    have += ["0"] * (len(want) - len(have))
    return [int(part) for part in have[: len(want)]] == [int(part) for part in want]


def _clause_matches(operator: str, wanted: str, version: str) -> bool:
    if wanted.endswith(".*"):
        return _prefixed(version, wanted[:-2]) == (operator == "==")
    have, want = _version_key(version), _version_key(wanted)
    if operator == "~=":
        release = (
            wanted.split(".")[:-1] if want[1][0] == 3 else (re.fullmatch(_VERSION, wanted) or "")[1].split(".")[:-1]
        )
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
        return {"b64": base64.b64encode(raw).decode("ascii")}


def from_wire(value: Any) -> str:
    """The str of `to_wire`'s value (bytes as surrogate escapes); raises UsageError for anything else."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict) and len(value) == 1 and isinstance(value.get("b64"), str):
        try:
            return base64.b64decode(value["b64"], validate=True).decode("utf-8", "surrogateescape")
        except (binascii.Error, ValueError):
            pass
    raise UsageError(f"not a text value: {shown(repr(value))}")
