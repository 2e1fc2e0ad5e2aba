"""The support for tests is code too: the leak check finds leaks, the proxy relays."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import threading
import unittest
from typing import Callable
from unittest import mock

from tests.support import leaks
from tests.support.leaks import Case
from tests.support.marks import linux_only
from tests.support.proxy import Proxy
from tests.support.waiting import StillWaiting, wait_until


def run_case(body: Callable[[Case], object]) -> str:
    """The failure text of a test with this body; empty when it passed."""

    class Sample(Case):
        def runTest(self) -> None:
            body(self)

    result = unittest.TestResult()
    with mock.patch.object(leaks, "SETTLE_S", 0.05), mock.patch.object(leaks, "_show_evidence"):
        Sample().run(result)
    return "".join(text for _, text in result.failures + result.errors)


class TestLeakCheck(Case):
    def test_a_clean_test_passes(self) -> None:
        self.assertEqual(run_case(lambda case: None), "")

    def test_a_thread_is_found(self) -> None:
        release = threading.Event()
        thread = threading.Thread(target=release.wait, name="forgotten")
        self.assertIn("thread forgotten", run_case(lambda case: thread.start()))
        release.set()
        thread.join()

    @linux_only
    def test_a_process_that_was_not_waited_for_is_found(self) -> None:
        kept: list[subprocess.Popen[bytes]] = []
        self.assertIn("process", run_case(lambda case: kept.append(subprocess.Popen([sys.executable, "-c", ""]))))
        kept[0].wait()

    @linux_only
    def test_an_orphan_is_found_and_killed(self) -> None:
        def leave_an_orphan(case: Case) -> None:
            daemon = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'input()'], stdin=0)"
            subprocess.run([sys.executable, "-c", daemon], stdin=reader, check=True)

        reader, writer = os.pipe()
        self.assertIn("process", run_case(leave_an_orphan))
        os.close(reader)
        os.close(writer)

    @linux_only
    def test_a_descriptor_is_found(self) -> None:
        kept: list[int] = []
        self.assertIn("descriptor", run_case(lambda case: kept.append(os.dup(0))))
        os.close(kept[0])

    def test_a_temporary_file_is_found(self) -> None:
        self.assertIn("forgotten", run_case(lambda case: tempfile.mkdtemp(prefix="forgotten")))


class TestWaiting(Case):
    def test_gives_the_value_or_says_what_was_missing(self) -> None:
        self.assertEqual(wait_until(lambda: 7), 7)
        with self.assertRaisesRegex(StillWaiting, "in vain for rain; last seen: sun"):
            wait_until(lambda: False, 0.01, "rain", lambda: "sun")


class TestProxy(Case):
    def setUp(self) -> None:
        self.server = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(self.server.close)
        self.proxy = Proxy(self.server.getsockname()[1], record=True).start()
        self.addCleanup(self.proxy.close)

    def connect(self) -> tuple[socket.socket, socket.socket]:
        near = socket.create_connection(("127.0.0.1", self.proxy.port), timeout=30)
        self.addCleanup(near.close)
        far, _ = self.server.accept()
        far.settimeout(30)
        self.addCleanup(far.close)
        return near, far

    def test_relays_both_ways_and_records(self) -> None:
        near, far = self.connect()
        near.sendall(b"ping")
        self.assertEqual(far.recv(10), b"ping")
        far.sendall(b"pong")
        self.assertEqual(near.recv(10), b"pong")
        near.shutdown(socket.SHUT_WR)
        self.assertEqual(far.recv(10), b"")
        self.assertEqual(bytes(self.proxy.recorded), b"pingpong")

    def test_cuts(self) -> None:
        near, far = self.connect()
        self.proxy.cut()
        self.assertEqual(near.recv(10), b"")
        self.assertEqual(far.recv(10), b"")

    def test_freezes_and_goes_on(self) -> None:
        near, far = self.connect()
        self.proxy.freeze(True)
        near.sendall(b"late")
        self.proxy.freeze(False)
        self.assertEqual(far.recv(10), b"late")

    def test_refuses(self) -> None:
        self.proxy.refuse(True)
        with socket.create_connection(("127.0.0.1", self.proxy.port), timeout=30) as near:
            self.assertEqual(near.recv(10), b"")
