"""The README's commands work as they stand there: run from a copy of the source, with an empty HOME, and compared.

Only the port (5000 may be in use), the name of the interpreter, and the machine's name and slots are different.
"""

from __future__ import annotations

import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.support.leaks import Case
from tests.support.marks import linux_only
from tests.support.servers import MANAGER_READY, ROOT, WORKER_READY, Program, clean_environ, enter
from tests.support.waiting import FACTOR

LEFT_OUT = (".git", "__pycache__", ".*_cache", "manager_scripts", "worker_scripts", "docs")


def sessions(text: str) -> list[tuple[str, str]]:
    """Each command of the console blocks with the output that is shown below it."""
    found: list[tuple[str, str]] = []
    for block in re.findall(r"```console\n(.*?)```", text, re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            found.append((command, output.rstrip("\n") + "\n"))
    return found


@linux_only
class TestReadme(Case):
    def setUp(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="r"))
        self.addCleanup(shutil.rmtree, self.folder)
        self.tree = self.folder / "m"  # short: temporary files of jobs lie below it then, and go with it
        shutil.copytree(ROOT, self.tree, ignore=shutil.ignore_patterns(*LEFT_OUT))
        (self.folder / "user").mkdir()
        self.environ = clean_environ(self.folder)
        del self.environ["MICROCLUSTER_HOME"]
        self.port = "0"

    def words(self, command: str) -> list[str]:
        """The command for this test; `localhost 5000` is the default and stands for the port that was found."""
        words = shlex.split(command)
        self.assertEqual(words[0], "python3")
        if words[1:] == ["run.py", "manager"] or words[1:] == ["run.py", "worker"]:
            words += ["localhost", "5000"]
        return [sys.executable, *(self.port if word == "5000" else word for word in words[1:])]

    def start(self, command: str) -> Program:
        program = Program(shlex.split(command)[2], list(self.words(command)), self.folder, self.environ)
        program.cwd = self.tree
        return enter(self, program)

    def run_client(self, command: str) -> str:
        done = subprocess.run(
            self.words(command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd=self.tree,
            env=self.environ,
            timeout=120 * FACTOR,
        )
        self.assertEqual((done.returncode, done.stderr), (0, ""), command)
        return done.stdout

    def test_the_commands_do_what_the_readme_shows(self) -> None:
        shown = sessions((ROOT / "README.md").read_text("utf-8"))
        self.assertGreaterEqual(len(shown), 5)
        for command, output in shown:
            if command.startswith("python3 run.py manager"):
                self.port = self.start(command).wait_for(MANAGER_READY).group(2)
                self.assertRegex(output, MANAGER_READY)
            elif command.startswith("python3 run.py worker"):
                self.start(command).wait_for(WORKER_READY)
                self.assertRegex(output, WORKER_READY)
            else:
                self.assertEqual(self.run_client(command), output)
        data = [path.name for path in (self.tree / "manager_scripts").iterdir()]
        self.assertTrue(data, "received scripts lie below manager_scripts")
        keys = self.folder / "user" / ".config" / "microcluster"
        self.assertEqual(sorted(path.name for path in keys.glob("*.key")), ["cluster.key", "manager.key"])


@linux_only
class TestLocal(Case):
    def test_local_is_a_cluster_until_interrupted(self) -> None:
        folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, folder)
        (folder / "user").mkdir()
        words = [sys.executable, str(ROOT / "run.py"), "local", "--workers", "2", "--data", str(folder / "data")]
        program = Program("local", [*words, "localhost", "0"], folder, clean_environ(folder))
        enter(self, program)
        port = program.wait_for(re.compile(r"listening on \S+:(\d+)")).group(1)
        script = str(ROOT / "test_scripts" / "hello_world.py")
        done = subprocess.run(
            [sys.executable, str(ROOT / "client.py"), "run", "localhost", port, script, "Local"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=program.environ,
            timeout=120 * FACTOR,
        )
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, "Hello, Local!\n", ""))
        program.send_signal(signal.SIGINT)
        self.assertEqual(program.wait(), 0)
