"""The manager's figures in the Prometheus text format. Core thread."""

from __future__ import annotations

import time
from bisect import bisect_left
from typing import Any

from .core.events import Note
from .core.jobs import QUEUED, RUNNING, TERMINAL
from .core.live import Job

BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 3600, 21600)


class Histogram:
    """Counts of durations by upper bound."""

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_S) + 1)
        self.total = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(BOUNDS_S, seconds)] += 1
        self.total += seconds

    def lines(self, name: str, text: str) -> list[str]:
        found, below = [f"# HELP {name} {text}", f"# TYPE {name} histogram"], 0
        for bound, count in zip((*BOUNDS_S, "+Inf"), self.counts):
            below += count
            found.append(f'{name}_bucket{{le="{bound}"}} {below}')
        return [*found, f"{name}_sum {self.total:.6f}", f"{name}_count {below}"]


class Metrics:
    """Fed with the brain's notes."""

    def __init__(self) -> None:
        self.started = time.time()
        self.run = Histogram()
        self.queue = Histogram()
        self.by_state: dict[str, int] = dict.fromkeys(sorted(TERMINAL), 0)
        self.reruns = 0
        self._began: dict[tuple[int, int], float] = {}

    def count(self, notes: list[Note], jobs: dict[int, Job]) -> None:
        """After each batch; `jobs`: those that are not finished."""
        now, wall = time.monotonic(), time.time()
        for job_id, pos, state, attempt in notes:
            if pos is None:
                continue
            if state == RUNNING:
                if (job_id, pos) not in self._began:
                    self._began[job_id, pos] = now
                    job = jobs.get(job_id)
                    if attempt == 1 and job is not None and not job.after:
                        self.queue.add(max(0.0, wall - job.submitted_at))
                continue
            began = self._began.pop((job_id, pos), None)
            if state in TERMINAL:
                self.by_state[state] += 1
                if began is not None:
                    self.run.add(now - began)
            elif state == QUEUED:
                self.reruns += 1

    def render(self, facts: dict[str, Any]) -> str:
        """The whole text."""
        lines: list[str] = []

        def add(name: str, kind: str, text: str, values: list[tuple[str, Any]]) -> None:
            lines.extend((f"# HELP microcluster_{name} {text}", f"# TYPE microcluster_{name} {kind}"))
            lines.extend(f"microcluster_{name}{labels} {value}" for labels, value in values)

        def by(label: str, counts: dict[str, Any]) -> list[tuple[str, Any]]:
            return [(f'{{{label}="{key}"}}', value) for key, value in counts.items()]

        add("info", "gauge", "Version of the manager.", [(f'{{version="{facts["version"]}"}}', 1)])
        add("start_time_seconds", "gauge", "When the manager started.", [("", f"{self.started:.3f}")])
        add("jobs", "gauge", "Jobs by state.", by("state", facts["jobs"]))
        add("tasks", "gauge", "Tasks of unfinished jobs by state.", by("state", facts["tasks"]))
        add("tasks_finished_total", "counter", "Tasks finished since the start.", by("state", self.by_state))
        add("tasks_requeued_total", "counter", "Attempts that were followed by another.", [("", self.reruns)])
        add("reports_ignored_total", "counter", "Reports of attempts that no longer count.", [("", facts["ignored"])])
        states: dict[str, int] = {}
        for worker in facts["workers"]:
            states[worker["state"]] = states.get(worker["state"], 0) + 1
        add("workers", "gauge", "Workers by state.", by("state", states))
        add("slots", "gauge", "Slots of all workers.", [("", sum(w["slots"] for w in facts["workers"]))])
        add("slots_used", "gauge", "Slots in use.", [("", sum(max(0, w["slots_used"]) for w in facts["workers"]))])
        add("commits_total", "counter", "Transactions since the start.", [("", facts["commits"])])
        add("database_bytes", "gauge", "Size of the database.", [("", facts["database_bytes"])])
        add("output_bytes", "gauge", "Output kept in files.", [("", facts["output_bytes"])])
        add("free_bytes", "gauge", "Room on the disk of the data.", [("", facts["free_bytes"])])
        add("disk_full", "gauge", "1 while the manager waits for room.", [("", facts["full"])])
        lines += self.queue.lines(
            "microcluster_queue_seconds", "From the submission of a task to its first assignment."
        )
        lines += self.run.lines("microcluster_run_seconds", "From the assignment of a task to its end.")
        return "\n".join(lines) + "\n"
