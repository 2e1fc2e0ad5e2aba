"""Strangers at the port: idle, garbage, half-open by the hundred. The cluster goes on as if nobody were there."""

from __future__ import annotations

import os
import random
import socket
from contextlib import ExitStack
from pathlib import Path

from tests.support.leaks import Case
from tests.support.marks import linux_only, slow
from tests.support.servers import client, enter, running_manager, running_worker, write_script
from tests.support.waiting import wait_until

IDLE = 200
GARBAGE = 300
MOST_GROWTH_KIB = 50 * 1024


@slow
@linux_only
class TestStrangers(Case):
    def setUp(self) -> None:
        self.manager = enter(self, running_manager())
        enter(self, running_worker(self.manager))
        self.script = write_script(self.manager, "ok.py", "print('ok')\n")
        self.run_a_job()  # so that memory and descriptors are those of a manager at work

    def run_a_job(self) -> None:
        done = client(self.manager, "run", self.script)
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, "ok\n", ""))

    def resident_kib(self) -> int:
        (line,) = [
            x for x in Path(f"/proc/{self.manager.pid}/status").read_text().splitlines() if x.startswith("VmRSS")
        ]
        return int(line.split()[1])

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.manager.pid}/fd"))

    def test_idle_connections_do_not_matter(self) -> None:
        resident, descriptors = self.resident_kib(), self.descriptors()
        with ExitStack() as stack:
            for _ in range(IDLE):
                stack.enter_context(socket.create_connection(("localhost", self.manager.port), timeout=60))
            self.run_a_job()
        self.run_a_job()
        self.assertLess(self.resident_kib() - resident, MOST_GROWTH_KIB)
        wait_until(lambda: self.descriptors() <= descriptors + 2, 60, "connections to be closed", self.descriptors)
        self.assert_quiet_log()

    def test_garbage_does_not_matter(self) -> None:
        chance = random.Random(11)
        descriptors = self.descriptors()
        for number in range(GARBAGE):
            kind = number % 4
            if kind == 0:
                data = bytes(chance.randrange(256) for _ in range(chance.randrange(1, 400)))
            elif kind == 1:
                data = b"\x16\x03\x01" + bytes(chance.randrange(256) for _ in range(200))  # begins as TLS does
            elif kind == 2:
                data = b"\xff\xff\xff\xff" * 4
            else:
                data = b"GET /%d HTTP/1.1\r\n\r\n" % number
            with socket.create_connection(("localhost", self.manager.port), timeout=60) as stranger:
                try:
                    stranger.sendall(data)
                except ConnectionError:
                    pass  # closed already
        self.run_a_job()
        wait_until(lambda: self.descriptors() <= descriptors + 2, 60, "connections to be closed", self.descriptors)
        self.assert_quiet_log()

    def assert_quiet_log(self) -> None:
        self.assertNotIn("Traceback", self.manager.err)
        self.assertLess(len(self.manager.err.splitlines()), 100, "log lines about strangers are limited")
