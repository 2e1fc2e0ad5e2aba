"""The manager's figures."""

from __future__ import annotations

import re
import unittest
from types import SimpleNamespace
from typing import Any

from src.core.events import Note
from src.core.jobs import CANCELLED, FAILED, QUEUED, RUNNING, SUCCEEDED
from src.metrics import BOUNDS_S, Histogram, Metrics

FACTS: dict[str, Any] = {
    "jobs": {"queued": 2}, "tasks": {"running": 1}, "ignored": 3, "commits": 9, "database_bytes": 10, "output_bytes": 11,
    "free_bytes": 12, "full": 0, "version": "0.1.0",
    "workers": [{"state": "idle", "slots": 4, "slots_used": -1}, {"state": "busy", "slots": 2, "slots_used": 2}],
}  # fmt: skip


class TestHistogram(unittest.TestCase):
    def test_buckets_add_up(self) -> None:
        histogram = Histogram()
        for seconds in (0.001, 0.005, 0.3, 1e9):
            histogram.add(seconds)
        lines = histogram.lines("h", "Text.")
        self.assertEqual(lines[:3], ["# HELP h Text.", "# TYPE h histogram", 'h_bucket{le="0.005"} 2'])
        self.assertEqual(lines[-3], 'h_bucket{le="+Inf"} 4')
        self.assertEqual(lines[-1], "h_count 4")
        self.assertEqual(len(lines), len(BOUNDS_S) + 5)


class TestMetrics(unittest.TestCase):
    def setUp(self) -> None:
        self.metrics = Metrics()
        job: Any = SimpleNamespace(submitted_at=0.0, after=[])
        self.jobs: dict[int, Any] = {1: job, 2: SimpleNamespace(submitted_at=0.0, after=[{"job": 1}])}

    def count(self, *notes: Note) -> None:
        self.metrics.count(list(notes), self.jobs)

    def value(self, name: str) -> str:
        found = re.search(rf"^microcluster_{re.escape(name)} (.+)$", self.metrics.render(FACTS), re.MULTILINE)
        assert found is not None, name
        return found.group(1)

    def test_ends_and_runs_again(self) -> None:
        self.count(Note(1, 0, RUNNING, 1), Note(1, 0, RUNNING, 1), Note(1, 1, RUNNING, 1))
        self.count(Note(1, 0, QUEUED, 1), Note(1, 0, RUNNING, 2), Note(1, 0, FAILED, 2), Note(1, 1, SUCCEEDED, 1))
        self.count(Note(1, 2, CANCELLED, 0), Note(1, None, FAILED, 0))
        self.assertEqual(self.value('tasks_finished_total{state="succeeded"}'), "1")
        self.assertEqual(self.value('tasks_finished_total{state="failed"}'), "1")
        self.assertEqual(self.value('tasks_finished_total{state="cancelled"}'), "1")
        self.assertEqual(self.value("tasks_requeued_total"), "1")
        self.assertEqual(self.value("run_seconds_count"), "2")
        self.assertEqual(self.value("queue_seconds_count"), "2", "first attempts")
        self.assertEqual(self.metrics._began, {})

    def test_who_waits_for_other_jobs_does_not_wait_for_workers(self) -> None:
        self.count(Note(2, 0, RUNNING, 1), Note(3, 0, RUNNING, 1))
        self.assertEqual(self.value("queue_seconds_count"), "0")

    def test_the_format(self) -> None:
        text = self.metrics.render(FACTS)
        self.assertTrue(text.endswith("\n"))
        for line in text.splitlines():
            self.assertRegex(
                line, r'^(# (HELP|TYPE) microcluster_\w+ \S.*|microcluster_\w+(\{\w+="[^"]*"\})? -?[0-9.e+]+)$'
            )
        names = re.findall(r"^# TYPE (\w+)", text, re.MULTILINE)
        self.assertEqual(len(names), len(set(names)))
        self.assertEqual(
            (self.value("slots"), self.value("slots_used"), self.value('workers{state="busy"}')), ("6", "2", "1")
        )
