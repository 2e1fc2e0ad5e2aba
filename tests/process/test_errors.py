"""Everything a person can get wrong: one line on stderr that says what to do, the promised exit code, no traceback."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Optional, Union

from tests.support.leaks import Case
from tests.support.marks import linux_only
from tests.support.servers import (
    ROOT,
    Manager,
    client,
    enter,
    enter_class,
    running_manager,
    running_worker,
    submit,
    write_script,
)
from tests.support.waiting import FACTOR

LINE_START = re.compile(r"(client\.py|run\.py|microcluster)\b")
Done = subprocess.CompletedProcess[str]


class ErrorCase(Case):
    def assert_error(self, done: Done, exit_code: int, *words: str) -> None:
        """One line after argparse's usage, if any, that starts with the program's name and has each of `words`."""
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        while lines and lines[0].startswith(("usage:", " ")):
            lines.pop(0)
        told = f"exit {done.returncode}, stderr:\n{done.stderr}"
        self.assertEqual(done.returncode, exit_code, told)
        self.assertEqual(len(lines), 1, f"one line, please: {told}")
        self.assertRegex(lines[0], LINE_START, "it starts with the program's name")
        self.assertNotIn("Traceback", done.stderr)
        for word in words:
            self.assertRegex(lines[0].lower(), word.lower())
        self.assertEqual(done.stdout, "")


class TestUsage(ErrorCase):
    """What is wrong whatever the manager says; one manager for all."""

    manager: Manager
    script: Path

    @classmethod
    def setUpClass(cls) -> None:
        cls.manager = enter_class(cls, running_manager())
        cls.script = write_script(cls.manager, "ok.py", "print('ok')\n")

    def test_a_script_that_is_not_there(self) -> None:
        self.assert_error(client(self.manager, "submit", "no_such.py"), 2, "no_such.py")
        self.assert_error(client(self.manager, "run", "no_such.py"), 2, "no_such.py")

    def test_a_folder_as_script(self) -> None:
        (self.manager.folder / "work" / "folder").mkdir(exist_ok=True)
        self.assert_error(client(self.manager, "submit", "folder"), 2, "folder")

    def test_an_id_that_does_not_exist(self) -> None:
        for verb in ("result", "status", "wait", "cancel", "retry", "fetch"):
            with self.subTest(verb):
                self.assert_error(client(self.manager, verb, "999"), 125, "999")

    def test_a_malformed_id(self) -> None:
        for word in ("seven", "1.2.3", "-1", "1.", "9-7", "7.5-2", "0x7", ""):
            with self.subTest(id=word):
                self.assertEqual(client(self.manager, "status", "--", word).returncode, 2)
        for verb in ("wait", "cancel", "retry", "fetch"):
            with self.subTest(verb):
                self.assertEqual(client(self.manager, verb, "1.2.3").returncode, 2)
        self.assert_error(client(self.manager, "result", "seven"), 2, "seven")

    def test_last_of_none(self) -> None:
        with_none = enter(self, running_manager())
        self.assert_error(client(with_none, "status", "last"), 125, "no job|none")

    def test_wrong_values_of_options(self) -> None:
        wrong = {
            "--timeout": ("soon", "-5", "1x"),
            "--retries": ("-1", "many"),
            "--priority": ("high",),
            "--cpus": ("0", "x"),
            "--gpus": ("-1",),
            "--memory": ("much", "-1"),
            "--max-output": ("lots",),
            "--array": ("x", "5-1", "1,1", "0-99999999", ""),
            "--max-running": ("0",),
            "--env": ("=x",),
            "--if-lost": ("maybe",),
            "--after": ("x",),
            "--resource": ("licence", "licence=-1"),
            "--grid": ("x", "=1", "x="),
            "--stdin": ("no_such_file",),
            "--send": ("no_such_file",),
            "--requirements": ("no_such_file",),
            "--return": ("/etc/passwd", "../x"),
        }
        for option, values in wrong.items():
            for value in values:
                with self.subTest(option, value=value):
                    words = ("--array", "0-9") if option == "--max-running" else ()
                    done = client(self.manager, "submit", *words, f"{option}={value}", self.script)
                    self.assert_error(done, 2, re.escape(option))

    def test_unknown_verbs_and_options(self) -> None:
        self.assert_error(client(self.manager, "sumbit", self.script), 2, "sumbit")
        self.assert_error(client(self.manager, "submit", "--nope", self.script), 2, "--nope")
        self.assert_error(client(self.manager, "result"), 2)
        self.assert_error(client(self.manager, "submit"), 2)

    def test_no_arguments_at_all(self) -> None:
        for program in ("client.py", "run.py"):
            with self.subTest(program):
                done = program_output(program, [], self.manager.environ)
                self.assertEqual(done.returncode, 2)
                self.assertNotIn("Traceback", done.stderr)

    def test_a_bad_address(self) -> None:
        for host, port in (("localhost", "http"), ("localhost", "70000"), ("localhost", "-1")):
            with self.subTest(port=port):
                done = program_output("client.py", ["list", host, port], self.manager.environ)
                self.assert_error(done, 2, "port")
        done = program_output("client.py", ["list"], {**self.manager.environ, "MICROCLUSTER_MANAGER": "nonsense"})
        self.assert_error(done, 2, "MICROCLUSTER_MANAGER")
        done = program_output("client.py", ["list", "no-such-host.invalid", "5000"], self.manager.environ)
        self.assert_error(done, 125, "no-such-host.invalid")

    def test_a_job_that_is_not_finished(self) -> None:
        job = submit(self.manager, "--name", "waits", self.script)
        self.assert_error(client(self.manager, "result", job), 124, job)
        done = client(self.manager, "wait", "--timeout", "0.1", job)
        self.assertEqual(done.returncode, 124, done.stderr)

    def test_a_job_that_no_worker_can_run_is_queued_with_a_warning(self) -> None:
        done = client(self.manager, "submit", "--on", "moon", self.script)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertRegex(done.stdout, r"\A\d+\n\Z")
        self.assertEqual(len(done.stderr.splitlines()), 1, done.stderr)
        self.assertIn("moon", done.stderr)
        told = client(self.manager, "status", done.stdout.strip())
        self.assertIn("moon", told.stdout)

    def test_a_dependency_that_does_not_exist(self) -> None:
        self.assert_error(client(self.manager, "submit", "--after", "999", self.script), 125, "999")


@linux_only
class TestScriptsThatCannotRun(ErrorCase):
    def test_no_such_interpreter(self) -> None:
        manager = enter(self, running_manager())
        enter(self, running_worker(manager))
        script = write_script(manager, "ok.py", "print('ok')\n")
        done = client(manager, "run", "--python", "/no/such/python", script)
        self.assertEqual(done.returncode, 125, done.stderr)
        self.assertIn("/no/such/python", done.stderr)
        self.assertEqual(done.stdout, "")


class TestKeys(ErrorCase):
    """Clients and workers with the wrong key, or none, or one that others can read."""

    def setUp(self) -> None:
        self.manager = enter(self, running_manager())
        self.home = Path(tempfile.mkdtemp()) / "home"
        self.addCleanup(shutil.rmtree, self.home.parent)
        self.home.mkdir(mode=0o700)
        self.environ = {**self.manager.environ, "MICROCLUSTER_HOME": str(self.home)}
        self.key = self.manager.folder / "home" / "cluster.key"

    def both(self, *words: str, **environ: str) -> list[tuple[Done, int]]:
        """`client.py list` and `run.py worker` under this home, each with the exit code of a bad key."""
        address = ["localhost", str(self.manager.port)]
        data = ["--data", str(self.home / "worker")]
        merged = {**self.environ, **environ}
        return [
            (program_output("client.py", ["list", *words, *address], merged), 125),
            (program_output("run.py", ["worker", *data, *words, *address], merged), 77),
        ]

    def test_no_key(self) -> None:
        for done, code in self.both():
            self.assert_error(self.last_line(done), code, "cluster.key")

    def test_the_key_of_another_cluster(self) -> None:
        other = enter(self, running_manager())
        shutil.copy(other.folder / "home" / "cluster.key", self.home / "cluster.key")
        for done, code in self.both():
            self.assert_error(self.last_line(done), code, "key")

    def test_a_key_that_others_can_read(self) -> None:
        shutil.copy(self.key, self.home / "cluster.key")
        os.chmod(self.home / "cluster.key", 0o644)
        for done, code in self.both():
            self.assert_error(self.last_line(done), code, "chmod|0600|600|others")

    def test_a_key_that_is_a_link(self) -> None:
        os.symlink(self.key, self.home / "cluster.key")
        for done, code in self.both():
            self.assert_error(self.last_line(done), code, "link")

    def test_a_key_that_is_no_key(self) -> None:
        for done, code in self.both(MICROCLUSTER_KEY="nonsense"):
            self.assert_error(self.last_line(done), code, "MICROCLUSTER_KEY")

    def test_a_key_file_that_is_not_there(self) -> None:
        for done, code in self.both("--key-file", str(self.home / "none")):
            self.assert_error(self.last_line(done), code, "none")

    def test_a_key_of_a_role_that_may_not(self) -> None:
        environ = self.manager.environ
        worker_key = program_output("run.py", ["key", "--role", "worker"], environ)
        self.assertEqual(worker_key.returncode, 0, worker_key.stderr)
        read_key = program_output("run.py", ["key", "--role", "read"], environ).stdout.strip()
        address = ["localhost", str(self.manager.port)]
        script = str(write_script(self.manager, "ok.py", "print('ok')\n"))
        as_worker = {**self.environ, "MICROCLUSTER_KEY": worker_key.stdout.strip()}
        self.assert_error(program_output("client.py", ["list", *address], as_worker), 125)
        as_reader = {**self.environ, "MICROCLUSTER_KEY": read_key}
        self.assertEqual(program_output("client.py", ["list", *address], as_reader).returncode, 0)
        self.assert_error(program_output("client.py", ["submit", *address, script], as_reader), 125, "read")

    def test_secure_and_insecure_do_not_mix_and_say_so(self) -> None:
        for done, code in self.both("--insecure"):
            self.assertEqual(done.returncode, code, done.stderr)
            self.assertRegex(done.stderr, "secure")
        insecure = enter(self, running_manager("--insecure"))
        self.assertRegex(insecure.err.lower(), "insecure")
        address = ["localhost", str(insecure.port)]
        done = program_output("client.py", ["list", *address], insecure.environ)
        self.assert_error(done, 125, "insecure")
        self.assertEqual(program_output("client.py", ["list", "--insecure", *address], insecure.environ).returncode, 0)

    @staticmethod
    def last_line(done: Done) -> Done:
        """A worker may log before it gives up: its last line is what counts."""
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        return Done(done.args, done.returncode, done.stdout, "\n".join(lines[-1:]))


class TestStrangers(ErrorCase):
    """No manager there, or something else."""

    def setUp(self) -> None:
        self.home = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.home)
        self.environ = {**os.environ, "MICROCLUSTER_HOME": str(self.home / "home"), "HOME": str(self.home)}
        made = program_output("run.py", ["key", "--role", "submit"], self.environ)
        self.assertEqual(made.returncode, 0, made.stderr)
        self.environ["MICROCLUSTER_KEY"] = made.stdout.strip()

    def test_nobody_listens(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        done = program_output("client.py", ["list", "127.0.0.1", str(port)], self.environ)
        self.assert_error(done, 125, f"{port}")

    def test_a_worker_gives_up_when_told_to(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        words = ["worker", "--connect-timeout", "0.1", "--data", str(self.home / "w"), "127.0.0.1", str(port)]
        worker_key = program_output("run.py", ["key", "--role", "worker"], self.environ).stdout.strip()
        done = program_output("run.py", words, {**self.environ, "MICROCLUSTER_KEY": worker_key})
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertIn(str(port), done.stderr)

    def test_a_web_server(self) -> None:
        with Stranger(b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
            done = program_output("client.py", ["list", "127.0.0.1", str(port)], self.environ)
            self.assert_error(done, 125, "not a microcluster|no microcluster|http|web")

    def test_an_ssh_server(self) -> None:
        with Stranger(b"SSH-2.0-OpenSSH_9.9\r\n") as port:
            done = program_output("client.py", ["list", "127.0.0.1", str(port)], self.environ)
            self.assert_error(done, 125, "ssh|not a microcluster|no microcluster")

    def test_one_that_hangs_up(self) -> None:
        with Stranger(b"") as port:
            done = program_output("client.py", ["list", "127.0.0.1", str(port)], self.environ)
            self.assert_error(done, 125)

    def test_another_protocol(self) -> None:
        message = "this manager speaks protocol 2, you speak 1: upgrade the client"
        text = json.dumps({"t": "error", "code": "protocol", "message": message}).encode()
        with Stranger(len(text).to_bytes(4, "big") + bytes(4) + text) as port:
            done = program_output("client.py", ["list", "--insecure", "127.0.0.1", str(port)], self.environ)
            self.assert_error(done, 125, "upgrade")


class Stranger:
    """A server that says `greeting` once it heard something, and hangs up."""

    def __init__(self, greeting: bytes) -> None:
        self.greeting = greeting
        self.server = socket.create_server(("127.0.0.1", 0))
        self.thread: Optional[threading.Thread] = None

    def __enter__(self) -> int:
        self.thread = threading.Thread(target=self.serve, name="stranger")
        self.thread.start()
        port = self.server.getsockname()[1]
        assert isinstance(port, int)
        return port

    def serve(self) -> None:
        while True:
            try:
                sock, _ = self.server.accept()
            except OSError:
                return
            with sock:
                sock.settimeout(60)
                try:
                    sock.recv(65536)
                    sock.sendall(self.greeting)
                    sock.shutdown(socket.SHUT_WR)
                    while sock.recv(65536):
                        pass
                except OSError:
                    pass  # the client hung up first

    def __exit__(self, *exc: object) -> None:
        self.server.shutdown(socket.SHUT_RDWR)
        self.server.close()
        assert self.thread is not None
        self.thread.join()


class TestMachines(ErrorCase):
    """Managers that cannot start."""

    def setUp(self) -> None:
        self.manager = enter(self, running_manager())

    def start(self, *words: Union[str, Path]) -> Done:
        return program_output("run.py", ["manager", *map(str, words)], self.manager.environ)

    def test_a_port_in_use(self) -> None:
        done = self.start("--data", self.manager.folder / "other", "localhost", str(self.manager.port))
        self.assert_error(TestKeys.last_line(done), 1, str(self.manager.port), "use")

    def test_a_data_directory_in_use(self) -> None:
        done = self.start("--data", self.manager.data, "localhost", "0")
        self.assert_error(TestKeys.last_line(done), 1, "manager", re.escape(str(self.manager.data)))

    def test_a_data_directory_that_cannot_be(self) -> None:
        (self.manager.folder / "file").write_text("x")
        done = self.start("--data", self.manager.folder / "file" / "data", "localhost", "0")
        self.assert_error(TestKeys.last_line(done), 1, "data")

    def test_a_host_that_is_not_here(self) -> None:
        done = self.start("--data", self.manager.folder / "other", "192.0.2.1", "0")
        self.assert_error(TestKeys.last_line(done), 1, "192.0.2.1")

    def test_wrong_options(self) -> None:
        for words in (["--lost-after", "x"], ["--nope"], ["localhost", "x"], ["--crash-limit", "-1"]):
            with self.subTest(words):
                self.assert_error(self.start(*words), 2)


def program_output(program: str, words: list[str], environ: dict[str, str]) -> Done:
    """Run one of the programs to its end, with no standard input."""
    return subprocess.run(
        [sys.executable, str(ROOT / program), *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        env=environ,
        timeout=120 * FACTOR,
    )
