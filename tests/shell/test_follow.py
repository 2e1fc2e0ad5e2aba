"""Following output across a connection that breaks: every byte once, in order."""

from __future__ import annotations

import unittest
from typing import Any, cast

from src.core.errors import LinkError, ManagerGone
from src.follow import Connection, Follower
from src.link import Link

DATA = bytes(range(256)) * 8
END = {"state": "succeeded", "exit_code": 0, "signal": None, "reason": None, "timed_out": False, "dropped_bytes": 0}


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
            "end": END if whole else None,
        }  # fmt: skip
        number = BrittleLink.calls
        self.answers[number] = ({"tasks": [segment], "next": int(whole), "done": whole}, piece)
        return number

    def answer(self, number: int, timeout_s: float | None = None) -> tuple[dict[str, Any], bytes]:
        self._count()
        return self.answers.pop(number)

    def close(self) -> None:
        pass


class FollowTest(unittest.TestCase):
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
