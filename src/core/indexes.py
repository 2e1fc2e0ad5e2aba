"""The indices of an array, `0-99`, `1-9:2`, `1,5,7`: its grammar, and position <-> index by arithmetic. Pure."""

from __future__ import annotations

import functools
import math
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from .errors import UsageError
from .syntax import MAX_INDEX, MAX_TASKS, shown

MAX_OVERLAPPING = 1_000  # ranges that interleave are compared in pairs; this bounds the work for a hostile spec
_RANGE = re.compile(r"([0-9]{1,16})(?:-([0-9]{1,16})(?::([0-9]{1,16}))?)?", re.ASCII)


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
        found = _RANGE.fullmatch(part.strip(" "))
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
