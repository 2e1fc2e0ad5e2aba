"""Runs the interpreter's own tests (Lib/test/test_*.py, as scripts) directly and warm, and lists what differs.

    python3 -m tests.benchmarks.fidelity [--python PATH] [--every N] [--limit 5] [NAME..]

Compared are exit status, stdout and stderr, after masking times, addresses, process ids and temporary names. A file that
differs is tried again; one whose direct runs differ from each other says nothing, and is counted as unsteady.
"""

from __future__ import annotations

import argparse
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Optional

from src import proctree
from tests.process.fidelity_run import Call, Lab, Seen

TRIES = 3
SHOWN = 400
MASKS = [
    (re.compile(rb"0x[0-9a-fA-F]{5,}|\b\d{9,}\b"), b"#"),
    (re.compile(rb"Ran (\d+) tests? in [\d.]+s"), rb"Ran \1 tests"),
    (re.compile(rb"\b\d+(\.\d+)?(e-\d+)? ?(s|sec|ms|seconds?)\b"), b"# s"),
    (re.compile(rb"(pid|process|thread|Thread-|port|test_python_|@test_)[ =(:]?\d+"), rb"\1#"),
    (re.compile(rb"\b\d{4,5}\b"), b"#"),
    (re.compile(rb"\btmp[a-z0-9_]{8}\b"), b"tmp#"),
    (re.compile(rb"\b\d+\.\d{3,}\b"), b"#"),
]


def masked(seen: Seen) -> Seen:
    out, err = seen.out, seen.err
    for pattern, text in MASKS:
        out, err = pattern.sub(text, out), pattern.sub(text, err)
    return Seen(seen.status, out, err)


class Report:
    """What was found, from all threads; each append is atomic."""

    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.lines: list[str] = []


def examine(lab: Lab, file: Path, folder: str, limit_s: float, report: Report) -> str:
    """Run one file both ways until they agree; gives one word."""

    def call() -> Call:
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(folder)
        return Call(str(file), (), lab.env, folder, buffered=True)

    began = time.monotonic()
    first = masked(lab.direct(call()))
    if time.monotonic() - began > limit_s:
        return "slow"
    for _ in range(TRIES):
        seen, was_warm, why = lab.launched(call(), cold=False)
        warm = masked(seen)
        if warm == first:
            if not was_warm:
                report.reasons[why or "?"] += 1
            return "same, warm" if was_warm else "same, cold by rule"
        again = masked(lab.direct(call()))
        if again != first and again != warm:
            return "unsteady"
        first = again
    for name, ours, theirs in zip(Seen._fields, first, warm):
        if ours != theirs:
            report.lines.append(
                f"{file.name}: {name}\n    direct {tail(ours, theirs)}\n    warm   {tail(theirs, ours)}"
            )
    return "DIFFERENT"


def tail(value: object, other: object) -> str:
    if not isinstance(value, bytes) or not isinstance(other, bytes):
        return repr(value)
    lines, others = value.splitlines(), set(other.splitlines())
    return repr(b"\n".join(line for line in lines if line not in others)[:SHOWN])


def find(python: str, arguments: argparse.Namespace) -> list[Path]:
    code = "import os, test; print(os.path.dirname(test.__file__))"
    found = subprocess.run([python, "-c", code], stdout=subprocess.PIPE, text=True)
    if found.returncode:
        sys.exit(f"{python} has no test package")
    files = sorted(Path(found.stdout.strip()).glob("test_*.py"))
    if arguments.names:
        return [file for file in files if file.stem in arguments.names or file.stem[5:] in arguments.names]
    return files[:: arguments.every]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--every", type=int, default=1, help="only each Nth file")
    parser.add_argument("--limit", type=float, default=4.0, help="seconds; files that take longer are left out")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("names", nargs="*")
    arguments = parser.parse_args()
    proctree.become_subreaper()
    env = {"PATH": os.environ["PATH"], "HOME": os.path.expanduser("~"), "LANG": "C.UTF-8"}
    report = Report()
    todo: queue.SimpleQueue[Optional[Path]] = queue.SimpleQueue()
    for file in find(arguments.python, arguments):
        todo.put(file)
    with tempfile.TemporaryDirectory() as base:
        subprocess.run([arguments.python, "-m", "venv", "--without-pip", base + "/venv"], check=True)

        def work(number: int) -> None:
            lab = Lab(base + "/venv/bin/python", env)
            while (file := todo.get()) is not None:
                word = examine(lab, file, f"{base}/{number}", arguments.limit, report)
                report.kinds[word] += 1
                if word in ("DIFFERENT", "unsteady"):
                    print(f"{file.name}: {word}", flush=True)
            lab.close()

        threads = [threading.Thread(target=work, args=(number,)) for number in range(arguments.jobs)]
        for thread in threads:
            todo.put(None)
            thread.start()
        for thread in threads:
            thread.join()
    print("\n".join(report.lines))
    print(", ".join(f"{count} {kind}" for kind, count in sorted(report.kinds.items())))
    print("cold:", dict(report.reasons))
    return 1 if report.lines else 0


if __name__ == "__main__":
    sys.exit(main())
