"""What people type, both ways."""

from __future__ import annotations

import random
import unittest
from typing import Any

from src.core import indexes, syntax
from src.core.errors import UsageError
from src.core.indexes import Indexes
from src.core.syntax import parse_duration, parse_grid, parse_selector, parse_size, version_matches


class Durations(unittest.TestCase):
    def test_every_form_of_the_contract(self) -> None:
        forms = {
            "90": 90,
            "90s": 90,
            "10m": 600,
            "2h": 7200,
            "1d": 86400,
            "1h30m": 5400,
            "0": 0,
            "0.5": 0.5,
            "1.5h": 5400,
        }
        for text, seconds in forms.items():
            self.assertEqual(parse_duration(text), seconds, text)

    def test_anything_else_is_refused_with_the_form(self) -> None:
        for text in ("", "m", "-1", "1h30", "30m1h", "1m1m", "nan", "inf", "1e3", "٣", " 1", "9" * 12 + "d", "1_0"):
            with self.assertRaisesRegex(UsageError, "use 90, 90s, 10m"):
                parse_duration(text)

    def test_shown_short(self) -> None:
        shown = {
            0.04: "0.0s",
            0.42: "0.4s",
            9.94: "9.9s",
            12: "12s",
            59.6: "1m00s",
            63: "1m03s",
            7500: "2h05m",
            273600: "3d04h",
        }
        for seconds, text in shown.items():
            self.assertEqual(syntax.format_duration(seconds), text)


class Sizes(unittest.TestCase):
    def test_every_form_of_the_contract(self) -> None:
        forms = {"0": 0, "100": 100, "64K": 65536, "512M": 512 << 20, "4G": 4 << 30, "1.5k": 1536, "2GiB": 2 << 30}
        for text, size in forms.items():
            self.assertEqual(parse_size(text), size, text)
        self.assertEqual(parse_size("123456789012345678"), 123456789012345678)

    def test_anything_else_is_refused(self) -> None:
        for text in ("", "K", "-1", "1X", "1 G", "1e9", "99999999999P"):
            with self.assertRaisesRegex(UsageError, "64K, 512M, 4G"):
                parse_size(text)

    def test_shown_short(self) -> None:
        shown = {0: "0", 999: "999", 1000: "1.0K", 1536: "1.5K", 20 << 20: "20M", 4 << 30: "4.0G", 5 << 50: "5120T"}
        for size, text in shown.items():
            self.assertEqual(syntax.format_size(size), text)


class Arrays(unittest.TestCase):
    def test_forms(self) -> None:
        self.assertEqual(list(Indexes.parse("0-4")), [0, 1, 2, 3, 4])
        self.assertEqual(list(Indexes.parse("1-9:2")), [1, 3, 5, 7, 9])
        self.assertEqual(list(Indexes.parse("7,1,5")), [1, 5, 7])
        self.assertEqual(list(Indexes.parse("20, 0-10:2,1-9:4")), [0, 1, 2, 4, 5, 6, 8, 9, 10, 20])
        self.assertEqual(list(Indexes.first(3)), [0, 1, 2])
        self.assertEqual(Indexes.parse(" 1, 5").text, "1,5")

    def test_position_and_at_agree_with_a_plain_list(self) -> None:
        random_ = random.Random(7)
        tried = 0
        while tried < 60:
            parts = [(random_.randrange(60), random_.randrange(30), random_.randrange(1, 7)) for _ in range(4)]
            plain = [index for low, extra, step in parts for index in range(low, low + extra + 1, step)]
            text = ",".join(f"{low}-{low + extra}:{step}" for low, extra, step in parts)
            if len(set(plain)) < len(plain):
                with self.assertRaisesRegex(UsageError, "twice"):
                    Indexes.parse(text)
                continue
            tried += 1
            plain.sort()
            indexes = Indexes.parse(text)
            self.assertEqual(list(indexes), plain, text)
            for index in range(-1, 100):
                self.assertEqual(indexes.position(index), plain.index(index) if index in plain else None, text)
            inside = [position for position, index in enumerate(plain) if 10 <= index <= 40]
            self.assertEqual(indexes.span(10, 40), (inside[0], inside[-1]) if inside else None, text)

    def test_ten_million_are_never_listed(self) -> None:
        indexes = Indexes.parse("0-9999999")
        self.assertEqual(
            (len(indexes), indexes.at(9_999_999), indexes.position(123_456)), (10_000_000, 9_999_999, 123_456)
        )
        woven = Indexes.parse("0-9999998:2,1-9999999:2")
        self.assertEqual((len(woven), woven.at(777), woven.position(9_999_999)), (10_000_000, 777, 9_999_999))

    def test_refused(self) -> None:
        for text in ("", "x", "5-3", "1-9:0", "1,", "1--2", "-1", "0-10000000", f"0-{10**16}", "1:2", "0-9:2:3"):
            with self.assertRaises(UsageError, msg=text):
                Indexes.parse(text)
        for text in ("1,1", "0-10:2,4", "0-10:3,1-10:4", "3,1-5"):
            with self.assertRaisesRegex(UsageError, "twice"):
                Indexes.parse(text)
        with self.assertRaisesRegex(UsageError, "overlap"):
            Indexes.parse(",".join(f"{low}-{low + 9_000_000}:9000" for low in range(1001)))

    def test_out_of_range_position(self) -> None:
        for position in (-1, 3):
            with self.assertRaises(IndexError):
                Indexes.parse("5-7").at(position)

    def test_of_a_spec(self) -> None:
        self.assertEqual(indexes.spec_indices({"array": "5-7", "count": 3}).at(0), 5)
        self.assertEqual(list(indexes.spec_indices({"array": None, "count": 2})), [0, 1])


class Selectors(unittest.TestCase):
    def test_forms_and_back(self) -> None:
        for text in ("7", "7.3", "7-9", "7.0-99", "last", "last.3"):
            self.assertEqual(parse_selector(text).text, text)
        self.assertEqual(parse_selector("7.3").wire(), {"job": 7, "lo": 3, "hi": 3})
        self.assertEqual(parse_selector("7-9").wire(), {"job": 7, "to": 9})
        self.assertEqual(parse_selector("last").wire(), {"job": "last", "lo": None, "hi": None})
        self.assertTrue(parse_selector("7.3").one_task)

    def test_refused(self) -> None:
        for text in ("", "x", "0", "-1", "7.", "9-7", "7.9-3", "last-3", "7.3.1", "7,8", "٧", "1" * 19):
            with self.assertRaisesRegex(UsageError, "use 7, 7.3"):
                parse_selector(text)


class Grids(unittest.TestCase):
    def test_values_and_ranges(self) -> None:
        self.assertEqual(parse_grid("lr=0.1,0.01,x y"), ("lr", ["0.1", "0.01", "x y"]))
        self.assertEqual(parse_grid("n=1..4,9"), ("n", ["1", "2", "3", "4", "9"]))
        self.assertEqual(parse_grid("n=0..1..0.25")[1], ["0.00", "0.25", "0.50", "0.75", "1.00"])
        self.assertEqual(len(parse_grid("n=0..1..0.1")[1]), 11)
        self.assertEqual(parse_grid("n=-0.5..0.5..0.5")[1], ["-0.5", "0.0", "0.5"])
        self.assertEqual(parse_grid("n=3..1")[1], ["3", "2", "1"])
        self.assertEqual(parse_grid("file=../a..b,c=d")[1], ["../a..b", "c=d"])

    def test_refused(self) -> None:
        for text in ("", "lr", "lr=", "=1", "lr=1,,2", "a b=1", "n=1..5..0", "n=0..99999999", "--n=1"):
            with self.assertRaises(UsageError, msg=text):
                parse_grid(text)

    def test_combinations_run_with_the_last_name_fastest(self) -> None:
        grid = [["a", ["1", "2"]], ["b", ["x", "y", "z"]]]
        self.assertEqual(syntax.grid_count(grid), 6)
        self.assertEqual(syntax.grid_at(grid, 1), [("a", "1"), ("b", "y")])
        self.assertEqual(syntax.grid_at(grid, 5), [("a", "2"), ("b", "z")])
        self.assertEqual(syntax.grid_variable("learning-rate"), "MICROCLUSTER_LEARNING_RATE")


class Versions(unittest.TestCase):
    def test_specifiers(self) -> None:
        fits = [(">=3.9", "3.9.18"), ("~=3.9", "3.13.0"), ("==3.12.*", "3.12.1"), ("==3.12", "3.12.0"), ("", "3.9.1")]
        fits += [(">=3.9,<3.13", "3.12.9"), ("!=3.12.*", "3.11.1"), (">=3.14.0rc1", "3.14.0"), ("===3.9.1", "3.9.1")]
        for specifier, version in fits:
            self.assertTrue(version_matches(specifier, version), (specifier, version))
        fails = [
            ("<3.14", "3.14.0rc1"),
            ("~=3.9.1", "3.10.0"),
            (">3.12", "3.12.0"),
            (">=3.10", "3.9.18"),
            ("!=3.9.*", "3.9.1"),
        ]
        for specifier, version in fails:
            self.assertFalse(version_matches(specifier, version), (specifier, version))

    def test_refused(self) -> None:
        for specifier in ("3.9", ">=", ">=x", "~=3", ">=3.*", "=>3.9", ">=3.9 <4"):
            with self.assertRaises(UsageError, msg=specifier):
                syntax.check_specifier(specifier)


class WireText(unittest.TestCase):
    def test_any_argument_survives(self) -> None:
        for raw in (b"", b"plain", "żółw\n".encode(), b"\xff\x00\xfe", bytes(range(256))):
            text = raw.decode("utf-8", "surrogateescape")
            self.assertEqual(syntax.from_wire(syntax.to_wire(text)), text)
        self.assertEqual(syntax.to_wire("\udcff"), {"b64": "/w=="})

    def test_nonsense_is_refused(self) -> None:
        values: list[Any] = [None, 3, [], {"b64": "*"}, {"b64": "AA==", "x": 1}, {"b64": 3}]
        for value in values:
            with self.assertRaises(UsageError):
                syntax.from_wire(value)
        with self.assertRaises(UsageError):
            syntax.to_wire("\ud800")


if __name__ == "__main__":
    unittest.main()
