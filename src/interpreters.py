"""Which Python interpreters this machine has, by name: what a worker offers, and where each is.

Looks on the PATH (python3.X), among pyenv's versions, and at what --python NAME=PATH names. Each interpreter is asked
for its version once; answers are kept in a file, as long as the interpreter's file stays the same. Blocks while it
asks; a path that a job names is therefore looked up in a helper thread.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

ANSWER_S = 20.0  # for all of them together; one on a dead network drive must not hold up the worker
ON_PATH = re.compile(r"python(3\.\d+)")
QUESTION = """import sys
info = sys.version_info
stage = {'alpha': 'a', 'beta': 'b', 'candidate': 'rc'}.get(info[3], '')
print(sys.executable.encode('utf-8', 'surrogateescape').hex())
print('%d.%d.%d' % info[:3] + (stage + str(info[4]) if stage else ''))
"""


class Interpreter(NamedTuple):
    path: str
    version: str  # 3.12.1, 3.14.0rc1


def own() -> Interpreter:
    """The interpreter this process runs under."""
    info = sys.version_info
    stage = {"alpha": "a", "beta": "b", "candidate": "rc"}.get(info.releaselevel, "")
    version = f"{info.major}.{info.minor}.{info.micro}" + (f"{stage}{info.serial}" if stage else "")
    return Interpreter(sys.executable, version)


def find(named: Mapping[str, str], environ: Mapping[str, str], cache: Path) -> dict[str, Interpreter]:
    """All interpreters to offer, by name: `3.12` (the newest such one), `3.12.1`, and those of `named` (name → path).

    `cache` is the file of earlier answers. Those that do not answer are left out.
    """
    paths = [*_on_path(environ), *_of_pyenv(environ)]
    answers = ask([*paths, *named.values()], cache)
    found: dict[str, Interpreter] = {}
    for answer in [answers[path] for path in paths if path in answers]:
        found.setdefault(_minor(answer.version), answer)
        found.setdefault(answer.version, answer)
    me = own()
    found[_minor(me.version)] = found[me.version] = me
    found.update({name: answers[path] for name, path in named.items() if path in answers})
    return found


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _on_path(environ: Mapping[str, str]) -> list[str]:
    """python3.X in the folders of the PATH, the first of each X. Pyenv's shims only stand for its versions."""
    found: dict[str, str] = {}
    for folder in environ.get("PATH", "").split(os.pathsep):
        if not folder or folder.rstrip("/").endswith("/shims"):
            continue
        try:
            names = os.listdir(folder)
        except OSError:
            continue
        for name in names:
            if ON_PATH.fullmatch(name):
                found.setdefault(name, os.path.join(folder, name))
    return [path for path in found.values() if os.access(path, os.X_OK)]


def _of_pyenv(environ: Mapping[str, str]) -> list[str]:
    """The versions of pyenv, the newest first."""
    root = environ.get("PYENV_ROOT") or os.path.join(environ.get("HOME", ""), ".pyenv")
    folder = os.path.join(root, "versions")
    try:
        names = [name for name in os.listdir(folder) if re.fullmatch(r"3(\.\d+)+", name)]
    except OSError:
        return []
    names.sort(key=lambda name: [int(part) for part in name.split(".")], reverse=True)
    return [path for path in (f"{folder}/{name}/bin/python" for name in names) if os.access(path, os.X_OK)]


def ask(paths: Iterable[str], cache: Path | None = None) -> dict[str, Interpreter]:
    """Versions of the interpreters at these paths, all asked at once; those that do not answer are left out."""
    known = _load(cache)
    found: dict[str, Interpreter] = {}
    asked: dict[str, tuple[str, subprocess.Popen[bytes]]] = {}
    for path in dict.fromkeys(paths):
        stamp = _stamp(path)
        if stamp is None:
            continue
        if stamp in known:
            found[path] = Interpreter(*known[stamp])
            continue
        try:
            process = subprocess.Popen(
                [path, "-I", "-S", "-c", QUESTION],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        except OSError:
            continue
        asked[path] = (stamp, process)
    deadline = time.monotonic() + ANSWER_S
    for path, (stamp, process) in asked.items():
        answer = _answer(process, deadline)
        if answer is not None:
            found[path] = answer
            known[stamp] = list(answer)
    if asked and cache is not None:
        _store(cache, known)
    return found


def _answer(process: subprocess.Popen[bytes], deadline: float) -> Interpreter | None:
    try:
        out, _ = process.communicate(timeout=max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return None
    found = re.fullmatch(rb"((?:[0-9a-f]{2})+)\s+(\d+\.\d+\.\d+\w*)\s*", out)
    if process.returncode != 0 or found is None:
        return None
    path = bytes.fromhex(found.group(1).decode()).decode("utf-8", "surrogateescape")
    return Interpreter(path, found.group(2).decode())


def _stamp(path: str) -> str | None:
    """Changes when the interpreter does: where its file really is, and how old and large it is."""
    try:
        real = os.path.realpath(path)
        info = os.stat(real)
    except OSError:
        return None
    return f"{path}|{real}|{info.st_mtime_ns}|{info.st_size}"


def _load(cache: Path | None) -> dict[str, list[str]]:
    try:
        found = json.loads(cache.read_text("utf-8")) if cache is not None else {}
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _store(cache: Path, known: dict[str, list[str]]) -> None:
    temporary = cache.with_name(f"{cache.name}.{os.getpid()}")
    try:
        temporary.write_text(json.dumps(known), "utf-8")
        os.replace(temporary, cache)
    except OSError:
        pass  # asked again next time
