"""Frames: however the bytes are cut, whatever they are."""

from __future__ import annotations

import json
import random
import struct
import unittest
from typing import Any

from src.core.framing import HEADER_MAX, Decoder, FrameError, encode, parse_header


class FramingTest(unittest.TestCase):
    def test_byte_by_byte_and_all_at_once(self) -> None:
        frames: list[tuple[dict[str, Any], bytes]] = [
            ({"t": "a", "x": "ü\n"}, b""),
            ({"t": "b", "n": [1, {"k": None}]}, b"\0payload" * 99),
            ({}, b"z"),
        ]
        stream = b"".join(encode(header, payload) for header, payload in frames)
        self.assertEqual(Decoder().feed(stream), frames)
        slow = Decoder()
        self.assertEqual([frame for at in range(len(stream)) for frame in slow.feed(stream[at : at + 1])], frames)
        self.assertEqual(slow.pending, 0)

    def test_cut_anywhere(self) -> None:
        stream = b"".join(encode({"n": n}, b"x" * n) for n in range(200))
        chance = random.Random(1)
        for _ in range(30):
            decoder, found, at = Decoder(), [], 0
            while at < len(stream):
                size = chance.choice((1, 3, 50, 4000))
                found += decoder.feed(stream[at : at + size])
                at += size
            self.assertEqual([header["n"] for header, _ in found], list(range(200)))

    def test_sizes_are_checked_before_the_bytes_come(self) -> None:
        for lengths in ((HEADER_MAX + 1, 0), (2, (1 << 20) + 1), (0xFFFFFFFF, 0xFFFFFFFF)):
            with self.assertRaises(FrameError):
                Decoder().feed(struct.pack(">II", *lengths))
        with self.assertRaises(FrameError):
            Decoder(1024, 0).feed(encode({"t": "x"}, b"y"))
        with self.assertRaises(FrameError):
            encode({"t": "x" * (HEADER_MAX + 1)})

    def test_only_strict_json_objects(self) -> None:
        bad = [
            b"[]", b"1", b'"x"', b"", b"{", b'{"a":1}x', b'{"a":NaN}', b'{"a":Infinity}', b'{"a":-Infinity}',
            b'{"a":1e999}', b'{"a":1,"a":2}', b'{"a":' + b"9" * 20 + b"}", b'{"a":"\\ud800"}', b'{"a":"\\u0000"}',
            b'{"a":"\xff"}', "{}".encode("utf-16"), b"\xef\xbb\xbf{}", b'{"a":' + b"[" * 40 + b"]" * 40 + b"}",
            b"[" * 100_000, b'{"a":' * 50_000,
        ]  # fmt: skip
        for raw in bad:
            with self.subTest(raw=raw[:40]), self.assertRaises(FrameError):
                parse_header(raw)
        for good in ({"a": "[[[[" * 40}, {"a": [[1], [2]] * 100}, {"a": '"' * 50 + "\\"}, {"é": -1.5}):
            self.assertEqual(parse_header(json.dumps(good).encode()), good)

    def test_random_bytes_never_do_worse_than_an_error(self) -> None:
        for seed in range(400):
            chance = random.Random(seed)
            raw = bytearray(encode({"t": "submit", "n": 1, "ids": [{"job": 1}], "x": "é\n"}, b"abc"))
            for _ in range(chance.randrange(1, 6)):
                raw[chance.randrange(len(raw))] = chance.randrange(256)
            try:
                for header, _ in Decoder().feed(bytes(raw)):
                    self.assertIs(type(header), dict)
            except FrameError:
                pass
