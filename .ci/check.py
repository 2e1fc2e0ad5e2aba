"""Runs every check and counts: called by .ci/run, needs nothing but Python 3.9 and, for the linters, a network.

    the tests             whole on one Python (3.11 where there is one), the quick part on every other that is found
    ruff, mypy --strict   at pinned versions, installed into a temporary virtual environment
    the four commands     manager, worker, submit, result in a copy of this tree, with an empty HOME

Everything happens in a temporary folder that is removed at the end. Output is shown in full where something failed.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Optional

ROOT = Path(__file__).resolve().parents[1]
MINORS = range(9, 14)  # the supported versions: 3.9 to 3.13
WHOLE_ON = 11  # the version that runs all tests
AT_A_TIME = 2
LINTERS = ("ruff==0.17.6", "mypy==2.4.1")
BUDGET_S = 14 * 60.0  # for all of it; what still runs then is killed and has failed

START = time.monotonic()


class Outcome(NamedTuple):
    title: str
    passed: int
    failed: int
    note: str = ""
    output: str = ""  # shown when something failed


class Finished(NamedTuple):
    code: Optional[int]  # None: killed at the deadline
    output: str
    seconds: float


def run(command: list[str], environ: dict[str, str], cwd: Path = ROOT) -> Finished:
    """Run in a process group of its own, stdout and stderr together, until it ends or the budget is spent."""
    began = time.monotonic()
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=cwd,
        env=environ,
        start_new_session=True,
    )
    timed_out = threading.Event()

    def give_up() -> None:
        timed_out.set()
        os.killpg(process.pid, signal.SIGKILL)

    timer = threading.Timer(max(BUDGET_S - (began - START), 1), give_up)
    timer.start()
    try:
        output = process.communicate()[0].decode("utf-8", "replace")
    finally:
        timer.cancel()
    code = None if timed_out.is_set() else process.returncode
    return Finished(code, output, time.monotonic() - began)


def clean_environ(folder: Path, **more: str) -> dict[str, str]:
    """The environment of a new user: an empty HOME and TMPDIR below `folder`, no settings of Python or microcluster."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("MICROCLUSTER_", "PYTHON", "XDG_", "PYENV_"))}
    for name in ("home", "t"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    environ.update(HOME=str(folder / "home"), TMPDIR=str(folder / "t"), **more)
    return environ


def find_interpreters() -> dict[int, str]:
    """Minor version → path of a real interpreter (never a shim), for each supported version on this machine."""
    found: dict[int, str] = {}
    candidates = [shutil.which(f"python3.{minor}") for minor in MINORS] + [sys.executable, shutil.which("python3")]
    candidates += [str(path) for path in sorted(Path.home().glob(".pyenv/versions/3.*/bin/python"), reverse=True)]
    for candidate in filter(None, candidates):
        probe = "import sys; print(sys.version_info[1], sys.executable)"
        asked = subprocess.run([candidate, "-c", probe], stdin=subprocess.DEVNULL, capture_output=True, text=True)
        words = asked.stdout.split(maxsplit=1)
        if asked.returncode == 0 and len(words) == 2 and int(words[0]) in MINORS:
            found.setdefault(int(words[0]), words[1].strip())
    return found


def test(minor: int, python: str, whole: bool, folder: Path) -> Outcome:
    """The suite on one interpreter; also that it leaves no process and no temporary file."""
    title = f"tests on Python 3.{minor}, {'all' if whole else 'the quick part'}"
    environ = clean_environ(folder, **({} if whole else {"MICROCLUSTER_TEST_QUICK": "1"}))
    done = run([python, "-m", "unittest"], environ)
    # what a killed worker cannot remove (tests/support/leaks.py) is no leak
    names = sorted(path.name for path in Path(environ["TMPDIR"]).iterdir())
    left = kill_strays(folder) + [name for name in names if not name.startswith(("mc-", "microcluster-"))]
    output = done.output + ("\nleft behind: " + ", ".join(left) if left else "")
    ran = re.search(r"^Ran (\d+) tests? in", output, re.MULTILINE)
    verdict = re.search(r"^(?:OK|FAILED)(?: \((.*)\))?$", output[ran.end() :] if ran else "", re.MULTILINE)
    if done.code is None:
        return Outcome(title, 0, 1, "stopped: the time for all checks is over", output)
    if ran is None or verdict is None:
        return Outcome(title, 0, 1, f"exit {done.code} without a result", output)
    counts = {name: int(number) for name, number in re.findall(r"(\w+)=(\d+)", verdict[1] or "")}
    skipped = counts.get("skipped", 0)
    failed = sum(counts.get(name, 0) for name in ("failures", "errors", "successes")) + bool(left)
    failed = failed or int(done.code != 0)
    note = f"{ran[1]} run, {skipped} skipped, {done.seconds:.0f} s"
    return Outcome(title, max(int(ran[1]) + bool(left) - failed - skipped, 0), failed, note, output)


def kill_strays(folder: Path) -> list[str]:
    """Kill what still runs with an environment that names `folder`; gives a word on each."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if os.fsencode(folder) in (entry / "environ").read_bytes():
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
                os.kill(int(entry.name), signal.SIGKILL)
                found.append(f"process {entry.name}: {words}")
        except OSError:
            continue  # it ended, or belongs to somebody else
    return found


def lint(python: str, folder: Path) -> list[Outcome]:
    environ = clean_environ(folder)
    venv = folder / "venv"
    installed = run([python, "-m", "venv", str(venv)], environ)
    if installed.code == 0:
        pip = [str(venv / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        installed = run([*pip, "--no-input", "--timeout", "15", "--retries", "2", *LINTERS], environ)
    if installed.code != 0:
        note = f"cannot install {' '.join(LINTERS)}: is there a network, and the venv module?"
        return [Outcome("linters", 0, 1, note, installed.output)]
    checks = {
        "ruff check": [str(venv / "bin" / "ruff"), "check", "--no-cache", "."],
        "ruff format": [str(venv / "bin" / "ruff"), "format", "--no-cache", "--check", "--diff", "."],
        "mypy --strict": [str(venv / "bin" / "mypy"), "--strict", "--cache-dir", str(folder / "mypy")],
    }
    outcomes = []
    for title, command in checks.items():
        done = run(command, environ)
        outcomes.append(Outcome(title, int(done.code == 0), int(done.code != 0), f"{done.seconds:.0f} s", done.output))
    return outcomes


def mission(python: str, folder: Path) -> Outcome:
    """The four commands of the README as a new user types them, but on a free port: it must say Hello, Alice!"""
    tree, environ = folder / "clone", clean_environ(folder)
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".git", "__pycache__", ".*_cache"), symlinks=True)
    for path in [*tree.glob("manager_scripts/*"), *tree.glob("worker_scripts/*")]:
        if path.name != "README.md":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    machines: list[subprocess.Popen[bytes]] = []
    try:
        ready = start_machine(machines, [python, "run.py", "manager", "localhost", "0"], tree, environ)
        address = ["localhost", ready.strip().rpartition(":")[2]]
        ready += start_machine(machines, [python, "run.py", "worker", *address], tree, environ)
        script = ["test_scripts/hello_world.py", "Alice"]
        submitted = run([python, "client.py", "submit", *address, *script], environ, tree)
        result = run([python, "client.py", "result", "--wait", *address, submitted.output.strip()], environ, tree)
    finally:
        for process in reversed(machines):
            process.terminate()
        for process in machines:
            process.communicate()
    good = submitted.code == 0 and result.code == 0 and result.output == "Hello, Alice!\n"
    told = f"{ready}submit: exit {submitted.code}: {submitted.output}\nresult: exit {result.code}: {result.output}\n"
    told += (tree / "machines.log").read_text("utf-8", "replace")
    return Outcome("manager, worker, submit, result with an empty HOME", int(good), int(not good), output=told)


def start_machine(
    machines: list[subprocess.Popen[bytes]], command: list[str], tree: Path, environ: dict[str, str]
) -> str:
    """Start one of the programs that stay; gives its ready line, empty when there was none within a minute."""
    with open(tree / "machines.log", "ab") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, cwd=tree, env=environ
        )
    machines.append(process)
    assert process.stdout is not None
    timer = threading.Timer(60, process.kill)
    timer.start()
    line = process.stdout.readline().decode("utf-8", "replace")
    timer.cancel()
    return line


def report(outcome: Outcome) -> Outcome:
    if outcome.failed:
        print(f"FAILED  {outcome.title}: {outcome.note}\n{outcome.output.rstrip()}\n", flush=True)
    else:
        print(f"ok      {outcome.title}{': ' if outcome.note else ''}{outcome.note}", flush=True)
    return outcome


def check_all(folder: Path, only: list[str]) -> list[Outcome]:
    interpreters = find_interpreters()
    print("Python " + ", ".join(f"3.{minor} ({path})" for minor, path in sorted(interpreters.items())), flush=True)
    whole = WHOLE_ON if WHOLE_ON in interpreters else max(interpreters)
    outcomes = []
    if not only or "lint" in only:
        outcomes += [report(outcome) for outcome in lint(interpreters[max(interpreters)], folder / "lint")]
    if not only or "mission" in only:
        outcomes.append(report(mission(interpreters[whole], folder / "mission")))
    if not only or "tests" in only:
        order = sorted(interpreters, key=lambda minor: (minor != whole, minor))
        with ThreadPoolExecutor(AT_A_TIME) as pool:
            runs = [pool.submit(test, m, interpreters[m], m == whole, folder / f"3.{m}") for m in order]
            outcomes += [report(each.result()) for each in runs]
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(description="All checks of this repository.")
    parser.add_argument("only", nargs="*", choices=[[], "lint", "mission", "tests"], help="default: all three")
    only = parser.parse_args().only
    folder = Path(tempfile.mkdtemp(prefix="ci-"))
    try:
        outcomes = check_all(folder, only)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    passed, failed = (sum(getattr(outcome, field) for outcome in outcomes) for field in ("passed", "failed"))
    print(f"{passed} passed, {failed} failed", flush=True)
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
