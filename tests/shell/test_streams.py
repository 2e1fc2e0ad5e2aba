"""Output from pipes to report messages: coalescing, window, spilling, resuming. A real loop, a made-up connection."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any, Callable
from unittest import mock

from src import reports, streams
from src.core.jobs import TaskKey
from src.loop import Loop
from src.reports import Reports
from src.streams import INLINE_BYTES, WINDOW_BYTES, Output, Streams
from tests.support.leaks import Case
from tests.support.waiting import FACTOR

KEY = TaskKey(7, 0, 1)
LIMIT = 1 << 30


class FakeConn:
    """Takes reports apart as the manager does; keeps each stream as its spool would."""

    def __init__(self) -> None:
        self.outbox_bytes = 0
        self.messages: list[dict[str, Any]] = []
        self.spool: dict[tuple[TaskKey, int], bytes] = {}
        self.results: list[dict[str, Any]] = []

    def send(self, header: dict[str, Any], payload: bytes = b"") -> None:
        self.messages.append(header)
        assert len(payload) <= 1 << 20
        at = 0
        for job, pos, attempt, number, offset, length in header.get("output", ()):
            data, at = payload[at : at + length], at + length
            self.store(TaskKey(job, pos, attempt), number, offset, data)
        for fin in header.get("finished", ()):
            for number, name in ((1, "out"), (2, "err")):
                total, length = fin[name]
                data, at = payload[at : at + length], at + length
                self.store(TaskKey(*fin["task"]), number, total - length, data)
                assert len(self.spool.get((TaskKey(*fin["task"]), number), b"")) == total
            self.results.append(fin)
        assert at == len(payload)

    def store(self, key: TaskKey, number: int, offset: int, data: bytes) -> None:
        have = self.spool.get((key, number), b"")
        assert offset <= len(have), f"a gap: {len(have)} bytes are there, these begin at {offset}"
        self.spool[key, number] = have[:offset] + data


class StreamsCase(Case):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.loop = Loop()
        self.addCleanup(self.loop.close)
        self.reports = Reports(self.loop)
        self.streams = Streams(self.loop, self.folder, self.reports)
        self.addCleanup(self.streams.close)
        self.conn = FakeConn()

    def connect(self, **have: tuple[int, int]) -> FakeConn:
        self.conn = FakeConn()
        self.reports.conn = self.conn
        self.streams.on_welcome()
        return self.conn

    def disconnect(self) -> None:
        self.reports.clear()
        self.streams.on_disconnected()

    def open(self, limit: int = LIMIT, key: TaskKey = KEY) -> Output:
        output = self.streams.open(key, limit)
        self.addCleanup(self.close, output)
        return output

    def close(self, output: Output, *which: int) -> None:
        """Our ends of the pipes, as if the processes ended."""
        fds = list(output.write_fds)
        for number in which or (1, 2):
            if fds[number - 1] >= 0:
                os.close(fds[number - 1])
                fds[number - 1] = -1
        output.write_fds = (fds[0], fds[1])

    def turn_until(self, predicate: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + 30 * FACTOR
        while not predicate():
            self.assertLess(time.monotonic(), deadline, what)
            self.loop.turn(0.01)

    def push(self, output: Output, data: bytes, number: int = 1) -> None:
        """Write all, turning the loop as the script's pipe fills."""
        fd = output.write_fds[number - 1]
        os.set_blocking(fd, False)
        view = memoryview(data)
        deadline = time.monotonic() + 30 * FACTOR
        while view:
            self.assertLess(time.monotonic(), deadline)
            try:
                view = view[os.write(fd, view) :]
            except BlockingIOError:
                self.loop.turn(0.01)

    def finish(self, output: Output) -> None:
        """The attempt ends, and its result is told once its output is with the manager."""
        self.close(output)
        self.streams.finish(output.key)
        self.streams.when_sent(output.key, lambda: self.tell(output.key))

    def tell(self, key: TaskKey) -> None:
        out, out_tail, err, err_tail, _ = self.streams.tails(key)
        fin = {"task": list(key), "out": [out, len(out_tail)], "err": [err, len(err_tail)]}
        self.reports.finished(fin, out_tail, err_tail)

    def got(self, key: TaskKey = KEY) -> bool:
        """The manager confirms all that it has."""
        for (task, number), data in list(self.conn.spool.items()):
            if task == key:
                self.streams.on_got(task, number, len(data))
        return True


class TestSmall(StreamsCase):
    def test_small_output_rides_with_the_result(self) -> None:
        conn = self.connect()
        output = self.open()
        os.write(output.write_fds[0], b"hello\n")
        os.write(output.write_fds[1], b"oops\n")
        self.finish(output)
        self.loop.turn(0)
        self.assertEqual([fin["out"] for fin in conn.results], [[6, 6]])
        self.assertEqual(conn.spool, {(KEY, 1): b"hello\n", (KEY, 2): b"oops\n"})
        self.assertEqual(len(conn.messages), 1)

    def test_a_line_leaves_soon_and_only_the_rest_rides(self) -> None:
        conn = self.connect()
        output = self.open()
        os.write(output.write_fds[0], b"first\n")
        self.turn_until(lambda: conn.spool.get((KEY, 1)) == b"first\n", "the first line")
        os.write(output.write_fds[0], b"second\n")
        self.finish(output)
        self.loop.turn(0)
        self.assertEqual(conn.results[0]["out"], [13, 7])
        self.assertEqual(conn.spool[KEY, 1], b"first\nsecond\n")

    def test_lines_that_come_together_leave_together(self) -> None:
        conn = self.connect()
        output = self.open()
        self.turn_until(lambda: output.streams[0].watched, "the pipe to be watched")
        for n in range(20):
            os.write(output.write_fds[0], b"%d\n" % n)
            self.loop.turn(0)
        self.turn_until(lambda: len(conn.spool.get((KEY, 1), b"")) == 50, "all lines")
        self.assertLess(len(conn.messages), 20)

    def test_nothing_at_all(self) -> None:
        conn = self.connect()
        self.finish(self.open())
        self.loop.turn(0)
        self.assertEqual((conn.results[0]["out"], conn.results[0]["err"]), ([0, 0], [0, 0]))
        self.assertEqual(self.streams.tails(TaskKey(9, 9, 9)), (0, b"", 0, b"", 0))
        self.assertEqual(self.streams.finish(TaskKey(9, 9, 9)), 0)

    def test_a_stranger_with_the_pipe_does_not_hold_up_the_end(self) -> None:
        conn = self.connect()
        output = self.open()
        stranger = os.dup(output.write_fds[0])
        self.addCleanup(os.close, stranger)
        os.write(stranger, b"early\n")
        self.finish(output)
        self.loop.turn(0)
        self.assertEqual(conn.spool[KEY, 1], b"early\n")
        self.assertEqual(len(conn.results), 1)

    def test_discarded_output_is_gone(self) -> None:
        conn = self.connect()
        output = self.open()
        os.write(output.write_fds[0], b"x")
        self.streams.discard(KEY)
        self.streams.discard(KEY)
        for _ in range(5):
            self.loop.turn(0.02)
        self.assertEqual(conn.messages, [])


class TestLarge(StreamsCase):
    def test_the_window_stops_the_script(self) -> None:
        conn = self.connect()
        output = self.open()
        data = os.urandom(3 << 20)
        fd = output.write_fds[0]
        os.set_blocking(fd, False)
        written = 0
        self.turn_until(lambda: output.streams[0].watched, "the pipe to be watched")

        def fill() -> bool:
            nonlocal written
            try:
                written += os.write(fd, data[written : written + 65536])
            except BlockingIOError:
                return not output.streams[0].watched
            return False

        self.turn_until(fill, "the pipe to be full and not read")
        self.assertLess(written, WINDOW_BYTES + 300_000)
        self.assertLess(len(output.streams[0].buffer), WINDOW_BYTES + 100_000)

        def feed() -> bool:
            nonlocal written
            self.got()
            try:
                written += os.write(fd, data[written : written + 65536])
            except BlockingIOError:
                pass
            return written == len(data)

        self.turn_until(feed, "the rest to flow as the manager confirms")
        self.finish(output)
        self.turn_until(lambda: self.got() and conn.results, "the result")
        self.assertEqual(conn.spool[KEY, 1], data)
        self.assertLessEqual(conn.results[0]["out"][1], INLINE_BYTES)

    def test_a_busy_network_holds_back(self) -> None:
        conn = self.connect()
        output = self.open()
        conn.outbox_bytes = reports.OUTBOX_BYTES + 1
        self.push(output, b"x" * 500_000)
        self.assertEqual(conn.spool, {})
        conn.outbox_bytes = 0
        self.streams.on_drained()
        self.turn_until(lambda: len(conn.spool.get((KEY, 1), b"")) >= 400_000, "the output")

    def test_what_is_past_the_limit_is_dropped_and_counted(self) -> None:
        conn = self.connect()
        output = self.open(limit=1000)
        self.push(output, b"a" * 5000)
        self.push(output, b"b" * 400, number=2)
        self.close(output)
        self.assertEqual(self.streams.finish(KEY), 4000)
        self.assertEqual(sum(stream.dropped for stream in output.streams), 4000)
        self.streams.when_sent(KEY, lambda: self.tell(KEY))
        self.loop.turn(0)
        self.assertEqual(conn.spool, {(KEY, 1): b"a" * 1000, (KEY, 2): b"b" * 400})

    def test_many_results_share_a_message_within_its_limits(self) -> None:
        conn = self.connect()
        keys = [TaskKey(7, pos, 1) for pos in range(40)]
        for key in keys:
            output = self.open(key=key)
            os.write(output.write_fds[0], b"x" * 50_000)
            self.finish(output)
        self.loop.turn(0)
        self.assertEqual(len(conn.results), 40)
        self.assertLess(len(conn.messages), 5)

    def test_what_is_not_confirmed_is_sent_again(self) -> None:
        conn = self.connect()
        output = self.open()
        self.push(output, b"x" * 1000)
        self.turn_until(lambda: (KEY, 1) in conn.spool, "the output")
        conn.spool.clear()  # its disk was full
        self.streams.send_again()
        self.assertEqual(conn.spool, {}, "not before it had the time to confirm")
        self.streams.send_again()
        self.turn_until(lambda: conn.spool.get((KEY, 1)) == b"x" * 1000, "the output again")


class TestReconnect(StreamsCase):
    def test_output_is_kept_in_a_file_while_the_manager_is_away(self) -> None:
        output = self.open()
        data = os.urandom(3 << 20)
        self.push(output, data)
        self.turn_until(lambda: list(self.folder.iterdir()), "a file")
        self.assertLess(len(output.streams[0].buffer), streams.SPILL_BYTES + 100_000)
        self.close(output)
        self.streams.finish(KEY)
        conn = self.connect()
        self.streams.resume(KEY, 0, 0)
        self.streams.when_sent(KEY, lambda: self.tell(KEY))
        self.turn_until(lambda: self.got() and conn.results, "the result")
        self.assertEqual(conn.spool[KEY, 1], data)
        self.streams.on_got(KEY, 1, len(data))
        self.assertEqual(list(self.folder.iterdir()), [])

    def test_it_goes_on_from_what_the_manager_has(self) -> None:
        first = self.connect()
        output = self.open()
        self.push(output, b"a" * 1000)
        self.turn_until(lambda: (KEY, 1) in first.spool, "the first part")
        self.disconnect()
        self.push(output, b"b" * 1000)
        second = self.connect()
        second.spool[KEY, 1] = b"a" * 400
        self.streams.resume(KEY, 400, 0)
        self.finish(output)
        self.turn_until(lambda: second.results, "the result")
        self.assertEqual(second.spool[KEY, 1], b"a" * 1000 + b"b" * 1000)

    def test_through_many_cuts_nothing_is_lost_or_doubled(self) -> None:
        output = self.open()
        data = os.urandom(2_500_000)
        spool: dict[tuple[TaskKey, int], bytes] = {}
        for start in range(0, len(data), 500_000):
            conn = self.connect()
            spool = conn.spool = {at: kept[: len(kept) * 9 // 10] for at, kept in spool.items()}
            got = output.streams[0].got
            if spool:
                spool[KEY, 1] = data[: max(got, len(spool[KEY, 1]))]
            self.streams.resume(KEY, len(spool.get((KEY, 1), b"")), 0)
            self.push(output, data[start : start + 250_000])
            self.got()
            self.loop.turn(0)
            self.disconnect()
            self.push(output, data[start + 250_000 : start + 500_000])
        conn = self.connect()
        conn.spool = spool
        self.streams.resume(KEY, len(spool.get((KEY, 1), b"")), 0)
        self.finish(output)
        self.turn_until(lambda: self.got() and conn.results, "the result")
        self.assertEqual(conn.spool[KEY, 1], data)
        self.assertEqual(sum(stream.dropped for stream in output.streams), 0)

    def test_a_paused_pipe_is_read_again_while_disconnected(self) -> None:
        self.connect()
        output = self.open()
        os.set_blocking(output.write_fds[0], False)

        def fill() -> bool:
            try:
                os.write(output.write_fds[0], b"x" * 65536)
            except BlockingIOError:
                return output.streams[0].size >= WINDOW_BYTES
            return False

        self.turn_until(fill, "the window to be full")
        self.disconnect()
        self.push(output, b"y" * (1 << 20))
        self.assertGreater(output.streams[0].size, 2 * WINDOW_BYTES - 100_000)

    def test_a_manager_that_lost_what_it_had_confirmed(self) -> None:
        self.connect()
        output = self.open()
        self.push(output, b"a" * 1000)
        self.turn_until(lambda: self.got() and output.streams[0].got == 1000, "the first part")
        self.disconnect()
        conn = self.connect()
        conn.spool[KEY, 1] = b"a" * 700
        self.streams.resume(KEY, 700, 0)
        self.push(output, b"b" * 10)
        self.finish(output)
        self.loop.turn(0)
        self.assertEqual(conn.spool[KEY, 1], b"a" * 700 + b"b" * 10)
        self.assertEqual(sum(stream.dropped for stream in output.streams), 300)

    def test_a_full_disk_drops_and_counts(self) -> None:
        output = self.open()
        with mock.patch.object(os, "pwrite", side_effect=OSError(28, "No space left on device")):
            with self.assertLogs("src.streams", "WARNING"):
                self.push(output, b"x" * (1 << 20))
                self.turn_until(lambda: output.streams[0].dropped >= 900_000, "the drop")
        self.push(output, b"end")
        self.close(output)
        dropped = self.streams.finish(KEY)
        conn = self.connect()
        self.streams.resume(KEY, 0, 0)
        self.streams.when_sent(KEY, lambda: self.tell(KEY))
        self.turn_until(lambda: self.got() and conn.results, "the result")
        self.assertEqual(len(conn.spool[KEY, 1]) + dropped, (1 << 20) + 3)

    def test_results_told_into_the_void_are_told_again(self) -> None:
        output = self.open()
        self.push(output, b"hello")
        self.finish(output)  # no connection
        conn = self.connect()
        self.streams.resume(KEY, 0, 0)
        self.streams.when_sent(KEY, lambda: self.tell(KEY))
        self.loop.turn(0)
        self.disconnect()
        again = self.connect()
        self.streams.resume(KEY, 2, 0)
        again.spool[KEY, 1] = b"he"
        self.streams.when_sent(KEY, lambda: self.tell(KEY))
        self.loop.turn(0)
        self.assertEqual(conn.spool[KEY, 1], b"hello")
        self.assertEqual((again.spool[KEY, 1], again.results[0]["out"]), (b"hello", [5, 3]))


class TestReports(StreamsCase):
    def test_a_start_is_told_unless_the_end_comes_first(self) -> None:
        conn = self.connect()
        second, third = TaskKey(7, 1, 1), TaskKey(7, 2, 1)
        outputs = [self.open(key=key) for key in (KEY, second, third)]
        self.reports.started(KEY, 1.0, True, None)
        self.reports.started(second, 2.0, False, "uses gc")
        self.finish(outputs[0])
        self.turn_until(lambda: len(conn.messages) == 2, "both messages")
        self.assertEqual(conn.results[0]["task"], [7, 0, 1])
        self.assertEqual(conn.messages[1]["started"], [[7, 1, 1, 2.0, False, "uses gc"]])
        self.reports.started(third, 3.0, True, None)  # a slow one: no longer young
        self.loop.turn(0)
        self.assertEqual(conn.messages[2]["started"], [[7, 2, 1, 3.0, True, None]])

    def test_ends_wait_for_each_other_while_work_is_here_and_nothing_else_leaves(self) -> None:
        conn = self.connect()
        self.reports = Reports(self.loop, lambda: supplied)
        self.reports.conn = conn
        supplied = True
        for pos in range(3):
            self.tell_end(pos)
            self.loop.turn(0)
            self.assertEqual(conn.messages, [])
        self.turn_until(lambda: conn.messages, "three ends in one message")
        self.assertEqual([fin["task"][1] for fin in conn.results], [0, 1, 2])
        self.tell_end(3)
        self.reports.output(KEY, 1, 0, b"x")  # output does not wait, and takes along what does
        self.loop.turn(0)
        self.assertEqual([fin["task"][1] for fin in conn.results], [0, 1, 2, 3])
        supplied = False
        self.tell_end(4)
        self.loop.turn(0)
        self.assertEqual(len(conn.results), 5)

    def tell_end(self, pos: int) -> None:
        self.reports.finished({"task": [7, pos, 1], "out": [0, 0], "err": [0, 0]}, b"", b"")

    def test_without_a_connection_nothing_is_kept(self) -> None:
        self.reports.started(KEY, 1.0, True, None)
        self.reports.recalled(KEY)
        self.reports.output(KEY, 1, 0, b"x")
        self.reports.flush()
        conn = self.connect()
        self.reports.recalled(KEY)
        self.reports.flush()
        self.assertEqual(conn.messages, [{"t": "report", "recalled": [[7, 0, 1]]}])
