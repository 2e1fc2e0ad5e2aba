"""run.py: what is typed, exit codes, error lines, the ready line."""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from typing import Optional
from unittest import mock

from src import console, keys, log, machines
from src.core.errors import KeyProblem, MicroclusterError, StoreError, UsageError
from tests.support.leaks import Case
from tests.support.waiting import FACTOR

ROOT = Path(__file__).resolve().parents[2]
READY = re.compile(r"microcluster manager listening on localhost:(\d+)\n")


def run(*words: str, home: Optional[str] = None) -> tuple[int, str, str]:
    """Exit code, stdout, stderr of run.py, in this process."""
    out, err = io.StringIO(), io.StringIO()
    environ = {"MICROCLUSTER_HOME": home} if home else {}
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), mock.patch.dict(os.environ, environ):
        with mock.patch.object(sys, "argv", ["run.py"]), mock.patch.object(log, "set_up"):
            try:
                code = machines.main(list(words))
            except SystemExit as end:
                code = int(end.code or 0)
    return code, out.getvalue(), err.getvalue()


class TestUsage(unittest.TestCase):
    def test_every_verb_shows_an_example(self) -> None:
        code, out, _ = run("--help")
        self.assertEqual(code, 0)
        for verb in console.MACHINE_VERBS:
            self.assertIn(verb, out)
            code, text, _ = run(verb, "--help")
            self.assertEqual(code, 0)
            self.assertIn(f"example:\n  python3 run.py {verb}", text)

    def test_wrong_usage(self) -> None:
        for words in ([], ["nonsense"], ["manager", "h", "x"], ["manager", "h", "65536"], ["manager", "--nonsense"],
                      ["worker", "--slots", "0"], ["key", "--role", "king"], ["worker", "localhost", "0"]):  # fmt: skip
            with self.subTest(words):
                code, out, err = run(*words)
                self.assertEqual((code, out), (2, ""))
                self.assertRegex(err.splitlines()[-1], r"^run\.py( \w+)?: ")

    def test_exit_codes(self) -> None:
        for error, wanted in (
            (UsageError("x"), 2),
            (KeyProblem("x"), 77),
            (StoreError("x"), 1),
            (MicroclusterError("x"), 1),
            (PermissionError(13, "Permission denied", "/data"), 1),
        ):
            with self.subTest(error=error), mock.patch.object(machines, "_manager", side_effect=error):
                code, out, err = run("manager")
                self.assertEqual((code, out, len(err.splitlines())), (wanted, "", 1))
                self.assertTrue(err.startswith("run.py: "), err)
        self.assertIn("/data", err)


class TestKey(Case):
    def test_a_key_for_a_role(self) -> None:
        with tempfile.TemporaryDirectory() as home:
            code, both, _ = run("key", home=home)
            self.assertEqual((code, len(both.splitlines())), (0, 2))
            for role, other in (("worker", "submit"), ("read", "admin")):
                code, out, _ = run("key", "--role", role, home=home)
                self.assertEqual((code, out.count("\n")), (0, 1))
                self.assertIn(f".{role}.", out)
                self.assertNotIn(f".{other}.", out)
            self.assertIn(keys.ManagerKeys.load(home).peer_key("worker").text(), both)
            os.unlink(os.path.join(home, "manager.key"))
            self.assertEqual(run("key", "--role", "worker", home=home)[0], 0, "cluster.key holds it")
            code, out, err = run("key", "--role", "admin", home=home)
            self.assertEqual((code, out), (77, ""))
            self.assertIn("manager.key", err)


class TestManager(Case):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.data = os.path.join(folder.name, "data")

    def start(self, *words: str) -> subprocess.Popen[str]:
        command = [
            sys.executable,
            str(ROOT / "run.py"),
            "manager",
            "--insecure",
            "--data",
            self.data,
            "localhost",
            *words,
        ]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True)

        def end() -> None:
            process.kill()
            process.communicate()

        self.addCleanup(end)
        return process

    def test_ready_line_and_orderly_end(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            process = self.start("0")
            assert process.stdout is not None
            self.assertRegex(process.stdout.readline(), READY)
            process.send_signal(number)
            out, err = process.communicate(timeout=60 * FACTOR)
            self.assertEqual((process.returncode, out), (0, ""))
            self.assertIn("INSECURE", err)
            self.assertNotIn("Traceback", err)

    def test_a_port_in_use_is_one_line(self) -> None:
        first = self.start("0")
        assert first.stdout is not None
        found = READY.match(first.stdout.readline())
        assert found is not None
        self.data += "-2"
        second = self.start(found.group(1))
        out, err = second.communicate(timeout=60 * FACTOR)
        self.assertEqual((second.returncode, out), (1, ""))
        self.assertRegex(err, rf"^run\.py: cannot listen on localhost:{found.group(1)}: .+\n$")
