"""How many tasks a manager hands out and takes back, durable and encrypted, when workers do nothing; and how many single
submissions it acknowledges over one connection, pipelined.

    python3 -m tests.benchmarks.dispatch [--tasks 20000] [--submits 5000] [--rounds 5]
"""

from __future__ import annotations

import argparse
import hashlib
import secrets
import statistics
import tempfile
import threading
import time
from typing import Any

from src.channel import ClientChannel
from src.config import ManagerSettings
from src.keys import ManagerKeys
from src.link import Link
from src.loop import Loop
from src.manager import Manager
from src.net import Conn, connect
from tests.support.sim import spec

SCRIPT = b"print('hello')\n"
DIGEST = hashlib.sha256(SCRIPT).hexdigest()


class IdleHands:
    """A worker that says of every task at once that it printed a line and ended well."""

    def __init__(self, keys: ManagerKeys, port: int) -> None:
        self.loop = Loop()
        key = keys.peer_key("worker")
        connect(self.loop, "127.0.0.1", port, lambda: ClientChannel(key, "worker", "x"), self, self._failed)
        self.thread = threading.Thread(target=self.loop.run)
        self.thread.start()

    def _failed(self, error: Exception) -> None:
        raise SystemExit(str(error))

    def opened(self, conn: Conn) -> None:
        conn.send(
            {
                "t": "join", "name": "idle-hands", "worker_id": "a" * 32, "boot": "b" * 32, "slots": 2, "cpus": 2,
                "memory": None, "gpus": 0, "labels": [], "resources": {}, "pythons": {}, "version": "0",
                "python": "3.11.7", "holding": [],
            }
        )  # fmt: skip

    def received(self, conn: Conn, header: dict[str, Any], payload: bytes) -> None:
        keys = header.get("run") if header["t"] == "work" else None
        if keys:
            now = time.time()
            ends = [
                {
                    "task": key, "exit_code": 0, "signal": None, "reason": None, "started_at": now - 0.001,
                    "finished_at": now, "cpu": 0.01, "rss": 1, "out": [6, 6], "err": [0, 0], "dropped": 0, "files": None,
                    "timed_out": False, "never_ran": False, "cancelled": False,
                }
                for key in keys
            ]  # fmt: skip
            started = [[*key, now, True, None] for key in keys]
            conn.send({"t": "report", "started": started, "finished": ends}, b"hello\n" * len(keys))

    def closed(self, conn: Conn, error: Exception | None) -> None:
        pass


def one_round(tasks: int, submits: int) -> tuple[float, float, float]:
    """Tasks/s, CPU us per task of manager and worker together, submissions/s."""
    with tempfile.TemporaryDirectory() as folder:
        settings = ManagerSettings(host="127.0.0.1", port=0, data=folder + "/data", key_home=folder + "/keys")
        manager = Manager(settings).start()
        assert manager.keys is not None
        link = Link("127.0.0.1", manager.port, manager.keys.peer_key("submit"))
        job = spec(script={"name": "x.py", "hash": DIGEST}, count=tasks, array=f"0-{tasks - 1}")
        header = {"t": "submit", "request_id": secrets.token_hex(16), "spec": job, "inline": [[DIGEST, len(SCRIPT)]]}
        link.request(header, SCRIPT)
        begin, cpu = time.perf_counter(), time.process_time()
        hands = IdleHands(manager.keys, manager.port)
        link.request({"t": "wait", "ids": [{"job": 1}], "timeout": None})
        rate = tasks / (time.perf_counter() - begin)
        each = (time.process_time() - cpu) / tasks * 1e6
        hands.loop.stop()
        hands.thread.join()
        begin = time.perf_counter()
        numbers = []
        for _ in range(submits):
            header = {"t": "submit", "request_id": secrets.token_hex(16), "spec": spec(script=job["script"])}
            numbers.append(link.post(header))
        for number in numbers:
            link.answer(number)
        accepted = submits / (time.perf_counter() - begin)
        link.close()
        manager.stop()
        return rate, each, accepted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=20_000)
    parser.add_argument("--submits", type=int, default=5_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    rounds = [one_round(options.tasks, options.submits) for _ in range(options.rounds)]
    rate, each, accepted = (statistics.median(column) for column in zip(*rounds))
    print(f"dispatch: {rate:,.0f} tasks/s, {each:.0f} us of CPU per task; submissions: {accepted:,.0f}/s")


if __name__ == "__main__":
    main()
