"""A worker 50 ms away (25 ms each way): how busy its slots are with tasks of 100 ms, against the same beside the manager."""

from __future__ import annotations

import asyncio
import json
import subprocess
import threading
import time
from datetime import datetime

from .clusters import Bench, Cluster, ratios

ONE_WAY_S = 0.025
SLEEP = "import time\ntime.sleep(0.1)\n"
SLOTS = 2
CHUNK = 1 << 16


class Relay:
    """In front of a port: every byte takes `seconds` longer, each way. In a thread, until `close`."""

    def __init__(self, target: int, seconds: float) -> None:
        self._target, self._seconds = target, seconds
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._run()))
        self._thread.start()
        self._ready.wait()

    async def _run(self) -> None:
        self._end = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        server = await asyncio.start_server(self._pair, "127.0.0.1", 0)
        self.port: int = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._end.wait()
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _pair(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        for source, sink in ((reader, far_writer), (far_reader, writer)):
            late: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
            for work in (self._take(source, late), self._give(late, sink)):
                self._tasks.add(asyncio.ensure_future(work))

    async def _take(self, source: asyncio.StreamReader, late: asyncio.Queue[tuple[float, bytes]]) -> None:
        data = b"x"
        while data:
            try:
                data = await source.read(CHUNK)
            except OSError:
                data = b""
            late.put_nowait((time.monotonic() + self._seconds, data))

    async def _give(self, late: asyncio.Queue[tuple[float, bytes]], sink: asyncio.StreamWriter) -> None:
        try:
            while True:
                due, data = await late.get()
                await asyncio.sleep(due - time.monotonic())
                if not data:
                    break
                sink.write(data)
        finally:
            sink.close()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()
        self._loop.close()


def distance(bench: Bench, jobs: int, rounds: int) -> None:
    script = bench.write("sleep.py", SLEEP)
    tasks = max(40, jobs // 10)
    near, far, paced = [], [], []
    for _ in range(rounds):
        near.append(_busy(bench, script, tasks, 0.0))
        far.append(_busy(bench, script, tasks, ONE_WAY_S))
        paced.append((near[-1][1], far[-1][1]))
    busy = [(a[0] * 100, b[0] * 100) for a, b in zip(far, near)]
    ratios(f"distance: slots busy, % ({tasks} tasks of 100 ms), and near", busy, ">= 90 % (97 %)")
    ratios("distance: s from first start to last end, and near", [(b, a) for a, b in paced])


def _busy(bench: Bench, script: str, tasks: int, seconds: float) -> tuple[float, float]:
    """Which part of the time from the first start to the last end the slots had a task; and that time."""
    relays: list[Relay] = []

    def through(port: int) -> int:
        relays.append(Relay(port, seconds))
        return relays[-1].port

    try:
        with Cluster(bench, SLOTS, through=through) as cluster:
            bench.cpu(cluster.client("run", bench.hello))
            bench.cpu(cluster.client("run", "--array", f"0-{tasks - 1}", script))
            command = cluster.client("status", "--json", f"2.0-{tasks - 1}")
            found = json.loads(subprocess.run(command, env=bench.environ, stdout=subprocess.PIPE, check=True).stdout)
    finally:
        for relay in relays:
            relay.close()
    starts, ends = ([_seconds(task[name]) for task in found] for name in ("started_at", "finished_at"))
    span = max(ends) - min(starts)
    return sum(task["duration"] for task in found) / (SLOTS * span), span


def _seconds(stamp: str) -> float:
    return datetime.strptime(stamp, "%Y-%m-%dT%H:%M:%S.%fZ").timestamp()
