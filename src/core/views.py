"""Rows to what people and programs are shown: the JSON of jobs, tasks and workers. Pure; the one room for these shapes."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from .jobs import CANCELLED, FAILED, QUEUED, RUNNING, SUCCEEDED, TERMINAL, WAITING, JobRow, TaskRow, signal_name
from .syntax import Indexes, from_wire, grid_at


def stamp(wall: float | None) -> str | None:
    """UTC as ISO 8601 with milliseconds; None stays None."""
    if wall is None:
        return None
    return datetime.fromtimestamp(wall, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _plain(value: Any) -> str:
    """A wire string for JSON that people read: bytes that are not UTF-8 become U+FFFD."""
    return from_wire(value).encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _ends(started: float | None, finished: float | None) -> float | None:
    return round(max(0.0, finished - started), 6) if started is not None and finished is not None else None


def _task_fields(task: TaskRow | None) -> dict[str, Any]:
    if task is None:
        return {
            "exit_code": None, "signal": None, "started_at": None, "finished_at": None, "duration": None,
            "cpu_seconds": None, "max_rss_bytes": None, "worker": None, "attempt": None, "output_bytes": None,
            "error_bytes": None, "dropped_bytes": None, "timed_out": False, "files": None,
        }  # fmt: skip
    return {
        "exit_code": task.exit_code,
        "signal": signal_name(task.signal) if task.signal is not None else None,
        "started_at": stamp(task.started_at),
        "finished_at": stamp(task.finished_at),
        "duration": _ends(task.started_at, task.finished_at),
        "cpu_seconds": task.cpu_seconds,
        "max_rss_bytes": task.max_rss_bytes,
        "worker": task.worker,
        "attempt": task.attempt,
        "output_bytes": task.output_bytes,
        "error_bytes": task.error_bytes,
        "dropped_bytes": task.dropped_bytes,
        "timed_out": bool(task.timed_out),
        "files": task.files,
    }


def _common(row: JobRow, spec: dict[str, Any]) -> dict[str, Any]:
    needs = {
        key: spec[key]
        for key in ("cpus", "gpus", "memory", "on", "resources", "python", "requires_python")
        if spec[key] not in (None, 0, [], {})
    }
    args = spec["args"]
    return {
        "name": row.name,
        "script": _plain(spec["script"]["name"]),
        "args": [_plain(arg) for arg in args[:1000]] if args is not None else None,
        "priority": row.priority,
        "user": row.user,
        "submitted_at": stamp(row.submitted_at),
        "needs": needs,
        "returns": spec["returns"],
    }


def job_view(
    row: JobRow, spec: dict[str, Any], indices: Indexes, task: TaskRow | None, waiting_reason: str | None
) -> dict[str, Any]:
    """A job; one of a single task shows its task's fields, an array the counts of its tasks."""
    view: dict[str, Any] = {"id": str(row.id), "state": row.state, "reason": row.reason, **_common(row, spec)}
    view.update(_task_fields(task if row.count == 1 else None))
    if task is not None and row.count == 1:
        view["reason"] = task.reason or row.reason
        if row.state in (SUCCEEDED, FAILED, CANCELLED) and view["finished_at"] is None:
            view["finished_at"] = stamp(row.finished_at)
    else:
        view["started_at"], view["finished_at"] = stamp(row.started_at), stamp(row.finished_at)
        view["duration"] = _ends(row.started_at, row.finished_at)
    view["count"] = row.count
    view["array"] = spec["array"]
    view["waiting_reason"] = waiting_reason
    view["tasks"] = None
    if is_array(spec):
        view["tasks"] = {
            "total": row.count, WAITING: row.waiting, QUEUED: row.queued, RUNNING: row.running,
            SUCCEEDED: row.succeeded, FAILED: row.failed, CANCELLED: row.cancelled,
        }  # fmt: skip
    if spec["grid"] is not None:
        view["parameters"] = {
            name: values if len(values) <= 20 else [*values[:19], "..", values[-1]] for name, values in spec["grid"]
        }
    return view


def is_array(spec: dict[str, Any]) -> bool:
    """Whether people see it as a job with tasks."""
    return spec["count"] > 1 or any(spec[key] is not None for key in ("array", "lines", "grid"))


def task_view(
    row: JobRow, spec: dict[str, Any], indices: Indexes, pos: int, state: str, task: TaskRow | None, why: str | None
) -> dict[str, Any]:
    """One task of a job."""
    index = indices.at(pos)
    view: dict[str, Any] = {"id": f"{row.id}.{index}" if is_array(spec) else str(row.id), "state": state}
    view["reason"] = task.reason if task is not None else (row.reason if state == CANCELLED else None)
    view.update(_common(row, spec))
    view.update(_task_fields(task))
    view["index"] = index
    view["waiting_reason"] = why if state in (WAITING, QUEUED) else None
    if spec["grid"] is not None:
        view["parameters"] = dict(grid_at(spec["grid"], pos))
    return view


def worker_view(raw: dict[str, Any]) -> dict[str, Any]:
    """A worker, from the brain's raw facts."""
    info, said = raw["info"], raw["said"]
    return {
        "name": raw["name"],
        "address": info.get("address"),
        "state": raw["state"],
        "slots": raw["slots"],
        "slots_used": max(0, raw["slots_used"]),
        "labels": raw["labels"],
        "running": [f"{key[0]}.{key[1]}" if key[1] else str(key[0]) for key in raw["running"][:100]],
        "version": info.get("version"),
        "python": info.get("python"),
        "pythons": info.get("pythons") or {},
        "gpus": info.get("gpus"),
        "memory": info.get("memory"),
        "resources": info.get("resources") or {},
        "connected_at": stamp(info.get("connected_at")),
        "free_disk": said.get("free_disk"),
        "cache_bytes": said.get("cache_bytes"),
        "warm": said.get("warm"),
        "cold": said.get("cold"),
        "cold_reasons": said.get("cold_reasons"),
        "failing": said.get("failing"),
    }


def exit_facts(state: str, task: TaskRow | None, reason: str | None) -> dict[str, Any]:
    """How a task ended, as `read` and `wait` tell it."""
    if task is None or task.state not in TERMINAL:
        return {
            "state": state, "exit_code": None, "signal": None, "reason": reason, "timed_out": False, "dropped_bytes": 0,
        }  # fmt: skip
    return {
        "state": task.state, "exit_code": task.exit_code, "signal": task.signal, "reason": task.reason or reason,
        "timed_out": bool(task.timed_out), "dropped_bytes": task.dropped_bytes,
    }  # fmt: skip
