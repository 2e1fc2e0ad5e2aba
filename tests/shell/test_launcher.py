"""Starting attempts and ending them, with everything that descends from them. Scripts are real, and so are signals."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import time
import unittest
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from src import proctree
from src.launcher import Attempt, AttemptPlan, ExitReport, Guards, Options
from src.runners import size
from tests.support.leaks import MARK, Case, describe_process, marked_pids
from tests.support.marks import linux_only, slow
from tests.support.waiting import FACTOR, wait_until

ROOT = Path(__file__).resolve().parents[2]


class TinyLoop:
    """The part of net.Loop that Guards uses."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self.timers: list[tuple[float, Callable[[], Any]]] = []

    def add_reader(self, fd: int, fn: Callable[[], Any]) -> None:
        self.selector.register(fd, selectors.EVENT_READ, fn)

    def remove_reader(self, fd: int) -> None:
        self.selector.unregister(fd)

    def call_later(self, seconds: float, fn: Callable[[], Any]) -> Any:
        self.timers.append((time.monotonic() + seconds, fn))
        return None

    def turn(self) -> None:
        for key, _ in self.selector.select(0.01):
            key.data()
        due = [timer for timer in self.timers if timer[0] <= time.monotonic()]
        self.timers = [timer for timer in self.timers if timer not in due]
        for _, fn in due:
            fn()


class Running(NamedTuple):
    attempt: Attempt
    output: dict[int, bytearray]  # by stream
    started: list[tuple[int, bool, Any]]
    ended: list[ExitReport]
    pipes: set[int]  # that are still open


class LauncherCase(Case):
    """Runs scripts through Guards in this thread."""

    slots = 1
    cold = False
    spawned = False  # cold without a fork, as in a worker that is a subreaper

    def setUp(self) -> None:
        self.loop = TinyLoop()
        self.addCleanup(self.loop.selector.close)
        self.folder = Path(os.environ["TMPDIR"]) / "run"
        self.folder.mkdir()
        self.addCleanup(self._remove)
        self.env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        patch = mock.patch.object(proctree, "is_subreaper", lambda: self.spawned)
        patch.start()
        self.addCleanup(patch.stop)
        self.guards = Guards(self.loop, self.slots, sys.executable, Options(cold=self.cold, env=self.env))
        self.addCleanup(self.guards.close)
        self.mark = os.environ[MARK] + "-attempt"  # tells scripts from guards, and from what those do by themselves
        self.running: list[Running] = []
        self.addCleanup(self._drain)

    def _drain(self) -> None:
        self.guards.close()
        self.turn_until(lambda: not any(running.pipes for running in self.running), "all pipes to close")

    def _remove(self) -> None:
        for path in sorted(self.folder.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        self.folder.rmdir()

    def begin(self, script: str, *argv: str, stdin: int | None = None, **plan: Any) -> Running:
        """Start a script; its output is collected as the loop turns."""
        path = self.folder / "script.py"
        path.write_text(script)
        output = {1: bytearray(), 2: bytearray()}
        pipes: set[int] = set()
        ends = {1: self._pipe(output[1], pipes), 2: self._pipe(output[2], pipes)}
        env = {**self.env, MARK: self.mark, **plan.pop("env", {})}
        made = AttemptPlan(
            key=None,
            python=plan.pop("python", None),
            script=str(path),
            argv=list(argv),
            env=env,
            cwd=plan.pop("cwd", str(self.folder)),
            stdin=os.open(os.devnull, os.O_RDONLY) if stdin is None else stdin,
            stdout=ends[1],
            stderr=ends[2],
            **plan,
        )
        started: list[tuple[int, bool, Any]] = []
        ended: list[ExitReport] = []
        attempt = self.guards.start(made, lambda *a: started.append(a), ended.append)
        self.running.append(Running(attempt, output, started, ended, pipes))
        return self.running[-1]

    def _pipe(self, into: bytearray, pipes: set[int]) -> int:
        reading, writing = os.pipe()
        pipes.add(reading)

        def read() -> None:
            data = os.read(reading, 65536)
            into.extend(data)
            if not data:
                self.loop.remove_reader(reading)
                os.close(reading)
                pipes.discard(reading)

        self.loop.add_reader(reading, read)
        return writing

    def turn_until(self, condition: Callable[[], Any], what: str) -> None:
        deadline = time.monotonic() + 60 * FACTOR
        while not condition():
            self.loop.turn()
            self.assertLess(time.monotonic(), deadline, f"waited in vain for {what}")

    def finish_only(self, running: Running) -> None:
        self.turn_until(lambda: running.ended, "its turn")

    def finish(self, running: Running) -> ExitReport:
        """Until on_exit; then nothing of it may be alive. And until its output is whole."""
        self.turn_until(lambda: running.ended, "the end of the attempt")
        self.assert_alone()
        self.turn_until(lambda: not running.pipes, "the end of its output")
        self.assertEqual(len(running.ended), 1)
        return running.ended[0]

    def do(self, script: str, *argv: str, **plan: Any) -> tuple[ExitReport, str, str]:
        running = self.begin(script, *argv, **plan)
        report = self.finish(running)
        return report, running.output[1].decode(), running.output[2].decode()

    def until_line(self, running: Running, line: str) -> None:
        self.turn_until(lambda: line.encode() + b"\n" in running.output[1], f"the line {line}")

    def assert_alone(self) -> None:
        def left() -> list[int]:
            alive = marked_pids(self.mark) - self.guards.pids()
            guards = [guard for pool in self.guards._pools.values() for guard in pool.guards]
            testing = {pid for guard in guards if not guard.pool.verified for pid in proctree.descendants(guard.pid)}
            return [pid for pid in alive - testing if Path(f"/proc/{pid}").exists()]

        found = left()
        living = [text for text in map(describe_process, found) if "[state Z" not in text]
        self.assertEqual(living, [], "processes that outlived their attempt")
        self.turn_until(lambda: not left(), "the dead to be reaped")


class TestRunning(LauncherCase):
    def test_exit_code_output_arguments_and_folder(self) -> None:
        report, out, err = self.do(
            "import os, sys; print(sys.argv[1:], os.getcwd()); print('e', file=sys.stderr); sys.exit(7)", "a b", "ü"
        )
        self.assertEqual((report.exit_code, report.signal, report.reason, report.never_ran), (7, None, None, False))
        self.assertEqual((out, err), (f"['a b', 'ü'] {self.folder}\n", "e\n"))
        self.assertLessEqual(report.started_at, report.finished_at)

    def test_death_by_signal(self) -> None:
        report, _, _ = self.do("import os; os.kill(os.getpid(), 11)")
        self.assertEqual((report.exit_code, report.signal), (None, signal.SIGSEGV))

    def test_environment_is_exactly_the_given_one(self) -> None:
        _, out, _ = self.do("import os; print(list(os.environ.items()))", env={"B": "2", "A": "1"})
        items = eval(out)
        expected = [*{**self.env, MARK: self.mark}.items(), ("B", "2"), ("A", "1")]
        self.assertEqual(items[: len(expected)], expected)
        self.assertLessEqual({name for name, _ in items[len(expected) :]}, {"LC_CTYPE"})

    def test_standard_input(self) -> None:
        reading, writing = os.pipe()
        os.write(writing, b"ping\n")
        os.close(writing)
        self.assertEqual(self.do("print(input())", stdin=reading)[1], "ping\n")

    def test_a_request_of_any_size(self) -> None:
        words = [f"{number:0100}" for number in range(2000)]
        script = "import os, sys; print(len(sys.argv), sum(map(len, sys.argv[1:])), len(os.environ['BIG']))"
        self.assertEqual(self.do(script, *words, env={"BIG": "x" * 100_000})[1], "2001 200000 100000\n")

    def test_usage(self) -> None:
        script = "data = bytearray(80_000_000)\nimport time\nwhile time.process_time() < 0.2: pass"
        report, _, _ = self.do(script)
        self.assertGreater(report.cpu_seconds, 0.19)
        self.assertGreater(report.max_rss_bytes, 80_000_000)

    def test_more_attempts_than_slots_wait(self) -> None:
        runs = [self.begin("print(1)") for _ in range(4)]
        for running in runs:
            self.finish_only(running)
        self.assertEqual([running.ended[0].exit_code for running in runs], [0] * 4)
        self.finish(runs[-1])
        counts = self.guards.counts()
        self.assertEqual(counts["warm"] + counts["cold"], 4)
        self.assertEqual(sum(counts["reasons"].values()), counts["cold"])

    def test_a_waiting_attempt_can_be_stopped(self) -> None:
        first = self.begin("import sys; print('here', flush=True); sys.stdin.read()", stdin=(pipe := os.pipe())[0])
        self.until_line(first, "here")
        second = self.begin("print(2)")
        second.attempt.stop(5)
        second.attempt.kill()
        self.turn_until(lambda: second.ended, "its end")
        self.assertTrue(second.ended[0].never_ran)
        os.close(pipe[1])
        self.assertEqual(self.finish(first).exit_code, 0)

    def test_an_interpreter_that_is_not_there(self) -> None:
        report, _, _ = self.do("print(1)", python="/nowhere/python9")
        self.assertTrue(report.never_ran)
        self.assertEqual(report.reason, "no such interpreter: /nowhere/python9")
        self.assertEqual(self.do("print(1)")[1], "1\n")

    def test_a_folder_that_is_not_there(self) -> None:
        report, _, _ = self.do("print(1)", cwd="/nowhere")
        self.assertTrue(report.never_ran)
        self.assertIn("working directory", report.reason or "")

    def test_a_script_that_is_not_there_fails_as_in_a_shell(self) -> None:
        running = self.begin("print(1)")
        (self.folder / "script.py").unlink()
        self.assertEqual(self.finish(running).exit_code, 2)
        self.assertIn("can't open file", running.output[2].decode())

    def test_one_descriptor_for_both_streams(self) -> None:
        running = self.begin("import sys; print('out'); print('err', file=sys.stderr)")
        self.finish(running)
        pipe = os.pipe()
        plan = AttemptPlan(None, None, str(self.folder / "script.py"), [], self.env, "/", pipe[0], pipe[1], pipe[1])
        ended: list[ExitReport] = []
        self.guards.start(plan, lambda *_: None, ended.append)
        self.turn_until(lambda: ended, "the end")
        self.assertEqual(ended[0].exit_code, 0)


@slow
class TestRunningCold(TestRunning):
    cold = True


class TestRunningSpawned(TestRunning):
    cold = spawned = True


class TestFlushing(LauncherCase):
    LOOK = (
        "import os, sys; print(sys.stdout.line_buffering, os.environ.get('PYTHONPATH'), 'sitecustomize' in sys.modules)"
    )

    def test_a_line_arrives_while_the_script_goes_on(self) -> None:
        reading, writing = os.pipe()
        running = self.begin("import sys; print('line'); sys.stdin.read(); print('end')", stdin=reading)
        self.until_line(running, "line")
        self.assertFalse(running.ended)
        os.close(writing)
        self.finish(running)

    def test_buffered_is_python_as_it_is(self) -> None:
        self.assertEqual(self.do(self.LOOK, buffered=True)[1].split()[:2], ["False", "None"])
        self.assertEqual(self.do(self.LOOK)[1].split()[:2], ["True", "None"])

    def test_nothing_of_it_is_seen(self) -> None:
        script = """import os, sys
            print(os.environ.get("PYTHONPATH"), [name for name in sys.modules if "customize" in name])
            print([path for path in sys.path + list(sys.path_importer_cache) if "warm" in path])"""
        script = script.replace("\n            ", "\n")
        for given in ({}, {"PYTHONPATH": ""}, {"PYTHONPATH": "/one:/two"}):
            with self.subTest(given):
                seen = self.do(script, env=given)[1]
                self.assertEqual(seen, self.do(script, env=given, buffered=True, cold=True)[1])

    def test_the_real_sitecustomize_runs(self) -> None:
        (self.folder / "sitecustomize.py").write_text("import sys; sys.mine = __file__")
        script = "import sys; print(sys.mine, sys.modules['sitecustomize'].__file__, sys.stdout.line_buffering)"
        file = str(self.folder / "sitecustomize.py")
        self.assertEqual(self.do(script, env={"PYTHONPATH": str(self.folder)})[1], f"{file} {file} True\n")

    def test_unbuffered_stays_unbuffered(self) -> None:
        script = "import sys; print(sys.stdout.line_buffering, sys.stdout.write_through)"
        self.assertEqual(self.do(script, env={"PYTHONUNBUFFERED": "1"})[1], "False True\n")


DAEMON = """
import os, signal, sys, time
def daemon():
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            os.write(1, b"daemon\\n")
            time.sleep(600)
        os._exit(0)
    os.wait()
"""


@linux_only
class TestTrees(LauncherCase):
    def test_what_a_script_leaves_behind_ends_with_it(self) -> None:
        running = self.begin(DAEMON + "daemon(); daemon()\nif os.fork() == 0: time.sleep(600)")
        self.assertEqual(self.finish(running).exit_code, 0)

    def test_stop_asks_first(self) -> None:
        script = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))
print("ready"); time.sleep(600)
"""
        running = self.begin(script)
        self.until_line(running, "ready")
        running.attempt.stop(60)
        self.assertEqual(self.finish(running).exit_code, 5)

    def test_stop_gives_the_whole_tree_its_grace(self) -> None:
        script = """
import os, signal, sys, time
def late(*_):
    os.write(1, b"child cleaned up\\n"); os._exit(0)  # print may be what was interrupted
if os.fork() == 0:
    signal.signal(signal.SIGTERM, late)
    os.setsid()
    print("ready")
    time.sleep(600)
os.wait()
"""
        running = self.begin(script)
        self.until_line(running, "ready")
        running.attempt.stop(60)
        self.assertEqual(self.finish(running).signal, signal.SIGTERM)
        self.assertIn(b"child cleaned up", running.output[1])

    def test_what_ignores_the_request_is_killed(self) -> None:
        script = DAEMON + "daemon(); signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready'); time.sleep(600)"
        running = self.begin(script)
        self.until_line(running, "ready")
        running.attempt.stop(0.1)
        self.assertEqual(self.finish(running).signal, signal.SIGKILL)

    def test_a_stopped_script_hears_the_request(self) -> None:
        running = self.begin("import os, signal; print('ready'); os.kill(os.getpid(), signal.SIGSTOP)")
        self.until_line(running, "ready")
        running.attempt.stop(60)
        self.assertEqual(self.finish(running).signal, signal.SIGTERM)

    def test_a_stopped_script_is_killed(self) -> None:
        running = self.begin("import os, signal; print('ready'); os.kill(os.getpid(), signal.SIGSTOP)")
        self.until_line(running, "ready")
        running.attempt.kill()
        self.assertEqual(self.finish(running).signal, signal.SIGKILL)

    def test_two_hundred_processes_that_ignore_everything(self) -> None:
        script = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for number in range(200):
    if os.fork() == 0:
        if number % 3 == 0: os.setsid()
        if number % 2: os.fork()
        time.sleep(600)
print("ready"); time.sleep(600)
"""
        running = self.begin(script, buffered=True, env={"PYTHONUNBUFFERED": "1"})
        self.until_line(running, "ready")
        running.attempt.stop(0)
        self.assertEqual(self.finish(running).signal, signal.SIGKILL)

    def test_processes_that_keep_forking(self) -> None:
        script = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for number in range(10):
    if os.fork() == 0:
        while True:  # the parent ends, the child goes on
            if os.fork(): os._exit(0)
            os.setsid()
            time.sleep(0.001)
print("ready"); time.sleep(600)
"""
        running = self.begin(script)
        self.until_line(running, "ready")
        running.attempt.kill()
        self.finish(running)

    def test_an_orphan_that_ends_is_waited_for_at_once(self) -> None:
        """Else a script that waits until its daemon is gone, with kill(pid, 0), would wait for ever."""
        script = """
import os, time
reading, writing = os.pipe()
if os.fork() == 0:
    if os.fork() == 0:
        os.write(writing, b"%d" % os.getpid())
    os._exit(0)
os.wait()
pid = int(os.read(reading, 100))
try:
    while True: os.kill(pid, 0); time.sleep(0.001)
except ProcessLookupError:
    print("gone")
"""
        self.assertEqual(self.do(script)[1], "gone\n")

    def test_too_much_memory(self) -> None:
        script = """
import os, time
if os.fork() == 0:
    data = [bytearray(os.urandom(1 << 20) * 8) for _ in range(8)]
    print("child is big"); time.sleep(600)
data = [bytearray(os.urandom(1 << 20) * 8) for _ in range(8)]
print("big"); time.sleep(600)
"""
        report, _, _ = self.do(script, memory=100 << 20)
        self.assertEqual((report.signal, report.reason), (signal.SIGKILL, "out of memory limit 100M"))

    def test_enough_memory(self) -> None:
        report, _, _ = self.do("import time; data = bytearray(50 << 20); time.sleep(0.1)", memory=200 << 20)
        self.assertEqual((report.exit_code, report.reason), (0, None))


@slow
class TestTreesCold(TestTrees):
    cold = True


@slow
class TestTreesSpawned(TestTrees):
    cold = spawned = True


@linux_only
class TestGuards(LauncherCase):
    def test_a_guard_that_is_killed_takes_its_script_along(self) -> None:
        running = self.begin("import time; print('ready'); time.sleep(600)")
        self.until_line(running, "ready")
        self.turn_until(lambda: running.started, "the notice of its start")
        guard = proctree.parents()[running.started[0][0]]
        os.kill(guard, signal.SIGKILL)
        report = self.finish(running)
        self.assertEqual((report.exit_code, report.signal, report.never_ran), (None, None, False))
        self.assertEqual(self.do("print('again')")[1], "again\n")

    def test_an_idle_guard_that_is_killed_is_replaced(self) -> None:
        self.do("print(1)")
        (pid,) = self.guards.pids()
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # our request must not be on its way while it dies
        self.assertEqual(self.do("print(2)")[1], "2\n")

    def test_closing_ends_everything(self) -> None:
        running = self.begin(DAEMON + "daemon(); print('ready'); time.sleep(600)")
        self.until_line(running, "ready")
        self.guards.close()
        self.assert_alone()
        self.assertFalse(running.ended)

    def test_guards_know_no_key(self) -> None:
        os.environ["MICROCLUSTER_KEY_FILE"] = "/key"
        self.addCleanup(os.environ.pop, "MICROCLUSTER_KEY_FILE")
        guards = Guards(self.loop, 1)
        self.addCleanup(guards.close)
        (pid,) = guards.pids()
        self.assertNotIn(b"MICROCLUSTER_KEY", Path(f"/proc/{pid}/environ").read_bytes())

    def test_a_guard_that_cannot_start(self) -> None:
        guards = Guards(self.loop, 1, "/nowhere/python", Options(cold=True))
        self.addCleanup(guards.close)
        pipes = os.pipe()
        plan = AttemptPlan(None, None, "/x.py", [], self.env, "/", pipes[0], pipes[1], pipes[1])
        ended: list[ExitReport] = []
        guards.start(plan, lambda *_: None, ended.append)
        self.turn_until(lambda: ended, "the refusal")
        self.assertTrue(ended[0].never_ran)
        self.assertIn("no process can be started", ended[0].reason or "")

    def test_signals_that_the_worker_ignores_work_in_scripts(self) -> None:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        self.addCleanup(signal.signal, signal.SIGINT, before)
        guards, self.guards = self.guards, Guards(self.loop, 1, sys.executable, Options(env=self.env))
        self.addCleanup(self.guards.close)
        guards.close()
        report, _, err = self.do("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nimport time; time.sleep(60)")
        self.assertEqual(report.signal, signal.SIGINT)
        self.assertIn("KeyboardInterrupt", err)


WORKER = """
import os, sys
sys.path.insert(0, {root!r})
from tests.shell.test_launcher import TinyLoop
from src import proctree
from src.launcher import *
proctree.become_subreaper()
loop = TinyLoop()
guards = Guards(loop, 1)
plan = AttemptPlan(None, None, {script!r}, [], dict(os.environ), "/", os.open("/dev/null", 0), os.dup(1), os.dup(2))
ended = []
guards.start(plan, lambda *a: None, ended.append)
while not ended:
    loop.turn()
print("lost", ended[0].exit_code, flush=True)
guards.close()
"""


@linux_only
class TestDeaths(Case):
    """A process that is worker enough, killed or bereft of its guard."""

    def worker(self) -> tuple[subprocess.Popen[bytes], int, int]:
        """It, the pid of its script's main process, and of a daemon of that."""
        folder = Path(os.environ["TMPDIR"])
        script = folder / "script.py"
        script.write_text(
            DAEMON.replace("os.write(1, b", "os.write(1, b'%d %d ' % (main, os.getpid()) + b").replace(
                "def daemon", "main = os.getpid()\ndef daemon"
            )
            + "daemon(); time.sleep(600)"
        )
        self.addCleanup(script.unlink)
        process = subprocess.Popen(
            [sys.executable, "-c", WORKER.format(root=str(ROOT), script=str(script))], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        main, daemon, word = process.stdout.readline().split()
        self.assertEqual(word, b"daemon")
        return process, int(main), int(daemon)

    def test_a_killed_worker_takes_everything_along(self) -> None:
        process, *pids = self.worker()
        process.kill()
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), 30, "the script to end")

    def test_orphans_of_a_killed_guard_are_swept(self) -> None:
        process, main, daemon = self.worker()
        os.kill(proctree.parents()[main], signal.SIGKILL)
        assert process.stdout is not None
        self.assertEqual(process.stdout.readline(), b"lost None\n")
        for pid in (main, daemon):
            self.assertFalse(Path(f"/proc/{pid}").exists())

    def test_guard_and_worker_killed_together(self) -> None:
        process, main, daemon = self.worker()
        os.kill(proctree.parents()[main], signal.SIGKILL)
        process.kill()
        wait_until(lambda: not Path(f"/proc/{main}").exists(), 30, "the script to end")
        proctree.send([daemon], signal.SIGKILL)


class TestWithoutGuards(TestRunning):
    """The way of systems that are not Linux."""

    def setUp(self) -> None:
        super().setUp()
        self.guards.close()
        self.guards = Guards(self.loop, 1, sys.executable, Options(env=self.env))
        self.guards.close()
        self.guards.closed = self.guards.guarded = False

    def test_a_waiting_attempt_can_be_stopped(self) -> None:
        self.skipTest("none waits")

    def test_stop_and_kill(self) -> None:
        for grace_s, number in ((60.0, signal.SIGTERM), (0.1, signal.SIGKILL)):
            ignoring = "signal.signal(15, signal.SIG_IGN);" if number == signal.SIGKILL else ""
            running = self.begin(f"import signal, time; {ignoring} print('ready'); time.sleep(600)")
            self.until_line(running, "ready")
            running.attempt.stop(grace_s)
            self.assertEqual(self.finish(running).signal, number)


class TestSize(unittest.TestCase):
    def test_size(self) -> None:
        self.assertEqual([size(512 << 20), size(4 << 30), size(1000)], ["512M", "4G", "1000"])
