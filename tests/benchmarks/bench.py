"""What a job costs, against `xargs -P` and plain `python3` in the same run, in interleaved rounds.

    python3 -m tests.benchmarks.bench [--jobs 2000] [--rounds 5] [hello] [cold] [latency] [output] [idle]

CPU is that of all processes (manager, worker with its guards and jobs, client), less that of starting and stopping them:
the steadiest figure on a machine that others use too. Jobs run under a clean virtual environment of this Python.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import venv
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HELLO = "print('hello')\n"
PREPARED = "import sys\nsys.stdout.write('x' * (256 << 20))\n"


class Bench:
    """A folder with a clean interpreter, scripts, and a cluster that is started anew for each round."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        venv.create(self.folder / "venv", symlinks=True)
        self.python = str(self.folder / "venv" / "bin" / "python")
        self.hello = self.write("hello.py", HELLO)
        self.output = self.write("output.py", PREPARED)
        names = ("PATH", "HOME", "LANG", "TMPDIR")
        self.environ = {name: os.environ[name] for name in names if name in os.environ}
        self.environ["MICROCLUSTER_HOME"] = str(self.folder / "keys")
        self.serial = 0

    def write(self, name: str, text: str) -> str:
        path = self.folder / name
        path.write_text(text)
        return str(path)

    def cpu(self, command: list[str], stdin: bytes = b"", stdout: Any = subprocess.DEVNULL) -> tuple[float, float]:
        """CPU seconds of a command with all that it waited for, and wall seconds."""
        begin = time.perf_counter()
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=stdout, env=self.environ)
        assert process.stdin is not None
        process.stdin.write(stdin)
        process.stdin.close()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{command}: exit code {process.returncode}")
        return usage.ru_utime + usage.ru_stime, time.perf_counter() - begin

    def cluster(self, work: Any, slots: int = 2) -> tuple[float, float]:
        """CPU seconds of manager, worker and client for work(client command), and wall seconds of the work."""
        self.serial += 1
        data = self.folder / f"data{self.serial}"
        run = [self.python, str(ROOT / "run.py")]
        manager = subprocess.Popen(
            [*run, "manager", "--data", str(data / "m"), "127.0.0.1", "0"], stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, env=self.environ, text=True,
        )  # fmt: skip
        assert manager.stdout is not None
        port = manager.stdout.readline().rsplit(":", 1)[1].strip()
        worker = subprocess.Popen(
            [*run, "worker", "--slots", str(slots), "--data", str(data / "w"), "127.0.0.1", port],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=self.environ, text=True,
        )  # fmt: skip
        assert worker.stdout is not None
        worker.stdout.readline()

        def client(verb: str, *words: str) -> list[str]:
            return [self.python, str(ROOT / "client.py"), verb, "127.0.0.1", port, *words]

        self.cpu(client("run", self.hello))
        cpu, wall = work(client)
        for process in (worker, manager):
            process.terminate()
            _, _, usage = os.wait4(process.pid, 0)
            process.returncode = 0
            assert process.stdout is not None
            process.stdout.close()
            cpu += usage.ru_utime + usage.ru_stime
        return cpu, wall

    def empty(self) -> float:
        """CPU seconds of starting and stopping a cluster that runs one job."""
        return statistics.median(self.cluster(lambda client: (0.0, 0.0))[0] for _ in range(3))

    def xargs(self, jobs: int) -> tuple[float, float]:
        numbers = "".join(f"{n}\n" for n in range(jobs)).encode()
        return self.cpu(["xargs", "-P2", "-n1", self.python, self.hello], numbers)


def ratios(name: str, pairs: list[tuple[float, float]]) -> None:
    mine, other = (statistics.median(column) for column in zip(*pairs))
    ratio = statistics.median(one / two for one, two in pairs)
    print(f"{name:44} {mine:10.3f} {other:10.3f}   ratio {ratio:.2f}", flush=True)


def hello(bench: Bench, jobs: int, rounds: int, options: tuple[str, ...] = ()) -> None:
    base = bench.empty()
    words = (*options, "--array", f"0-{jobs - 1}", bench.hello)
    cpu, rate = [], []
    for _ in range(rounds):
        theirs = bench.xargs(jobs)
        ours = bench.cluster(lambda client: bench.cpu(client("run", *words)))
        cpu.append(((ours[0] - base) / jobs * 1e3, theirs[0] / jobs * 1e3))
        rate.append((jobs / ours[1], jobs / theirs[1]))
    name = "hello --cold" if options else "hello"
    ratios(f"{name}: CPU ms per job, against xargs -P2", cpu)
    ratios(f"{name}: jobs/s, against xargs -P2", rate)


def latency(bench: Bench, rounds: int) -> None:
    pairs: list[tuple[float, float]] = []

    def work(client: Any) -> tuple[float, float]:
        for _ in range(rounds * 6):
            ours = bench.cpu(client("run", bench.hello))[1]
            pairs.append((ours * 1e3, bench.cpu([bench.python, bench.hello])[1] * 1e3))
        return 0.0, 0.0

    bench.cluster(work)
    ratios("latency: ms of `client.py run`, against python3", pairs)


def output(bench: Bench, rounds: int) -> None:
    base = bench.empty()
    pairs = []
    for _ in range(rounds):
        shell = f"{bench.python} {bench.output} | cat > /dev/null"
        theirs = bench.cpu(["sh", "-c", shell])[0]
        ours = bench.cluster(lambda client: bench.cpu(client("run", bench.output)))[0] - base
        pairs.append((ours, theirs))
    ratios("output: CPU s of 256 MiB, against `| cat`", pairs)


def idle(bench: Bench, seconds: float) -> None:
    def work(client: Any) -> tuple[float, float]:
        threading.Event().wait(seconds)  # nothing to wait for: time itself is measured
        return 0.0, 0.0

    more = bench.cluster(work)[0] - bench.empty()
    print(f"idle: CPU of manager and worker: {max(0.0, more) / seconds * 100:.2f} %")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("what", nargs="*", default=["hello", "cold", "latency", "output", "idle"])
    options = parser.parse_args()
    print(f"Python {sys.version.split()[0]}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory(prefix="b-") as folder:
        bench = Bench(folder)
        tasks = {
            "hello": lambda: hello(bench, options.jobs, options.rounds),
            "cold": lambda: hello(bench, max(100, options.jobs // 4), options.rounds, ("--cold",)),
            "latency": lambda: latency(bench, options.rounds),
            "output": lambda: output(bench, options.rounds),
            "idle": lambda: idle(bench, 10.0),
        }
        for name in options.what:
            tasks[name]()


if __name__ == "__main__":
    main()
