"""What people and programs are shown of jobs, tasks and workers."""

from __future__ import annotations

import json
import unittest
from typing import Any, Optional

from src.core import views
from src.core.indexes import spec_indices
from src.core.jobs import CANCELLED, FAILED, QUEUED, RUNNING, SUCCEEDED, JobRow, TaskRow
from tests.support.sim import spec

NOON = 1_764_331_200.25  # 2025-11-28 12:00:00.25 UTC
FIELDS = (
    "id name state reason exit_code signal script args priority submitted_at started_at finished_at duration cpu_seconds"
    " max_rss_bytes worker attempt output_bytes error_bytes dropped_bytes"
).split()


def job_row(**changes: Any) -> JobRow:
    row = JobRow(
        7, "0" * 32, None, "x.py", "ann", 0, SUCCEEDED, 1, 0, 0, 0, 1, 0, 0, "{}", "{}", NOON, NOON + 1, NOON + 3, None
    )
    return row._replace(**changes)


def task_row(**changes: Any) -> TaskRow:
    row = TaskRow(
        7, 0, SUCCEEDED, 1, "lab-1", NOON + 1, NOON + 3, 0, None, None, 0.5, 4096, 10, 20, 0, 0, 0, 0, None, "id"
    )
    return row._replace(**changes)


def job_view(row: JobRow, task: Optional[TaskRow] = None, why: Optional[str] = None, **given: Any) -> dict[str, Any]:
    job = spec(**given)
    return views.job_view(row, job, spec_indices(job), task, why)


def task_view(pos: int, state: str, task: Optional[TaskRow] = None, **given: Any) -> dict[str, Any]:
    job = spec(**given)
    return views.task_view(job_row(count=job["count"]), job, spec_indices(job), pos, state, task, None)


class TestTimes(unittest.TestCase):
    def test_utc_as_iso_8601(self) -> None:
        self.assertEqual(views.stamp(NOON), "2025-11-28T12:00:00.250Z")
        self.assertIsNone(views.stamp(None))

    def test_what_is_no_time_is_nothing(self) -> None:
        for value in (-1.0, 1e18, float("inf"), float("nan")):
            self.assertIsNone(views.stamp(value), value)


class TestJobs(unittest.TestCase):
    def test_a_single_job_shows_its_task(self) -> None:
        view = job_view(job_row(), task_row(), args=["a", {"b64": "/w=="}])
        self.assertEqual(sorted(set(FIELDS) - set(view)), [])
        self.assertEqual((view["id"], view["state"], view["exit_code"], view["signal"]), ("7", "succeeded", 0, None))
        self.assertEqual((view["args"], view["duration"], view["tasks"]), (["a", "\ufffd"], 2.0, None))
        self.assertEqual(
            (view["submitted_at"], view["finished_at"]), ("2025-11-28T12:00:00.250Z", "2025-11-28T12:00:03.250Z")
        )
        self.assertEqual(
            (view["worker"], view["attempt"], view["output_bytes"], view["error_bytes"]), ("lab-1", 1, 10, 20)
        )

    def test_absent_values_are_null(self) -> None:
        view = job_view(job_row(state=QUEUED, queued=1, succeeded=0, started_at=None, finished_at=None), None, "busy")
        absent = set(FIELDS) - {"id", "name", "state", "script", "args", "priority", "submitted_at"}
        self.assertEqual({name: view[name] for name in absent}, dict.fromkeys(absent))
        self.assertEqual(view["waiting_reason"], "busy")

    def test_signals_have_names(self) -> None:
        task = task_row(state=FAILED, exit_code=None, signal=9, reason="killed by SIGKILL")
        view = job_view(job_row(state=FAILED), task)
        self.assertEqual((view["exit_code"], view["signal"], view["reason"]), (None, "SIGKILL", "killed by SIGKILL"))
        self.assertEqual(job_view(job_row(), task_row(signal=40))["signal"], "signal 40")

    def test_an_array_shows_the_counts_of_its_tasks(self) -> None:
        row = job_row(state=RUNNING, count=10, queued=4, running=3, succeeded=2, failed=1, finished_at=None)
        view = job_view(row, count=10, array="0-9")
        counts = {"total": 10, "waiting": 0, "queued": 4, "running": 3, "succeeded": 2, "failed": 1, "cancelled": 0}
        self.assertEqual((view["tasks"], view["exit_code"], view["duration"]), (counts, None, None))

    def test_an_array_of_one_is_an_array(self) -> None:
        view = job_view(job_row(), task_row(), count=1, array="5")
        self.assertEqual((view["tasks"]["total"], view["id"]), (1, "7"))

    def test_a_grid_shows_its_values(self) -> None:
        view = job_view(job_row(count=60), count=60, grid=[["a", ["x", "y"]], ["n", [str(n) for n in range(30)]]])
        self.assertEqual((view["parameters"]["a"], view["parameters"]["n"][-2:]), (["x", "y"], ["..", "29"]))

    def test_a_view_is_bounded(self) -> None:
        long = "\u20ac" * 100_000
        view = job_view(
            job_row(), None, args=[long] * 1000, returns=[long] * 100, on=[long] * 100, resources={long: 1},
            grid=[[f"{n}{long}", [long] * 50] for n in range(50)], array=None, name=long[:1000],
        )  # fmt: skip
        self.assertLess(len(json.dumps(view, ensure_ascii=False).encode()), 250_000)
        self.assertEqual(view["args"][-1], "..")


class TestTasks(unittest.TestCase):
    def test_ids_use_the_index(self) -> None:
        self.assertEqual(task_view(1, QUEUED, count=3, array="5-9:2")["id"], "7.7")
        self.assertEqual(task_view(0, QUEUED)["id"], "7")
        job = spec(count=3, array="5-9:2")
        self.assertEqual(views.task_id(8, job, spec_indices(job), 2), "8.9")

    def test_parameters_of_its_combination(self) -> None:
        view = task_view(3, QUEUED, count=4, grid=[["lr", ["0.1", "0.2"]], ["seed", ["1", "2"]]])
        self.assertEqual(view["parameters"], {"lr": "0.2", "seed": "2"})

    def test_its_line(self) -> None:
        job = spec(count=2, lines={"chunks": [[0, "0" * 64]]})
        view = views.task_view(job_row(count=2), job, spec_indices(job), 1, QUEUED, None, None, b"caf\xe9")
        self.assertEqual(view["line"], "caf\ufffd")

    def test_one_that_never_ran_has_the_reason_of_its_job(self) -> None:
        job = spec(count=2, array="0-1")
        row = job_row(count=2, state=CANCELLED, reason="job 3 failed")
        view = views.task_view(row, job, spec_indices(job), 1, CANCELLED, None, None)
        self.assertEqual((view["state"], view["reason"], view["attempt"]), ("cancelled", "job 3 failed", None))


class TestEnds(unittest.TestCase):
    def test_of_a_task_with_and_without_a_row(self) -> None:
        end = views.exit_facts(FAILED, task_row(state=FAILED, exit_code=3, timed_out=1, dropped_bytes=5), None)
        self.assertEqual((end["exit_code"], end["timed_out"], end["dropped_bytes"]), (3, True, 5))
        self.assertEqual(views.exit_facts(CANCELLED, None, "why")["reason"], "why")


class TestWorkers(unittest.TestCase):
    raw: dict[str, Any] = {
        "id": "i", "name": "lab-1", "link": None, "state": "idle", "slots": 4, "slots_used": -1, "labels": ["gpu"],
        "running": [], "failures": 0, "said": {}, "info": {"version": "0.1.0", "python": "3.11.7", "address": "h:1",
        "connected_at": NOON},
    }  # fmt: skip

    def test_its_fields(self) -> None:
        view = views.worker_view(self.raw, ["7.3"])
        wanted = "name address state slots slots_used labels running version python connected_at".split()
        self.assertEqual(sorted(set(wanted) - set(view)), [])
        self.assertEqual((view["slots_used"], view["running"], view["connected_at"][:4]), (0, ["7.3"], "2025"))

    def test_what_it_says_of_itself_is_not_trusted(self) -> None:
        said = {"free_disk": "x", "warm": True, "cold": 2, "cold_reasons": {"a": 1, "b": {}}, "failing": ["x"]}
        info = {**self.raw["info"], "pythons": {"3.12": "x" * 9000}, "resources": None}
        view = views.worker_view({**self.raw, "said": said, "info": info, "labels": ["x" * 1000] * 1000}, [])
        self.assertEqual((view["free_disk"], view["warm"], view["cold"], view["failing"]), (None, None, 2, None))
        self.assertEqual((view["cold_reasons"], view["pythons"], view["resources"]), ({"a": 1}, {}, {}))
        self.assertLess(len(json.dumps(view)), 10_000)
