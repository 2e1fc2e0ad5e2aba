"""What it costs to start a script: warm and cold through the launcher, and with subprocess, in one run.

    python3 -m tests.benchmarks.starts [--python PATH] [--rounds 5] [--starts 200] [--preload numpy]

CPU is that of all processes that take part (this one, the guards, the scripts), per start: the steadiest figure. The
interpreter is a virtual environment made for the purpose, because a site-packages that imports much makes everybody
else look slow and us good; --here takes the interpreter as it is. Rounds are interleaved; medians of rounds.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from src import proctree
from src.launcher import AttemptPlan, ExitReport, Guards, Options
from src.loop import Loop

SCRIPTS = {
    "hello": "print('hello')\n",
    "12 imports": "import argparse, csv, dataclasses, datetime, json, logging, pathlib, random, re, subprocess\n"
    "import tempfile, urllib.request\nprint('hello')\n",
}


class Figures(NamedTuple):
    cpu_ms: float
    own_ms: float  # of that, in this process
    median_ms: float
    per_second: float


class Popen:
    """The baseline: one subprocess with pipes for each start, `slots` at a time."""

    def __init__(self, python: str, env: dict[str, str]) -> None:
        self.python, self.env = python, env

    def cpu(self) -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    def run(self, script: str, starts: int) -> list[float]:
        took = []
        for _ in range(starts):
            began = time.perf_counter()
            subprocess.run([self.python, script], env=self.env, stdin=subprocess.DEVNULL, capture_output=True)
            took.append(time.perf_counter() - began)
        return took


class Launched:
    """The same through Guards."""

    def __init__(self, python: str, env: dict[str, str], options: Options) -> None:
        self.env = env
        self.loop = Loop()
        self.guards = Guards(self.loop, 1, python, options._replace(env=env))
        self.scripts_cpu = 0.0

    def cpu(self) -> float:
        """Of the scripts, as reported, and of the guards, as the kernel's scheduler has it."""
        guards = [Path(f"/proc/{pid}/schedstat").read_text().split()[0] for pid in self.guards.pids()]
        return self.scripts_cpu + sum(map(int, guards)) / 1e9

    def run(self, script: str, starts: int) -> list[float]:
        return [self._one(script) for _ in range(starts)]

    def _one(self, script: str) -> float:
        began = time.perf_counter()
        out, out_w = os.pipe()
        err, err_w = os.pipe()
        plan = AttemptPlan(None, None, script, [], self.env, "/", os.open(os.devnull, os.O_RDONLY), out_w, err_w)
        ended: list[ExitReport] = []
        open_pipes = {out, err}

        def read(fd: int) -> None:
            if not os.read(fd, 65536):
                self.loop.remove_reader(fd)
                os.close(fd)
                open_pipes.discard(fd)

        for fd in (out, err):
            self.loop.add_reader(fd, lambda fd=fd: read(fd))  # type: ignore[misc]
        self.guards.start(plan, lambda *_: None, ended.append)
        while not ended or open_pipes:
            self.loop.turn(1)
        self.scripts_cpu += ended[0].cpu_seconds
        return time.perf_counter() - began

    def close(self) -> None:
        self.guards.close()
        self.loop.close()


def measure(way: Any, script: str, starts: int) -> Figures:
    own, cpu, began = time.process_time(), way.cpu(), time.perf_counter()
    took = way.run(script, starts)
    wall = time.perf_counter() - began
    own = time.process_time() - own
    cpu = way.cpu() - cpu + own
    return Figures(cpu / starts * 1000, own / starts * 1000, statistics.median(took) * 1000, starts / wall)


def compare(python: str, env: dict[str, str], script: str, arguments: argparse.Namespace) -> None:
    ways: dict[str, Any] = {
        "subprocess": Popen(python, env),
        "cold": Launched(python, env, Options(cold=True)),
        "warm": Launched(python, env, Options()),
    }
    if arguments.preload:
        ways["preload"] = Launched(python, env, Options(preload=tuple(arguments.preload)))
    rounds: dict[str, list[Figures]] = {name: [] for name in ways}
    for way in ways.values():
        way.run(script, 5)
    for _ in range(arguments.rounds):
        for name, way in ways.items():
            rounds[name].append(measure(way, script, arguments.starts))
    base: Figures | None = None
    for name, found in rounds.items():
        figures = Figures(*(statistics.median(column) for column in zip(*found)))
        base = base or figures
        counts = f"  {way.guards.counts()}" if isinstance(way := ways[name], Launched) else ""
        print(
            f"  {name:10} {figures.cpu_ms:7.2f} ms CPU ({figures.own_ms:.2f} here)  x{figures.cpu_ms / base.cpu_ms:.3f}"
            f"   {figures.median_ms:6.2f} ms, {figures.per_second:5.0f}/s  x{figures.per_second / base.per_second:.2f}"
            f"{counts}"
        )
        if isinstance(way, Launched):
            way.close()


def main() -> None:
    proctree.become_subreaper()  # as a worker does
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--here", action="store_true", help="use the interpreter itself, not a clean environment of it")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--starts", type=int, default=200)
    parser.add_argument("--preload", action="append")
    parser.add_argument("--script", action="append", help="files instead of the usual ones")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        python = arguments.python
        if not arguments.here:
            subprocess.run([python, "-m", "venv", "--without-pip", folder + "/venv"], check=True)
            python = folder + "/venv/bin/python"
        env = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        for name, text in SCRIPTS.items():
            Path(folder, name.replace(" ", "_") + ".py").write_text(text)
        scripts = arguments.script or [f"{folder}/{name.replace(' ', '_')}.py" for name in SCRIPTS]
        for script in scripts:
            print(Path(script).stem)
            compare(python, env, script, arguments)


if __name__ == "__main__":
    main()
