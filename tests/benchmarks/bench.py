"""What a job costs, against `xargs -P` and plain `python3` in the same run, in interleaved rounds.

    python3 -m tests.benchmarks.bench [--jobs 2000] [--rounds 5] [MODE..]

CPU is that of all processes (manager, worker with its guards and jobs, client), less that of starting and stopping them:
the steadiest figure on a machine that others use too. Jobs run under a clean virtual environment of this Python, started
by its real path. Everything is durable and encrypted, as by default. Nothing is left behind.
"""

from __future__ import annotations

import argparse
import importlib.util
import signal
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

from . import dispatch, distance, queues, scale
from .clusters import Bench, Cluster, Usage, cpu_seconds, family, heading, private_mb, ratios, row
from .starts import SCRIPTS

IDLE_S = 20.0
OUTPUT = "import sys\nsys.stdout.write('x' * (256 << 20))\n"
TWELVE = (
    "argparse", "csv", "dataclasses", "datetime", "json", "logging", "pathlib", "random", "re", "subprocess", "tempfile",
    "urllib.request",
)  # fmt: skip


class Subject(NamedTuple):
    """A script with the options of `run` and the interpreter that it runs under."""

    name: str
    script: str
    options: tuple[str, ...] = ()
    python: str = ""
    environ: tuple[tuple[str, str], ...] = ()  # more variables, for xargs alone


def array(bench: Bench, subject: Subject, jobs: int, rounds: int, wanted: str = "", speed: bool = True) -> None:
    """An array of a script against `xargs -P2` starting it as often."""
    base = bench.empty(subject.python)
    words = (*subject.options, "--array", f"0-{jobs - 1}", subject.script)
    numbers = "".join(f"{n}\n" for n in range(jobs)).encode()
    cpu, rate = [], []
    for _ in range(rounds):
        command = ["xargs", "-P2", "-n1", subject.python or bench.python, subject.script]
        theirs = bench.cpu(["env", *(f"{name}={value}" for name, value in subject.environ), *command], numbers)
        ours = bench.cluster(lambda cluster: bench.cpu(cluster.client("run", *words)), subject.python)
        cpu.append(((ours[0] - base) / jobs * 1e3, theirs[0] / jobs * 1e3))
        rate.append((jobs / ours[1], jobs / theirs[1]))
    ratios(f"{subject.name}: CPU ms per job, against xargs -P2", cpu, wanted)
    if speed:
        ratios(f"{subject.name}: jobs/s, against xargs -P2", rate)


def hello(bench: Bench, jobs: int, rounds: int) -> None:
    array(bench, Subject("hello", bench.hello), jobs, rounds)


def cold(bench: Bench, jobs: int, rounds: int) -> None:
    array(bench, Subject("hello --cold", bench.hello, ("--cold",)), max(100, jobs // 4), rounds)


def imports(bench: Bench, jobs: int, rounds: int) -> None:
    script = bench.write("imports.py", SCRIPTS["12 imports"])
    preload = tuple(word for name in TWELVE for word in ("--preload", name))
    jobs = max(100, jobs // 4)
    array(bench, Subject("12 imports", script), jobs, rounds, speed=False)
    array(bench, Subject("12 imports --preload", script, preload), jobs, rounds, "<= 0.35 (0.25)", speed=False)
    found = importlib.util.find_spec("numpy")
    if found is None or found.origin is None:
        print("numpy is not installed: skipped")
        return
    package = Path(found.origin).parent
    libraries = package.with_name("numpy.libs")
    python = bench.interpreter("numpy", [package, *([libraries] if libraries.exists() else [])])
    script = bench.write("with_numpy.py", "import numpy\nprint(numpy.arange(3).sum())\n")
    jobs = max(50, jobs // 2)
    array(bench, Subject("numpy", script, (), python), jobs, rounds, speed=False)
    preload = ("--preload", "numpy")
    array(bench, Subject("numpy --preload", script, preload, python), jobs, rounds, "<= 0.15", speed=False)
    one = (("OPENBLAS_NUM_THREADS", "1"),)  # as a job of one CPU has it; else a thread for each CPU is started
    array(bench, Subject("numpy, xargs 1 thread", script, preload, python, one), jobs, rounds, speed=False)


def latency(bench: Bench, jobs: int, rounds: int) -> None:
    pairs: list[tuple[float, float]] = []

    def work(cluster: Cluster) -> Usage:
        for _ in range(rounds * 6):
            ours = bench.cpu(cluster.client("run", bench.hello))[1]
            pairs.append((ours * 1e3, bench.cpu([bench.python, bench.hello])[1] * 1e3))
        return 0.0, 0.0

    bench.cluster(work)
    ratios("latency: ms of `client.py run`, against python3", pairs)


def output(bench: Bench, jobs: int, rounds: int) -> None:
    base = bench.empty()
    script = bench.write("output.py", OUTPUT)
    pairs = []
    for _ in range(rounds):
        theirs = bench.cpu(["sh", "-c", f"{bench.python} {script} | cat > /dev/null"])[0]
        ours = bench.cluster(lambda cluster: bench.cpu(cluster.client("run", script)))[0] - base
        pairs.append((ours, theirs))
    ratios("output: CPU s of 256 MiB, against `| cat`", pairs)


def idle(bench: Bench, jobs: int, rounds: int) -> None:
    """Manager and worker with two warm slots that have nothing to do, after one job."""
    pause = threading.Event()  # nothing to wait for: time itself is measured
    with Cluster(bench) as cluster:
        bench.cpu(cluster.client("run", bench.hello))
        pause.wait(2.0)
        manager, worker = [cluster.manager.pid], family(cluster.worker.pid)
        before, begin = sum(map(cpu_seconds, manager + worker)), time.monotonic()
        pause.wait(IDLE_S)
        cpu = sum(map(cpu_seconds, manager + worker)) - before
        row("idle: CPU % of manager and worker", cpu / (time.monotonic() - begin) * 100)
        row("idle: private memory of manager and worker, MB", private_mb(manager + worker), wanted="<= 60 (45)")
        row("idle: of that the manager", private_mb(manager))
        row("idle: of that the worker with its guards", private_mb(worker))


MODES = {
    "hello": (hello, "an array of --jobs tasks that print a line"),
    "cold": (cold, "a fourth of them with --cold"),
    "imports": (imports, "scripts that import twelve modules of the standard library, or numpy; with and without --preload"),
    "latency": (latency, "one `client.py run` after the other"),
    "output": (output, "256 MiB through `client.py run`"),
    "idle": (idle, "CPU and memory of a cluster with nothing to do"),
    "dispatch": (dispatch.dispatch, "the manager alone: workers in this process that do nothing; arrays of 100 to 100,000"),
    "queue": (queues.queue, "what waits: an array of 1,000,000 tasks, 100,000 single submissions"),
    "scale": (scale.scale, "1,000 simulated workers, 1,000 followers"),
    "distance": (distance.distance, "a worker 50 ms away"),
}  # fmt: skip


def main() -> None:
    modes = "\n".join(f"  {name:10} {text}" for name, (_, text) in MODES.items())
    parser = argparse.ArgumentParser(
        prog="python3 -m tests.benchmarks.bench", description=__doc__, epilog=f"modes:\n{modes}\n  all        each of them",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--jobs", type=int, default=2000, help="tasks of the array in hello; other modes scale with it")
    parser.add_argument("--rounds", type=int, default=5, help="of each comparison; medians are shown")
    parser.add_argument("modes", nargs="*", default=["all"], metavar="MODE", help="default: all")
    options = parser.parse_args()
    unknown = [name for name in options.modes if name not in MODES and name != "all"]
    if unknown:
        parser.error(f"no such mode: {unknown[0]} (there are {', '.join(MODES)}, all)")
    names = list(MODES) if "all" in options.modes else options.modes
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # else clusters would be left running
    heading()
    with Bench() as bench:
        for name in names:
            begin = time.monotonic()
            MODES[name][0](bench, options.jobs, options.rounds)
            print(f"  ({name}: {time.monotonic() - begin:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
