"""RangeSet against a plain set, over many seeded operations."""

from __future__ import annotations

import random
import unittest

from src.core.ranges import RangeSet


class RangeSetTest(unittest.TestCase):
    def test_behaves_like_a_set(self) -> None:
        for seed in range(200):
            chance = random.Random(seed)
            mine, plain = RangeSet(), set()
            for _ in range(60):
                lo = chance.randrange(40)
                hi = lo + chance.randrange(12)
                action = chance.choice(("add", "remove", "discard", "first"))
                if action == "add":
                    mine.add(lo, hi)
                    plain |= set(range(lo, hi))
                elif action == "remove":
                    mine.remove(lo, hi)
                    plain -= set(range(lo, hi))
                elif action == "discard":
                    mine.discard(lo)
                    plain.discard(lo)
                elif plain:
                    self.assertEqual(mine.first(), min(plain), seed)
                    mine.discard(mine.first())
                    plain.discard(min(plain))
                self.assertEqual(list(mine), sorted(plain), seed)
                self.assertEqual(len(mine), len(plain), seed)
                self.assertEqual(RangeSet(mine.ranges()), mine)
                self.assertEqual(lo in mine, lo in plain)
                inside = [pos for a, b in mine.within(lo, hi) for pos in range(a, b)]
                self.assertEqual(inside, sorted(plain & set(range(lo, hi))), seed)
            ranges = mine.ranges()
            self.assertTrue(all(a[1] < b[0] for a, b in zip(ranges, ranges[1:])), "touching ranges are one")

    def test_ten_million_are_one_range(self) -> None:
        positions = RangeSet([(0, 10_000_000)])
        positions.discard(0)
        self.assertEqual((positions.ranges(), len(positions)), ([(1, 10_000_000)], 9_999_999))
