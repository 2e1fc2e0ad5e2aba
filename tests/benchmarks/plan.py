"""How long placement takes: 1,000,000 queued tasks in 1,000 shapes on 1,000 workers; and a lifecycle in the brain alone.

python3 -m tests.benchmarks.plan
"""

from __future__ import annotations

import json
import statistics
import time

from src.core import events
from src.core.cluster import Cluster
from src.core.jobs import Finish, TaskKey
from tests.support.sim import Disk, Settings, spec


def joined(name: str, labels: list[str], slots: int) -> events.WorkerJoined:
    info = {
        "name": name, "worker_id": name, "boot": "b", "slots": slots, "cpus": slots, "memory": 1 << 34, "gpus": 0,
        "labels": labels, "resources": {}, "pythons": {}, "version": "0", "python": "3.11.7", "holding": [],
    }  # fmt: skip
    return events.WorkerJoined(name, info)


def finished(key: TaskKey) -> Finish:
    return Finish(*key, 0, None, None, 1.0, 3.0, 0.1, 1, 0, 0, 0, None, False, False, False, b"", b"")


def wide(workers: int = 1000, shapes: int = 1000) -> None:
    """Every worker can run a tenth of the shapes."""
    cluster = Cluster(Disk(), Settings())
    for n in range(workers):
        cluster.handle(joined(f"w{n}", [f"group{n % 10}"], 2), 0.0, 0.0)
    for n in range(shapes):
        job = spec(count=1000, array="0-999", on=[f"group{n % 10}"], memory=(n + 1) << 20, user=f"user{n % 20}")
        cluster.handle(events.JobSubmitted(f"r{n}", job, json.dumps(job), n), 0.0, 0.0)
    begin = time.perf_counter()
    effects = cluster.take_effects(0.0, 0.0)
    first = time.perf_counter() - begin
    running = [(link, key) for link, mail in effects.mail.items() for key in mail.run]
    print(f"first plan: {len(running)} tasks placed in {first:.3f} s ({first / len(running) * 1e6:.0f} us each)")
    each = []
    for link, key in running[:500]:
        begin = time.perf_counter()
        cluster.handle(events.WorkerReported(link, [], [finished(key)], []), 1.0, 1.0)
        cluster.take_effects(1.0, 1.0)
        each.append(time.perf_counter() - begin)
    print(f"per freed slot: median {statistics.median(each) * 1e3:.3f} ms, worst {max(each) * 1e3:.3f} ms")


def narrow(tasks: int = 50_000) -> None:
    """One array, one worker: what the brain adds to each task."""
    cluster = Cluster(Disk(), Settings())
    cluster.handle(joined("w", [], 2), 0.0, 0.0)
    job = spec(count=tasks, array=f"0-{tasks - 1}")
    cluster.handle(events.JobSubmitted("r", job, json.dumps(job), 0), 0.0, 0.0)
    begin, done = time.perf_counter(), 0
    effects = cluster.take_effects(0.0, 0.0)
    while done < tasks:
        keys = effects.mail["w"].run
        done += len(keys)
        fins = [finished(key)._replace(started_at=2.995) for key in keys]
        cluster.handle(events.WorkerReported("w", [], fins, []), 1.0, 1.0)
        effects = cluster.take_effects(1.0, 1.0)
    seconds = time.perf_counter() - begin
    print(f"lifecycle in the brain: {seconds / tasks * 1e6:.1f} us per task, {tasks / seconds:,.0f} tasks/s")


if __name__ == "__main__":
    wide()
    narrow()
