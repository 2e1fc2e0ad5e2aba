"""The promises that make a cluster a cluster, held by real processes: spread, survival, cancelling, secrecy."""

from __future__ import annotations

import json
import signal
import socket
import ssl
import subprocess
from collections import Counter
from pathlib import Path

from tests.support.leaks import Case
from tests.support.marks import linux_only, slow
from tests.support.proxy import Proxy
from tests.support.servers import (
    Manager,
    background_client,
    client,
    client_bytes,
    client_command,
    enter,
    running_manager,
    running_worker,
    status,
    submit,
    wait_state,
    write_script,
)
from tests.support.waiting import FACTOR, wait_until

# Says that it runs, then waits until the test opens the gate; both are files below the folder that it is given.
GATED = """
import os, pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
attempt = os.environ["MICROCLUSTER_ATTEMPT"]
for number in range(1000):
    print("before", number)
(folder / f"started-{attempt}").write_text(str(os.getpid()))
while not (folder / "gate").exists():
    time.sleep(0.02)
for number in range(1000):
    print("after", number)
"""
GATED_OUTPUT = "".join(f"{word} {number}\n" for word in ("before", "after") for number in range(1000))

# A tree: the script, a child, and a daemon that forked twice and has a session of its own; all ignore nothing.
TREE = """
import os, subprocess, sys, time
folder = sys.argv[1]
def note(name):
    with open(os.path.join(folder, name + ".tmp"), "w") as file:
        file.write(str(os.getpid()))
    os.rename(os.path.join(folder, name + ".tmp"), os.path.join(folder, name))
if os.fork() == 0:
    note("child")
    time.sleep(1000)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        note("daemon")
        time.sleep(1000)
    os._exit(0)
note("script")
time.sleep(1000)
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class ClusterCase(Case):
    """Each test has a manager and starts the workers it needs."""

    manager: Manager
    manager_options: tuple[str, ...] = ()

    def setUp(self) -> None:
        self.manager = enter(self, running_manager(*self.manager_options))
        self.signs = self.manager.folder / "signs"
        self.signs.mkdir()

    def open_gate(self) -> None:
        (self.signs / "gate").touch()

    def wait_started(self, attempt: int = 1) -> int:
        """Until the gated script runs its n-th attempt; gives its process id."""
        path = self.signs / f"started-{attempt}"
        return int(wait_until(lambda: path.exists() and path.read_text(), 60, f"attempt {attempt}", self.manager.logs))


@slow
@linux_only
class TestSpread(ClusterCase):
    def test_200_jobs_over_8_slots_are_spread_and_none_runs_twice(self) -> None:
        for _ in range(4):
            enter(self, running_worker(self.manager, slots=2))
        script = write_script(
            self.manager,
            "tenth.py",
            "import os, sys, time\ntime.sleep(0.1)\n"
            "line = f\"{os.environ['MICROCLUSTER_TASK_INDEX']} {os.environ['MICROCLUSTER_WORKER']}\\n\"\n"
            "os.write(os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT), line.encode())\n"
            "print(os.environ['MICROCLUSTER_TASK_INDEX'])\n",
        )
        done = client(self.manager, "run", "--array", "0-199", script, self.signs / "ran")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertEqual(done.stdout.split(), [str(index) for index in range(200)])
        lines = [line.split() for line in (self.signs / "ran").read_text().splitlines()]
        self.assertEqual(sorted(int(index) for index, _ in lines), list(range(200)), "each exactly once")
        by_worker = Counter(worker for _, worker in lines)
        self.assertEqual(len(by_worker), 4, by_worker)
        self.assertGreaterEqual(min(by_worker.values()), 20, by_worker)


@linux_only
class TestClients(ClusterCase):
    def setUp(self) -> None:
        super().setUp()
        enter(self, running_worker(self.manager))

    def test_killing_the_client_changes_nothing_for_its_job(self) -> None:
        script = write_script(self.manager, "gated.py", GATED)
        running = enter(self, background_client(self.manager, "run", script, str(self.signs)))
        self.wait_started()
        running.kill()
        self.open_gate()
        self.assertEqual(client(self.manager, "wait", "last").returncode, 0)
        self.assertEqual(client(self.manager, "result", "last").stdout, GATED_OUTPUT)

    def test_a_reader_that_leaves_cancels_the_run(self) -> None:
        script = write_script(self.manager, "endless.py", "while True:\n    print('line')\n")
        with subprocess.Popen(
            client_command(self.manager, "run", script), stdout=subprocess.PIPE, env=self.manager.environ
        ) as running:
            assert running.stdout is not None
            self.assertEqual(running.stdout.readline(), b"line\n")
            running.stdout.close()
            self.assertEqual(running.wait(120 * FACTOR), 141)
        self.assertEqual(client(self.manager, "wait", "last").returncode, 143)

    def test_interrupting_run_cancels_the_whole_tree(self) -> None:
        script = write_script(self.manager, "tree.py", TREE)
        running = enter(self, background_client(self.manager, "run", script, str(self.signs)))
        names = ("script", "child", "daemon")
        wait_until(lambda: all((self.signs / name).exists() for name in names), 60, "the tree", running.logs)
        pids = [int((self.signs / name).read_text()) for name in names]
        self.assertTrue(all(alive(pid) for pid in pids))
        running.send_signal(signal.SIGINT)
        self.assertEqual(running.wait(), 130)
        wait_until(lambda: not any(alive(pid) for pid in pids), 60, "the tree to end")
        wait_state(self.manager, "last", "cancelled")
        self.assertEqual(client(self.manager, "wait", "last").returncode, 143)

    def test_what_a_script_leaves_behind_ends_with_it(self) -> None:
        source = TREE.replace('note("script")\ntime.sleep(1000)', "pass")
        script = write_script(self.manager, "leaves.py", source + WAIT_FOR_BOTH)
        self.assertEqual(client(self.manager, "run", script, self.signs).returncode, 0)
        pids = [int((self.signs / name).read_text()) for name in ("child", "daemon")]
        self.assertFalse(any(alive(pid) for pid in pids), "the tree ended before the job did")

    def test_follow_streams_while_the_script_runs(self) -> None:
        script = write_script(self.manager, "gated.py", GATED)
        job = submit(self.manager, script, str(self.signs))
        follower = enter(self, background_client(self.manager, "result", "--connect-timeout", "60", "--follow", job))
        wait_until(lambda: "before 999\n" in follower.out, 60, "the first half", follower.logs)
        self.assertNotIn("after", follower.out)
        self.assertTrue(follower.alive())
        self.open_gate()
        self.assertEqual(follower.wait(), 0, follower.err)
        self.assertEqual(follower.out, GATED_OUTPUT)


WAIT_FOR_BOTH = """
while not all(os.path.exists(os.path.join(folder, name)) for name in ("child", "daemon")):
    time.sleep(0.01)
"""


@linux_only
class TestRestarts(ClusterCase):
    manager_options = ("--lost-after", "5s")

    def test_a_restarted_manager_knows_ids_history_output_and_queue(self) -> None:
        worker = enter(self, running_worker(self.manager))
        script = write_script(self.manager, "greet.py", "import sys\nprint('Hello', *sys.argv[1:])\nsys.exit(3)\n")
        first = submit(self.manager, script, "a")
        self.assertEqual(client(self.manager, "wait", first).returncode, 3)
        queued = submit(self.manager, "--on", "moon", script, "b")
        before = json.loads(client(self.manager, "list", "--json").stdout)
        self.assertEqual(self.manager.stop(), 0)
        self.manager.restart()
        worker.wait_connected(2)
        after = json.loads(client(self.manager, "list", "--json").stdout)
        self.assertEqual([(job["id"], job["state"]) for job in after], [(job["id"], job["state"]) for job in before])
        result = client(self.manager, "result", first)
        self.assertEqual((result.returncode, result.stdout), (3, "Hello a\n"))
        self.assertEqual(status(self.manager, queued)["state"], "queued")
        self.assertGreater(int(submit(self.manager, script)), int(queued))

    def test_a_killed_manager_adopts_what_runs(self) -> None:
        worker = enter(self, running_worker(self.manager))
        script = write_script(self.manager, "gated.py", GATED)
        job = submit(self.manager, script, str(self.signs))
        follower = enter(self, background_client(self.manager, "result", "--connect-timeout", "60", "--follow", job))
        pid = self.wait_started()
        self.manager.kill()
        self.assertTrue(alive(pid), "the script runs on")
        self.open_gate()
        self.manager.restart()
        worker.wait_connected(2)
        self.assertEqual(client(self.manager, "wait", job).returncode, 0)
        self.assertEqual(status(self.manager, job)["attempt"], 1, "adopted, not started again")
        self.assertEqual(client(self.manager, "result", job).stdout, GATED_OUTPUT)
        self.assertEqual(follower.wait(), 0, follower.err)
        self.assertEqual(follower.out, GATED_OUTPUT, "the follower went on where it was")

    def test_a_script_that_ends_while_the_manager_is_away_is_reported_later(self) -> None:
        worker = enter(self, running_worker(self.manager))
        script = write_script(self.manager, "gated.py", GATED)
        job = submit(self.manager, script, str(self.signs))
        pid = self.wait_started()
        self.manager.kill()
        self.open_gate()
        wait_until(lambda: not alive(pid), 60, "the script to end")
        self.manager.restart()
        worker.wait_connected(2)
        self.assertEqual(client(self.manager, "wait", job).returncode, 0)
        self.assertEqual(status(self.manager, job)["attempt"], 1)
        self.assertEqual(client(self.manager, "result", job).stdout, GATED_OUTPUT)

    def test_a_killed_worker_takes_its_script_with_it_which_runs_again(self) -> None:
        worker = enter(self, running_worker(self.manager))
        script = write_script(self.manager, "gated.py", GATED)
        job = submit(self.manager, script, str(self.signs))
        pid = self.wait_started()
        worker.kill()
        wait_until(lambda: not alive(pid), 60, "the script to die with its worker")
        enter(self, running_worker(self.manager))
        self.wait_started(attempt=2)
        self.open_gate()
        self.assertEqual(client(self.manager, "wait", job).returncode, 0)
        self.assertEqual(status(self.manager, job)["attempt"], 2)
        self.assertEqual(client(self.manager, "result", job).stdout, GATED_OUTPUT)

    def test_a_worker_that_is_told_to_stop_lets_its_script_finish(self) -> None:
        worker = enter(self, running_worker(self.manager))
        script = write_script(self.manager, "gated.py", GATED)
        job = submit(self.manager, script, str(self.signs))
        self.wait_started()
        worker.send_signal(signal.SIGTERM)
        self.open_gate()
        self.assertEqual(worker.wait(), 0)
        self.assertEqual(status(self.manager, job)["state"], "succeeded")
        self.assertEqual(status(self.manager, job)["attempt"], 1)


@linux_only
class TestSecrecy(ClusterCase):
    def test_nothing_is_readable_on_the_wire(self) -> None:
        with Proxy(self.manager.port, record=True) as proxy:
            enter(self, running_worker(self.manager, port=proxy.port))
            write_script(self.manager, "beside.py", "SECRET = 'secret-of-module'\n")
            source = (
                "import sys, beside\nprint('out' + 'put-is-secret', beside.SECRET, *sys.argv[1:], sys.stdin.read())\n"
            )
            script = write_script(self.manager, "secret_name.py", source)
            options = ("--name", "secret-job", "--env", "X=secret-variable", "--stdin", "-")
            done = client(
                self.manager, "run", *options, script, "secret-argument", stdin="secret-input", port=proxy.port
            )
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertIn("output-is-secret secret-of-module secret-argument secret-input", done.stdout)
            recorded = bytes(proxy.recorded)
        self.assertGreater(len(recorded), 1000)
        self.assertNotIn(b"secret", recorded)
        self.assertNotIn(b"hello", recorded)

    def test_without_a_key_there_is_a_handshake_and_silence(self) -> None:
        worker = enter(self, running_worker(self.manager, name="quiet-worker"))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        hello: dict[str, object] = {
            "t": "hello",
            "mc": 1,
            "version": "0.1.0",
            "role": "client",
            "kid": "0" * 16,
            "nc": "0" * 64,
        }
        proof: dict[str, object] = {"t": "proof", "mac": "0" * 64}
        requests = [
            b"",
            b"GET / HTTP/1.1\r\n\r\n",
            b"\xff" * 64,
            _frame({"t": "list", "n": 1}),
            _frame(hello) + _frame(proof),
        ]
        for request in requests:
            with self.subTest(request=request[:40]), _connect(self.manager) as plain:
                with context.wrap_socket(plain) as secure:
                    self.assertEqual(secure.version(), "TLSv1.3")
                    if request:
                        secure.sendall(request)
                    else:
                        secure.unwrap().close()
                        continue
                    answer = _read_to_end(secure)
                self.assertLess(len(answer), 1024)
                for word in (b"quiet-worker", b"worker", b"jobs"):
                    self.assertNotIn(word, answer.replace(b"no worker", b""))
        self.assertTrue(worker.alive())
        self.assertNotIn("Traceback", self.manager.err)

    def test_plain_bytes_get_no_answer_that_tells_anything(self) -> None:
        for request in (
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            b"\0" * 64,
            _frame({"t": "list", "n": 1}),
            b"SSH-2.0-x\r\n",
        ):
            with self.subTest(request=request[:20]), _connect(self.manager) as plain:
                plain.sendall(request)
                answer = _read_to_end(plain)
                self.assertLess(len(answer), 1024)
                self.assertNotIn(b"jobs", answer)
        self.assertEqual(client(self.manager, "list").returncode, 0, "the others notice nothing")
        self.assertNotIn("Traceback", self.manager.err)

    def test_key_files_are_for_their_user_alone(self) -> None:
        for name in ("manager.key", "cluster.key"):
            path = self.manager.folder / "home" / name
            self.assertEqual(path.stat().st_mode & 0o777, 0o600, name)
            for word in path.read_text().split():
                if len(word) >= 40:
                    self.assertNotIn(word, self.manager.err, "a key is never printed")

    def test_a_script_sees_no_secret(self) -> None:
        enter(self, running_worker(self.manager))
        script = write_script(self.manager, "look.py", "import os\nprint('\\n'.join(os.environ), os.environ)\n")
        done = client(self.manager, "run", script)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertNotIn("MICROCLUSTER_HOME", done.stdout)
        self.assertNotIn("MICROCLUSTER_KEY", done.stdout)


def _connect(manager: Manager) -> socket.socket:
    return socket.create_connection((manager.host, manager.port), timeout=60)


def _frame(header: dict[str, object]) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(4, "big") + bytes(4) + text


def _read_to_end(sock: socket.socket) -> bytes:
    """What the manager sends until it closes (which it does within its time for strangers)."""
    data = b""
    while True:
        try:
            more = sock.recv(65536)
        except (ConnectionError, ssl.SSLError):
            return data
        if not more:
            return data
        data += more


@linux_only
class TestBytes(ClusterCase):
    def test_a_job_of_many_megabytes_goes_through_run_and_result(self) -> None:
        enter(self, running_worker(self.manager))
        script = write_script(
            self.manager,
            "bulk.py",
            "import sys\nfor i in range(64):\n    sys.stdout.buffer.write(bytes([i]) * 65536)\n",
        )
        expected = b"".join(bytes([number]) * 65536 for number in range(64))
        self.assertEqual(client_bytes(self.manager, "run", script).stdout, expected)
        self.assertEqual(client_bytes(self.manager, "result", "last").stdout, expected)

    def test_output_beyond_the_limit_is_counted_and_said(self) -> None:
        enter(self, running_worker(self.manager))
        script = write_script(self.manager, "much.py", "import sys\nsys.stdout.write('x' * 1_000_000)\n")
        done = client(self.manager, "run", "--max-output", "100K", script)
        self.assertEqual((done.returncode, len(done.stdout)), (0, 100 * 1024))
        self.assertIn("dropped", done.stderr)
        self.assertEqual(status(self.manager, "last")["dropped_bytes"], 1_000_000 - 100 * 1024)
