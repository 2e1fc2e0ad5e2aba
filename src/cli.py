"""client.py: what is typed, as options; which verb does it.

Little is imported: argparse explains and says what is wrong; options that are right are read without it.
"""

from __future__ import annotations

import gc
import os
import sys

from . import __version__
from .console import MACHINE_VERBS, Broken, mend_streams, program, quiet_stdout, say, width_of
from .core.errors import MicroclusterError, UsageError
from .core.records import TYPE_CHECKING, NamedTuple
from .core.syntax import parse_selector, shown
from .options import COMMON, VERBS, Option, Options, defaults

if TYPE_CHECKING:
    import argparse
    from typing import Any

EXIT_USAGE, EXIT_OURS, EXIT_INTERRUPTED, EXIT_UNFINISHED = 2, 125, 130, 124


class Call(NamedTuple):
    """What was typed."""

    verb: str
    options: Any  # Options, or as argparse makes them
    host: str
    port: int
    words: list[str]  # ids, names, or the script
    rest: list[str]  # the script's arguments


def parser_of(name: str) -> argparse.ArgumentParser:
    """The parser of a verb's options."""
    import argparse

    from .config import add_to

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
        formatter_class=_formatter,
        allow_abbrev=False,
    )
    add_to(parser, _table(name))
    return parser


def _table(name: str) -> tuple[Option, ...]:
    verb = VERBS[name]
    return verb.options if verb.takes == "shell" else (*verb.options, *COMMON)


def _formatter(prog: str) -> argparse.HelpFormatter:
    """With a width: argparse would import shutil to measure the terminal, for each option that is added."""
    import argparse

    return argparse.RawDescriptionHelpFormatter(prog, width=min(width_of(sys.stdout), 100) - 2)


def overview() -> str:
    """What --help without a verb prints."""
    lines = [f"usage: {program()} COMMAND [OPTIONS] HOST PORT ..", "", "Runs Python scripts on a microcluster.", ""]
    lines += [f"  {name:11} {verb.help}" for name, verb in VERBS.items()]
    lines += ["", f"{program()} COMMAND --help shows a command's options and an example.",
              "With MICROCLUSTER_MANAGER=HOST:PORT in the environment, HOST PORT are left out.", ""]  # fmt: skip
    return "\n".join(lines)


def parse(argv: list[str]) -> Call:
    """Raises UsageError; SystemExit for --help and what argparse finds wrong."""
    if not argv:
        sys.stderr.write(overview())
        raise SystemExit(EXIT_USAGE)
    if argv[0] in ("-h", "--help", "help"):
        sys.stdout.write(overview())
        raise SystemExit(0)
    if argv[0] == "--version":
        sys.stdout.write(f"microcluster {__version__}\n")
        raise SystemExit(0)
    name = argv[0]
    if name not in VERBS:
        raise UsageError(f"there is no command {name!r} (see {program()} --help)")
    verb, table = VERBS[name], {option.flag: option for option in _table(name)}
    flags, words, rest = _split(argv[1:], table, verb.takes)
    options = _options(table, flags) or parser_of(name).parse_args(flags)
    if verb.takes == "shell":
        return Call(name, options, "", 0, words, [])
    host, port, words = _manager(words, verb.takes, name)
    _check_words(verb.takes, name, words)
    return Call(name, options, host, port, words, rest)


def _options(table: dict[str, Option], flags: list[str]) -> Options | None:
    """The options, or None when anything about them is for argparse to say."""
    found = defaults(table.values())
    for text in flags:
        flag, equals, value = text.partition("=")
        option = table.get(flag)
        if option is None or bool(equals) != (option.parse is not None):
            return None
        try:
            read = True if option.parse is None else option.parse(value)
        except UsageError:
            return None
        if option.many:
            getattr(found, option.name).append(read)
        else:
            setattr(found, option.name, read)
    return found


def _split(argv: list[str], table: dict[str, Option], takes: str) -> tuple[list[str], list[str], list[str]]:
    """Flags with their values (joined with =, so that a value that begins with - is a value), other words, and what
    belongs to the script."""
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
            option = table.get(text)
            if option is not None and option.parse is not None and at < len(argv):
                text = f"{text}={argv[at]}"
                at += 1
            flags.append(text)
            continue
        words.append(text)
        if takes == "script" and _before_script(words) < 0:
            return flags, words, argv[at:]
    return flags, words, []


def _before_script(words: list[str]) -> int:
    """How many more words come before the script; -1: it is among them."""
    if not os.environ.get("MICROCLUSTER_MANAGER"):
        return 2 - len(words)
    if len(words) == 1:
        # The first word is the script, unless it cannot be one and looks like the host.
        return -1 if os.path.exists(words[0]) or words[0] == "-" or words[0].endswith(".py") else 1
    return 2 - len(words) if len(words) == 2 and words[1].isdecimal() else -1


def _port(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 6) or not 0 < int(text) < 65536:
        raise UsageError(f"not a port: {shown(text)} (HOST PORT come first, for example 10.0.0.5 5000)")
    return int(text)


def _manager(words: list[str], takes: str, name: str) -> tuple[str, int, list[str]]:
    known = os.environ.get("MICROCLUSTER_MANAGER")
    if known and not _looks_like_manager(words, takes):
        host, _, port = known.rpartition(":")
        if not host:
            raise UsageError(f"MICROCLUSTER_MANAGER is not HOST:PORT: {known!r}")
        return _host(host), _port(port), words
    if len(words) < 2:
        raise UsageError(f"HOST PORT of the manager are missing (see {program()} {name} --help)")
    return _host(words[0]), _port(words[1]), words[2:]


def _host(text: str) -> str:
    """[::1] is ::1."""
    return text[1:-1] if text.startswith("[") and text.endswith("]") else text


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
    mend_streams()
    try:
        code = _main(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
        return code
    except UsageError as error:
        return _fail(error, EXIT_USAGE if error.code == "usage" else EXIT_OURS)
    except (Broken, BrokenPipeError):
        return quiet_stdout()
    except MicroclusterError as error:
        return _fail(error, EXIT_OURS)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except OSError as error:
        quiet_stdout()  # what could not be written is not tried again at the end
        return _fail(f"{error.strerror or error}{': ' + str(error.filename) if error.filename else ''}", EXIT_OURS)


def program_main() -> None:
    """Of the program client.py: ends the process. Nothing is left to end but the interpreter itself, which takes as long
    as a tenth of a short command; unless threads run."""
    code = main()
    if "threading" in sys.modules:
        sys.exit(code)
    try:
        sys.stderr.flush()
    except OSError:
        pass  # nobody reads it
    os._exit(code)


def _main(argv: list[str]) -> int:
    try:
        call = parse(argv)
    except SystemExit as end:  # argparse printed help, or what is wrong
        return end.code if isinstance(end.code, int) else EXIT_USAGE
    from . import verbs

    if not gc.isenabled():  # client.py begins so
        gc.freeze()
        gc.enable()
    return verbs.run(call)


def _fail(error: Any, code: int) -> int:
    say(str(error))
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
