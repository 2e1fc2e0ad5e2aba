"""Inline script metadata, with the small reader against the standard library's where there is one."""

from __future__ import annotations

import sys
import unittest

from src.core.errors import UsageError
from src.pep723 import read, small_toml

SCRIPT = b"""#!/usr/bin/env python3
# /// script
# requires-python = ">=3.9"
# dependencies = [
#   "requests<3",  # a remark
#   'rich',
# ]
#
# [tool.other]
# anything = { at = "all" }
# ///
import requests
"""


class MetadataTest(unittest.TestCase):
    def test_a_block(self) -> None:
        found = read(SCRIPT)
        assert found is not None
        self.assertEqual((found.requires_python, found.dependencies), (">=3.9", ["requests<3", "rich"]))

    def test_none(self) -> None:
        for source in (b"print(1)", b"# /// other\n# x = 1\n# ///\n", b"# /// script\nno end"):
            self.assertIsNone(read(source))

    def test_what_is_not_understood_is_said(self) -> None:
        for block in ("requires-python = 3", "dependencies = 'x'", "dependencies = [1]", "= x", "dependencies = ['a'"):
            source = f"# /// script\n# {block}\n# ///\n".encode()
            with self.subTest(block=block), self.assertRaises(UsageError):
                read(source)
        with self.assertRaises(UsageError):
            read(SCRIPT + b"\n" + SCRIPT)

    def test_the_small_reader_reads_as_tomllib_does(self) -> None:
        texts = (
            'a = "x"\n',
            "a = 'x\\y'\n# c\nb = []\n",
            'a-b = ["x", \'y\',\n  "z" # c\n]\n',
            'a = "q\\"\\u00e9\\n"\n',
            "",
        )
        for text in texts:
            found = small_toml(text)
            if sys.version_info >= (3, 11):
                import tomllib

                self.assertEqual(found, tomllib.loads(text))
