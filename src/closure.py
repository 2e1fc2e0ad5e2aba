"""The modules that travel with a script: those it imports from beside itself, theirs too; packages whole.

Found by reading, never by running. Standard library and installed packages stay where they are: only what a file in the
script's folder would answer to travels, as it would for `python3 script.py`, whose sys.path begins with that folder.
"""

from __future__ import annotations

import ast
import os
import sys
import warnings
from typing import NamedTuple

_SKIP = frozenset(
    ("__pycache__", ".git", ".hg", ".svn", ".venv", "venv", ".mypy_cache", ".pytest_cache", ".ruff_cache")
)
SIZE_MAX = 64 * 1024 * 1024  # bytes of one file of a package that travels


class Module(NamedTuple):
    """A file that travels: its path relative to the script's folder (with /), and what was read of it."""

    path: str
    content: bytes


def imported(source: bytes, package: str = "") -> set[str]:
    """The dotted names that a source imports anywhere in it, absolute; `package`: that of the module itself.

    A source that does not parse imports nothing: it will say so where it runs.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are for whoever runs it
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return set()
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node.module or "", node.level, package)
            if base is not None:
                names.add(base)
                names.update(f"{base}.{alias.name}" if base else alias.name for alias in node.names)
        elif isinstance(node, ast.Call):
            names.update(_called(node, package))
    return {name for name in names if name}


def _absolute(module: str, level: int, package: str) -> str | None:
    if level == 0:
        return module
    parts = package.split(".") if package else []
    if level - 1 > len(parts):
        return None
    base = parts[: len(parts) - (level - 1)]
    return ".".join([*base, module] if module else base)


def _called(node: ast.Call, package: str) -> list[str]:
    """import_module("x") and __import__("x") with a text in place."""
    function = node.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    if name not in ("import_module", "__import__") or not node.args or not isinstance(node.args[0], ast.Constant):
        return []
    value = node.args[0].value
    if not isinstance(value, str):
        return []
    if value.startswith("."):
        level = len(value) - len(value.lstrip("."))
        found = _absolute(value.lstrip("."), level, package)
        return [found] if found else []
    return [value]


def modules_beside(script: str, source: bytes) -> list[Module]:
    """What travels with a script (an absolute path), in order of path. Raises OSError when a file cannot be read."""
    return _Search(os.path.dirname(os.path.realpath(script)), os.path.basename(script)).run(source)


class _Search:
    def __init__(self, folder: str, script: str) -> None:
        self.folder, self.script = folder, script
        self.found: dict[str, bytes] = {}
        self._seen: set[str] = set()
        self._queue: list[tuple[bytes, str]] = []

    def run(self, source: bytes) -> list[Module]:
        self._queue.append((source, ""))
        while self._queue:
            text, package = self._queue.pop()
            for name in imported(text, package):
                self._look(name.split(".")[0])
        return [Module(path, content) for path, content in sorted(self.found.items())]

    def _look(self, top: str) -> None:
        """The module or package of this top-level name, if one lies in the folder and would be taken from there."""
        if top in self._seen or top in sys.builtin_module_names or top == "__main__":
            return
        self._seen.add(top)
        place = os.path.join(self.folder, top)
        if os.path.isfile(os.path.join(place, "__init__.py")):
            self._package(top, top)
        elif os.path.isfile(place + ".py"):
            self._file(top + ".py", "")
        elif os.path.isdir(place) and top.isidentifier() and not _known_elsewhere(top, self.folder):
            self._package(top, top)

    def _package(self, path: str, dotted: str) -> None:
        for entry in sorted(os.scandir(os.path.join(self.folder, path)), key=lambda entry: entry.name):
            below = f"{path}/{entry.name}"
            if entry.is_dir():
                if entry.name not in _SKIP and not os.path.exists(os.path.join(entry.path, "pyvenv.cfg")):
                    self._package(below, f"{dotted}.{entry.name}")
            elif entry.is_file() and not entry.name.endswith((".pyc", ".pyo")):
                if entry.name.endswith(".py"):
                    self._file(below, dotted)
                elif entry.stat().st_size <= SIZE_MAX:
                    self._data(below)

    def _file(self, path: str, package: str) -> None:
        if path in self.found:
            return
        content = self._data(path)
        self._queue.append((content, package))

    def _data(self, path: str) -> bytes:
        with open(os.path.join(self.folder, path), "rb") as file:
            self.found[path] = file.read()
        return self.found[path]


def _known_elsewhere(top: str, folder: str) -> bool:
    """Whether a folder without __init__.py is hidden by a module of the standard library or an installed package."""
    from importlib.machinery import PathFinder

    others = [path for path in sys.path if path and os.path.realpath(path) != folder]
    try:
        spec = PathFinder.find_spec(top, others)
    except (ImportError, ValueError):
        return False
    return spec is not None and spec.origin is not None
