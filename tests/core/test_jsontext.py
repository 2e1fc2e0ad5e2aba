"""JSON without json: the same texts and values, and the same strictness."""

from __future__ import annotations

import importlib.util
import json
import random
import sys
import unittest
from typing import Any
from unittest import mock

from src.core import jsontext, records

VALUES = [
    {}, [], "", 0, -1, 1 << 60, 1.5, 1e300, True, None, {"a": [1, {"b": None}]}, 'q"\\\n\t\x00\x7fé\u2028😀', [[], {}],
    {"k": False, "é": "ü"},
]  # fmt: skip
WRONG = [
    "",
    " ",
    "{",
    '{"a"}',
    '{"a":1,}',
    "[1,]",
    "1 2",
    "nul",
    '"\x01"',
    '"',
    "{'a':1}",
    "[1]]",
    '{"a":1 "b":2}',
    "+1",
]


def decoder(module: Any) -> Any:
    return module.Decoder(dict, int, float, lambda text: f"<{text}>")


class JsonTextTest(unittest.TestCase):
    modules: list[Any]

    @classmethod
    def setUpClass(cls) -> None:
        with mock.patch.dict(sys.modules, {"_json": None}):
            spec = importlib.util.find_spec("src.core.jsontext")
            assert spec is not None and spec.loader is not None
            without = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(without)
        cls.modules = [jsontext, without]

    def test_there_and_back_as_json_does_it(self) -> None:
        for module in self.modules:
            for value in VALUES:
                with self.subTest(module=module, value=value):
                    text = module.encode(value)
                    self.assertEqual(text, json.dumps(value, ensure_ascii=False, separators=(",", ":")))
                    self.assertEqual(decoder(module).decode(text), value)
            self.assertEqual(decoder(module).decode(' \t{"a" : NaN}\r\n'), {"a": "<NaN>"})

    def test_what_is_not_json(self) -> None:
        for module in self.modules:
            for text in WRONG:
                with self.subTest(module=module, text=text), self.assertRaises(ValueError):
                    decoder(module).decode(text)
            for value in (float("nan"), float("inf")):
                with self.subTest(module=module, value=value), self.assertRaises(ValueError):
                    module.encode(value)
            with self.assertRaises(TypeError):
                module.encode({"a": object()})

    def test_noise_is_taken_or_refused_alike(self) -> None:
        chance = random.Random(7)
        for _ in range(3000):
            text = "".join(chance.choice('{}[]":, 01-.eE\\untrfalse\n') for _ in range(chance.randrange(12)))
            results = []
            for module in self.modules:
                try:
                    results.append(repr(decoder(module).decode(text)))
                except ValueError:
                    results.append("refused")
            self.assertEqual(results[0], results[1], text)


class Point(records.NamedTuple):
    x: int
    y: int = 2
    name: str = "p"


class NamedTupleTest(unittest.TestCase):
    def test_as_typing_has_it(self) -> None:
        point = Point(1, name="q")
        self.assertEqual((point.x, point.y, point.name), (1, 2, "q"))
        self.assertEqual(point, (1, 2, "q"))
        self.assertEqual(repr(point), "Point(x=1, y=2, name='q')")
        self.assertEqual(point._replace(x=7), Point(7, 2, "q"))
        self.assertEqual(Point._fields, ("x", "y", "name"))
        for values, named in (((), {}), ((1, 2, "p", 4), {}), ((1,), {"x": 1}), ((1,), {"z": 1})):
            with self.subTest(values=values, named=named), self.assertRaises(TypeError):
                Point(*values, **named)  # type: ignore[arg-type]

    def test_copies(self) -> None:
        import copy
        import pickle

        for copied in (copy.copy(Point(1)), pickle.loads(pickle.dumps(Point(1)))):
            self.assertEqual((type(copied), copied), (Point, Point(1)))


if __name__ == "__main__":
    unittest.main()
