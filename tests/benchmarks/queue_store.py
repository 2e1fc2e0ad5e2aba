"""The job table: lifecycles per second, and how quick it stays beside millions of finished jobs.

python3 -m tests.benchmarks.queue_store [JOBS, default 5000000] [FOLDER that keeps the database for the next time]
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from src.core.jobs import JobRow, TaskRow
from src.core.saves import ForgetJob, Save, SaveJob, SaveTask, StoreOutput, UpdateJob
from src.store import Store
from tests.benchmarks.history import DONE, QUEUED, SPEC, add_history

BATCH = 200  # jobs that a busy manager takes at once


def queued(job: int, wall: float) -> JobRow:
    return JobRow(
        job, f"{random.getrandbits(128):032x}", None, f"job{job % 50}", f"user{job % 20}", 0, "queued", 1, 0, 1, 0, 0,
        0, 0, SPEC, QUEUED, wall, None, None, None,
    )  # fmt: skip


def task(job: int, pos: int, state: str, wall: float) -> TaskRow:
    code, end = (None, None) if state == "running" else (0, wall + 1.0)
    return TaskRow(
        job, pos, state, 1, "w1", wall, end, code, None, None, 0.1, 9000000, 12, 0, 0, 0, 0, 0, None, "0" * 32
    )


def change(job: int, state: str, count: int, done: int, wall: float) -> UpdateJob:
    fields: dict[str, Any] = {
        "state": state, "waiting": 0, "queued": count - done, "running": 0, "succeeded": done, "failed": 0,
        "cancelled": 0, "sets": DONE, "started_at": wall, "finished_at": wall if done == count else None,
        "reason": None,
    }  # fmt: skip
    return UpdateJob(job, fields)


def lifecycles(store: Store, jobs: int) -> float:
    """Per second. Jobs of one task each as a busy manager has them: in each batch some are new, some start, some end."""
    first, wall = store.load().next_id, time.time()
    last, begin = first + jobs, time.perf_counter()
    for at in range(first, last + 2 * BATCH, BATCH):
        new = range(at, min(at + BATCH, last))
        start = range(max(first, at - BATCH), min(at, last))
        end = range(max(first, at - 2 * BATCH), min(at - BATCH, last))
        saves: list[Save] = [SaveJob(queued(job, wall)) for job in new]
        saves += [SaveTask(task(job, 0, "running", wall)) for job in start]
        for job in end:
            saves += [StoreOutput(job, 0, b"hello world\n", b""), SaveTask(task(job, 0, "succeeded", wall))]
        saves += [change(job, "running", 1, 0, wall) for job in start]
        saves += [change(job, "succeeded", 1, 1, wall) for job in end]
        store.apply(saves)
    return jobs / (time.perf_counter() - begin)


def array(store: Store, tasks: int) -> float:
    """Tasks per second of one job that has many."""
    job, wall, begin = store.load().next_id, time.time(), time.perf_counter()
    store.apply([SaveJob(queued(job, wall)._replace(count=tasks, queued=tasks))])
    for at in range(0, tasks + BATCH, BATCH):
        saves: list[Save] = []
        for pos in range(max(0, at - BATCH), min(at, tasks)):
            saves += [StoreOutput(job, pos, b"hello\n", b""), SaveTask(task(job, pos, "succeeded", wall))]
        saves += [SaveTask(task(job, pos, "running", wall)) for pos in range(at, min(at + BATCH, tasks))]
        store.apply([*saves, change(job, "running" if at < tasks else "succeeded", tasks, min(at, tasks), wall)])
    return tasks / (time.perf_counter() - begin)


def measure(what: str, call: Callable[[], Any], turns: int = 4) -> None:
    """Print the first time and the median of the others."""
    took = []
    for _ in range(turns):
        begin = time.perf_counter()
        call()
        took.append((time.perf_counter() - begin) * 1000)
    print(f"{what:<44} first {took[0]:9.2f} ms   then {sorted(took[1:])[(turns - 1) // 2]:9.2f} ms")


def questions(store: Store) -> None:
    """What clients and the manager ask."""
    next_id = store.load().next_id
    store.apply([SaveJob(queued(next_id, time.time())._replace(name="rare", user="rare"))])
    for what, wanted in {
        "list": (None, None, None, None),
        "list --state failed": ("failed", None, None, None),
        "list --state running (none)": ("running", None, None, None),
        "list --user user7": (None, None, "user7", None),
        "list --user rare": (None, None, "rare", None),
        "list --user user7 --state failed (none)": ("failed", None, "user7", None),
        "list --name job7": (None, "job7", None, None),
        "list --name rare": (None, "rare", None, None),
        "list --name job7 --state failed (none)": ("failed", "job7", None, None),
        "list --name job7 --user user8 (none)": (None, "job7", "user8", None),
        "list --since 1h": (None, None, None, 3600.0),
        "list --since 30d --state failed": ("failed", None, None, 2592000.0),
    }.items():
        measure(what, partial(store.list_jobs, *wanted, 50))
    measure("load", store.load)
    measure("status", lambda: (store.job(next_id // 2), store.task(next_id // 2, 0)))
    measure("counts", store.job_counts)
    measure("newest", store.newest)
    measure("by request id", lambda: store.by_request(f"{random.getrandbits(128):032x}"))
    measure("finished before: none", lambda: store.finished_before(0.0, 200))
    measure("forget 200", partial(forget, store))


def forget(store: Store) -> None:
    """A step of pruning, and what it left to the next one."""
    store.apply([ForgetJob(job) for job in store.finished_before(time.time(), 200)])
    store.apply([], clear=store.half_forgotten(200))


def large_job(store: Store, tasks: int) -> None:
    """Forget one job with many tasks: print how long the longest step takes, which is how long others wait."""
    wall = time.time()
    job = store.load().next_id
    saves: list[Save] = [SaveJob(queued(job, wall)._replace(count=tasks, state="succeeded", finished_at=0.0))]
    for pos in range(tasks):
        saves += [SaveTask(task(job, pos, "succeeded", wall)), StoreOutput(job, pos, b"hello\n", b"")]
    store.apply(saves)
    store.apply([ForgetJob(job)])
    took = []
    while store.half_forgotten(1):
        begin = time.perf_counter()
        store.apply([], clear=store.half_forgotten(200))
        took.append(time.perf_counter() - begin)
    print(f"forget a job of {tasks:,} tasks: {sum(took):.2f} s, the longest step {max(took) * 1000:.0f} ms")


def main(jobs: int, folder: str) -> None:
    store = Store(os.path.join(folder, "small"))
    store.open()
    print(f"jobs of one task: {lifecycles(store, 20_000):8,.0f} lifecycles/s")
    print(f"tasks of an array:{array(store, 40_000):8,.0f} /s")
    large_job(store, 500_000)
    store.close()
    store = Store(os.path.join(folder, "large"))
    if not os.path.exists(store.path):
        add_history(store.folder, jobs, 0)
    size = os.path.getsize(store.path)
    print(f"{jobs:,} finished jobs: {size / 1e6:,.0f} MB, {size / jobs:.0f} bytes each")
    begin = time.perf_counter()
    store.open()
    print(f"open: {time.perf_counter() - begin:.2f} s")
    questions(store)
    print(f"jobs of one task: {lifecycles(store, 20_000):8,.0f} lifecycles/s beside them")
    store.close()


if __name__ == "__main__":
    wanted_jobs = int(sys.argv[1]) if len(sys.argv) > 1 else 5_000_000
    if len(sys.argv) > 2:
        main(wanted_jobs, sys.argv[2])
    else:
        with tempfile.TemporaryDirectory() as temp:
            main(wanted_jobs, temp)
