"""A set of task positions as sorted, disjoint half-open ranges: ten million queued tasks are one pair of numbers."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator


class RangeSet:
    """Ordered set of ints; cost grows with the number of ranges, not with the numbers in them."""

    __slots__ = ("_ends", "_size", "_starts")

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._size = 0
        for lo, hi in ranges:
            self.add(lo, hi)

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[int]:
        for lo, hi in self.ranges():
            yield from range(lo, hi)

    def __contains__(self, pos: int) -> bool:
        at = bisect_right(self._starts, pos) - 1
        return at >= 0 and pos < self._ends[at]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RangeSet) and self._starts == other._starts and self._ends == other._ends

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"RangeSet({self.ranges()})"

    def ranges(self) -> list[tuple[int, int]]:
        """The ranges [lo, hi), ascending."""
        return list(zip(self._starts, self._ends))

    def first(self) -> int:
        """The smallest member; IndexError when empty."""
        return self._starts[0]

    def add(self, lo: int, hi: int) -> None:
        """Add lo..hi-1; what is there already stays."""
        if lo >= hi:
            return
        left = bisect_left(self._ends, lo)  # the first range that touches or follows lo
        right = bisect_right(self._starts, hi)  # past the last range that touches or precedes hi
        if left < right:
            lo = min(lo, self._starts[left])
            hi = max(hi, self._ends[right - 1])
            self._size -= sum(self._ends[i] - self._starts[i] for i in range(left, right))
        self._starts[left:right] = [lo]
        self._ends[left:right] = [hi]
        self._size += hi - lo

    def remove(self, lo: int, hi: int) -> None:
        """Take out lo..hi-1, as far as they are there."""
        left = bisect_right(self._ends, lo)
        right = bisect_left(self._starts, hi)
        if lo >= hi or left >= right:
            return
        pieces = [
            (start, end)
            for start, end in ((self._starts[left], lo), (hi, self._ends[right - 1]))
            if start < end and (start, end) != (lo, hi)
        ]
        self._size -= sum(self._ends[i] - self._starts[i] for i in range(left, right))
        self._size += sum(end - start for start, end in pieces)
        self._starts[left:right] = [start for start, _ in pieces]
        self._ends[left:right] = [end for _, end in pieces]

    def discard(self, pos: int) -> None:
        """Take out one; the quick way for the first member."""
        if self._starts and self._starts[0] == pos:
            self._size -= 1
            if self._ends[0] == pos + 1:
                del self._starts[0], self._ends[0]
            else:
                self._starts[0] = pos + 1
        else:
            self.remove(pos, pos + 1)

    def within(self, lo: int, hi: int) -> list[tuple[int, int]]:
        """The parts of the ranges that lie in [lo, hi)."""
        left = bisect_right(self._ends, lo)
        right = bisect_left(self._starts, hi)
        return [(max(self._starts[i], lo), min(self._ends[i], hi)) for i in range(left, right)]
