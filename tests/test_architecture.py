"""Holds the shape of the source: what may import what, what the core must not know, how long things may be."""

from __future__ import annotations

import ast
import importlib.util
import sys
import sysconfig
import unittest
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SRC = ROOT / "src"
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60

# Each module imports only from those above it.
ORDER = """
    __init__
    core.__init__ core.errors core.records core.digest core.ranges core.syntax core.indexes core.jsontext core.framing
    core.handshake core.messages core.jobs core.orders core.saves core.events core.live core.views core.scheduler
    core.explain core.lookup core.outcome core.dependencies core.placement core.membership core.cluster core.agent
    faults log console loop options config keys channel spool schema net listen link store
    metrics waiting reading forgetting looking requests corethread content sessions manager
    machine errands jobenv proctree runners launcher interpreters environments reports fetching staging preparing
    streams uploads attempts uplink worker
    closure pep723 submission follow render downloads
    machines cli completion dashboard top verbs api futures
""".split()

# The core decides; time, chance, files, processes and connections are its arguments.
IMPURE = {
    "asyncio", "concurrent", "logging", "multiprocessing", "os", "pathlib", "queue", "random", "secrets", "select",
    "selectors", "shutil", "signal", "socket", "sqlite3", "ssl", "subprocess", "tempfile", "threading", "time", "uuid",
}  # fmt: skip

# Imports inside functions, each with its reason: (module, what it imports).
LATE_IMPORTS: set[tuple[str, str]] = {
    # A client's command starts with what it needs alone: imports are most of its time.
    ("core.syntax", "re"), ("core.syntax", "base64"), ("core.jsontext", "json"), ("core.framing", "re"),
    ("channel", "_ssl"), ("keys", "ssl"), ("keys", "_ssl"), ("keys", "subprocess"),
    ("console", "select"), ("closure", "_ast"), ("closure", "warnings"), ("closure", "importlib.machinery"),
    ("submission", ".core.messages"), ("submission", ".core.indexes"), ("submission", ".pep723"), ("follow", ".core.jobs"),
    ("options", ".core.indexes"), ("cli", "argparse"), ("cli", ".config"), ("cli", ".verbs"), ("cli", ".machines"),
    ("verbs", "json"), ("verbs", "signal"), ("verbs", ".keys"), ("verbs", ".submission"),
    ("verbs", ".render"), ("verbs", ".downloads"), ("verbs", ".dashboard"), ("verbs", ".top"), ("verbs", ".completion"),
    ("machines", ".manager"), ("machines", ".worker"),
    # Not on every system or every Python.
    ("submission", "pwd"),
    ("listen", "resource"), ("schema", "msvcrt"), ("top", "curses"), ("pep723", "tomllib"),
}  # fmt: skip

# `except Exception` or wider, one per thread at its top loop: (module, function).
CATCH_ALLS: set[tuple[str, str]] = {
    ("corethread", "Core._run"),
    ("errands", "Errands._work"),
    ("futures", "Executor._finish"),  # whatever a call raised belongs to whoever asks for its result
    ("manager", "Manager.handle"),
    ("requests", "Desk._tried"),
    ("worker", "Worker.run"),
}

# Programs of their own, which run in other processes: they import nothing of ours, and may be Linux's alone.
GUESTS = ("guard", "warm.")


class SourceFile:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.text = path.read_text("utf-8")
        self.tree = ast.parse(self.text, str(path))
        self.name = ".".join(path.relative_to(SRC).with_suffix("").parts) if SRC in path.parents else path.name

    def imports(self) -> Iterator[tuple[ast.stmt, str]]:
        """Each import with the absolute name of what is imported; inside the package relative to src, dots resolved.

        Imports for the type checker alone do not count.
        """
        package = self.name.split(".")[:-1]
        for_types = {
            id(inner)
            for node in ast.walk(self.tree)
            if isinstance(node, ast.If) and ast.dump(node.test).count("'TYPE_CHECKING'")
            for inner in ast.walk(node)
        }
        for node in ast.walk(self.tree):
            if id(node) in for_types:
                continue
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield node, alias.name
            elif isinstance(node, ast.ImportFrom):
                base = "" if node.level == 0 else "." + ".".join(package[: len(package) - node.level + 1])
                for alias in node.names:
                    yield node, self._target(base, node.module, alias.name)

    @staticmethod
    def _target(base: str, module: str | None, name: str) -> str:
        """`from . import x` means a module when there is one, else a name of the package itself."""
        if not base:
            return module or ""
        path = ".".join(part for part in (base[1:], module or "") if part)
        for candidate in (f"{path}.{name}" if path else name, path):
            if (SRC / candidate.replace(".", "/")).with_suffix(".py").is_file():
                return "." + candidate
        return "." + (path + "." if path else "") + "__init__"


def is_standard(name: str) -> bool:
    """Whether `name` belongs to the standard library (of this Python, or of a later one we try to import from)."""
    if name in ("tomllib", "msvcrt") or name in sys.builtin_module_names:
        return True
    if sys.version_info >= (3, 10):
        return name in sys.stdlib_module_names
    spec = importlib.util.find_spec(name)
    origin = spec.origin if spec is not None and spec.origin is not None else ""
    return origin in ("built-in", "frozen") or (
        origin.startswith(sysconfig.get_paths()["stdlib"]) and "site-packages" not in origin
    )


def source_files() -> list[SourceFile]:
    return [source for source in map(SourceFile, sorted(SRC.rglob("*.py"))) if not source.name.startswith(GUESTS)]


def where(source: SourceFile, node: ast.AST) -> str:
    return f"{source.path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"


def functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.AST]]:
    for node in ast.iter_child_nodes(tree):
        name = prefix
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            name = f"{prefix}.{node.name}" if prefix else node.name
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield name, node
        yield from functions(node, name)


def enclosing_functions(tree: ast.AST, kind: type[ast.AST]) -> Iterator[tuple[str, ast.AST]]:
    """Nodes of `kind` that lie in a function, with the name of the innermost one."""
    for name, function in functions(tree):
        inner = {id(node) for _, other in functions(function) for node in ast.walk(other)}
        for node in ast.walk(function):
            if isinstance(node, kind) and id(node) not in inner:
                yield name, node


class SourceTest(unittest.TestCase):
    sources: list[SourceFile]

    @classmethod
    def setUpClass(cls) -> None:
        cls.sources = source_files()

    def assert_none(self, found: list[str], rule: str) -> None:
        if found:
            self.fail(f"{rule}:\n  " + "\n  ".join(found))


class TestImports(SourceTest):
    def test_only_the_standard_library_is_imported(self) -> None:
        programs = [SourceFile(ROOT / name) for name in ("run.py", "client.py") if (ROOT / name).is_file()]
        found = [
            f"{where(source, node)} imports {target}"
            for source in self.sources + programs
            for node, target in source.imports()
            if not target.startswith(".")
            and not is_standard(target.partition(".")[0])
            and not (source in programs and target.partition(".")[0] == "src")
        ]
        self.assert_none(found, "nothing but the standard library, and relative imports inside src")

    def test_every_module_has_its_place_in_the_order(self) -> None:
        self.assertEqual(len(ORDER), len(set(ORDER)), "a module is listed twice")
        missing = [source.name for source in self.sources if source.name not in ORDER]
        self.assert_none(missing, "put these modules into ORDER, below all that they import")

    def test_imports_point_one_way(self) -> None:
        rank = {name: place for place, name in enumerate(ORDER)}
        found = [
            f"{where(source, node)}: {source.name} imports {target[1:]}"
            for source in self.sources
            for node, target in source.imports()
            if target.startswith(".")
            and rank.get(target[1:], -1) >= rank.get(source.name, -1)
            and (source.name, target) != ("cli", ".verbs")  # what is typed is parsed before anything is loaded to do it
        ]
        self.assert_none(found, "a module imports only what stands before it in ORDER")

    def test_the_core_knows_no_world(self) -> None:
        found = [
            f"{where(source, node)} imports {target}"
            for source in self.sources
            if source.name.startswith("core.")
            for node, target in source.imports()
            if target.partition(".")[0] in IMPURE or (target.startswith(".") and not self._pure(target))
        ]
        self.assert_none(found, "src/core decides, and touches nothing")

    @staticmethod
    def _pure(target: str) -> bool:
        return target.startswith(".core.") or target == ".__init__"

    def test_imports_stand_at_the_top(self) -> None:
        found = []
        for source in self.sources:
            late = {id(n) for kind in (ast.Import, ast.ImportFrom) for _, n in enclosing_functions(source.tree, kind)}
            found += [
                f"{where(source, node)} imports {target}"
                for node, target in source.imports()
                if id(node) in late and (source.name, target) not in LATE_IMPORTS
            ]
        self.assert_none(found, "imports inside functions hide the order; the few with a reason are in LATE_IMPORTS")

    def test_every_module_postpones_its_annotations(self) -> None:
        found = [
            str(source.path.relative_to(ROOT))
            for source in self.sources
            if source.path.name != "__init__.py" and "from __future__ import annotations" not in source.text
        ]
        self.assert_none(found, "X | Y in annotations needs it on Python 3.9")


class TestSizes(SourceTest):
    def test_files_stay_readable(self) -> None:
        lengths = [(source, len(source.text.splitlines())) for source in self.sources]
        found = [
            f"{source.path.relative_to(ROOT)}: {lines} lines" for source, lines in lengths if lines > MAX_FILE_LINES
        ]
        self.assert_none(found, f"at most {MAX_FILE_LINES} lines in a file")

    def test_functions_stay_readable(self) -> None:
        found = []
        for source in self.sources:
            for name, node in functions(source.tree):
                assert isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    found.append(f"{where(source, node)} {name}: {lines} lines")
        self.assert_none(found, f"at most {MAX_FUNCTION_LINES} lines in a function")

    def test_every_module_says_what_it_is_for(self) -> None:
        found = [str(source.path.relative_to(ROOT)) for source in self.sources if not ast.get_docstring(source.tree)]
        self.assert_none(found, "a module docstring says what it owns, what it must not do, who calls it")


class TestHabits(SourceTest):
    def test_no_bare_except(self) -> None:
        found = [
            where(source, node)
            for source in self.sources
            for node in ast.walk(source.tree)
            if isinstance(node, ast.ExceptHandler) and node.type is None
        ]
        self.assert_none(found, "say what is caught")

    def test_catch_alls_are_counted(self) -> None:
        found = []
        for source in self.sources:
            for name, node in enclosing_functions(source.tree, ast.ExceptHandler):
                assert isinstance(node, ast.ExceptHandler)
                caught = {part.id for part in ast.walk(node.type or ast.Pass()) if isinstance(part, ast.Name)}
                passes_on = isinstance(node.body[-1], ast.Raise)
                if caught & {"Exception", "BaseException"} and not passes_on and (source.name, name) not in CATCH_ALLS:
                    found.append(f"{where(source, node)} in {name}")
        self.assert_none(found, "one catch-all per thread, at its top loop, listed in CATCH_ALLS")

    def test_tests_never_just_sleep(self) -> None:
        found = []
        for path in sorted((ROOT / "tests").rglob("*.py")):
            if path.name == "waiting.py":
                continue
            source = SourceFile(path)
            found += [where(source, node) for node in ast.walk(source.tree) if _is_sleep(node)]
        self.assert_none(found, "wait for a condition (tests/support/waiting.py), not for time to pass")

    def test_nothing_runs_at_import_that_only_linux_has(self) -> None:
        guarded = {"fcntl", "resource", "termios", "pwd", "grp", "curses", "readline", "tty", "pty"}
        found = [
            f"{where(source, node)} imports {target}"
            for source in self.sources
            for node, target in source.imports()
            if target in guarded and node in source.tree.body
        ]
        self.assert_none(found, "modules that Windows lacks are imported in try or under a test of sys.platform")


def _is_sleep(node: ast.AST) -> bool:
    """A call of time.sleep, or an import of it by name. Scripts in strings are other programs."""
    if isinstance(node, ast.ImportFrom):
        return node.module == "time" and any(alias.name == "sleep" for alias in node.names)
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "sleep"):
        return False
    return isinstance(node.func.value, ast.Name) and node.func.value.id == "time"


if __name__ == "__main__":
    sys.exit("run me with: python3 -m unittest tests.test_architecture")
