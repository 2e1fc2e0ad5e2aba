"""What is typed, and what it is taken for."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import unittest
from unittest import mock

from src import cli
from src.core.errors import UsageError
from src.follow import exit_code
from src.options import VERBS


class StartTest(unittest.TestCase):
    def test_a_command_imports_little(self) -> None:
        """Imports are most of a short command's time: what these bring along costs as much as all of ours."""
        heavy = {"argparse", "ast", "datetime", "enum", "hashlib", "inspect", "json", "logging", "re", "secrets", "shutil",
                 "socket", "ssl", "subprocess", "tempfile", "threading", "typing"}  # fmt: skip
        program = (
            "import sys; before = set(sys.modules); sys.path.insert(0, sys.argv[1])\n"
            "from src import cli, verbs, submission\n"
            "call = cli.parse(['run', '--cpus=1', '127.0.0.1', '5000', 'x.py'])\n"
            "submission.closure.imported(b'import os')\n"
            "print(*sorted(set(sys.modules) - before))"
        )
        root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        found = subprocess.run([sys.executable, "-c", program, root], stdout=subprocess.PIPE, text=True, check=True)
        self.assertEqual(heavy & set(found.stdout.split()), set())


class ParseTest(unittest.TestCase):
    def setUp(self) -> None:
        patch = mock.patch.dict(os.environ)
        patch.start()
        self.addCleanup(patch.stop)
        os.environ.pop("MICROCLUSTER_MANAGER", None)

    def test_options_stand_before_host_or_between_port_and_script(self) -> None:
        call = cli.parse(["run", "--cpus", "2", "h", "5000", "--retries=3", "s.py", "--cpus", "9", "-h", "--", "x"])
        self.assertEqual(
            (call.host, call.port, call.words, call.rest), ("h", 5000, ["s.py"], ["--cpus", "9", "-h", "--", "x"])
        )
        self.assertEqual((call.options.cpus, call.options.retries), (2, 3))

    def test_values_that_begin_with_a_dash(self) -> None:
        self.assertEqual(cli.parse(["submit", "--priority", "-5", "h", "1", "--stdin", "-", "-"]).options.priority, -5)
        call = cli.parse(["submit", "h", "1", "--env", "-X=1", "s.py", "-5"])
        self.assertEqual((call.options.env, call.rest), (["-X=1"], ["-5"]))

    def test_two_dashes_end_the_options(self) -> None:
        call = cli.parse(["run", "h", "1", "--", "-odd.py", "--x"])
        self.assertEqual((call.words, call.rest), (["-odd.py"], ["--x"]))

    def test_the_manager_from_the_environment(self) -> None:
        os.environ["MICROCLUSTER_MANAGER"] = "[::1]:77"
        for argv, words, rest in (
            (["run", "s.py", "5000", "x"], ["s.py"], ["5000", "x"]),
            (["submit", "--cpus", "1", "-", "a"], ["-"], ["a"]),
            (["result", "7", "8"], ["7", "8"], []),
            (["list"], [], []),
        ):
            call = cli.parse(argv)
            self.assertEqual((call.host, call.port, call.words, call.rest), ("::1", 77, words, rest))
        for argv in (["run", "other", "5", "s.py"], ["result", "other", "5", "7"], ["workers", "other", "5"]):
            self.assertEqual(cli.parse(argv).host, "other")

    def test_wrong_usage(self) -> None:
        for argv in (
            ["frobnicate"], ["run"], ["run", "h"], ["run", "h", "5000"], ["run", "h", "x", "s.py"], ["result", "h", "1"],
            ["list", "h", "1", "more"], ["fetch", "h", "1", "2", "3"], ["list", "h", "0"], ["list", "h", "65536"],
        ):  # fmt: skip
            with self.subTest(argv=argv), self.assertRaises(UsageError):
                cli.parse(argv)
        for argv in (
            ["run", "--cpus", "0", "h", "1", "s"],
            ["run", "--nope", "h", "1", "s"],
            ["list", "--state", "odd", "h", "1"],
        ):
            with self.subTest(argv=argv), contextlib.redirect_stderr(io.StringIO()) as told:
                with self.assertRaises(SystemExit) as caught:
                    cli.parse(argv)
                self.assertEqual(caught.exception.code, 2)
                self.assertNotIn("Traceback", told.getvalue())

    def test_what_the_manager_would_refuse_is_refused_here(self) -> None:
        for flag, value in (
            ("--priority", "9" * 30), ("--cpus", "9999999"), ("--retries", "9" * 12), ("--memory", "0"),
            ("--memory", "99999999G"), ("--timeout", "0.0001"), ("--resource", "a=" + "9" * 30), ("--preload", "a b"),
            ("--name", "\udcff"), ("--env", "A\udcff=1"), ("--grid", "a=\udcff"), ("--return", "\udcff"),
            ("--array", ",".join(map(str, range(0, 60000, 2)))), ("--on", "-x"),
        ):  # fmt: skip
            with self.subTest(flag=flag, value=value[:20]), contextlib.redirect_stderr(io.StringIO()) as told:
                with self.assertRaises(SystemExit) as caught:
                    cli.parse(["submit", flag, value, "h", "1", "s.py"])
                self.assertEqual(caught.exception.code, 2)
                told.getvalue().encode("utf-8")
        self.assertEqual(cli.parse(["submit", "--env", "A=\udcff", "h", "1", "s"]).options.env, ["A=\udcff"])

    def test_an_address_in_brackets(self) -> None:
        self.assertEqual(cli.parse(["list", "[::1]", "5000"]).host, "::1")

    def test_an_empty_variable_is_none(self) -> None:
        os.environ["MICROCLUSTER_MANAGER"] = ""
        self.assertEqual(cli.parse(["run", "s.py", "5", "x.py"]).host, "s.py")

    def test_every_verb_has_help_with_an_example(self) -> None:
        for verb in VERBS:
            with contextlib.redirect_stdout(io.StringIO()) as told, self.assertRaises(SystemExit):
                cli.parse([verb, "--help"])
            self.assertIn("example:", told.getvalue())
            self.assertIn(verb, cli.overview())


class ExitCodeTest(unittest.TestCase):
    def test_all_ends(self) -> None:
        end = {"state": "failed", "exit_code": None, "signal": None, "timed_out": False}
        for changes, code in (
            ({"state": "succeeded", "exit_code": 0}, 0),
            ({"exit_code": 3}, 3),
            ({"exit_code": 255}, 255),
            ({"signal": 9}, 137),
            ({"signal": "SIGSEGV"}, 139),
            ({"signal": 15, "timed_out": True}, 124),
            ({"state": "cancelled", "signal": 9}, 143),
            ({}, 125),
        ):
            self.assertEqual(exit_code({**end, **changes}), code, changes)
