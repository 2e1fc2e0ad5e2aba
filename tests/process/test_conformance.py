"""`client.py run HOST PORT x.py ARG..` does what `python3 x.py ARG..` does: the same bytes, the same exit status.

Each script of the table, and of test_scripts/, runs both ways. Paths of the script's folder and addresses in memory are
made equal before the comparison; nothing else.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tests.process import conformance_scripts as table
from tests.process.conformance_scripts import Script
from tests.support.leaks import Case
from tests.support.marks import QUICK, linux_only, slow
from tests.support.servers import ROOT, Manager, client_bytes, enter_class, running_manager, running_worker
from tests.support.waiting import FACTOR

AT_A_TIME = 4


class Result(NamedTuple):
    exit_code: int
    stdout: bytes
    stderr: bytes


class ConformanceCase(Case):
    """A manager and two workers for all scripts; `options` go to every `client.py run`."""

    manager: Manager
    folder: Path
    options: tuple[str, ...] = ()

    @classmethod
    def setUpClass(cls) -> None:
        cls.manager = enter_class(cls, running_manager())
        enter_class(cls, running_worker(cls.manager, slots=2))
        enter_class(cls, running_worker(cls.manager, slots=2))
        cls.folder = Path(tempfile.mkdtemp(prefix="microcluster-conformance-"))
        cls.addClassCleanup(shutil.rmtree, cls.folder)

    def compare_all(self, scripts: list[Script]) -> None:
        chosen = [script for script in scripts if not (QUICK and script.slow)]
        with ThreadPoolExecutor(AT_A_TIME) as pool:
            for script, (expected, got) in zip(chosen, pool.map(self.run_both, chosen)):
                with self.subTest(script=script.name, options=self.options + script.options):
                    self.compare(script, expected, got)

    def compare(self, script: Script, expected: Result, got: Result) -> None:
        names = [script.file_name, *(name for name, _ in script.files)]
        expected, got = (Result(r.exit_code, level(r.stdout, names), level(r.stderr, names)) for r in (expected, got))
        for field, mine, theirs in zip(Result._fields, expected, got):
            if mine != theirs:
                self.fail(
                    f"{script.name}: {field} differs\npython: {brief(mine)}\nrun:    {brief(theirs)}\n{brief(got)}"
                )

    def run_both(self, script: Script) -> tuple[Result, Result]:
        home = Path(tempfile.mkdtemp(dir=self.folder))
        source = script.source if isinstance(script.source, bytes) else script.source.encode()
        path = home / "lies here" / script.file_name
        path.parent.mkdir()
        path.write_bytes(source)
        for name, text in script.files:
            (path.parent / name).parent.mkdir(parents=True, exist_ok=True)
            (path.parent / name).write_text(text, "utf-8")
        return self.run_path(path, home, script)

    def run_path(self, path: Path, home: Path, script: Script) -> tuple[Result, Result]:
        cwd = home / "empty"
        cwd.mkdir()
        options = list(self.options + script.options + (("--stdin", "-") if script.stdin else ()))
        run = client_bytes(self.manager, "run", *options, path, *script.args, stdin=script.stdin, cwd=home)
        environ = dict(self.manager.environ)
        for word in script.options:
            name, equals, value = word.partition("=")
            if equals:
                environ[name] = value
        plain = subprocess.Popen(
            [sys.executable, path, *script.args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=cwd,
            env=environ,
            start_new_session=True,
        )
        out, err = plain.communicate(script.stdin, 120 * FACTOR)
        code = plain.returncode if plain.returncode >= 0 else 128 - plain.returncode
        return Result(code, out, err), Result(run.returncode, run.stdout, run.stderr)


def level(text: bytes, names: list[str]) -> bytes:
    """Without what may differ: the script's folder before `names`, addresses, how long a test took."""
    for name in names:
        pattern = rb"""(?:/[^\n"'/:]+)+/(?=%s\b)""" % re.escape(os.fsencode(name))
        text = re.sub(pattern, b"FOLDER/", text)
    text = re.sub(rb"\b0x[0-9a-f]{6,}", b"0xADDRESS", text)
    return re.sub(rb"(\d tests? in )\d+\.\d+s", rb"\1SECONDS", text)


def brief(value: object) -> str:
    text = repr(value)
    return text if len(text) < 3000 else f"{text[:1500]} ... {text[-1500:]} ({len(text)} characters)"


@linux_only
class TestConformance(ConformanceCase):
    def test_exits(self) -> None:
        self.compare_all(table.EXITS)

    def test_signals(self) -> None:
        self.compare_all(table.SIGNALS)

    def test_output(self) -> None:
        self.compare_all(table.OUTPUT)

    def test_input(self) -> None:
        self.compare_all(table.INPUT)

    def test_sources(self) -> None:
        self.compare_all(table.SOURCES)

    def test_identity(self) -> None:
        self.compare_all(table.IDENTITY)

    def test_behaviour(self) -> None:
        self.compare_all(table.BEHAVIOUR)

    def test_processes(self) -> None:
        self.compare_all(table.PROCESSES)

    def test_modules_beside_the_script(self) -> None:
        self.compare_all(table.BESIDE)

    def test_every_script_of_test_scripts(self) -> None:
        for path in sorted((ROOT / "test_scripts").glob("*.py")):
            with self.subTest(path.name):
                script = Script(path.name, "", file_name=path.name)
                self.compare(script, *self.run_path(path, Path(tempfile.mkdtemp(dir=self.folder)), script))


@slow
@linux_only
class TestConformanceCold(ConformanceCase):
    """The same without warm start, for what depends on how the interpreter starts."""

    options = ("--cold",)

    def test_exits_and_signals(self) -> None:
        self.compare_all(table.EXITS[::3] + table.SIGNALS[::2])

    def test_output(self) -> None:
        self.compare_all([script for script in table.OUTPUT if not script.slow])

    def test_identity(self) -> None:
        self.compare_all(table.IDENTITY)

    def test_sources(self) -> None:
        self.compare_all(table.SOURCES[::3])
