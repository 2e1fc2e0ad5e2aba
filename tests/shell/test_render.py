"""Tables, fields and progress as people see them."""

from __future__ import annotations

import io
import unittest
from typing import Any

from src import render


def view(**changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "id": "7", "state": "running", "name": "train.py", "user": "ann", "submitted_at": "2026-11-28T10:00:00.000Z",
        "started_at": None, "finished_at": None, "duration": None, "tasks": None, "reason": None, "worker": "lab-1",
        "waiting_reason": None, "exit_code": None,
    }  # fmt: skip
    found.update(changes)
    return found


class TableTest(unittest.TestCase):
    def test_lines_fit_eighty_columns(self) -> None:
        views = [
            view(),
            view(id="1234567", name="x" * 200, user="somebody", state="cancelled", reason="r" * 300),
            view(
                tasks={
                    "total": 10_000_000,
                    "succeeded": 5,
                    "failed": 2,
                    "cancelled": 0,
                    "running": 1,
                    "queued": 9,
                    "waiting": 0,
                }
            ),
        ]
        text = render.jobs(views, io.StringIO())
        self.assertLessEqual(max(map(len, text.splitlines())), 80)
        self.assertIn("7/10000000, 2 failed", text)

    def test_nobody_moves_the_cursor(self) -> None:
        text = render.jobs([view(name="evil\x1b[2J\n", reason="\x07\u202e")], io.StringIO())
        self.assertNotIn("\x1b", text)
        self.assertEqual(len(text.splitlines()), 2)

    def test_starts(self) -> None:
        seen: list[dict[str, Any]] = [
            {"warm": 5, "cold": 3, "cold_reasons": {"asked for": 1, "its script\n": 2}},
            {"warm": None, "cold": 4, "cold_reasons": {"asked for": 4}},
        ]
        self.assertEqual(render.starts(seen), "started: 5 warm, 7 cold (5 asked for; 2 its script\\n)\n")
        self.assertEqual(render.starts([{"warm": 0, "cold": None, "cold_reasons": {}}]), "")

    def test_workers(self) -> None:
        worker = {
            "name": "lab-1", "state": "busy", "slots": 4, "slots_used": 2, "address": "10.0.0.7:4242", "python": "3.11.7",
            "labels": ["arch=x86_64", "gpu", "os=linux", "python=3.11"], "running": ["7.1", "8"], "failing": None,
            "version": "0.1.0",
        }  # fmt: skip
        text = render.workers([worker], io.StringIO())
        self.assertIn("2/4", text)
        self.assertIn("7.1 8    gpu python=3.11 os=linux", text)
        worker.update(
            name="a-long-name-of-a-worker-03",
            labels=["gpu", "os=linux", "python=3.11", "site=berlin"],
            running=["7"] * 20,
        )
        text = render.workers([worker], io.StringIO())
        self.assertLessEqual(max(map(len, text.splitlines())), 80)
        self.assertIn("gpu site=berlin", text)

    def test_fields_leave_out_what_is_empty(self) -> None:
        text = render.fields(view(args=["a b", "c"], max_rss_bytes=1 << 20, cpu_seconds=0.5), io.StringIO())
        self.assertIn("'a b' c", text)
        self.assertIn("1.0M", text)
        self.assertNotIn("signal", text)

    def test_durations(self) -> None:
        shown = [render.brief(seconds) for seconds in (0.04, 59.94, 61, 3700, 100_000, None)]
        self.assertEqual(shown, ["0.0s", "59.9s", "1m01s", "1h01m", "1d3h", ""])
