"""client.py: what is typed, as options; which verb does it. Only the asked verb's parser is built, and little imported."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from . import __version__
from .console import MACHINE_VERBS, program, quiet_stdout
from .core.errors import MicroclusterError, UsageError
from .core.syntax import (
    Indexes,
    at_least,
    parse_duration,
    parse_grid,
    parse_label,
    parse_resource,
    parse_selector,
    parse_size,
)

EXIT_USAGE, EXIT_OURS, EXIT_INTERRUPTED, EXIT_UNFINISHED = 2, 125, 130, 124


class Option(NamedTuple):
    """A flag. parse None: a switch. many: repeatable, a list."""

    flag: str
    parse: Callable[[str], Any] | None
    default: Any
    metavar: str
    help: str
    many: bool = False
    dest: str | None = None


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"not a whole number: {text!r}") from None


def _choice(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in words:
            raise UsageError(f"not one of {', '.join(words)}: {text!r}")
        return text

    return parse


def _array(text: str) -> str:
    Indexes.parse(text)
    return text


def _positive_duration(text: str) -> float:
    value = parse_duration(text)
    if value <= 0:
        raise UsageError(f"not a duration above zero: {text!r} (use for example 90s, 10m, 1h30m)")
    return value


def _glob(text: str) -> str:
    parts = text[2:].split("/") if text.startswith("./") else text.split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise UsageError(f"not a pattern inside the job's folder: {text!r} (for example 'out/*.csv' or '**/*.png')")
    return text[2:] if text.startswith("./") else text


def _text(text: str) -> str:
    if not text or len(text) > 1000:
        raise UsageError("a text of 1 to 1000 characters is needed")
    return text


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
    Option("--grid", parse_grid, None, "NAME=V1,V2,..", "one task per combination (repeatable; 1..9, 0..1..0.1)", True),
    Option("--after", parse_selector, None, "ID", "start when ID succeeded (repeatable)", True),
    Option("--after-any", parse_selector, None, "ID", "start when ID finished in any way (repeatable)", True),
    Option("--after-each", parse_selector, None, "ID", "task i starts when task i of ID succeeded", True),
    Option("--max-running", at_least(1), None, "N", "at most so many tasks of this array at a time"),
    Option("--max-fails", at_least(1), None, "N", "cancel the rest once so many tasks failed"),
    Option("--priority", _integer, 0, "N", "higher first (default 0)"),
    Option("--retries", at_least(0), 0, "N", "run a task that failed again, up to N times"),
    Option("--timeout", _positive_duration, None, "DURATION", "limit of one attempt"),
    Option("--grace", parse_duration, 10.0, "DURATION", "from SIGTERM to SIGKILL when it must end (default 10s)"),
    Option("--cpus", at_least(1), 1, "N", "CPUs that a task needs (default 1)"),
    Option("--gpus", at_least(0), 0, "N", "GPUs that a task needs"),
    Option("--memory", parse_size, None, "SIZE", "memory that a task needs, and its limit"),
    Option("--on", parse_label, None, "LABEL", "only on workers with this label (repeatable)", True),
    Option("--resource", parse_resource, None, "NAME=N", "needs N of a worker's NAME (repeatable)", True),
    Option("--user", _text, None, "NAME", "whose job it is (default: the login name)"),
    Option("--env", str, None, "NAME[=VALUE]", "set, or copy, a variable (repeatable)", True),
    Option("--send", str, None, "PATH", "file or folder for the job's working directory (repeatable)", True),
    Option(
        "--return", _glob, None, "GLOB", "files to keep for `fetch` when the task ends (repeatable)", True, "returns"
    ),
    Option("--stdin", str, None, "FILE", "standard input (-: the client's; default: empty)"),
    Option("--python", _text, None, "NAME", "an interpreter that a worker offers, as 3.12, or a path"),
    Option("--requirements", str, None, "FILE", "run in a virtual environment with these packages"),
    Option("--if-lost", _choice("rerun", "fail"), "rerun", "WHAT", "when its worker is lost: rerun (default) or fail"),
    Option("--once", _text, None, "KEY", "the same KEY again makes no new job"),
    Option("--max-output", parse_size, 1 << 30, "SIZE", "keep so much of each stream (default 1G)"),
    Option("--buffered", None, False, "", "stdout as Python does it in a pipe: in blocks"),
    Option("--cold", None, False, "", "start a new interpreter instead of a warm one"),
    Option("--preload", _text, None, "MODULE", "start with MODULE imported already (repeatable)", True),
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
    Option("--last", at_least(1), 50, "N", "at most so many (default 50)"),
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
            Option("--grace", parse_duration, None, "DURATION", "from SIGTERM to SIGKILL (default 10s)"),
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


class Call(NamedTuple):
    """What was typed."""

    verb: str
    options: argparse.Namespace
    host: str
    port: int
    words: list[str]  # ids, names, or the script
    rest: list[str]  # the script's arguments


def parser_of(name: str) -> argparse.ArgumentParser:
    """The parser of a verb's options."""
    verb = VERBS[name]
    words = {
        "script": " SCRIPT [ARG..]",
        "ids": " ID..",
        "ids?": " [ID..]",
        "names": " NAME..",
        "one": " ID",
        "shell": " bash|zsh|fish",
    }
    where = "" if verb.takes == "shell" else " HOST PORT"
    parser = argparse.ArgumentParser(
        prog=f"{program()} {name}",
        usage=f"{program()} {name} [OPTIONS]{where}{words.get(verb.takes, '')}",
        description=verb.help[0].upper() + verb.help[1:] + ".",
        epilog=f"example:\n  python3 client.py {verb.example.replace('H P', '10.0.0.5 5000')}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for option in (*verb.options, *(() if verb.takes == "shell" else COMMON)):
        if option.parse is None:
            parser.add_argument(option.flag, action="store_true", help=option.help)
            continue
        more: dict[str, Any] = {"action": "append"} if option.many else {}
        if option.dest:
            more["dest"] = option.dest
        parser.add_argument(
            option.flag,
            type=_for_argparse(option.parse),
            default=[] if option.many else option.default,
            metavar=option.metavar,
            help=option.help,
            **more,
        )
    return parser


def _for_argparse(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        try:
            return parse(text)
        except UsageError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


def overview() -> str:
    """What --help without a verb prints."""
    lines = [f"usage: {program()} COMMAND [OPTIONS] HOST PORT ..", "", "Runs Python scripts on a microcluster.", ""]
    lines += [f"  {name:11} {verb.help}" for name, verb in VERBS.items()]
    lines += ["", f"{program()} COMMAND --help shows a command's options and an example.",
              "With MICROCLUSTER_MANAGER=HOST:PORT in the environment, HOST PORT are left out.", ""]  # fmt: skip
    return "\n".join(lines)


def parse(argv: list[str]) -> Call:
    """Raises UsageError; SystemExit for --help and what argparse finds wrong."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        sys.stdout.write(overview())
        raise SystemExit(0 if argv else EXIT_USAGE)
    if argv[0] == "--version":
        sys.stdout.write(f"microcluster {__version__}\n")
        raise SystemExit(0)
    name = argv[0]
    if name not in VERBS:
        raise UsageError(f"there is no command {name!r} (see {program()} --help)")
    verb, parser = VERBS[name], parser_of(name)
    flags, words, rest = _split(argv[1:], parser, verb.takes)
    options = parser.parse_args(flags)
    if verb.takes == "shell":
        return Call(name, options, "", 0, words, [])
    host, port, words = _manager(words, verb.takes, name)
    _check_words(verb.takes, name, words)
    return Call(name, options, host, port, words, rest)


def _split(argv: list[str], parser: argparse.ArgumentParser, takes: str) -> tuple[list[str], list[str], list[str]]:
    """Flags with their values, other words, and what belongs to the script."""
    actions = parser._option_string_actions
    flags: list[str] = []
    words: list[str] = []
    at = 0
    while at < len(argv):
        text = argv[at]
        at += 1
        if text == "--":
            words += argv[at:] if takes != "script" else []
            if takes == "script":
                missing = _before_script(words)
                words += argv[at : at + missing + 1]
                return flags, words, argv[at + missing + 1 :]
            break
        if text.startswith("-") and text != "-" and not text[1:].isdecimal():
            flags.append(text)
            action = actions.get(text)
            if action is not None and action.nargs is None and at < len(argv):
                # joined with =, so that a value that begins with - is a value
                flags[-1] = f"{text}={argv[at]}" if text.startswith("--") else text
                if not text.startswith("--"):
                    flags.append(argv[at])
                at += 1
            continue
        words.append(text)
        if takes == "script" and _before_script(words) < 0:
            return flags, words, argv[at:]
    return flags, words, []


def _before_script(words: list[str]) -> int:
    """How many more words come before the script; -1: it is among them."""
    if "MICROCLUSTER_MANAGER" not in os.environ:
        return 2 - len(words)
    if len(words) == 1:
        # The first word is the script, unless it cannot be one and looks like the host.
        return -1 if os.path.exists(words[0]) or words[0] == "-" or words[0].endswith(".py") else 1
    return 2 - len(words) if len(words) == 2 and words[1].isdecimal() else -1


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise UsageError(f"not a port: {text!r} (HOST PORT come first, for example 10.0.0.5 5000)")
    return int(text)


def _manager(words: list[str], takes: str, name: str) -> tuple[str, int, list[str]]:
    known = os.environ.get("MICROCLUSTER_MANAGER")
    if known and not _looks_like_manager(words, takes):
        host, _, port = known.rpartition(":")
        if not host:
            raise UsageError(f"MICROCLUSTER_MANAGER is not HOST:PORT: {known!r}")
        return host.strip("[]"), _port(port), words
    if len(words) < 2:
        raise UsageError(f"HOST PORT of the manager are missing (see {program()} {name} --help)")
    return words[0], _port(words[1]), words[2:]


def _looks_like_manager(words: list[str], takes: str) -> bool:
    if len(words) < 2 or not words[1].isdecimal():
        return False
    if takes in ("ids", "ids?", "one"):
        try:
            parse_selector(words[0])
        except UsageError:
            return True
        return False
    return takes != "script" or len(words) > 2 or not os.path.exists(words[0])


def _check_words(takes: str, name: str, words: list[str]) -> None:
    wanted = {"script": "a SCRIPT", "ids": "an ID", "one": "an ID", "names": "a worker's NAME"}
    if takes in wanted and not words:
        raise UsageError(f"{wanted[takes]} is missing (see {program()} {name} --help)")
    if (takes == "nothing" and words) or (takes == "one" and len(words) > 1):
        raise UsageError(f"not understood: {words[-1]!r} (see {program()} {name} --help)")


def main(argv: list[str] | None = None) -> int:
    """client.py; the exit code."""
    try:
        call = parse(sys.argv[1:] if argv is None else argv)
        from . import verbs

        return verbs.run(call)
    except UsageError as error:
        return _fail(error, EXIT_USAGE if error.code == "usage" else EXIT_OURS)
    except MicroclusterError as error:
        return _fail(error, EXIT_OURS)
    except BrokenPipeError:
        return quiet_stdout()
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except OSError as error:
        return _fail(f"{error.strerror or error}{': ' + str(error.filename) if error.filename else ''}", EXIT_OURS)


def _fail(error: Any, code: int) -> int:
    from .core.messages import hold_text

    sys.stderr.write(f"{program()}: {hold_text(str(error))}\n")
    return code


def main_any(argv: list[str] | None = None) -> int:
    """The installed command `microcluster`: the verbs of both programs."""
    words = sys.argv[1:] if argv is None else argv
    if words and words[0] in MACHINE_VERBS:
        from .machines import main as machines

        return machines(words)
    if words and words[0] in ("-h", "--help", "help"):
        sys.stdout.write(f"{overview()}The machines: {', '.join(MACHINE_VERBS)} ({program()} manager --help, ..).\n")
        return 0
    return main(words)
