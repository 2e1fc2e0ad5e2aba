"""Settings: flags, defaults, what is refused. And the log lines."""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import sys
import unittest
from unittest import mock

from src import config, log
from src.core.errors import UsageError
from src.options import Option
from tests.support.leaks import Case


def parsed(table: tuple[Option, ...], *words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    config.add_to(parser, (*table, *config.COMMON))
    found = parser.parse_args(words)
    found.host, found.port = "h", 1
    return found


class TestSettings(Case):
    def test_every_flag_becomes_a_setting(self) -> None:
        given = parsed(config.MANAGER, "--data", "/d", "--lost-after", "2m", "--crash-limit", "5", "--keep", "7d")
        settings = config.ManagerSettings.of(given)
        self.assertEqual((settings.host, settings.port, settings.data), ("h", 1, "/d"))
        self.assertEqual((settings.lost_after, settings.crash_limit, settings.keep), (120.0, 5, 7 * 86400.0))

    def test_a_workers_lists(self) -> None:
        words = ["--label", "gpu", "--label", "zone=b", "--resource", "licence=2", "--python", f"3.9={sys.executable}"]
        settings = config.WorkerSettings.of(parsed(config.WORKER, *words, "--cold", "--insecure"))
        self.assertEqual((settings.labels, settings.resources), (["gpu", "zone=b"], {"licence": 2}))
        self.assertEqual((settings.pythons, settings.cold, settings.insecure), ({"3.9": sys.executable}, True, True))
        self.assertEqual((settings.slots, settings.preload, settings.connect_timeout), (None, [], None))

    def test_defaults_are_the_same_with_and_without_flags(self) -> None:
        for settings, table in ((config.ManagerSettings, config.MANAGER), (config.WorkerSettings, config.WORKER)):
            self.assertEqual(settings.of(parsed(table)), settings(host="h", port=1))
        self.assertEqual(vars(config.ManagerSettings())["lost_after"], 60.0)

    def test_lists_are_not_shared(self) -> None:
        config.WorkerSettings().labels.append("x")
        self.assertEqual(config.WorkerSettings().labels, [])

    def test_unknown_settings_stop_the_start(self) -> None:
        with self.assertRaises(UsageError):
            config.ManagerSettings(lost_afer=3)

    def test_bad_values_say_what_is_accepted(self) -> None:
        for word, value, form in (
            ("--slots", "0", "from 1 on"), ("--slots", "x", "from 1 on"), ("--name", "../x", "letters"),
            ("--label", "a b", "letters"), ("--gpus", "-1", "from 0 on"), ("--memory", "4X", "512M"),
            ("--idle-exit", "soon", "10m"), ("--python", "3.12", "NAME=PATH"), ("--python", "3.12=/no", "not a program"),
            ("--resource", "licence", "NAME=N"),
        ):  # fmt: skip
            with self.subTest(word, value=value), contextlib.redirect_stderr(io.StringIO()) as said:
                with self.assertRaises(SystemExit) as caught:
                    parsed(config.WORKER, f"{word}={value}")
                self.assertEqual(caught.exception.code, 2)
                self.assertIn(form, said.getvalue())

    def test_every_setting_has_words(self) -> None:
        for item in (*config.MANAGER, *config.WORKER, *config.LOCAL, *config.COMMON):
            self.assertTrue(item.help and (item.metavar or item.parse is None), item.flag)

    def test_insecure_by_the_environment(self) -> None:
        for value, wanted in (("1", True), ("0", False), ("", False)):
            with mock.patch.dict(os.environ, {"MICROCLUSTER_INSECURE": value}):
                self.assertEqual(config.insecure_environ(), wanted)

    def test_data_lies_beside_run_py(self) -> None:
        self.assertTrue(config.data_dir("manager_scripts").endswith(os.sep + "manager_scripts"))
        with mock.patch.object(config, "installed", return_value=True):
            with mock.patch.dict(os.environ, {"XDG_STATE_HOME": "/state"}):
                self.assertEqual(config.data_dir("manager_scripts"), "/state/microcluster/manager_scripts")


class TestLog(unittest.TestCase):
    def setUp(self) -> None:
        root = logging.getLogger()
        handlers, level = list(root.handlers), root.level

        def back() -> None:
            root.handlers[:] = handlers
            root.setLevel(level)

        self.addCleanup(back)
        self.said = io.StringIO()
        with mock.patch.object(sys, "stderr", self.said):
            log.set_up()

    def test_one_line_each_with_time_and_level(self) -> None:
        logging.getLogger("x").info("worker joined: name=%s", "lab-1")
        self.assertRegex(
            self.said.getvalue(), r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} INFO worker joined: name=lab-1\n$"
        )

    def test_nobody_forges_a_line_or_moves_the_cursor(self) -> None:
        logging.getLogger("x").warning("refused: %s", "a\n2026 INFO all is well\x1b[2J\u202e")
        self.assertEqual(self.said.getvalue().count("\n"), 1)
        self.assertIn("\\n2026 INFO all is well\\x1b[2J\\u202e", self.said.getvalue())

    def test_more_and_less(self) -> None:
        for verbose, quiet, level in (
            (0, 0, "INFO"),
            (1, 0, "DEBUG"),
            (0, 1, "WARNING"),
            (0, 2, "ERROR"),
            (5, 0, "DEBUG"),
        ):
            log.set_up(verbose, quiet)
            self.assertEqual(logging.getLevelName(logging.getLogger().level), level)

    def test_what_happens_often_is_said_seldom(self) -> None:
        seldom = log.Seldom(logging.getLogger("x"))
        for number in range(1000):
            seldom.warning("no room: %s", number)
        seldom.warning("something else")
        self.assertEqual(len(self.said.getvalue().splitlines()), 2)
        with mock.patch.object(log, "SELDOM_S", 0.0):
            seldom.warning("no room: %s", 1000)
        self.assertIn("no room: 1000 (and 999 more)", self.said.getvalue())
