"""What a queue costs while nothing runs: an array of 1,000,000 tasks against one of a single task, and 100,000 single
submissions over one connection. The manager is a process of its own."""

from __future__ import annotations

import statistics
import time

from src.api import Cluster as Api
from src.keys import load_peer_key
from src.link import Link

from .clusters import Bench, Cluster, cpu_seconds, private_mb, row
from .dispatch import submit_array, submit_many

MILLION = 1_000_000
SINGLES = 100_000
ONE_BY_ONE = 1000


def queue(bench: Bench, jobs: int, rounds: int) -> None:
    with Cluster(bench, slots=0) as cluster:
        key = load_peer_key("client", environ=bench.environ)
        with Link("127.0.0.1", cluster.port, key) as link:
            _arrays(cluster.manager.pid, link, rounds)
            _singles(cluster.manager.pid, link)
        _one_by_one(bench, cluster.port)


def _arrays(manager: int, link: Link, rounds: int) -> None:
    submit_array(link, 1)
    grown: dict[int, list[float]] = {1: [], MILLION: []}
    took: dict[int, list[float]] = {1: [], MILLION: []}
    for _ in range(4 * rounds):
        for size in (1, MILLION):
            memory, begin = private_mb([manager]), time.perf_counter()
            submit_array(link, size)
            took[size].append(time.perf_counter() - begin)
            grown[size].append(private_mb([manager]) - memory)
    large, small = (statistics.mean(grown[size]) * 1e6 for size in (MILLION, 1))
    row("queue: bytes of an array of 1,000,000 tasks, of one of 1", large, small)
    row("queue: bytes per task more", max(0.0, large - small) / MILLION, wanted="0")
    large, small = (statistics.median(took[size]) * 1e3 for size in (MILLION, 1))
    row("queue: ms to submit an array of 1,000,000 tasks, of 1", large, small, large / small)
    row("queue: us per task more", max(0.0, large - small) * 1e3 / MILLION, wanted="0")


def _singles(manager: int, link: Link) -> None:
    memory, cpu = private_mb([manager]), cpu_seconds(manager)
    rate = submit_many(link, SINGLES)
    row("queue: 100,000 single submissions, pipelined, per second", rate, wanted=">= 3,000")
    row("queue: CPU us of the manager for each", (cpu_seconds(manager) - cpu) / SINGLES * 1e6)
    row("queue: bytes that the manager grows by each", (private_mb([manager]) - memory) * 1e6 / SINGLES)


def _one_by_one(bench: Bench, port: int) -> None:
    """As a program does that waits for each."""
    key_file = f"{bench.key_home}/cluster.key"
    with Api("127.0.0.1", port, key_file=key_file) as api:
        begin = time.perf_counter()
        for _ in range(ONE_BY_ONE):
            api.submit(bench.hello)
        row("queue: api submissions one after the other, per second", ONE_BY_ONE / (time.perf_counter() - begin))
