"""What clients see of jobs, tasks, workers and the manager itself. Reads the store and the brain, changes nothing. Core
thread, after the batch's commit.
"""

from __future__ import annotations

import json
import shutil
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from . import __version__
from .core import events, views
from .core.errors import UsageError
from .core.jobs import TERMINAL, JobRow, TaskRow

if TYPE_CHECKING:
    from .corethread import Request
    from .requests import Desk

PAGE_BYTES = 200_000  # of views in one answer: a frame takes 256 KiB
ROWS_A_PAGE = 400  # jobs read for one answer of `list`
FILES_A_PAGE = 1500
RESOLVED_A_PAGE = 4000  # jobs in one answer
CHUNK_MAX = 4 << 20  # bytes of a chunk of --each-line
CHUNKS_KEPT = 4
RUNNING_SHOWN = 100  # tasks of a worker
ALL = 1 << 40


def json_size(value: Any) -> int:
    """Bytes of its JSON on the wire."""
    return len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace"))


class Looks:
    """One method per kind of request, see `kinds`."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._core, self._store, self._cluster = desk.core, desk.core.store, desk.core.cluster
        self._lines: dict[str, list[bytes]] = {}  # chunks of --each-line that were looked at last
        self.kinds: dict[str, Callable[[Request], None]] = {
            "status": self._status, "list": self._list, "workers": self._workers, "metrics": self._metrics,
            "files": self._files, "info": self._info, "resolve": self._resolve,
        }  # fmt: skip

    # -- views ---------------------------------------------------------------------------------------------------------

    def job_view(self, row: JobRow) -> dict[str, Any]:
        spec, indices = self._desk.spec(row.id)
        task = self._task(row.id, 0) if row.count == 1 else None
        return views.job_view(row, spec, indices, task, self._why(row.id, row.state))

    def task_view(self, job: int, pos: int) -> dict[str, Any]:
        row = self._desk.row(job)
        spec, indices = self._desk.spec(job)
        state = self._cluster.state_of(job, pos) or row.state
        line = self._line(spec, pos) if spec["lines"] is not None else None
        return views.task_view(row, spec, indices, pos, state, self._task(job, pos), self._why(job, state), line)

    def _why(self, job: int, state: str) -> str | None:
        return self._cluster.why_waiting(job, time.monotonic()) if state not in TERMINAL else None

    def _task(self, job: int, pos: int) -> TaskRow | None:
        """The row of a task, with what only the brain and the spool know while it runs."""
        row = self._store.task(job, pos)
        live = self._cluster.live_task(job, pos)
        if row is not None and live is not None:
            sizes = [self._desk.outputs.size(job, pos, row.attempt, stream) for stream in (1, 2)]
            row = row._replace(started_at=live.started_at, output_bytes=sizes[0], error_bytes=sizes[1])
            if live.cancelling:
                row = row._replace(reason="being cancelled")
        return row

    def _line(self, spec: dict[str, Any], pos: int) -> bytes | None:
        """The line of a task of --each-line."""
        chunks = spec["lines"]["chunks"]
        at = bisect_right([chunk[0] for chunk in chunks], pos) - 1
        if at < 0:
            return None
        first, name = chunks[at]
        if name not in self._lines:
            try:
                with open(self._desk.blobs.path(name), "rb") as file:
                    lines = file.read(CHUNK_MAX).split(b"\n")
            except OSError:
                return None
            while len(self._lines) >= CHUNKS_KEPT:
                del self._lines[next(iter(self._lines))]
            self._lines[name] = lines
        lines = self._lines[name]
        return lines[pos - first] if pos - first < len(lines) else None

    # -- status and list -----------------------------------------------------------------------------------------------

    def _status(self, request: Request) -> None:
        targets = self._desk.targets(request.header["ids"])
        total = sum(1 if t.lo is None or t.hi is None else t.hi - t.lo + 1 for t in targets)
        self._page(request, "jobs", self._views(targets), total)

    def _views(self, targets: list[events.Target]) -> Iterator[dict[str, Any]]:
        for target in targets:
            if target.lo is None or target.hi is None:
                yield self.job_view(self._desk.row(target.job))
            else:
                for pos in range(target.lo, target.hi + 1):
                    yield self.task_view(target.job, pos)

    def _page(self, request: Request, name: str, every: Iterator[dict[str, Any]], total: int) -> None:
        """As many views as a frame takes; `more`: how many were left out."""
        found: list[dict[str, Any]] = []
        size = 0
        for view in every:
            size += json_size(view)
            if size > PAGE_BYTES and found:
                break
            found.append(view)
        self._desk.answer(request, {name: found, "more": total - len(found)})

    def _list(self, request: Request) -> None:
        header = request.header
        wanted = header.get("last") or ALL
        rows = self._store.list_jobs(
            header.get("state"), header.get("name"), header.get("user"), header.get("since"),
            min(wanted, ROWS_A_PAGE), header.get("before"),
        )  # fmt: skip
        found: list[dict[str, Any]] = []
        size = 0
        for row in rows:
            view = self.job_view(row)
            size += json_size(view)
            if size > PAGE_BYTES and found:
                break
            found.append(view)
        more = len(found) < len(rows) or len(rows) == ROWS_A_PAGE < wanted
        self._desk.answer(request, {"jobs": found, "more": found[-1]["id"] if more else None})

    def _resolve(self, request: Request) -> None:
        """Selectors to [job, first position, last position, count], a page of them."""
        found = []
        targets = self._desk.targets(request.header["ids"])
        begin = request.header.get("from") or 0
        end = begin + RESOLVED_A_PAGE
        for target in targets[begin:end]:
            count = self._desk.row(target.job).count
            lo, hi = (0, count - 1) if target.lo is None or target.hi is None else (target.lo, target.hi)
            found.append([target.job, lo, hi, count])
        self._desk.answer(request, {"targets": found, "more": end if end < len(targets) else None})

    def _files(self, request: Request) -> None:
        header = request.header
        targets = self._desk.targets(header["ids"])
        if len(targets) != 1:
            raise UsageError("files of one job at a time")
        target = targets[0]
        row = self._desk.row(target.job)
        _, indices = self._desk.spec(target.job)
        lo, hi = (0, row.count - 1) if target.lo is None or target.hi is None else (target.lo, target.hi)
        rows = self._store.tasks(target.job, max(lo, header.get("from") or 0), hi, limit=FILES_A_PAGE)
        found = [[task.pos, indices.at(task.pos), task.files, task.state] for task in rows]
        more = rows[-1].pos + 1 if len(rows) == FILES_A_PAGE else None
        self._desk.answer(request, {"tasks": found, "count": row.count, "more": more, "id": target.job})

    # -- workers and the whole -----------------------------------------------------------------------------------------

    def _raw_workers(self) -> list[dict[str, Any]]:
        return self._cluster.worker_views(time.monotonic())

    def _workers(self, request: Request) -> None:
        raw = self._raw_workers()
        self._page(request, "workers", (views.worker_view(item, self._running(item)) for item in raw), len(raw))

    def _running(self, raw: dict[str, Any]) -> list[str]:
        return [views.task_id(job, *self._desk.spec(job), pos) for job, pos, _ in raw["running"][:RUNNING_SHOWN]]

    def _metrics(self, request: Request) -> None:
        content = self._core.manager.content
        content.measure(self._desk.outputs)
        facts = {
            "jobs": self._store.job_counts(), "tasks": self._cluster.counts(), "ignored": self._cluster.ignored,
            "workers": self._raw_workers(), "database_bytes": self._store.size_bytes(),
            "output_bytes": content.output_bytes, "commits": self._core.committed, "version": __version__,
            "free_bytes": shutil.disk_usage(self._store.folder).free, "full": int(self._core.full),
        }  # fmt: skip
        self._desk.answer(request, {"text": self._desk.metrics.render(facts)})

    def _info(self, request: Request) -> None:
        workers = self._raw_workers()
        content = self._core.manager.content
        content.measure(self._desk.outputs)
        found = {
            "version": __version__,
            "role": request.conn.peer.role,
            "secure": self._core.manager.keys is not None,
            "workers": sum(item["link"] is not None for item in workers),
            "slots": sum(item["slots"] for item in workers if item["link"] is not None),
            "jobs": self._store.job_counts(),
            "tasks": self._cluster.counts(),
            "finished_tasks": self._cluster.finished_tasks,
            "database_bytes": self._store.size_bytes(),
            "output_bytes": content.output_bytes,
            "free_bytes": shutil.disk_usage(self._store.folder).free,
            "disk_full": self._core.full,
        }
        self._desk.answer(request, found)
