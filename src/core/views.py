"""Rows to what people and programs are shown: the JSON of jobs, tasks and workers. Pure; the one room for these shapes.

A view is bounded whatever a job or a worker says of itself: it must fit into a frame.
"""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from .indexes import Indexes
from .jobs import CANCELLED, FAILED, QUEUED, RUNNING, SUCCEEDED, TERMINAL, WAITING, JobRow, TaskRow, signal_name
from .syntax import from_wire, grid_at

TIME_END = 253_402_300_799  # the last second of the year 9999
ARGS_MAX = 24_000  # characters of all arguments that are shown
LIST_MAX = 4_000  # characters of other lists
TEXT_MAX = 1_000


def stamp(wall: float | None) -> str | None:
    """UTC as ISO 8601 with milliseconds; None stays None, and what is no time becomes None."""
    if wall is None or not 0 <= wall < TIME_END:
        return None
    return datetime.fromtimestamp(wall, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _plain(value: Any) -> str:
    """A wire string for JSON that people read: bytes that are not UTF-8 become U+FFFD."""
    return from_wire(value).encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _few(values: Any, most: int = LIST_MAX) -> list[str]:
    """As many of these texts as are worth showing; then `..`."""
    found: list[str] = []
    for value in values:
        text = str(value)
        most -= len(text) + 4
        if most < 0:
            return [*found, ".."]
        found.append(text if len(text) <= TEXT_MAX else text[:TEXT_MAX] + "..")
    return found


def few_args(args: list[Any]) -> list[str]:
    """Arguments (wire strings) as they are shown."""
    return _few((_plain(arg) for arg in args), ARGS_MAX)


def _named(values: Any) -> dict[str, Any]:
    """A mapping of names to numbers or texts, as far as it is worth showing, and is one."""
    found: dict[str, Any] = {}
    most = LIST_MAX
    for key, value in values.items() if isinstance(values, dict) else ():
        if type(value) in (int, float, str):
            most -= len(str(key)) + len(str(value)) + 6
            if most < 0:
                break
            found[str(key)] = value
    return found


def _brief(text: str | None) -> str | None:
    return text[:LIST_MAX] if text is not None else None


def _number(value: Any) -> Any:
    """What a worker said, if it is a number at all."""
    return value if type(value) in (int, float) else None


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
        "attempt": task.attempt or None,
        "output_bytes": task.output_bytes,
        "error_bytes": task.error_bytes,
        "dropped_bytes": task.dropped_bytes,
        "timed_out": bool(task.timed_out),
        "files": task.files,
    }


def _common(row: JobRow, spec: dict[str, Any]) -> dict[str, Any]:
    needs = {
        key: spec[key] for key in ("cpus", "gpus", "memory", "python", "requires_python") if spec[key] not in (None, 0)
    }
    if spec["on"]:
        needs["on"] = _few(spec["on"])
    if spec["resources"]:
        needs["resources"] = _named(spec["resources"])
    args = spec["args"]
    return {
        "name": row.name,
        "script": _plain(spec["script"]["name"]),
        "args": few_args(args) if args is not None else None,
        "priority": row.priority,
        "user": row.user,
        "submitted_at": stamp(row.submitted_at),
        "needs": needs,
        "returns": _few(spec["returns"]),
    }


def job_view(
    row: JobRow, spec: dict[str, Any], indices: Indexes, task: TaskRow | None, waiting_reason: str | None
) -> dict[str, Any]:
    """A job; one of a single task shows its task's fields, an array the counts of its tasks."""
    view: dict[str, Any] = {"id": str(row.id), "state": row.state, "reason": _brief(row.reason), **_common(row, spec)}
    view.update(_task_fields(task if row.count == 1 else None))
    if task is not None and row.count == 1:
        view["reason"] = _brief(task.reason or row.reason)
        if row.state in (SUCCEEDED, FAILED, CANCELLED) and view["finished_at"] is None:
            view["finished_at"] = stamp(row.finished_at)
    else:
        view["started_at"], view["finished_at"] = stamp(row.started_at), stamp(row.finished_at)
        view["duration"] = _ends(row.started_at, row.finished_at)
    view["count"] = row.count
    view["array"] = spec["array"][:TEXT_MAX] if spec["array"] is not None else None
    view["waiting_reason"] = waiting_reason
    view["tasks"] = None
    if is_array(spec):
        view["tasks"] = {
            "total": row.count, WAITING: row.waiting, QUEUED: row.queued, RUNNING: row.running,
            SUCCEEDED: row.succeeded, FAILED: row.failed, CANCELLED: row.cancelled,
        }  # fmt: skip
    if spec["grid"] is not None:
        view["parameters"] = {
            name[:100]: _few(values if len(values) <= 20 else [*values[:19], "..", values[-1]], LIST_MAX // 10)
            for name, values in spec["grid"][:20]
        }
    return view


def is_array(spec: dict[str, Any]) -> bool:
    """Whether people see it as a job with tasks."""
    return spec["count"] > 1 or any(spec[key] is not None for key in ("array", "lines", "grid"))


def task_id(job: int, spec: dict[str, Any], indices: Indexes, pos: int) -> str:
    """What people call a task: `7.3`, or `7` of a job that is no array."""
    return f"{job}.{indices.at(pos)}" if is_array(spec) else str(job)


def task_view(
    row: JobRow, spec: dict[str, Any], indices: Indexes, pos: int, state: str, task: TaskRow | None, why: str | None,
    line: bytes | None = None,
) -> dict[str, Any]:  # fmt: skip
    """One task of a job; `line`: its line of --each-line."""
    index = indices.at(pos)
    view: dict[str, Any] = {"id": task_id(row.id, spec, indices, pos), "state": state}
    view["reason"] = _brief(task.reason if task is not None else (row.reason if state == CANCELLED else None))
    view.update(_common(row, spec))
    view.update(_task_fields(task))
    view["index"] = index
    view["waiting_reason"] = why if state in (WAITING, QUEUED) else None
    if spec["grid"] is not None:
        view["parameters"] = _named(dict(grid_at(spec["grid"], pos)))
    if line is not None:
        view["line"] = line.decode("utf-8", "replace")[:TEXT_MAX]
    return view


def worker_view(raw: dict[str, Any], running: list[str]) -> dict[str, Any]:
    """A worker, from the brain's raw facts and the ids of its tasks. What it said of itself is not trusted."""
    info, said = raw["info"], raw["said"]
    failing = said.get("failing")
    return {
        "name": raw["name"],
        "address": info.get("address"),
        "state": raw["state"],
        "slots": raw["slots"],
        "slots_used": max(0, raw["slots_used"]),
        "labels": _few(raw["labels"]),
        "running": running,
        "version": info.get("version"),
        "python": info.get("python"),
        "pythons": _named(info.get("pythons")),
        "gpus": info.get("gpus"),
        "memory": info.get("memory"),
        "resources": _named(info.get("resources")),
        "connected_at": stamp(info.get("connected_at")),
        "free_disk": _number(said.get("free_disk")),
        "cache_bytes": _number(said.get("cache_bytes")),
        "warm": _number(said.get("warm")),
        "cold": _number(said.get("cold")),
        "cold_reasons": _named(said.get("cold_reasons")),
        "failing": failing[:TEXT_MAX] if isinstance(failing, str) else None,
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
