"""Runs docs/guide.md: its files, its commands, compared with the output that it shows."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from tests.support.leaks import Case
from tests.support.marks import linux_only, slow
from tests.support.servers import Manager, enter_class, running_manager, running_worker
from tests.support.waiting import FACTOR

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = ("--gpus", "2", "--label", "desktop", "--resource", "licence=1")


def sections() -> dict[str, list[tuple[str, str]]]:
    """Heading → its blocks as (language, text)."""
    found: dict[str, list[tuple[str, str]]] = {}
    for part in (ROOT / "docs" / "guide.md").read_text("utf-8").split("\n## ")[1:]:
        found[part.splitlines()[0]] = re.findall(r"```(\w+)\n(.*?)```", part, re.DOTALL)
    return found


@slow
@linux_only
class TestGuide(Case):
    manager: Manager
    folder: Path

    @classmethod
    def setUpClass(cls) -> None:
        cls.manager = enter_class(cls, running_manager())
        enter_class(cls, running_worker(cls.manager, *OPTIONS, slots=2, name="lab-1"))
        cls.folder = Path(cls.manager.folder) / "guide"
        cls.folder.mkdir()
        for name in ("client.py", "src"):
            (cls.folder / name).symlink_to(ROOT / name)

    def test_ten_tasks(self) -> None:
        found = sections()
        self.assertEqual(len(found), 10)
        for heading, blocks in found.items():
            with self.subTest(heading):
                for language, text in blocks:
                    if language == "python":
                        (self.folder / text.split()[1]).write_text(text)
                self.check("".join(text for language, text in blocks if language == "console"))

    def check(self, console: str) -> None:
        """All commands of a section in one shell; their output, in order, is what the text shows."""
        commands = [line[2:] for line in console.splitlines() if line.startswith("$ ")]
        wanted = "".join(line + "\n" for line in console.splitlines() if not line.startswith("$ "))
        script = f'python3() {{ {shlex.quote(sys.executable)} "$@"; }}\n' + "\n".join(commands)
        environ = {**os.environ, **self.manager.environ, "MICROCLUSTER_MANAGER": f"localhost:{self.manager.port}"}
        done = subprocess.run(
            ["bash", "-c", script], cwd=self.folder, env=environ, stdin=subprocess.DEVNULL, capture_output=True,
            text=True, timeout=120 * FACTOR,
        )  # fmt: skip
        self.assertEqual(done.stdout, wanted, done.stderr)
