"""The modules that travel with a script: those it imports from beside itself, theirs too; packages whole.

Found by reading, never by running. Standard library and installed packages stay where they are: only what a file in the
script's folder would answer to travels, as it would for `python3 script.py`, whose sys.path begins with that folder.
"""

from __future__ import annotations

import os
import sys

from .core.records import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

_SKIP = frozenset(
    ("__pycache__", ".git", ".hg", ".svn", ".venv", "venv", ".mypy_cache", ".pytest_cache", ".ruff_cache")
)
HOLD_MAX = 8 * 1024 * 1024  # bytes of a data file of a package that are held; longer ones are read when they are sent


class Module(NamedTuple):
    """A file that travels: its path relative to the script's folder (with /), and what was read of it.

    `content` None: a large file, too much to hold; it is read from `file` as files that are sent are.
    """

    path: str
    content: bytes | None
    file: str


def imported(source: bytes, package: str = "") -> set[str]:
    """The dotted names that a source imports anywhere in it, absolute; `package`: that of the module itself.

    A source that does not parse imports nothing: it will say so where it runs.
    """
    if b"import" not in source:
        return set()
    names: set[str] = set()
    for node in _nodes(source):
        kind = type(node).__name__
        if kind == "Import":
            names.update(alias.name for alias in node.names)
        elif kind == "ImportFrom":
            base = _absolute(node.module or "", node.level, package)
            if base is not None:
                names.add(base)
                names.update(f"{base}.{alias.name}" if base else alias.name for alias in node.names)
        elif kind == "Call":
            names.update(_called(node, package))
    return {name for name in names if name}


def _nodes(source: bytes) -> Iterator[Any]:
    """Every node of a source's syntax tree, as ast.walk gives them; without ast, which takes longer to import than most
    scripts to read."""
    import warnings
    from _ast import PyCF_ONLY_AST

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are for whoever runs it
            todo: list[Any] = [compile(source, "<script>", "exec", PyCF_ONLY_AST, True)]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    while todo:
        value = todo.pop()
        if isinstance(value, list):
            todo += value
        elif hasattr(value, "_fields"):
            yield value
            todo += [getattr(value, name, None) for name in value._fields]


def _absolute(module: str, level: int, package: str) -> str | None:
    if level == 0:
        return module
    parts = package.split(".") if package else []
    if level - 1 > len(parts):
        return None
    base = parts[: len(parts) - (level - 1)]
    return ".".join([*base, module] if module else base)


def _called(node: Any, package: str) -> list[str]:
    """import_module("x") and __import__("x") with a text in place."""
    name = getattr(node.func, "attr", None) or getattr(node.func, "id", "")
    if name not in ("import_module", "__import__") or not node.args or type(node.args[0]).__name__ != "Constant":
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
        self.found: dict[str, bytes | None] = {}
        self._seen: set[str] = set()
        self._queue: list[tuple[bytes, str]] = []

    def run(self, source: bytes) -> list[Module]:
        self._queue.append((source, ""))
        while self._queue:
            text, package = self._queue.pop()
            for name in imported(text, package):
                self._look(name.split(".")[0])
        found = sorted(self.found.items())
        return [Module(path, content, os.path.join(self.folder, *path.split("/"))) for path, content in found]

    def _look(self, top: str) -> None:
        """The module or package of this top-level name, if one lies in the folder and would be taken from there."""
        if top in self._seen or top in sys.builtin_module_names or top == "__main__":
            return
        self._seen.add(top)
        place = os.path.join(self.folder, top)
        if os.path.isfile(os.path.join(place, "__init__.py")):
            self._package(top, top)
        elif self._extension(top):
            pass
        elif os.path.isfile(place + ".py"):
            self._file(top + ".py", "")
        elif os.path.isfile(place + ".pyc"):
            self._data(top + ".pyc")
        elif os.path.isdir(place) and top.isidentifier() and not _known_elsewhere(top, self.folder):
            self._package(top, top)

    def _extension(self, top: str) -> bool:
        """A compiled module, which Python prefers to a source of the same name."""
        from importlib.machinery import EXTENSION_SUFFIXES

        for suffix in EXTENSION_SUFFIXES:
            if os.path.isfile(os.path.join(self.folder, top + suffix)):
                self._data(top + suffix)
                return True
        return False

    def _package(self, path: str, dotted: str, above: frozenset[str] = frozenset()) -> None:
        real = os.path.realpath(os.path.join(self.folder, path))
        if real in above:
            return  # a link back to a folder above: Python would find the same modules there
        entries = {entry.name: entry for entry in os.scandir(real)}
        for entry in (entries[name] for name in sorted(entries)):
            below = f"{path}/{entry.name}"
            if entry.is_dir():
                if entry.name not in _SKIP and not os.path.exists(os.path.join(entry.path, "pyvenv.cfg")):
                    self._package(below, f"{dotted}.{entry.name}", above | {real})
            elif entry.is_file():
                if entry.name.endswith(".py"):
                    self._file(below, dotted)
                elif not (entry.name.endswith(".pyc") and entry.name[:-1] in entries):  # else the source is used
                    self._data(below)

    def _file(self, path: str, package: str) -> None:
        if path not in self.found:
            with open(os.path.join(self.folder, path), "rb") as file:
                content = file.read()
            self.found[path] = content
            self._queue.append((content, package))

    def _data(self, path: str) -> None:
        with open(os.path.join(self.folder, path), "rb") as file:
            large = os.fstat(file.fileno()).st_size > HOLD_MAX
            self.found[path] = None if large else file.read()


def _known_elsewhere(top: str, folder: str) -> bool:
    """Whether a folder without __init__.py is hidden by a module of the standard library or an installed package."""
    from importlib.machinery import PathFinder

    others = [path for path in sys.path if path and os.path.realpath(path) != folder]
    try:
        spec = PathFinder.find_spec(top, others)
    except (ImportError, ValueError):
        return False
    return spec is not None and spec.origin is not None
