"""Output is read by offset, across breaks, to the end and no further."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import unittest
from typing import Any, Optional, Union, cast
from unittest import mock

from src import follow
from src.core.errors import LinkError, ManagerGone
from src.follow import Connection, Follower, Printer
from src.link import Link

ENDED = {"state": "succeeded", "exit_code": 0, "signal": None, "reason": None, "timed_out": False, "dropped_bytes": 0}
Answer = tuple[dict[str, Any], bytes]
Scripted = Union[Answer, Exception]


def segment(pos: int, start: int, out: bytes, ended: bool = False, attempt: int = 1) -> dict[str, Any]:
    return {
        "pos": pos, "index": pos, "attempt": attempt, "out": [start, len(out)], "err": [0, 0],
        "end": dict(ENDED) if ended else None,
    }  # fmt: skip


def answer(*segments: tuple[dict[str, Any], bytes], done: bool = False) -> Answer:
    return {"tasks": [each for each, _ in segments], "done": done}, b"".join(data for _, data in segments)


class FakeLink:
    """Gives scripted answers in order; an exception stands for a break where it is."""

    def __init__(self, *answers: Scripted, posts: Optional[int] = None) -> None:
        self.answers, self.posted, self.closed, self.posts = list(answers), [], False, posts  # type: ignore[var-annotated]

    def post(self, header: dict[str, Any]) -> int:
        if self.posts is not None and len(self.posted) >= self.posts:
            raise ManagerGone("broke while asking")
        self.posted.append(header)
        return len(self.posted)

    def answer(self, number: int, timeout_s: Optional[float] = None) -> Answer:
        found = self.answers.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    def request(self, header: dict[str, Any], payload: bytes = b"") -> Answer:
        return self.answer(self.post(header))

    def close(self) -> None:
        self.closed = True


class FollowCase(unittest.TestCase):
    def setUp(self) -> None:
        for name in ("time.sleep", "time.monotonic"):
            patch = mock.patch(f"src.follow.{name}", getattr(self, name.split(".")[1]))
            patch.start()
            self.addCleanup(patch.stop)
        self.now = 1000.0
        self.said: list[str] = []

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def monotonic(self) -> float:
        self.now += 0.01
        return self.now

    def connection(self, *links: FakeLink, retry_s: float = 300.0) -> Connection:
        rest = list(links[1:])

        def make(_timeout_s: float) -> Any:
            return rest.pop(0)

        first: Any = links[0]
        return Connection(make, first, retry_s, self.said.append)

    def read(self, connection: Connection, hi: int = 0, live: bool = True, wait: bool = True) -> tuple[bytes, bool]:
        follower, found = Follower(connection, 7, 0, hi, live, wait), []
        done = follower.run(lambda _segment, out, _err: found.append(out))
        return b"".join(found), done


DATA = bytes(range(256)) * 8


class BrittleLink:
    """Serves DATA as one task's stdout in pieces of 100 bytes, and breaks at the n-th call."""

    calls = 0

    def __init__(self, breaks: set[int]) -> None:
        self.breaks = breaks
        self.answers: dict[int, tuple[dict[str, Any], bytes]] = {}

    def _count(self) -> None:
        BrittleLink.calls += 1
        if BrittleLink.calls in self.breaks:
            raise ManagerGone("the connection broke")

    def post(self, header: dict[str, Any], payload: bytes = b"") -> int:
        self._count()
        piece = DATA[header["out"] : header["out"] + 100]
        whole = header["out"] + len(piece) == len(DATA)
        segment = {
            "pos": 0, "index": 0, "attempt": 1, "state": "running", "out": [header["out"], len(piece)], "err": [0, 0],
            "end": dict(ENDED) if whole else None,
        }  # fmt: skip
        number = BrittleLink.calls
        self.answers[number] = ({"tasks": [segment], "next": int(whole), "done": whole}, piece)
        return number

    def answer(self, number: int, timeout_s: float | None = None) -> tuple[dict[str, Any], bytes]:
        self._count()
        return self.answers.pop(number)

    def close(self) -> None:
        pass


class FollowerTest(FollowCase):
    def test_one_request_travels_ahead_of_what_is_printed(self) -> None:
        link = FakeLink(
            answer((segment(0, 0, b"one"), b"one")), answer((segment(0, 3, b"two", True), b"two"), done=True)
        )
        asked: list[int] = []
        follower = Follower(self.connection(link), 7, 0, 0, True, True)
        self.assertTrue(follower.run(lambda *_: asked.append(len(link.posted))))
        self.assertEqual(asked, [2, 2])
        self.assertEqual([header["out"] for header in link.posted], [0, 3])

    def test_a_break_is_not_an_end_and_reading_goes_on_at_the_byte(self) -> None:
        first = FakeLink(answer((segment(0, 0, b"one"), b"one")), ManagerGone("cut"))
        second = FakeLink(answer((segment(0, 3, b"two", True), b"two"), done=True))
        self.assertEqual(self.read(self.connection(first, second)), (b"onetwo", True))
        self.assertTrue(first.closed)
        self.assertEqual((second.posted[0]["out"], second.posted[0]["attempt"]), (3, 1))
        self.assertEqual(self.said, ["cut; connecting again", "connected again"])

    def test_what_arrived_before_the_next_question_broke_is_not_lost(self) -> None:
        first = FakeLink(answer((segment(0, 0, b"one"), b"one")), posts=1)
        second = FakeLink(answer((segment(0, 3, b"two", True), b"two"), done=True))
        self.assertEqual(self.read(self.connection(first, second)), (b"onetwo", True))

    def test_tasks_in_order_each_from_its_first_byte(self) -> None:
        link = FakeLink(
            answer((segment(0, 0, b"a", True), b"a"), (segment(1, 0, b"b"), b"b")),
            answer((segment(1, 1, b"c", True), b"c"), done=True),
        )
        self.assertEqual(self.read(self.connection(link), hi=1), (b"abc", True))
        self.assertEqual((link.posted[1]["pos"], link.posted[1]["out"]), (1, 1))

    def test_without_waiting_it_returns_when_there_is_no_more_yet(self) -> None:
        link = FakeLink(answer((segment(0, 0, b"a", True), b"a")), answer())
        self.assertEqual(self.read(self.connection(link), hi=1, wait=False), (b"a", False))
        self.assertEqual(link.posted[0]["wait"], 0)


class ConnectionTest(FollowCase):
    def test_a_manager_that_breaks_off_each_time_is_given_up_and_not_stormed(self) -> None:
        links = [FakeLink(ManagerGone("cut")) for _ in range(200)]
        connection = self.connection(*links, retry_s=60.0)
        begin = self.now
        with self.assertRaises(LinkError):
            connection.request({"t": "info"})
        self.assertLess(sum(bool(link.posted) for link in links), 40)
        self.assertLess(self.now - begin, 70)

    def test_an_answer_gives_a_later_break_all_the_time_again(self) -> None:
        good = answer(done=True)
        connection = self.connection(
            FakeLink(ManagerGone("1")), FakeLink(good, ManagerGone("2")), FakeLink(good), retry_s=5.0
        )
        connection.request({"t": "info"})
        self.now += 100.0
        self.assertEqual(connection.request({"t": "info"}), good)

    def test_no_time_to_come_back_means_the_error_itself(self) -> None:
        with self.assertRaisesRegex(ManagerGone, "cut"):
            self.connection(FakeLink(ManagerGone("cut")), retry_s=0.0).request({"t": "info"})
        self.assertEqual(self.said, [])

    def test_who_comes_late_takes_the_connection_that_another_thread_made(self) -> None:
        old, new = FakeLink(), FakeLink()
        connection = self.connection(old, new)
        connection.again(ManagerGone("cut"), old)  # type: ignore[arg-type]
        connection.again(ManagerGone("cut"), old)  # type: ignore[arg-type]
        self.assertIs(connection.link, new)
        self.assertEqual(len(self.said), 2)


class EveryByteTest(FollowCase):
    def follow(self, breaks: set[int]) -> bytes:
        BrittleLink.calls = 0
        got: list[bytes] = []
        told: list[str] = []
        link = cast(Link, BrittleLink(breaks))
        connection = Connection(lambda timeout_s: cast(Link, BrittleLink(breaks)), link, 300.0, told.append)
        follower = Follower(connection, 1, 0, 0, live=True, wait=True)
        self.assertTrue(follower.run(lambda segment, out, err: got.append(out)))
        self.assertEqual(len(told), 2 * len([n for n in breaks if n <= BrittleLink.calls]))
        return b"".join(got)

    def test_every_byte_once_wherever_it_breaks(self) -> None:
        self.assertEqual(self.follow(set()), DATA)
        for nth in range(1, BrittleLink.calls + 1):
            with self.subTest(nth=nth):
                self.assertEqual(self.follow({nth}), DATA)
        self.assertEqual(self.follow({3, 4, 9, 10, 11, 20}), DATA)

    def test_it_gives_up_when_told_to(self) -> None:
        link = cast(Link, BrittleLink({1}))
        BrittleLink.calls = 0
        connection = Connection(lambda timeout_s: link, link, 0.0, lambda text: None)
        with self.assertRaises(LinkError):
            Follower(connection, 1, 0, 0, live=True, wait=True).run(lambda segment, out, err: None)


class PrinterTest(unittest.TestCase):
    def pipes(self) -> tuple[Any, int]:
        reading, writing = os.pipe()
        stream = os.fdopen(writing, "w")
        self.addCleanup(stream.close)
        return stream, reading

    def test_bytes_pass_as_they_are(self) -> None:
        stream, reading = self.pipes()
        raw = bytes(range(256))
        with mock.patch.object(sys, "stdout", stream):
            Printer(lambda: None)(segment(0, 0, raw, True), raw, b"")
        self.assertEqual(os.read(reading, 1000), raw)
        os.close(reading)

    def test_stderr_that_nobody_reads_ends_nothing(self) -> None:
        (out, reading), (err, gone) = self.pipes(), self.pipes()
        os.close(gone)
        printer = Printer(lambda: None)
        with mock.patch.object(sys, "stdout", out), mock.patch.object(sys, "stderr", err):
            printer(segment(0, 0, b"1"), b"1", b"complaint")
            printer(segment(0, 1, b"2", True), b"2", b"complaint")
        self.assertEqual(os.read(reading, 10), b"12")
        os.close(reading)

    def test_a_new_attempt_and_dropped_output_are_said(self) -> None:
        printer = Printer(lambda: None)
        ended = segment(0, 0, b"", True, attempt=2)
        ended["end"]["dropped_bytes"] = 5
        with contextlib.redirect_stderr(io.StringIO()) as told:
            printer(segment(0, 0, b""), b"", b"")
            printer(ended, b"", b"")
        self.assertIn("attempt 2", told.getvalue())
        self.assertIn("5 bytes", told.getvalue())


class NumberTest(unittest.TestCase):
    def test_names_of_signals(self) -> None:
        self.assertEqual([follow._number(name) for name in ("SIGKILL", "SIGTERM", "signal 60")], [9, 15, 60])


if __name__ == "__main__":
    unittest.main()
