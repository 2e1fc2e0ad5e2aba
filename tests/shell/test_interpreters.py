"""Finding interpreters, among made-up ones that answer, refuse, or say nonsense."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from src import interpreters
from tests.support.leaks import Case

OWN = interpreters.own()
MINOR = ".".join(OWN.version.split(".")[:2])


class TestInterpreters(Case):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.cache = self.folder / "answers.json"

    def fake(self, path: str, version: str, more: str = "") -> str:
        """A program that answers as an interpreter of this version does, and counts how often it is asked."""
        program = self.folder / path
        program.parent.mkdir(parents=True, exist_ok=True)
        here = str(program).encode().hex()
        program.write_text(f"#!/bin/sh\necho x >> {self.folder}/asked\n{more}\necho {here}\necho {version}\n")
        program.chmod(0o755)
        return str(program)

    def asked(self) -> int:
        path = self.folder / "asked"
        return len(path.read_text().split()) if path.exists() else 0

    def find(self, **named: str) -> dict[str, interpreters.Interpreter]:
        environ = {"PATH": f"{self.folder}/one:{self.folder}/two:{self.folder}/shims", "HOME": str(self.folder)}
        return interpreters.find(named, environ, self.cache)

    def test_its_own_comes_first(self) -> None:
        self.fake(f"one/python{MINOR}", f"{MINOR}.99")
        found = self.find()
        self.assertEqual(found[MINOR], OWN)
        self.assertEqual(found[OWN.version], OWN)
        self.assertEqual(OWN.path, sys.executable)

    def test_those_on_the_path_by_minor_and_full_version(self) -> None:
        path = self.fake("one/python3.41", "3.41.2")
        self.fake("two/python3.41", "3.41.1")
        self.fake("two/python3", "3.42.0")
        self.fake("two/python3.43-config", "3.43.0")
        self.fake("shims/python3.44", "3.44.0")
        found = self.find()
        self.assertEqual(found["3.41"], interpreters.Interpreter(path, "3.41.2"))
        self.assertEqual(set(found), {MINOR, OWN.version, "3.41", "3.41.2"})

    def test_versions_of_pyenv_newest_first(self) -> None:
        newest = self.fake(".pyenv/versions/3.41.10/bin/python", "3.41.10")
        self.fake(".pyenv/versions/3.41.9/bin/python", "3.41.9")
        self.fake(".pyenv/versions/pypy3.9/bin/python", "3.9.1")
        found = self.find()
        self.assertEqual(found["3.41"].path, newest)
        self.assertIn("3.41.9", found)

    def test_named_ones(self) -> None:
        path = self.fake("opt/python", "3.50.0rc2")
        found = self.find(lab=path, broken=self.fake("opt/broken", "3.1.1", "exit 3"), missing="/no/such/python")
        self.assertEqual(found["lab"], interpreters.Interpreter(path, "3.50.0rc2"))
        self.assertFalse({"broken", "missing"} & set(found))

    def test_who_talks_nonsense_is_left_out(self) -> None:
        self.fake("one/python3.41", "hello world")
        self.fake("one/python3.42", "3.42.0", "echo first")
        self.assertEqual(set(self.find()), {MINOR, OWN.version})

    def test_each_is_asked_once(self) -> None:
        path = self.fake("one/python3.41", "3.41.2")
        self.find()
        self.find()
        self.assertEqual(self.asked(), 1)
        self.fake("one/python3.41", "3.41.30")
        os.utime(path, (1, 1))
        self.assertEqual(self.find()["3.41"].version, "3.41.30")
        self.cache.write_text("{broken")
        self.assertIn("3.41", self.find())

    def test_real_ones_answer(self) -> None:
        self.assertEqual(interpreters.ask([sys.executable])[sys.executable].version, OWN.version)
        self.assertEqual(interpreters.ask(["/no/such/python"]), {})
