"""run.py: the programs of the machines: manager, worker, local, key. Prints their errors, one line each."""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import threading
from typing import Any

from . import __version__, config, keys, log
from .console import MACHINE_VERBS
from .core.errors import KeyProblem, MicroclusterError, UsageError
from .options import Option

EXIT_USAGE, EXIT_KEY, EXIT_OTHER = 2, 77, 1
_LIFELINE = "MICROCLUSTER_LIFELINE"  # the descriptor through which a child of `local` notices its end

_EPILOG = {
    "manager": "example:\n  python3 run.py manager 0.0.0.0 5000",
    "worker": "example:\n  python3 run.py worker 10.0.0.5 5000 --slots 4 --label gpu",
    "local": "example:\n  python3 run.py local --workers 4",
    "key": "example:\n  python3 run.py key --role worker    # one line for MICROCLUSTER_KEY on a worker's machine",
}
_HELP = {
    "manager": "accept jobs and hand them to workers",
    "worker": "run jobs of a manager",
    "local": "a manager and workers on this machine, until Ctrl-C: the quickest way to try it",
    "key": "print a key for one role",
}


def _program() -> str:
    return os.path.basename(sys.argv[0]) or "run.py"


def parser() -> argparse.ArgumentParser:
    """All verbs, from the tables of config.py."""
    top = argparse.ArgumentParser(prog=_program(), description="The machines of a microcluster.")
    top.add_argument("--version", action="version", version=f"microcluster {__version__}")
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True)
    tables: dict[str, tuple[Option, ...]] = {
        "manager": config.MANAGER,
        "worker": config.WORKER,
        "local": (*config.LOCAL, *config.MANAGER),
        "key": (),
    }
    for verb in MACHINE_VERBS:
        one = verbs.add_parser(
            verb,
            help=_HELP[verb],
            description=_HELP[verb],
            epilog=_EPILOG[verb],
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if verb == "key":
            one.add_argument(
                "--role", choices=keys.ROLES, default=None, help="default: worker and submit, as cluster.key"
            )
            continue
        one.add_argument("host", nargs="?", default=config.DEFAULT_HOST, metavar="HOST", help="default: localhost")
        kind, text = config.argument(parse_port), "default: 5000; 0 picks a free one"
        one.add_argument("port", nargs="?", type=kind, default=config.DEFAULT_PORT, metavar="PORT", help=text)
        config.add_to(one, (*tables[verb], *config.COMMON))
        one.add_argument("-v", "--verbose", action="count", default=0, help="log more")
        one.add_argument("-q", "--quiet", action="count", default=0, help="log less")
    return top


def parse_port(text: str) -> int:
    """0 to 65535; raises UsageError."""
    if not text.isdecimal() or int(text) > 65535:
        raise UsageError(f"not a port: {text!r} (a number from 0 to 65535)")
    return int(text)


def main(argv: list[str] | None = None) -> int:
    """The exit code: 0, 2 wrong usage, 77 a key problem, 1 anything else."""
    options = parser().parse_args(argv)
    if options.verb != "key":
        log.set_up(options.verbose, options.quiet)
        options.insecure = options.insecure or config.insecure_environ()
    try:
        return {"manager": _manager, "worker": _worker, "local": _local, "key": _key}[options.verb](options)
    except KeyProblem as error:
        return _say(error, EXIT_KEY)
    except UsageError as error:
        return _say(error, EXIT_USAGE)
    except MicroclusterError as error:
        return _say(error, EXIT_OTHER)
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        return _say(f"{error.strerror or error}{where}", EXIT_OTHER)
    except KeyboardInterrupt:
        return 130


def _say(error: Any, code: int) -> int:
    sys.stderr.write(f"{_program()}: {error}\n")
    return code


def _manager(options: argparse.Namespace) -> int:
    _follow_parent()
    from .manager import run_manager

    return run_manager(config.ManagerSettings.of(options))


def _worker(options: argparse.Namespace) -> int:
    _follow_parent()
    from .worker import run_worker

    if options.port == 0:
        raise UsageError("the manager's port cannot be 0")
    return run_worker(config.WorkerSettings.of(options))


def _key(options: argparse.Namespace) -> int:
    folder = keys.home()
    here = os.path.join(folder, "manager.key")
    if not os.path.lexists(os.path.join(folder, "cluster.key")) or os.path.lexists(here):
        made = keys.ManagerKeys.load_or_create(folder)  # as the first manager would
    if options.role is None:
        sys.stdout.write(keys.read_key_file(os.path.join(folder, "cluster.key")))
        return 0
    if os.path.lexists(here):
        key = made.peer_key(options.role)
    else:
        key = keys.load_peer_key("worker" if options.role == "worker" else "client")
        if key.role != options.role:
            raise KeyProblem(
                f"only the manager's machine can make a {options.role} key ({folder}/manager.key is not here)"
            )
    sys.stdout.write(key.text() + "\n")
    return 0


# -- local -------------------------------------------------------------------------------------------------------------


def _command(*words: str) -> list[str]:
    if config.installed():
        return [sys.executable, "-m", __package__ + ".machines", *words]
    return [sys.executable, os.path.join(config._root(), "run.py"), *words]


def _local(options: argparse.Namespace) -> int:
    """Manager and workers as processes of their own, as on many machines; ends them all."""
    quiet = ["-q"] * max(1, options.quiet) if not options.verbose else ["-v"] * options.verbose
    more = ["--insecure"] if options.insecure else []
    manager_words = ["--lost-after", str(options.lost_after), "--crash-limit", str(options.crash_limit)]
    manager_words += ["--data", options.data] if options.data else []
    manager_words += ["--keep", str(options.keep)] if options.keep is not None else []
    children: list[subprocess.Popen[str]] = []
    lifeline, ours = os.pipe()  # children read the one; that the other closes is what they notice
    signal.signal(signal.SIGTERM, lambda *_: _interrupt())
    try:
        words = _command("manager", options.host, str(options.port), *manager_words, *more, *quiet)
        children.append(_child(words, lifeline))
        line = _first_line(children[0])
        found = re.search(r":(\d+)\s*$", line)
        if found is None:
            return children[0].wait() or EXIT_OTHER
        host, port = ("localhost" if options.host in ("0.0.0.0", "::", "") else options.host), found.group(1)
        data = options.data or config.data_dir("manager_scripts")
        for n in range(1, options.workers + 1):
            where = os.path.join(data + "-workers" if options.data else config.data_dir("worker_scripts"), f"local-{n}")
            words = _command("worker", host, port, "--name", f"local-{n}", "--data", where, *more, *quiet)
            children.append(_child(words, lifeline))
        for worker in children[1:]:
            _first_line(worker)
        sys.stdout.write(line)
        sys.stdout.flush()
        _tell(host, port)
        return children[0].wait() or EXIT_OTHER
    except KeyboardInterrupt:
        return 0
    finally:
        _end(children)
        os.close(ours)
        os.close(lifeline)


def _child(words: list[str], lifeline: int) -> subprocess.Popen[str]:
    environ = {**os.environ, _LIFELINE: str(lifeline)}
    return subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, start_new_session=True,
        pass_fds=(lifeline,) if os.name == "posix" else (), env=environ,
    )  # fmt: skip


def _follow_parent() -> None:
    """Of a child of `local`: end when it ends, however that happens (its end of the pipe closes)."""
    fd = os.environ.pop(_LIFELINE, "")
    if not fd.isdecimal() or os.name != "posix":
        return
    os.set_inheritable(int(fd), False)

    def watch() -> None:
        os.read(int(fd), 1)
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()


def _first_line(child: subprocess.Popen[str]) -> str:
    """A child's ready line; what it prints later is read and thrown away."""
    assert child.stdout is not None
    line = child.stdout.readline()
    threading.Thread(target=child.stdout.read, name="drain", daemon=True).start()
    return line


def _interrupt() -> None:
    raise KeyboardInterrupt


def _tell(host: str, port: str) -> None:
    client = "microcluster" if config.installed() else "python3 client.py"
    sys.stderr.write(
        f"\nTry, in another terminal (Ctrl-C here ends all):\n\n"
        f"    {client} run {host} {port} test_scripts/hello_world.py Alice\n"
        f"    {client} submit {host} {port} --array 0-99 test_scripts/my_share.py\n"
        f"    {client} list {host} {port}\n"
        f"    {client} workers {host} {port}\n\n"
    )
    sys.stderr.flush()


def _end(children: list[subprocess.Popen[str]]) -> None:
    """Twice SIGTERM: a worker ends at once, and its jobs with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for child in reversed(children):
        for _ in range(2 if child is not children[0] else 1):
            if child.poll() is None:
                child.terminate()
    for child in reversed(children):
        try:
            child.wait(timeout=10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        if child.stdout is not None:
            child.stdout.close()


if __name__ == "__main__":
    sys.exit(main())
