"""Documents are tested: links lead somewhere, every verb, option and message is explained, named tests exist.

`python3 -m tests.test_docs` writes the state diagram of docs/protocol.md afresh.
"""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import unittest
from pathlib import Path
from typing import Optional

from src.core import jobs, messages

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*_scripts/README.md")])
PROTOCOL = ROOT / "docs" / "protocol.md"
OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]+")
DIAGRAM = re.compile(r"(?<=do not edit -->\n).*?(?=<!-- end of state diagram -->)", re.DOTALL)


def all_text() -> str:
    return "\n".join(page.read_text("utf-8") for page in PAGES)


def state_diagram() -> str:
    """The table of transitions in the notation of Mermaid, which code hosts draw."""
    lines = [f"    [*] --> {state}" for state in (jobs.WAITING, jobs.QUEUED)]
    by_pair: dict[tuple[str, str], list[str]] = {}
    for (state, happening), target in jobs.TRANSITIONS.items():
        by_pair.setdefault((state, target), []).append(happening)
    lines += [f"    {state} --> {target}: {' / '.join(words)}" for (state, target), words in by_pair.items()]
    lines += [f"    {state} --> [*]" for state in jobs.STATES if state in jobs.TERMINAL]
    return "```mermaid\nstateDiagram-v2\n" + "\n".join(lines) + "\n```\n"


def help_of(program: str, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / program), *words, "--help"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{program} {words} --help: exit {done.returncode}\n{done.stderr}"
    return done.stdout


class TestText(unittest.TestCase):
    def test_links_lead_somewhere(self) -> None:
        broken = [
            f"{page.relative_to(ROOT)}: {target}"
            for page in PAGES
            for target in re.findall(r"\]\(([^)#\s]+)", page.read_text("utf-8"))
            if not re.match(r"[a-z]+:", target) and not (page.parent / target).exists()
        ]
        self.assertEqual(broken, [])

    def test_lines_are_not_too_long(self) -> None:
        for page in PAGES:
            fenced = False
            for number, line in enumerate(page.read_text("utf-8").splitlines(), 1):
                fenced ^= line.startswith("```")
                if not fenced and not line.startswith("|"):
                    self.assertLessEqual(len(line), 140, f"{page.relative_to(ROOT)}:{number}")

    def test_files_that_are_named_exist(self) -> None:
        named = set(re.findall(r"`((?:src|tests|docs|test_scripts)/[\w/.-]*)`", all_text()))
        named |= set(re.findall(r"\b(test_scripts/\w+\.py|tests/\w+/\w+\.py)\b", all_text()))
        for program in (ROOT / "src").glob("*.py"):
            named |= set(re.findall(r"\b(test_scripts/\w+\.py)\b", program.read_text("utf-8")))
        self.assertEqual(sorted(name for name in named if not (ROOT / name).exists()), [])

    def test_every_module_has_its_line_in_the_architecture(self) -> None:
        text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
        modules = {path.name for folder in ("src", "src/core") for path in (ROOT / folder).glob("*.py")}
        self.assertEqual(sorted(name for name in modules - {"__init__.py"} if f"`{name}`" not in text), [])


class TestPackage(unittest.TestCase):
    def test_every_folder_with_modules_is_installed(self) -> None:
        text = (ROOT / "pyproject.toml").read_text("utf-8")
        for path in (ROOT / "src").rglob("__init__.py"):
            words = ("microcluster", *path.parent.relative_to(ROOT / "src").parts)
            self.assertIn(f'"{".".join(words)}"', text)


class TestProtocol(unittest.TestCase):
    def test_the_state_diagram_is_the_table(self) -> None:
        found = DIAGRAM.search(PROTOCOL.read_text("utf-8"))
        assert found is not None
        self.assertEqual(found.group(), state_diagram(), "python3 -m tests.test_docs writes it")

    def test_every_message_is_explained(self) -> None:
        text = PROTOCOL.read_text("utf-8")
        kinds = {kind for table in messages.DIRECTIONS.values() for kind in table}
        kinds |= {"hello", "challenge", "proof", "ready", "error", "ping", "pong", "ok"}
        kinds |= {"welcome", "work", "blob", "noblob", "put_ok"}
        self.assertEqual(sorted(kind for kind in kinds if f"`{kind}" not in text and f'"{kind}"' not in text), [])


class TestCommands(unittest.TestCase):
    def test_every_verb_and_option_is_explained(self) -> None:
        """Each option stands in the README, in docs/, or at least in the help of its verb with some words."""
        text = all_text()
        for program in ("client.py", "run.py"):
            verbs = re.findall(r"^ {2,4}([a-z]+) {2,}", help_of(program), re.MULTILINE)
            self.assertTrue(verbs, f"{program} --help lists its verbs")
            missing = []
            for verb in verbs:
                if not re.search(rf"`{re.escape(verb)}\b|{re.escape(program)} {re.escape(verb)}\b", text):
                    missing.append(f"{program} {verb}")
                lines = help_of(program, verb)
                self.assertRegex(lines.lower(), r"\nexample", f"{program} {verb} --help shows an example")
                options = {word for line in re.findall(r"^  -.*", lines, re.MULTILINE) for word in OPTION.findall(line)}
                missing += [f"{option} of {program} {verb}" for option in options if f"`{option}" not in text]
            self.assertEqual(missing, [], "documented nowhere")


class TestGuarantees(unittest.TestCase):
    def test_every_promise_names_a_test_that_exists(self) -> None:
        text = (ROOT / "docs" / "guarantees.md").read_text("utf-8")
        promises = [line for line in text.splitlines() if line.startswith("| ") and "promise | held by" not in line]
        for line in promises:
            if set(line) <= set("|- "):
                continue
            names = re.findall(r"`(tests\.[\w.]+)`", line)
            self.assertTrue(names, f"no test: {line}")
            for name in names:
                self.assertIsNotNone(find(name), f"no such test: {name}")


def find(name: str) -> Optional[object]:
    """The module, class or method of that dotted name."""
    words = name.split(".")
    for length in range(len(words), 1, -1):
        try:
            found: object = importlib.import_module(".".join(words[:length]))
        except ModuleNotFoundError:
            continue
        for word in words[length:]:
            found = getattr(found, word, None)
        return found
    return None


if __name__ == "__main__":
    PROTOCOL.write_text(DIAGRAM.sub(lambda _: state_diagram(), PROTOCOL.read_text("utf-8")), "utf-8")
