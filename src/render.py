"""How things look to people: tables of 80 columns, fields. Colours only on a terminal; NO_COLOR is respected;
control characters from anyone are shown as escapes."""

from __future__ import annotations

import os
import time
from datetime import datetime

from .console import width_of
from .core.records import TYPE_CHECKING
from .core.syntax import format_duration, format_size, hold_text

if TYPE_CHECKING:
    from typing import Any

COLOURS = {
    "succeeded": "32", "failed": "31", "cancelled": "90", "running": "34", "queued": "33", "waiting": "33", "lost": "31",
    "away": "33", "busy": "34", "idle": "32", "paused": "33", "drained": "90", "draining": "90",
}  # fmt: skip


def coloured(stream: Any) -> bool:
    """Whether this stream takes colours."""
    return bool(stream.isatty()) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def table(
    rows: list[list[str]], head: list[str], right: frozenset[int], stretch: tuple[tuple[int, int], ...], stream: Any
) -> str:
    """Aligned columns. So that lines fit, columns of `stretch` are cut (..), in this order, down to their least width.
    Cells are escaped here."""
    cells = [[hold_text(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [head, *cells]) for i in range(len(head))]
    over = sum(widths) + 2 * (len(widths) - 1) - width_of(stream)
    for column, least in stretch:
        if over > 0:
            cut = min(over, max(0, widths[column] - least))
            widths[column] -= cut
            over -= cut
    colour = coloured(stream)
    lines = ["  ".join(_cell(text, widths[i], i in right) for i, text in enumerate(head)).rstrip()]
    for row in cells:
        parts = []
        for i, text in enumerate(row):
            shown = _cell(text, widths[i], i in right)
            parts.append(f"\x1b[{COLOURS[text]}m{shown}\x1b[0m" if colour and text in COLOURS else shown)
        lines.append("  ".join(parts).rstrip())
    return "\n".join(lines) + "\n"


def _cell(text: str, width: int, right: bool) -> str:
    if len(text) > width:
        text = text[: max(1, width - 2)] + ".."
    return text.rjust(width) if right else text.ljust(width)


def _parse(stamp: str | None) -> float | None:
    if stamp is None:
        return None
    return datetime.fromisoformat(stamp[:-1] + "+00:00").timestamp()


def _age(stamp: str | None) -> str:
    then = _parse(stamp)
    return "" if then is None else brief(max(0.0, time.time() - then))


def brief(seconds: float | None) -> str:
    """`3.2s`, `4m10s`, `2h05m`, `3d4h`: at most six characters or so."""
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes = int(seconds) // 60
    if minutes < 60:
        return f"{minutes}m{int(seconds) % 60:02d}s"
    if minutes < 24 * 60:
        return f"{minutes // 60}h{minutes % 60:02d}m"
    return f"{minutes // 1440}d{minutes // 60 % 24}h"


def _took(view: dict[str, Any]) -> str:
    if view.get("duration") is not None:
        return brief(view["duration"])
    started = _parse(view.get("started_at"))
    return brief(time.time() - started) if started is not None and view["state"] == "running" else ""


def _detail(view: dict[str, Any]) -> str:
    tasks = view.get("tasks")
    if tasks:
        done = tasks["succeeded"] + tasks["failed"] + tasks["cancelled"]
        text = f"{done}/{tasks['total']}"
        return text + (f", {tasks['failed']} failed" if tasks["failed"] else "")
    if view.get("reason"):
        return str(view["reason"])
    if view.get("waiting_reason"):
        return str(view["waiting_reason"])
    if view.get("exit_code"):
        return f"exit code {view['exit_code']}"
    return str(view.get("worker") or "") if view["state"] == "running" else ""


def jobs(views: list[dict[str, Any]], stream: Any) -> str:
    """The table of `list`."""
    rows = [
        [v["id"], v["state"], v["name"], str(v.get("user") or ""), _age(v["submitted_at"]), _took(v), _detail(v)]
        for v in views
    ]
    head = ["ID", "STATE", "NAME", "USER", "AGE", "TOOK", "DETAIL"]
    return table(rows, head, frozenset((0, 4, 5)), ((6, 22), (3, 10), (2, 12), (6, 8)), stream)


_OF_THE_MACHINE = ("python=", "os=", "arch=", "host=")  # labels that a worker gives itself, as far as there is room


def workers(views: list[dict[str, Any]], stream: Any) -> str:
    """The table of `workers`. Labels that somebody gave are cut last."""
    rows, given = [], 8
    for v in views:
        own = " ".join(label for label in v["labels"] if not label.startswith(_OF_THE_MACHINE))
        rest = [label for start in _OF_THE_MACHINE for label in v["labels"] if label.startswith(start)]
        given = max(given, len(own) + 2)
        running = v.get("failing") or " ".join(v["running"][:8]) + (" .." if len(v["running"]) > 8 else "")
        slots = f"{v['slots_used']}/{v['slots']}"
        address = str(v["address"] or "")
        address = address.rpartition(":")[0] or address  # its port says nothing: the worker called
        version = str(v.get("version") or "")
        rows.append([v["name"], v["state"], slots, address, version, running, " ".join([own, *rest]).strip()])
    return table(
        rows,
        ["NAME", "STATE", "SLOTS", "ADDRESS", "VERSION", "RUNNING", "LABELS"],
        frozenset((2,)),
        ((6, max(given, 11)), (5, 10), (0, 12), (6, 12), (5, 7), (3, 15), (6, 8)),
        stream,
    )


def starts(views: list[dict[str, Any]]) -> str:
    """How scripts started on these workers, in a line: below the table for people. Empty when none has."""
    warm = sum(v["warm"] or 0 for v in views)
    reasons: dict[str, int] = {}
    for v in views:
        for why, times in v["cold_reasons"].items():
            reasons[why] = reasons.get(why, 0) + times
    cold = sum(v["cold"] or 0 for v in views)
    if not warm + cold:
        return ""
    often = sorted(reasons, key=lambda why: -reasons[why])
    told = "; ".join(f"{reasons[why]} {why}" for why in often[:5])
    return hold_text(f"started: {warm} warm, {cold} cold" + (f" ({told})" if told else "")) + "\n"


_FIELDS = (
    "id", "name", "state", "reason", "waiting_reason", "exit_code", "signal", "script", "args", "parameters", "user",
    "priority", "needs", "submitted_at", "started_at", "finished_at", "duration", "cpu_seconds", "max_rss_bytes", "worker",
    "attempt", "output_bytes", "error_bytes", "dropped_bytes", "returns", "tasks",
)  # fmt: skip


def fields(view: dict[str, Any], stream: Any) -> str:
    """`status` of one job or task: a line a field, without the empty ones."""
    lines = []
    for key in _FIELDS:
        value = view.get(key)
        if value in (None, [], {}, "") or (key in ("dropped_bytes", "priority") and not value):
            continue
        shown = hold_text(_value(key, value))
        if key == "state" and coloured(stream):
            shown = f"\x1b[{COLOURS.get(shown, '0')}m{shown}\x1b[0m"
        lines.append(f"{key.replace('_', ' ') + ':':16} {shown}")
    return "\n".join(lines) + "\n"


def _value(key: str, value: Any) -> str:
    if key in ("duration", "cpu_seconds"):
        return f"{value:.3f} s" if value < 60 else format_duration(value)
    if key.endswith("_bytes"):
        return format_size(value)
    if key.endswith("_at"):
        then = _parse(value)
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(then)) if then is not None else ""
    if key == "args":
        return " ".join(_quoted(arg) for arg in value)
    if isinstance(value, dict):
        return ", ".join(
            f"{name} {item if not isinstance(item, list) else ' '.join(map(str, item))}"
            for name, item in value.items()
            if item
        )
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _quoted(text: str) -> str:
    if text and all(c.isalnum() or c in "-_./=:,+@%" for c in text):
        return text
    return "'" + text.replace("'", "'\\''") + "'"
