"""Which modules travel with a script."""

from __future__ import annotations

import os
import tempfile
import unittest
from importlib.machinery import EXTENSION_SUFFIXES

from src.closure import HOLD_MAX, imported, modules_beside


class ImportedTest(unittest.TestCase):
    def test_every_form(self) -> None:
        source = b"""
import a, b.c as d
from e import f
from .g import h
from .. import i
def late():
    import j
    try:
        from k.l import m
    except ImportError:
        import importlib; importlib.import_module("n"); __import__("o"); importlib.import_module(variable)
"""
        found = imported(source, "pack.age")
        wanted = {"a", "b.c", "e", "e.f", "pack.age.g", "pack.age.g.h", "pack", "pack.i", "j", "k.l", "n", "o"}
        self.assertTrue(wanted <= found, wanted - found)

    def test_what_does_not_parse_imports_nothing(self) -> None:
        for source in (b"import (", b"\0", b"\xff\xfe", b"(" * 1000):
            self.assertEqual(imported(source), set())


class ModulesTest(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name

    def write(self, path: str, text: str = "") -> None:
        full = os.path.join(self.folder, path)
        os.makedirs(os.path.dirname(full), exist_ok=True)
        with open(full, "w") as file:
            file.write(text)

    def travels(self, source: str) -> list[str]:
        self.write("script.py", source)
        return [module.path for module in modules_beside(os.path.join(self.folder, "script.py"), source.encode())]

    def test_theirs_too_and_packages_whole(self) -> None:
        self.write("one.py", "import two")
        self.write("two.py", "import one, json")
        self.write("unused.py")
        self.write("pack/__init__.py", "")
        self.write("pack/deep/data.txt", "data")
        self.write("pack/deep/more.py", "import three")
        self.write("pack/__pycache__/x.pyc")
        self.write("three.py")
        wanted = ["one.py", "pack/__init__.py", "pack/deep/data.txt", "pack/deep/more.py", "three.py", "two.py"]
        self.assertEqual(self.travels("import one\nimport pack.deep"), wanted)

    def test_shadows_and_namespaces(self) -> None:
        self.write("json.py", "mine = 1")
        self.write("space/inner.py")
        self.write("sys.py")
        self.assertEqual(self.travels("import json, sys, space.inner, os"), ["json.py", "space/inner.py"])

    def test_installed_packages_stay(self) -> None:
        self.assertEqual(self.travels("import unittest, asyncio.events, no_such_module"), [])

    def test_a_module_that_imports_the_script(self) -> None:
        self.write("helper.py", "import script")
        self.assertEqual(self.travels("import helper"), ["helper.py", "script.py"])

    def test_a_package_that_links_to_itself(self) -> None:
        self.write("pack/__init__.py")
        os.symlink("..", os.path.join(self.folder, "pack", "again"))
        os.symlink(".", os.path.join(self.folder, "pack", "here"))
        self.assertNotIn("pack/here/__init__.py", self.travels("import pack"))

    def test_compiled_modules(self) -> None:
        name = "fast" + EXTENSION_SUFFIXES[0]
        self.write(name, "not really")
        self.write("fast.py")
        self.assertEqual(self.travels("import fast"), [name])

    def test_modules_without_their_source(self) -> None:
        for name in ("alone.pyc", "both.py", "both.pyc", "pack/__init__.py", "pack/alone.pyc", "pack/both.py"):
            self.write(name)
        self.write("pack/both.pyc")
        self.assertEqual(
            self.travels("import alone, both, pack"),
            ["alone.pyc", "both.py", "pack/__init__.py", "pack/alone.pyc", "pack/both.py"],
        )

    def test_large_data_is_not_held(self) -> None:
        self.write("pack/__init__.py")
        with open(os.path.join(self.folder, "pack", "data"), "wb") as file:
            file.truncate(HOLD_MAX + 1)
        self.write("script.py", "import pack")
        found = modules_beside(os.path.join(self.folder, "script.py"), b"import pack")
        held = {module.path: module.content is not None for module in found}
        self.assertEqual(held, {"pack/__init__.py": True, "pack/data": False})
        self.assertTrue(os.path.samefile(found[1].file, os.path.join(self.folder, "pack", "data")))

    def test_a_later_edit_changes_nothing(self) -> None:
        self.write("one.py", "before = 1")
        self.write("script.py", "import one")
        found = modules_beside(os.path.join(self.folder, "script.py"), b"import one")
        self.write("one.py", "after = 1")
        self.assertEqual(found[0].content, b"before = 1")
