"""When attempts start warm, when cold, and that every doubt is the latter. How alike both are: tests/process/test_fidelity.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Optional
from unittest import mock

from src import jobenv, launcher
from src.launcher import Guards, Options
from tests.shell.test_launcher import LauncherCase
from tests.support.marks import linux_only, slow

SEEN = "import os, sys; print(sorted({'json', 'http.client'} & {*sys.modules}), os.getppid())"


@linux_only
class WarmCase(LauncherCase):
    def how(self, script: str = "print(1)", **plan: Any) -> tuple[bool, Optional[str], str]:
        """Run it: whether it was warm, why not, its output."""
        running = self.begin(script, **plan)
        self.finish(running)
        _, warm, why = running.started[0]
        return warm, why, running.output[1].decode()

    def until_warm(self, **plan: Any) -> list[Optional[str]]:
        """Run scripts until one is warm: why the others were not."""
        reasons: list[Optional[str]] = []
        while True:
            warm, why, _ = self.how(**plan)
            if warm:
                return reasons
            self.assertNotRegex(why or "", "^no warm start")
            reasons.append(why)

    def other_guards(self, python: str = sys.executable, **options: Any) -> None:
        """Use guards made now, with other options."""
        self.guards.close()
        options.setdefault("env", self.env)
        self.guards = Guards(self.loop, 1, python, Options(**options))
        self.addCleanup(self.guards.close)


class TestWhen(WarmCase):
    def test_warm_is_usual_and_counted(self) -> None:
        self.assertEqual(self.how()[:2], (True, None))
        self.assertEqual(self.how(cold=True)[:2], (False, "asked for"))
        self.assertEqual(self.guards.counts(), {"warm": 1, "cold": 1, "reasons": {"asked for": 1}})

    def test_a_worker_can_have_it_off(self) -> None:
        self.other_guards(cold=True)
        self.assertEqual(self.how()[:2], (False, "asked for"))

    def test_other_variables_of_start_up_need_their_second_use(self) -> None:
        reasons = self.until_warm(env={"PYTHONHASHSEED": "7"})
        self.assertEqual(reasons[0], "first use of this interpreter")
        self.assertEqual(set(reasons[1:]), {"its warm interpreter is not ready"})
        self.assertTrue(self.how()[0])  # the usual ones are there still
        self.assertTrue(self.how(env={"PYTHONHASHSEED": "7", "ANY": "1"})[0])

    @slow
    def test_other_interpreters_too(self) -> None:
        venv = self.folder / "venv"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
        python = str(venv / "bin" / "python")
        self.until_warm(python=python)
        self.assertEqual(self.how("import sys; print(sys.prefix)", python=python)[2], f"{venv}\n")
        self.assertEqual(self.how("import sys; print(sys.prefix)")[2], f"{sys.prefix}\n")

    @slow
    def test_few_others_are_kept(self) -> None:
        with mock.patch.object(launcher, "POOLS", 1), mock.patch.object(launcher, "POOL_KEPT_S", 0.0):
            self.until_warm(env={"PYTHONHASHSEED": "1"})
            self.until_warm(env={"PYTHONHASHSEED": "2"})
            self.assertFalse(self.how(env={"PYTHONHASHSEED": "1"})[0])
            self.assertLessEqual(len(self.guards.pids()), 4)
        self.assertEqual(self.how(env={"PYTHONHASHSEED": "3"})[1], "first use of this interpreter")

    def test_a_changed_interpreter_is_left(self) -> None:
        extra = self.folder / "extra"
        extra.mkdir()
        self.env["PYTHONPATH"] = str(extra)
        self.other_guards()
        self.assertTrue(self.how()[0])
        (extra / "sitecustomize.py").write_text("import sys; sys.mine = 1")
        (extra / "__pycache__").mkdir(exist_ok=True)
        self.assertEqual(self.how("import sys; print(sys.mine)"), (False, "its interpreter changed", "1\n"))
        self.assertEqual(self.how("import sys; print(sys.mine)"), (True, None, "1\n"))

    @slow
    def test_guards_are_replaced_after_a_while(self) -> None:
        with mock.patch.object(launcher, "GUARD_JOBS", 2):
            parents = [self.how("import os; print(os.getppid())")[2] for _ in range(6)]
        self.assertGreaterEqual(len(set(parents)), 3)

    def test_nothing_is_carried_over(self) -> None:
        script = "import builtins, os, sys, random; print(hasattr(builtins, 'x'), 'Y' in os.environ); builtins.x = 1"
        script += "; os.environ['Y'] = '1'; os.umask(0); os.chdir('/'); print(random.random(), os.urandom(4))"
        first, second = self.how(script)[2], self.how(script)[2]
        self.assertEqual(first.splitlines()[0], "False False")
        self.assertEqual(second.splitlines()[0], "False False")
        self.assertNotEqual(first, second)  # no random number comes twice

    def test_a_changed_script_is_compiled_again(self) -> None:
        self.assertEqual([self.how(f"print({number})")[2] for number in (1, 2, 1)], ["1\n", "2\n", "1\n"])


class TestDoubt(WarmCase):
    def test_a_self_test_that_differs(self) -> None:
        tell_tale = self.folder / "selftest.py"
        tell_tale.write_text("import os; print(os.getpid())")
        with mock.patch.object(launcher, "SELFTEST", str(tell_tale)), self.assertLogs("src.launcher", "WARNING"):
            self.other_guards()
            warm, why, out = self.how()
        self.assertEqual((warm, out), (False, "1\n"))
        self.assertIn("self-test differs", why or "")
        self.assertEqual(self.how()[1], why)

    def test_an_interpreter_that_does_not_stop(self) -> None:
        wrapper = self.folder / "python"
        wrapper.write_text(f'#!/bin/sh\nunset PYTHONPATH\nexec {sys.executable} "$@"\n')
        wrapper.chmod(0o755)
        with self.assertLogs("src.launcher", "WARNING"):
            self.other_guards(str(wrapper))
            warm, why, out = self.how()
        self.assertEqual((warm, why, out), (False, "no warm start: it did not stop in its start-up", "1\n"))

    def test_settings_that_change_the_start(self) -> None:
        self.assertEqual(self.how(env={"PYTHONINSPECT": "1"})[1], "PYTHONINSPECT is set")
        self.assertEqual(self.how(env={"PYTHONPATH": "here"})[1], "PYTHONPATH is relative")

    def test_scripts_that_would_notice(self) -> None:
        for script, why in (
            ("import gc; print(gc.get_freeze_count() >= 0)", "it mentions gc"),
            ("print('\\N{BULLET}')", "compiling it imports a module"),
            ("x =", "it does not compile"),
            ("x = 1; x is 1", "it compiles with a warning"),
        ):
            with self.subTest(script):
                self.assertEqual(self.how(script)[:2], (False, why))
        self.assertTrue(self.how("gcd = 1; print(gcd)")[0])


class TestPreload(WarmCase):
    def test_of_a_worker(self) -> None:
        self.other_guards(preload=("json",))
        threads = dict.fromkeys(jobenv.THREADS, "1")
        warm, _, out = self.how(SEEN, env=threads)
        self.assertTrue(warm)
        self.assertEqual(out.split("]")[0], "['json'")
        self.assertEqual(self.how(SEEN, env=threads, cold=True)[2].split("]")[0], "[")

    def test_of_an_attempt(self) -> None:
        self.until_warm(preload=("http.client",))
        self.assertIn("http.client", self.how(SEEN, preload=("http.client",))[2])
        self.assertNotIn("http.client", self.how(SEEN)[2])

    def test_of_what_is_not_there(self) -> None:
        with self.assertLogs("src.launcher", "WARNING"):
            while True:
                warm, why, _ = self.how(preload=("no_such_module",))
                self.assertFalse(warm)
                if why and why.startswith("no warm start"):
                    break
        self.assertEqual(why, "no warm start: ModuleNotFoundError: No module named 'no_such_module'")

    def test_threads_in_the_interpreter(self) -> None:
        (self.folder / "threaded.py").write_text(
            "import threading, time\nthreading.Thread(target=time.sleep, args=(1e6,), daemon=True).start()"
        )
        self.env["PYTHONPATH"] = str(self.folder)
        with self.assertLogs("src.launcher", "WARNING"):
            self.other_guards(preload=("threaded",))
            warm, why, _ = self.how(env=dict.fromkeys(jobenv.THREADS, "1"))
        self.assertEqual((warm, why), (False, "no warm start: the self-test differs: its interpreter has threads"))


class TestFolders(WarmCase):
    def test_nothing_stays_in_the_temporary_folder(self) -> None:
        self.how()
        self.assertEqual([path.name for path in Path(os.environ["TMPDIR"]).iterdir()], ["run"])
