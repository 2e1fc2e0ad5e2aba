"""A whole worker, in a thread, against a made-up manager that speaks the protocol over a real socket."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from typing import Any, Callable, Optional
from unittest import mock

from src import config, keys
from src.channel import ServerChannel
from src.core import messages
from src.core.errors import KeyProblem, Unreachable, UsageError
from src.listen import Server
from src.loop import Loop
from src.net import Conn
from src.spool import FileRange
from src.worker import Worker
from tests.support.leaks import Case
from tests.support.marks import linux_only
from tests.support.sim import spec
from tests.support.waiting import FACTOR

ROOT = Path(__file__).resolve().parents[2]
Key = tuple[int, int, int]


class FakeManager:
    """One loop, run by the test itself. Stores output as a spool does, checks every message, answers nothing by itself
    but `need`, `put` and output."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.loop = Loop()
        self.server = Server(self.loop, "127.0.0.1", 0, lambda: ServerChannel(None, None), self)
        self.port = self.server.address[1]
        self.conn: Optional[Conn] = None
        self.joins: list[dict[str, Any]] = []
        self.reports: list[dict[str, Any]] = []
        self.states: list[dict[str, Any]] = []
        self.byes = 0
        self.started: dict[Key, list[Any]] = {}
        self.results: dict[Key, dict[str, Any]] = {}
        self.recalled: list[Key] = []
        self.spool: dict[tuple[Key, int], bytes] = {}
        self.contents: dict[str, bytes] = {}
        self.uploads: dict[str, bytearray] = {}
        self.confirms = self.acks = True

    def close(self) -> None:
        if self.conn is not None:
            self.conn.abort()
        self.server.close()
        self.loop.turn(0)
        self.loop.close()

    # as the handler of its connections

    def opened(self, conn: Conn) -> None:
        self.conn = conn

    def closed(self, conn: Conn, error: Optional[Exception]) -> None:
        if conn is self.conn:
            self.conn = None

    def received(self, conn: Conn, header: dict[str, Any], payload: bytes) -> None:
        messages.check("WORKER", header)
        kind = header["t"]
        if kind == "join":
            self.joins.append(header)
        elif kind == "report":
            self.report(conn, header, payload)
        elif kind == "need":
            for name in header["hashes"]:
                self.give(conn, name)
        elif kind == "put":
            self.take(conn, header, payload)
        elif kind == "state":
            self.states.append(header)
        elif kind == "bye":
            self.byes += 1

    def report(self, conn: Conn, header: dict[str, Any], payload: bytes) -> None:
        self.reports.append(header)
        for item in header.get("started") or ():
            self.started[tuple(item[:3])] = item[3:]
        self.recalled += [tuple(key) for key in header.get("recalled") or ()]
        at, got = 0, []
        for *key, number, offset, length in header.get("output") or ():
            data, at = payload[at : at + length], at + length
            got.append([*key, number, self.store((key[0], key[1], key[2]), number, offset, data)])
        for fin in header.get("finished") or ():
            task = tuple(fin["task"])
            for number, name in ((1, "out"), (2, "err")):
                total, length = fin[name]
                data, at = payload[at : at + length], at + length
                assert self.store(task, number, total - length, data) == total
            self.results[task] = fin
            if self.acks:
                conn.send({"t": "work", "ack": [fin["task"]]})
        assert at == len(payload)
        if got and self.confirms:
            conn.send({"t": "work", "got": got})

    def store(self, key: Key, number: int, offset: int, data: bytes) -> int:
        have = self.spool.get((key, number), b"")
        assert offset <= len(have)
        self.spool[key, number] = have[:offset] + data
        return len(self.spool[key, number])

    def give(self, conn: Conn, name: str) -> None:
        if name not in self.contents:
            conn.send({"t": "noblob", "hash": name})
            return
        path = self.folder / name
        path.write_bytes(self.contents[name])
        size = len(self.contents[name])
        conn.send({"t": "blob", "hash": name, "size": size, "offset": 0}, FileRange(str(path), 0, size))

    def take(self, conn: Conn, header: dict[str, Any], payload: bytes) -> None:
        name, size = header["hash"], header["size"]
        have = self.uploads.setdefault(name, bytearray())
        if header["offset"] == len(have):
            have += payload
        done = len(have) == size
        if done:
            assert hashlib.sha256(have).hexdigest() == name
            self.contents[name] = bytes(have)
        conn.send({"t": "put_ok", "hash": name, "offset": len(have), "done": done})

    # what a test tells it to say

    def keep(self, data: bytes) -> str:
        name = hashlib.sha256(data).hexdigest()
        self.contents[name] = data
        return name

    def send(self, **header: Any) -> None:
        assert self.conn is not None
        self.conn.send(header)

    def work(self, **lists: Any) -> None:
        self.send(t="work", **lists)


class WorkerCase(Case):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = Path(folder.name)
        (self.root / "contents").mkdir()
        self.manager = FakeManager(self.root / "contents")
        self.addCleanup(self.manager.close)
        quiet = logging.NullHandler()
        logging.getLogger("src").addHandler(quiet)
        self.addCleanup(logging.getLogger("src").removeHandler, quiet)
        self.out = io.StringIO()
        patch = mock.patch.object(sys, "stdout", self.out)
        patch.start()
        self.addCleanup(patch.stop)

    def start(self, **settings: Any) -> Worker:
        given = {"host": "127.0.0.1", "port": self.manager.port, "slots": 2, "data": str(self.root / "data"),
                 "name": "w1", "insecure": True}  # fmt: skip
        made = Worker(config.WorkerSettings(**{**given, **settings}))
        self.addCleanup(self.end, made)
        return made.start()

    def end(self, made: Worker) -> None:
        """It ends while the manager still turns."""
        made.stop(kill=True)
        assert made._thread is not None
        self.until(lambda: made._thread is not None and not made._thread.is_alive(), "the worker to end")

    def until(self, predicate: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + 60 * FACTOR
        while not predicate():
            self.assertLess(time.monotonic(), deadline, f"waited in vain for {what}; {self.manager.reports[-3:]}")
            self.manager.loop.turn(0.01)

    def welcome(self, keep: Any = (), kill: Any = ()) -> dict[str, Any]:
        """Wait for the next join, and answer it."""
        self.until(lambda: self.manager.joins, "a join")
        join = self.manager.joins.pop(0)
        self.manager.send(t="welcome", name=join["name"], lost_after=60.0, keep=list(keep), kill=list(kill))
        return join

    def job(self, source: str, name: str = "x.py", **changes: Any) -> dict[str, Any]:
        script = self.manager.keep(textwrap.dedent(source).encode())
        return spec(script={"name": name, "hash": script}, **{"count": 1, **changes})

    def run_job(self, source: str, job: int = 7, **changes: Any) -> dict[str, Any]:
        """The result of a job's only task; its output is in self.stdout and self.stderr."""
        self.manager.work(jobs={str(job): self.job(source, **changes)}, run=[[job, 0, 1, {}]])
        return self.result((job, 0, 1))

    def result(self, key: Key) -> dict[str, Any]:
        self.until(lambda: key in self.manager.results, f"the result of {key}")
        self.stdout, self.stderr = (self.manager.spool[key, number] for number in (1, 2))
        return self.manager.results[key]

    def cut(self) -> None:
        assert self.manager.conn is not None
        self.manager.conn.abort()


class TestJoin(WorkerCase):
    def test_it_says_what_it_is_and_that_it_is_ready(self) -> None:
        self.start(slots=3, labels=["gpu"], resources={"db": 2}, gpus=2, memory=1 << 30)
        join = self.welcome()
        facts = {name: join[name] for name in ("name", "slots", "gpus", "memory", "resources", "holding")}
        self.assertEqual(
            facts, {"name": "w1", "slots": 3, "gpus": 2, "memory": 1 << 30, "resources": {"db": 2}, "holding": []}
        )
        self.assertIn("gpu", join["labels"])
        self.assertTrue(any(label.startswith("host=") for label in join["labels"]))
        self.assertEqual(join["pythons"]["{}.{}".format(*sys.version_info)], join["python"])
        line = f"microcluster worker w1 connected to 127.0.0.1:{self.manager.port} with 3 slots\n"
        self.until(lambda: self.out.getvalue() == line, "the ready line")
        self.cut()
        again = self.welcome()
        self.assertEqual((again["worker_id"], again["boot"]), (join["worker_id"], join["boot"]))
        self.until(lambda: self.out.getvalue() == line * 2, "the ready line again")

    def test_its_id_stays_with_its_data(self) -> None:
        first = self.start()
        one = self.welcome()
        self.end(first)
        self.manager.joins.clear()
        self.start()
        two = self.welcome()
        self.assertEqual(one["worker_id"], two["worker_id"])
        self.assertNotEqual(one["boot"], two["boot"])

    def test_two_workers_share_a_data_folder(self) -> None:
        self.start()
        one = self.welcome()
        self.start()
        two = self.welcome()
        self.assertNotEqual(one["worker_id"], two["worker_id"])

    def test_a_name_that_cannot_be(self) -> None:
        made = Worker(config.WorkerSettings(name="no good", data=str(self.root / "data"), insecure=True))
        with self.assertRaisesRegex(UsageError, "not a name"):
            made.open()

    def test_without_a_key_it_ends_at_once(self) -> None:
        with mock.patch.dict(os.environ, {"MICROCLUSTER_HOME": str(self.root / "home")}):
            made = Worker(config.WorkerSettings(data=str(self.root / "data"), slots=1))
            with self.assertRaises(KeyProblem):
                made.open()

    def test_a_manager_without_keys_is_refused_with_a_key(self) -> None:
        home = self.root / "home"
        keys.ManagerKeys.load_or_create(str(home))
        with mock.patch.dict(os.environ, {"MICROCLUSTER_HOME": str(home)}):
            made = self.start(insecure=False)
        self.until(lambda: made._thread is not None and not made._thread.is_alive(), "the worker to end")
        self.assertEqual(made.code, 77)
        self.assertIsInstance(made.error, KeyProblem)

    def test_it_gives_up_when_asked_to(self) -> None:
        port = self.manager.port
        self.manager.server.close()
        made = self.start(port=port, connect_timeout=0.5)
        self.assertEqual(made.join(), 1)
        self.assertIsInstance(made.error, Unreachable)


class TestRun(WorkerCase):
    def setUp(self) -> None:
        super().setUp()
        self.start()
        self.welcome()

    def test_a_task_from_start_to_end(self) -> None:
        fin = self.run_job(
            """
            import os, sys
            print(sys.argv[1:], os.listdir("."), os.environ["MICROCLUSTER_WORKER"], os.environ["GREETING"])
            print(os.getcwd(), os.environ["TMPDIR"], __file__, file=sys.stderr)
            sys.exit(3)
            """,
            args=["a", {"b64": "/w=="}, "new\nline"],
            env={"GREETING": "hello"},
        )
        self.assertEqual(self.stdout, b"['a', '\\udcff', 'new\\nline'] [] w1 hello\n")
        folder, temp, script = (os.fsdecode(part) for part in self.stderr.split())
        self.assertFalse(os.path.exists(folder) or os.path.exists(temp))
        self.assertTrue(os.path.exists(script) and script.endswith("/x.py"))
        self.assertEqual((fin["exit_code"], fin["signal"], fin["reason"], fin["files"]), (3, None, None, None))
        self.assertTrue(fin["started_at"] <= fin["finished_at"] and fin["rss"] > 0 and fin["cpu"] > 0)
        self.assertFalse(fin["timed_out"] or fin["never_ran"] or fin["cancelled"])

    def test_nothing_is_left_of_acknowledged_tasks(self) -> None:
        self.run_job("print(1)", count=20)
        self.manager.work(run=[[7, pos, 1, {}] for pos in range(1, 20)])
        for pos in range(20):
            self.result((7, pos, 1))
        self.cut()
        self.assertEqual(self.welcome()["holding"], [])

    def test_content_comes_once(self) -> None:
        self.run_job("import helper; print(helper.A)", modules=[["helper.py", self.manager.keep(b"A = 5\n")]])
        self.assertEqual(self.stdout, b"5\n")
        self.manager.contents.clear()
        fin = self.run_job("import helper; print(helper.A)", job=8, modules=[
            ["helper.py", hashlib.sha256(b"A = 5\n").hexdigest()]])  # fmt: skip
        self.assertEqual((fin["exit_code"], self.stdout), (0, b"5\n"))

    def test_content_that_the_manager_lost(self) -> None:
        self.manager.work(jobs={"7": spec(count=1)}, run=[[7, 0, 1, {}]])
        fin = self.result((7, 0, 1))
        self.assertTrue(fin["never_ran"])
        self.assertIn("does not have its files", fin["reason"])

    def test_sent_files_stdin_lines_and_grid(self) -> None:
        manifest = [["d", "data", 0o755], ["f", "data/a", 0o600, self.manager.keep(b"A"), 1], ["l", "link", "data/a"]]
        source = """
            import os, sys
            print(sys.argv[1:], sys.stdin.read(), open("link").read(), os.environ.get("MICROCLUSTER_LR"))
            """
        sent = {"manifest": self.manager.keep(json.dumps(manifest).encode()), "files": 1, "bytes": 1}
        self.run_job(source, send=sent, stdin=self.manager.keep(b"in"), args=["x"],
                     grid=[["lr", ["1", "2"]]], count=2)  # fmt: skip
        self.assertEqual(self.stdout, b"['x', '--lr', '1'] in A 1\n")
        lines = {"chunks": [[0, self.manager.keep(b"zero\none")], [2, self.manager.keep(b"two")]]}
        self.manager.work(jobs={"8": self.job("import sys; print(sys.argv[1])", lines=lines, count=3)},
                          run=[[8, pos, 1, {}] for pos in (2, 0, 1)])  # fmt: skip
        for pos, line in enumerate((b"zero\n", b"one\n", b"two\n")):
            self.result((8, pos, 1))
            self.assertEqual(self.stdout, line)

    def test_a_job_too_large_for_a_message(self) -> None:
        large = self.job("import sys; print(len(sys.argv))", args=["x" * 1000] * 300)
        self.manager.work(jobs={"7": {"spec_blob": self.manager.keep(json.dumps(large).encode())}}, run=[[7, 0, 1, {}]])
        self.manager.work(jobs={"8": self.job("print('after')")}, run=[[8, 0, 1, {}]])
        self.result((7, 0, 1))
        self.assertEqual(self.stdout, b"301\n")
        self.result((8, 0, 1))

    def test_output_is_live(self) -> None:
        go = self.root / "go"
        self.manager.work(jobs={"7": self.job(f"""
            import os
            print("first")
            while not os.path.exists({str(go)!r}): pass
            print("second")
            """)}, run=[[7, 0, 1, {}]])  # fmt: skip
        self.until(lambda: self.manager.spool.get(((7, 0, 1), 1)) == b"first\n", "the first line")
        self.until(lambda: (7, 0, 1) in self.manager.started, "the start to be told")
        go.touch()
        self.result((7, 0, 1))
        self.assertEqual(self.stdout, b"first\nsecond\n")

    def test_much_output(self) -> None:
        fin = self.run_job("""
            import sys
            for n in range(300): sys.stdout.write("%09d " % n * 2000)
            sys.stderr.buffer.write(b"\\xff" * 3000000)
            """, max_output=4_000_000)  # fmt: skip
        self.assertEqual(self.stdout, b"".join(b"%09d " % n * 2000 for n in range(300))[:4_000_000])
        self.assertEqual(self.stderr, b"\xff" * 3_000_000)
        self.assertEqual(fin["dropped"], 2_000_000)

    def test_returned_files(self) -> None:
        fin = self.run_job("""
            import os, sys
            os.mkdir("out")
            open("out/large", "wb").write(b"x" * 2000000)
            open("out/small", "w").write("hi")
            open("other", "w").write("no")
            os.symlink("small", "out/link")
            os.symlink("/etc", "out/bad")
            sys.exit(1)
            """, returns=["out/*"])  # fmt: skip
        entries = messages.check_manifest(self.manager.contents[fin["files"]])
        self.assertEqual([entry[:2] for entry in entries],
                         [["d", "out"], ["f", "out/large"], ["l", "out/link"], ["f", "out/small"]])  # fmt: skip
        self.assertEqual(self.manager.contents[entries[1][3]], b"x" * 2_000_000)
        self.assertEqual((fin["exit_code"], fin["reason"]), (1, "not returned: out/bad (a link that leads outside)"))

    def test_no_such_interpreter(self) -> None:
        fin = self.run_job("print(1)", python="/no/such/python")
        self.assertEqual((fin["never_ran"], fin["reason"]), (True, "no such interpreter: /no/such/python"))
        fin = self.run_job("print(1)", job=8, requires_python=">=9")
        self.assertEqual(fin["reason"], "no such interpreter: >=9")

    def test_an_interpreter_by_path(self) -> None:
        self.run_job("print('here')", python=sys.executable)
        self.assertEqual(self.stdout, b"here\n")

    def test_a_virtual_environment_that_is_there(self) -> None:
        def build(self: Any, interpreter: Any, lines: list[str]) -> str:
            folder = self.root / "key" / "bin"
            folder.mkdir(parents=True)
            (folder / "python").symlink_to(interpreter.path)
            (folder.parent / "complete.json").write_text("{}")
            return "key"

        with mock.patch("src.preparing.key_of", return_value="key"):
            with mock.patch("src.environments.Environments.build", build):
                self.run_job("import os, sys; print(os.environ['VIRTUAL_ENV'], sys.executable)", requirements="numpy\n")
        folder, python = self.stdout.decode().split()
        self.assertTrue(folder.endswith("/environments/key") and python == folder + "/bin/python")

    def test_an_environment_that_cannot_be_made(self) -> None:
        from src.environments import EnvironmentFailed

        problem = EnvironmentFailed("No matching distribution found for nmpy")
        with mock.patch("src.environments.Environments.build", side_effect=problem):
            fin = self.run_job("print(1)", requirements="nmpy")
        self.assertEqual((fin["reason"], fin["never_ran"]), (str(problem), False))


SLEEPER = "import time; print('up'); time.sleep(600)"


class TestEnds(WorkerCase):
    def setUp(self) -> None:
        super().setUp()
        self.worker = self.start(slots=1)
        self.welcome()

    def sleeper(self, count: int = 1, **changes: Any) -> None:
        """Tasks that sleep; the first one is up."""
        self.manager.work(jobs={"7": self.job(SLEEPER, count=count, **changes)},
                          run=[[7, pos, 1, {}] for pos in range(count)])  # fmt: skip
        self.until(lambda: ((7, 0, 1), 1) in self.manager.spool, "it to be up")

    def test_cancelled(self) -> None:
        self.sleeper(count=2)
        self.manager.work(kill=[[7, 1, 1, 5.0], [7, 0, 1, 5.0]])
        first, second = self.result((7, 0, 1)), self.manager.results[7, 1, 1]
        self.assertEqual((first["signal"], first["cancelled"]), (signal.SIGTERM, True))
        self.assertEqual((second["cancelled"], second["started_at"]), (True, None))

    def test_timed_out(self) -> None:
        fin = self.run_job(SLEEPER, timeout=0.5)
        self.assertEqual((fin["timed_out"], fin["reason"]), (True, "timed out after 0.5 s"))
        self.assertEqual(self.stdout, b"up\n")

    def test_recalled(self) -> None:
        self.sleeper(count=3)
        self.manager.work(recall=[[7, 0, 1], [7, 2, 1]])
        self.until(lambda: self.manager.recalled == [(7, 2, 1)], "the recalled one")

    def test_through_a_cut(self) -> None:
        go = self.root / "go"
        self.manager.confirms = self.manager.acks = False
        self.manager.work(jobs={"7": self.job(f"""
            import os
            print("first")
            while not os.path.exists({str(go)!r}): pass
            print("x" * 5000000)
            """)}, run=[[7, 0, 1, {}]])  # fmt: skip
        self.until(lambda: ((7, 0, 1), 1) in self.manager.spool, "the first line")
        self.cut()
        go.touch()
        self.until(lambda: self.manager.joins, "it to come back")
        self.assertEqual([item[:3] for item in self.manager.joins[0]["holding"]], [[7, 0, 1]])
        self.manager.confirms = True
        self.manager.spool[(7, 0, 1), 1] = b"fi"
        self.welcome(keep=[[7, 0, 1, 2, 0]])
        self.result((7, 0, 1))
        self.assertEqual(self.stdout, b"first\n" + b"x" * 5_000_000 + b"\n")
        self.manager.results.clear()
        self.cut()
        self.until(lambda: self.manager.joins, "it to come back")
        self.assertEqual(self.manager.joins[0]["holding"][0][3], "done")
        self.manager.acks = True
        self.welcome(keep=[[7, 0, 1, 5_000_007, 0]])
        self.assertEqual(self.result((7, 0, 1))["out"], [5_000_007, 0])

    def test_what_is_not_kept_is_killed_unheard(self) -> None:
        self.sleeper()
        self.cut()
        self.welcome(kill=[[7, 0, 1]])
        self.run_job("print('next')", job=8)
        self.assertEqual(self.stdout, b"next\n")
        self.assertNotIn((7, 0, 1), self.manager.results)

    def test_leaving_in_good_order(self) -> None:
        go = self.root / "go"
        source = f"import os\nprint('up')\nwhile not os.path.exists({str(go)!r}): pass"
        self.manager.work(jobs={"7": self.job(source, count=2)}, run=[[7, 0, 1, {}], [7, 1, 1, {}]])
        self.until(lambda: ((7, 0, 1), 1) in self.manager.spool, "it to be up")
        self.worker.stop()
        self.until(lambda: self.manager.recalled == [(7, 1, 1)], "the waiting one to be given back")
        self.until(lambda: self.manager.states and self.manager.states[-1]["drained"], "it to say that it leaves")
        go.touch()
        self.result((7, 0, 1))
        self.until(lambda: self.manager.byes == 1 and self.manager.conn is None, "it to leave")
        self.assertEqual(self.worker.join(), 0)

    def test_leaving_at_once(self) -> None:
        self.sleeper(count=2)
        self.worker.stop(kill=True)
        self.until(lambda: self.manager.byes == 1 and self.manager.conn is None, "it to leave")
        self.assertEqual((self.worker.join(), self.manager.results), (0, {}))

    def test_nonsense_from_the_manager_is_a_new_connection(self) -> None:
        with self.assertLogs("src", "WARNING"):
            self.manager.work(run=[["x"]])
            self.until(lambda: self.manager.joins, "another join")
        self.welcome()
        self.run_job("print(1)")

    def test_a_defect_ends_it_and_its_jobs(self) -> None:
        self.sleeper()
        with mock.patch.object(self.worker.agent, "handle", side_effect=RuntimeError("defect")):
            with self.assertLogs("src.worker", "CRITICAL"):
                self.manager.work(ack=[[7, 9, 9]])
                self.until(lambda: self.manager.conn is None, "it to end")
                self.assertEqual(self.worker.join(), 1)


@linux_only
class TestProcess(WorkerCase):
    """`run.py worker` itself, with signals."""

    def spawn(self, *options: str) -> subprocess.Popen[str]:
        words = [sys.executable, str(ROOT / "run.py"), "worker", "--insecure", "--slots", "1", "--name", "w1"]
        words += ["--data", str(self.root / "data"), *options, "127.0.0.1", str(self.manager.port)]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.addCleanup(self.reap, process)
        return process

    def reap(self, process: subprocess.Popen[str]) -> None:
        process.kill()
        process.communicate()

    def ended(self, process: subprocess.Popen[str]) -> tuple[int, str, str]:
        self.until(lambda: process.poll() is not None, "the process to end")
        out, err = process.communicate()
        return process.returncode, out, err

    def test_two_signals(self) -> None:
        process = self.spawn()
        self.welcome()
        self.manager.work(jobs={"7": self.job(SLEEPER)}, run=[[7, 0, 1, {}]])
        self.until(lambda: ((7, 0, 1), 1) in self.manager.spool, "it to be up")
        process.send_signal(signal.SIGTERM)
        self.until(lambda: self.manager.states and self.manager.states[-1]["drained"], "it to say that it leaves")
        self.assertIsNone(process.poll())
        process.send_signal(signal.SIGINT)
        code, out, err = self.ended(process)
        self.assertEqual((code, self.manager.byes, self.manager.results), (0, 1, {}))
        self.assertEqual(out.count("\n"), 1)
        self.assertNotIn("Traceback", err)

    def test_idle_exit(self) -> None:
        process = self.spawn("--idle-exit", "1")
        self.welcome()
        self.assertEqual(self.ended(process)[0], 0)
        self.assertEqual(self.manager.byes, 1)

    def test_jobs_cannot_read_its_memory(self) -> None:
        question = "import ctypes; from src import proctree; proctree.forbid_dumping();"
        question += "print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))"
        asked = subprocess.run([sys.executable, "-c", question], cwd=ROOT, stdout=subprocess.PIPE, check=True)
        self.assertEqual(asked.stdout, b"0\n")
