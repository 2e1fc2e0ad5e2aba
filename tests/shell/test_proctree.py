"""Who descends from this process, and how to end it all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import unittest
from pathlib import Path

from src import proctree
from tests.support.leaks import Case
from tests.support.marks import linux_only
from tests.support.waiting import wait_until

FAMILY = """
import os, sys, threading, time
def birth():
    if os.fork() == 0:
        time.sleep(600)
thread = threading.Thread(target=birth)  # a child of a thread is a child of its process
thread.start(); thread.join()
if os.fork() == 0:
    birth()
    time.sleep(600)
print("ready", flush=True)
sys.stdin.read()
"""


def start(script: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def stop(process: subprocess.Popen[bytes]) -> None:
    proctree.send([*proctree.descendants(process.pid), process.pid], signal.SIGKILL)
    assert process.stdout is not None and process.stdin is not None
    process.stdout.close()
    process.stdin.close()
    process.wait()


@linux_only
class TestLooking(Case):
    def family(self) -> subprocess.Popen[bytes]:
        process = start(FAMILY)
        self.addCleanup(stop, process)
        assert process.stdout is not None
        self.assertEqual(process.stdout.readline(), b"ready\n")
        wait_until(lambda: len(proctree.descendants(process.pid)) == 3, what="three descendants")
        return process

    def test_children_of_every_thread_and_their_children(self) -> None:
        process = self.family()
        self.assertIn(process.pid, proctree.children(os.getpid()))
        self.assertEqual(len(proctree.children(process.pid)), 2)
        self.assertEqual(len(proctree.descendants(process.pid)), 3)
        self.assertLessEqual(set(proctree.descendants(process.pid)), set(proctree.descendants()))

    def test_the_slow_way_finds_the_same(self) -> None:
        process = self.family()
        parents = proctree.parents()
        self.assertEqual(
            sorted(proctree.children(process.pid)), sorted(pid for pid in parents if parents[pid] == process.pid)
        )
        self.assertEqual(parents[process.pid], os.getpid())

    def test_a_process_that_is_gone_has_no_children(self) -> None:
        process = start("")
        stop(process)
        self.assertEqual(proctree.descendants(process.pid), [])
        proctree.send([process.pid], signal.SIGKILL)  # does not matter

    def test_memory(self) -> None:
        process = start("data = bytearray(b'x') * (64 << 20); print(1, flush=True); input()")
        self.addCleanup(stop, process)
        assert process.stdout is not None
        process.stdout.readline()
        for limit in (0, 1 << 40):  # counted exactly, and quickly
            used = proctree.memory([process.pid], limit)
            self.assertGreater(used, 64 << 20)
            self.assertLess(used, 128 << 20)
        self.assertEqual(proctree.memory([2**22 + 1], 0), 0)


REAPER = """
import os, sys, time
sys.path.insert(0, {root!r})
from src import proctree
assert proctree.become_subreaper()
def escape():
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(600)
        os._exit(0)
{body}
"""


@linux_only
class TestEnding(Case):
    """In processes of their own: a subreaper must not be the one that runs the tests."""

    def run_reaper(self, body: str) -> str:
        script = REAPER.format(root=str(Path(__file__).resolve().parents[2]), body=body)
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
        self.assertEqual(done.stderr, "")
        return done.stdout

    def test_kill_descendants_until_none_is_left(self) -> None:
        body = """
for _ in range(20): escape()
ended = []
total = 0
while proctree.reap(lambda pid, status, usage: ended.append(pid)):
    total += proctree.kill_descendants()
print(len(ended) >= 20, total >= len(ended) // 2, proctree.descendants(), proctree.reap(None))
"""
        self.assertEqual(self.run_reaper(body), "True True [] False\n")

    def test_sweep_spares_children_of_its_own_session_and_known_ones(self) -> None:
        body = """
import subprocess
mine = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
known = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True)
parent = os.fork()
if parent == 0:
    escape(); os.wait()
    os._exit(0)
os.waitpid(parent, 0)
found = 0
while True:
    swept = proctree.sweep_orphans({known.pid})
    found += swept
    if not swept: break
print(found > 0, mine.poll(), known.poll(), sorted(proctree.children(os.getpid())) == sorted([mine.pid, known.pid]))
for process in (mine, known): process.kill(); process.wait()
"""
        self.assertEqual(self.run_reaper(body), "True None None True\n")

    def test_a_child_dies_with_its_parent(self) -> None:
        body = """
reading, writing = os.pipe()
middle = os.fork()
if middle == 0:
    here = os.getpid()
    if os.fork() == 0:
        proctree.die_with(here)
        os.write(writing, b"x")
        time.sleep(600)
    os.close(writing)
    os.read(reading, 1)
    os.kill(here, 9)
os.close(writing)
os.waitpid(middle, 0)
pid, status = os.wait()
print(status)
"""
        self.assertEqual(self.run_reaper(body), "9\n")


class TestElsewhere(Case):
    def test_without_being_a_subreaper_nothing_is_swept(self) -> None:
        process = subprocess.Popen(
            [sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=-1, start_new_session=True
        )
        self.assertEqual(proctree.sweep_orphans(set()), 0)
        assert process.stdin is not None
        process.stdin.close()
        self.assertEqual(process.wait(), 0)


if __name__ == "__main__":
    unittest.main()
