"""All settings of manager and worker in one table each: flag, type, default, help. It makes the parser and the docs."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from .core.errors import UsageError
from .core.syntax import at_least, parse_duration, parse_label, parse_resource, parse_size
from .options import Option

DEFAULT_HOST = "localhost"
DEFAULT_PORT = 5000


def _word(text: str) -> str:
    if not text or len(text) > 64 or not all(c.isalnum() or c in "._-" for c in text) or not text.isascii():
        raise UsageError(f"not a name: {text!r} (letters, digits, . _ -, at most 64)")
    return text


def _python(text: str) -> tuple[str, str]:
    name, _, path = text.partition("=")
    if not name or not path:
        raise UsageError(f"not NAME=PATH: {text!r} (for example --python 3.14=/opt/python3.14/bin/python3)")
    if not os.access(path, os.X_OK):
        raise UsageError(f"not a program: {path}")
    return name, os.path.abspath(path)


def installed() -> bool:
    """Whether this is the installed package rather than a checkout with run.py beside it."""
    return not os.path.exists(os.path.join(_root(), "run.py"))


def _root() -> str:
    return os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def data_dir(name: str) -> str:
    """Where run-time data lies by default: beside run.py, or in the user's state directory when installed."""
    if not installed():
        return os.path.join(_root(), name)
    base = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    return os.path.join(base, "microcluster", name)


MANAGER = (
    Option("--data", str, None, "DIR", "where scripts, the job table and output live (default: manager_scripts/)"),
    Option("--lost-after", parse_duration, 60.0, "DURATION", "a worker away for so long is lost (default: 60s)"),
    Option("--crash-limit", at_least(1), 3, "N", "a task whose worker was lost N times fails (default: 3)"),
    Option("--keep", parse_duration, None, "DURATION", "forget finished jobs after so long (default: never)"),
)
WORKER = (
    Option("--slots", at_least(1), None, "N", "tasks at a time (default: the CPUs that this process may use)"),
    Option("--name", _word, None, "NAME", "shown in lists (default: the host name)"),
    Option("--label", parse_label, (), "LABEL", "what --on can ask for (repeatable)", True, "labels"),
    Option("--gpus", at_least(0), None, "N", "GPUs to offer (default: those that nvidia-smi -L lists)"),
    Option("--memory", parse_size, None, "SIZE", "memory to offer (default: the machine's)"),
    Option("--data", str, None, "DIR", "where scripts and files are kept (default: worker_scripts/)"),
    Option("--idle-exit", parse_duration, None, "DURATION", "leave when nothing ran for so long"),
    Option("--python", _python, (), "NAME=PATH", "offer an interpreter (repeatable)", True, "pythons"),
    Option(
        "--resource", parse_resource, (), "NAME=N", "offer N of something countable (repeatable)", True, "resources"
    ),
    Option("--preload", str, (), "MODULE", "import MODULE ahead for every script (repeatable)", True),
    Option("--cold", None, False, "", "start a new interpreter for each script"),
    Option("--drain-timeout", parse_duration, None, "DURATION", "on SIGTERM, wait so long for running tasks"),
    Option("--connect-timeout", parse_duration, None, "DURATION", "give up when no manager is reached for so long"),
    Option("--key-file", str, None, "FILE", "the key (default: cluster.key in ~/.config/microcluster)"),
)
COMMON = (Option("--insecure", None, False, "", "no keys and no encryption; must be given on all sides"),)
LOCAL = (Option("--workers", at_least(1), 2, "N", "worker processes to start (default: 2)"),)


def argument(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """A parser of ours as argparse wants it: its message becomes the error line."""

    def convert(text: str) -> Any:
        try:
            return parse(text)
        except UsageError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


def add_to(parser: argparse.ArgumentParser, table: tuple[Option, ...]) -> None:
    """The flags of a table."""
    for item in table:
        if item.parse is None:
            parser.add_argument(item.flag, dest=item.name, action="store_true", help=item.help)
            continue
        more: dict[str, Any] = {"action": "append"} if item.many else {}
        parser.add_argument(
            item.flag,
            dest=item.name,
            type=argument(item.parse),
            default=[] if item.many else item.default,
            metavar=item.metavar,
            help=item.help,
            **more,
        )


def insecure_environ() -> bool:
    """MICROCLUSTER_INSECURE=1."""
    return os.environ.get("MICROCLUSTER_INSECURE", "") not in ("", "0")


class _Settings(SimpleNamespace):
    """Every setting of a table by name, with host, port and insecure; what is not given is at its default. Raises
    UsageError for a name that there is not."""

    _table: tuple[Option, ...] = ()
    _data = ""
    _more: dict[str, Any] = {}

    def __init__(self, **given: Any) -> None:
        values: dict[str, Any] = {"host": DEFAULT_HOST, "port": DEFAULT_PORT, "insecure": False, **self._more}
        values.update((item.name, [] if item.many else item.default) for item in self._table)
        unknown = sorted(set(given) - set(values))
        if unknown:
            raise UsageError(f"there is no setting {unknown[0]}")
        values.update(given)
        values["data"] = values["data"] or data_dir(self._data)
        super().__init__(**values)

    @classmethod
    def of(cls, options: argparse.Namespace) -> Any:
        """From parsed flags."""
        names = ["host", "port", "insecure", *(item.name for item in cls._table)]
        return cls(**{name: getattr(options, name) for name in names})


class ManagerSettings(_Settings):
    """Of MANAGER, and key_home: the folder of the keys (None: the user's)."""

    _table, _data = MANAGER, "manager_scripts"
    _more = {"key_home": None}


class WorkerSettings(_Settings):
    """Of WORKER; pythons and resources are mappings."""

    _table, _data = WORKER, "worker_scripts"

    def __init__(self, **given: Any) -> None:
        for name in ("pythons", "resources"):
            given[name] = dict(given.get(name) or ())
        super().__init__(**given)
