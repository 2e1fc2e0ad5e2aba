"""What an option is, and the options and verbs of client.py as tables: what is accepted, its default, its line of help.

Read by the command line, the completion scripts and the Python API; config.py has the tables of the machines. What passes
here, the manager takes.
"""

from __future__ import annotations

from .core.errors import UsageError
from .core.records import TYPE_CHECKING, NamedTuple
from .core.syntax import (
    MAX_TASKS,
    at_least,
    parse_duration,
    parse_grid,
    parse_label,
    parse_resource,
    parse_selector,
    parse_size,
    shown,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

TEXT_MAX, ARRAY_MAX = 1000, 100_000  # characters, as the manager takes them


class Option(NamedTuple):
    """A flag. parse None: a switch. many: repeatable, a list."""

    flag: str
    parse: Callable[[str], Any] | None
    default: Any
    metavar: str
    help: str
    many: bool = False
    dest: str | None = None

    @property
    def name(self) -> str:
        """Of its attribute in Options."""
        return self.dest or self.flag[2:].replace("-", "_")


class Options:
    """What was given: an attribute per option of a table."""

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...
        def __setattr__(self, name: str, value: Any) -> None: ...


def defaults(table: Iterable[Option]) -> Options:
    """The options of a table when nothing is given."""
    found = Options()
    for option in table:
        setattr(found, option.name, [] if option.many else False if option.parse is None else option.default)
    return found


def _choice(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in words:
            raise UsageError(f"not one of {', '.join(words)}: {shown(text)}")
        return text

    return parse


def _array(text: str) -> str:
    if len(text) > ARRAY_MAX:
        raise UsageError(f"the array is written with more than {ARRAY_MAX:,} characters: use ranges, or --each-line")
    from .core.indexes import Indexes

    return Indexes.parse(text).text


def _positive_duration(text: str) -> float:
    value = parse_duration(text)
    if not 0.001 <= value <= 1e9:
        raise UsageError(f"not a duration from 0.001 s to 30 years: {shown(text)} (use for example 90s, 10m, 1h30m)")
    return value


def _grace(text: str) -> float:
    value = parse_duration(text)
    if value > 1e6:
        raise UsageError(f"longer than 11 days: {shown(text)}")
    return value


def _memory(text: str) -> int:
    value = parse_size(text)
    if not 1 <= value <= 1 << 50:
        raise UsageError(f"not a size from 1 byte to 1024T: {shown(text)} (use bytes, or 64K, 512M, 4G)")
    return value


def _kept(text: str) -> int:
    return min(parse_size(text), 1 << 50)


def _glob(text: str) -> str:
    text = _text(text)
    parts = text[2:].split("/") if text.startswith("./") else text.split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise UsageError(f"not a pattern inside the job's folder: {shown(text)} (such as 'out/*.csv' or '**/*.png')")
    return text[2:] if text.startswith("./") else text


def _text(text: str) -> str:
    """Text that a message can carry."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise UsageError(f"not UTF-8: {shown(text)}") from None
    if not 0 < len(text) <= TEXT_MAX:
        raise UsageError(f"a text of 1 to {TEXT_MAX} characters is needed")
    return text


def _grid(text: str) -> tuple[str, list[str]]:
    name, values = parse_grid(text)
    for value in values:
        _text(value)
    return name, values


def _variable(text: str) -> str:
    name = text.partition("=")[0]
    if not name:
        raise UsageError(f"not NAME=VALUE or NAME: {shown(text)}")
    _text(name)
    return text


def _module(text: str) -> str:
    if len(text) > TEXT_MAX or not all(part.isidentifier() for part in text.split(".")):
        raise UsageError(f"not the name of a module: {shown(text)} (for example --preload numpy)")
    return _text(text)


COMMON = (
    Option("--key-file", str, None, "FILE", "the key (default: cluster.key in ~/.config/microcluster)"),
    Option("--insecure", None, False, "", "no keys and no encryption; must be given on all sides"),
    Option("--connect-timeout", parse_duration, None, "DURATION", "keep trying to reach the manager for so long"),
)
JSON = (Option("--json", None, False, "", "for programs: JSON instead of text"),)
SUBMIT = (
    Option("--name", _text, None, "NAME", "shown in lists (default: the script's file name)"),
    Option("--array", _array, None, "SPEC", "one task per index: 0-99, 1-9:2, 1,5,7"),
    Option("--each-line", str, None, "FILE", "one task per line of FILE (-: stdin), the line as last argument"),
    Option("--grid", _grid, None, "NAME=V1,V2,..", "one task per combination (repeatable; 1..9, 0..1..0.1)", True),
    Option("--after", parse_selector, None, "ID", "start when ID succeeded (repeatable)", True),
    Option("--after-any", parse_selector, None, "ID", "start when ID finished in any way (repeatable)", True),
    Option("--after-each", parse_selector, None, "ID", "task i starts when task i of ID succeeded", True),
    Option("--max-running", at_least(1, MAX_TASKS), None, "N", "at most so many tasks of this array at a time"),
    Option("--max-fails", at_least(1, MAX_TASKS), None, "N", "cancel the rest once so many tasks failed"),
    Option("--priority", at_least(-1_000_000, 1_000_000), 0, "N", "higher first (default 0)"),
    Option("--retries", at_least(0, 1_000_000), 0, "N", "run a task that failed again, up to N times"),
    Option("--timeout", _positive_duration, None, "DURATION", "limit of one attempt"),
    Option("--grace", _grace, 10.0, "DURATION", "from SIGTERM to SIGKILL when it must end (default 10s)"),
    Option("--cpus", at_least(1, 100_000), 1, "N", "CPUs that a task needs (default 1)"),
    Option("--gpus", at_least(0, 10_000), 0, "N", "GPUs that a task needs"),
    Option("--memory", _memory, None, "SIZE", "memory that a task needs, and its limit"),
    Option("--on", parse_label, None, "LABEL", "only on workers with this label (repeatable)", True),
    Option("--resource", parse_resource, None, "NAME=N", "needs N of a worker's NAME (repeatable)", True),
    Option("--user", _text, None, "NAME", "whose job it is (default: the login name)"),
    Option("--env", _variable, None, "NAME[=VALUE]", "set, or copy, a variable (repeatable)", True),
    Option("--send", str, None, "PATH", "file or folder for the job's working directory (repeatable)", True),
    Option(
        "--return", _glob, None, "GLOB", "files to keep for `fetch` when the task ends (repeatable)", True, "returns"
    ),
    Option("--stdin", str, None, "FILE", "standard input (-: the client's; default: empty)"),
    Option("--python", _text, None, "NAME", "an interpreter that a worker offers, as 3.12, or a path"),
    Option("--requirements", str, None, "FILE", "run in a virtual environment with these packages"),
    Option("--if-lost", _choice("rerun", "fail"), "rerun", "WHAT", "when its worker is lost: rerun (default) or fail"),
    Option("--once", _text, None, "KEY", "the same KEY again makes no new job"),
    Option("--max-output", _kept, 1 << 30, "SIZE", "keep so much of each stream (default 1G)"),
    Option("--buffered", None, False, "", "stdout as Python does it in a pipe: in blocks"),
    Option("--cold", None, False, "", "start a new interpreter instead of a warm one"),
    Option("--preload", _module, None, "MODULE", "start with MODULE imported already (repeatable)", True),
    Option("--no-modules", None, False, "", "leave the modules beside the script where they are"),
)
_FILTERS = (
    Option(
        "--state",
        _choice("waiting", "queued", "running", "succeeded", "failed", "cancelled"),
        None,
        "STATE",
        "in this state",
    ),
    Option("--name", _text, None, "NAME", "of this name"),
    Option("--user", _text, None, "USER", "of this user"),
    Option("--since", parse_duration, None, "DURATION", "submitted within so long"),
    Option("--last", at_least(1, 1 << 53), 50, "N", "at most so many (default 50)"),
    Option("--all", None, False, "", "all of them"),
)


class Verb(NamedTuple):
    """takes: script (SCRIPT [ARG..]), ids, names, one (an ID), nothing."""

    takes: str
    options: tuple[Option, ...]
    help: str
    example: str


VERBS: dict[str, Verb] = {
    "submit": Verb(
        "script", (*SUBMIT, *JSON), "queue a job; prints its id", "submit H P --retries 2 train.py --epochs 3"
    ),
    "run": Verb(
        "script", (*SUBMIT, *JSON), "run a script elsewhere as python3 would here", "run H P train.py --epochs 3"
    ),
    "result": Verb(
        "ids",
        (
            Option("--wait", None, False, "", "wait until it is finished"),
            Option("--follow", None, False, "", "stream what there is and what comes, to the end"),
            *JSON,
        ),
        "print the output of finished tasks",
        "result H P --wait 7",
    ),
    "status": Verb("ids", JSON, "show a job in full; while it waits, why", "status H P 7.3"),
    "list": Verb("nothing", (*_FILTERS, *JSON), "list jobs, newest first", "list H P --state failed --since 1d"),
    "wait": Verb(
        "ids",
        (Option("--timeout", parse_duration, None, "DURATION", "give up after so long (exit code 124)"),),
        "return when all are finished",
        "wait H P 7 8 --timeout 1h",
    ),
    "cancel": Verb(
        "ids?",
        (
            Option("--all", None, False, "", "every job that is not finished"),
            Option("--grace", _grace, None, "DURATION", "from SIGTERM to SIGKILL (default 10s)"),
        ),
        "end jobs: SIGTERM to the whole process tree, SIGKILL later",
        "cancel H P 7 8.0-99",
    ),
    "retry": Verb("ids", (), "queue the failed and cancelled tasks again", "retry H P 7"),
    "fetch": Verb(
        "one",
        (Option("--into", str, ".", "DIR", "where to (default: here; ID.INDEX/ per task of an array)"),),
        "download the files that a job returned",
        "fetch H P 7 --into results",
    ),
    "workers": Verb("nothing", JSON, "list workers", "workers H P"),
    "drain": Verb("names", (), "give workers no more jobs", "drain H P lab-3"),
    "resume": Verb("names", (), "give drained workers jobs again", "resume H P lab-3"),
    "prune": Verb(
        "nothing",
        (Option("--older-than", parse_duration, None, "DURATION", "finished for longer than this (needed)"),),
        "forget finished jobs with their output; prints how many",
        "prune H P --older-than 30d",
    ),
    "dashboard": Verb(
        "nothing",
        (
            Option("--listen", str, "127.0.0.1:0", "HOST:PORT", "where the page is served (default 127.0.0.1:0)"),
            Option("--open", None, False, "", "open it in a browser"),
        ),
        "serve a web page here; prints its address",
        "dashboard H P --open",
    ),
    "top": Verb("nothing", (), "a live view in the terminal", "top H P"),
    "metrics": Verb("nothing", (), "print figures in the Prometheus text format", "metrics H P"),
    "completion": Verb(
        "shell", (), "print a completion script", "completion bash > ~/.local/share/bash-completion/client.py"
    ),
}
