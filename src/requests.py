"""The desk: what clients ask, answered in the core thread. Changes go through the brain; the rest reads the store after
the batch's commit, so that nobody is told what is not on disk.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from . import __version__
from .core import events, messages, views
from .core.errors import DiskFull, UsageError
from .core.jobs import TERMINAL, JobRow, TaskRow, spec_blobs
from .core.saves import DropOutput
from .core.syntax import Indexes, spec_indices
from .metrics import Metrics
from .reading import Reader
from .waiting import Waits

if TYPE_CHECKING:
    from .corethread import Core, Request

log = logging.getLogger(__name__)

LIST_MAX = 100_000  # jobs in one answer of `list --all`; a page of an answer is at most a frame
SPECS_KEPT = 500


class NoSuch(UsageError):
    """The request names something that is not there; code for the client."""

    code = "no-such-job"


class Desk:
    """See the module. `take` during a batch, `answered` and `after_commit` after it."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.store, self.cluster, self.blobs, self.outputs = core.store, core.cluster, core.blobs, core.outputs
        self.drops: list[DropOutput] = []  # output files to remove once the commit is through
        self.metrics = Metrics()
        self.waits = Waits(self)
        self.reader = Reader(self)
        self._later: list[tuple[Request, Callable[[Request], None]]] = []  # after the commit
        self._specs: dict[int, tuple[dict[str, Any], Indexes]] = {}
        self._changes = {
            "submit": self._submit, "cancel": self._cancel, "retry": self._retry, "drain": self._drain,
            "resume": self._drain,
        }  # fmt: skip
        self._looks = {
            "status": self._status, "list": self._list, "wait": self.waits.take, "read": self.reader.take,
            "workers": self._workers, "prune": self._prune, "metrics": self._metrics, "files": self._files,
            "info": self._info, "resolve": self._resolve,
        }  # fmt: skip

    # -- in and out ----------------------------------------------------------------------------------------------------

    def take(self, request: Request, now: float, wall: float) -> None:
        """A request of this batch."""
        if request.kind == "grew":
            self.reader.grew(request.header["tasks"])
            return
        if request.kind == "gone":
            self.waits.gone(request.conn)
            self.reader.gone(request.conn)
            return
        change = self._changes.get(request.kind)
        try:
            if change is not None:
                change(request, now, wall)
            else:
                self._later.append((request, self._looks[request.kind]))
        except (UsageError, messages.BadMessage) as error:
            self.fail(request, error.code, str(error))
        except DiskFull as error:
            self.fail(request, "disk-full", f"{error}; try again later")

    def after_commit(self, notes: list[events.Note]) -> None:
        """The batch is on disk: answer who only looks, wake who waits."""
        self.metrics.count(notes)
        self.waits.wake(notes)
        self.reader.wake(notes)
        later, self._later = self._later, []
        for request, look in later:
            try:
                look(request)
            except UsageError as error:
                self.fail(request, error.code, str(error))

    def answer(self, request: Request, header: dict[str, Any], payload: Any = b"") -> None:
        header["t"], header["n"] = "ok", request.header["n"]
        if request.conn is not None:
            self.core.answers.append((request.conn, header, payload))

    def fail(self, request: Request, code: str, message: str, **more: Any) -> None:
        header = {"t": "error", "n": request.header.get("n"), "code": code, "message": message, **more}
        if request.conn is not None:
            self.core.answers.append((request.conn, header, b""))

    # -- changes -------------------------------------------------------------------------------------------------------

    def _submit(self, request: Request, now: float, wall: float) -> None:
        header = request.header
        known = self.store.by_request(header["request_id"])
        if known is not None:
            self.answered(("submit", request, None), {"id": known, "warning": None, "again": True})
            return
        self._store_inline(header.get("inline") or [], request.payload)
        spec, text = self._spec_of(header)
        missing = self._missing(spec)
        if missing:
            self.fail(request, "blobs", f"{len(missing)} files must be sent first", missing=missing[:2000])
            return
        self.cluster.handle(events.JobSubmitted(header["request_id"], spec, text, ("submit", request, spec)), now, wall)

    def _store_inline(self, inline: list[Any], payload: bytes) -> None:
        at = 0
        for name, size in inline:
            data = payload[at : at + size]
            at += size
            if not self.blobs.has(name) and self.blobs.put_bytes(data) != name:
                raise messages.BadMessage("a file's content does not fit its hash")

    def _spec_of(self, header: dict[str, Any]) -> tuple[dict[str, Any], str]:
        if header.get("spec_blob"):
            raw = self._blob(header["spec_blob"])
            if raw is None:
                raise messages.BadMessage("the job's description must be sent first", "blobs")
            try:
                spec = json.loads(raw)
            except ValueError:
                raise messages.BadMessage("the job's description is not JSON") from None
        else:
            spec = header.get("spec")
        self._resolve_after(spec)
        messages.check_spec(spec)
        return spec, json.dumps(spec, separators=(",", ":"), ensure_ascii=False)

    def _resolve_after(self, spec: Any) -> None:
        """What people write (`last`, a task's index) as what is stored (a job's id, a task's position)."""
        deps = spec.get("after") if type(spec) is dict else None
        for dep in deps if type(deps) is list else ():
            if type(dep) is dict and "pos" not in dep:
                sel = {"job": dep.get("job"), "lo": dep.get("index"), "hi": dep.get("index")}
                if not messages.is_sel(sel):
                    raise messages.BadMessage("the job's after is not as it must be")
                target = self.targets([sel])[0]
                dep["job"], dep["pos"] = target.job, target.lo

    def _blob(self, name: str) -> bytes | None:
        if not self.blobs.has(name):
            return None
        with open(self.blobs.path(name), "rb") as file:
            return file.read()

    def _missing(self, spec: dict[str, Any]) -> list[str]:
        wanted = list(dict.fromkeys(spec_blobs(spec)))
        missing = self.blobs.missing(wanted)
        if not missing and spec["send"]:
            manifest = self._blob(spec["send"]["manifest"]) or b"[]"
            entries = messages.check_manifest(manifest)
            missing = self.blobs.missing(list(dict.fromkeys(entry[3] for entry in entries if entry[0] == "f")))
        return list(missing)

    def _cancel(self, request: Request, now: float, wall: float) -> None:
        header = request.header
        targets = None if header.get("all") else self.targets(header["ids"])
        self.cluster.handle(events.CancelAsked(targets, header.get("grace"), ("ids", request, "cancelled")), now, wall)

    def _retry(self, request: Request, now: float, wall: float) -> None:
        targets = self.targets(request.header["ids"])
        self.cluster.handle(events.RetryAsked(targets, ("ids", request, "queued")), now, wall)

    def _drain(self, request: Request, now: float, wall: float) -> None:
        asked = events.DrainAsked(request.header["names"], request.kind == "drain", ("plain", request, None))
        self.cluster.handle(asked, now, wall)

    def answered(self, reply_to: tuple[str, Request, Any], answer: dict[str, Any]) -> None:
        """The brain's answer to a change; the batch is on disk."""
        kind, request, extra = reply_to
        if "error" in answer:
            self.fail(request, answer["error"], answer["message"])
        elif kind == "submit":
            if request.header.get("view"):
                answer["job"] = self._job_view(self._row(answer["id"]))
            self.answer(request, answer)
        elif kind == "ids":
            texts = []
            for job, ranges, whole in next(iter(answer.values())):
                texts += [str(job)] if whole else self._range_texts(job, ranges)
            self.answer(request, {extra: texts[:5000]})
        else:
            self.answer(request, answer)

    def _range_texts(self, job: int, ranges: list[tuple[int, int]]) -> list[str]:
        _, indices = self.spec(job)
        return [
            f"{job}.{indices.at(lo)}" if lo == hi else f"{job}.{indices.at(lo)}-{indices.at(hi)}" for lo, hi in ranges
        ]

    # -- names of things -----------------------------------------------------------------------------------------------

    def _row(self, job: int) -> JobRow:
        row = self.store.job(job)
        if row is None:
            raise NoSuch(f"there is no job {job} (see `list`)")
        return row

    def spec(self, job: int) -> tuple[dict[str, Any], Indexes]:
        """A job's spec and the indices of its tasks."""
        found = self._specs.get(job)
        if found is None:
            spec = json.loads(self._row(job).spec)
            found = (spec, spec_indices(spec))
            if len(self._specs) > SPECS_KEPT:
                self._specs.clear()
            self._specs[job] = found
        return found

    def targets(self, ids: list[dict[str, Any]]) -> list[events.Target]:
        """Selectors to jobs and positions (None: all of the job); raises NoSuch."""
        found: list[events.Target] = []
        for sel in ids:
            job = sel["job"]
            if job == "last":
                newest = self.store.newest()
                if newest is None:
                    raise NoSuch("there is no job yet")
                job = newest
            if sel.get("to") is not None:
                inside = [
                    n for n in range(job, min(sel["to"], self.cluster.next_id) + 1) if self.store.job(n) is not None
                ]
                if not inside:
                    raise NoSuch(f"there is no job from {job} to {sel['to']}")
                found += [events.Target(n, None, None) for n in inside]
                continue
            self._row(job)
            if sel.get("lo") is None:
                found.append(events.Target(job, None, None))
            else:
                found.append(self._tasks_target(job, sel["lo"], sel["hi"]))
        return found

    def _tasks_target(self, job: int, lo: int, hi: int) -> events.Target:
        _, indices = self.spec(job)
        first, last = indices.position(lo), indices.position(hi)
        if first is None or last is None:
            missing = lo if first is None else hi
            raise NoSuch(f"job {job} has no task {missing} (its tasks are {indices.text})")
        return events.Target(job, min(first, last), max(first, last))

    # -- looking -------------------------------------------------------------------------------------------------------

    def _job_view(self, row: JobRow) -> dict[str, Any]:
        spec, indices = self.spec(row.id)
        task = self._task(row.id, 0) if row.count == 1 else None
        why = self.cluster.why_waiting(row.id, time.monotonic()) if row.state not in TERMINAL else None
        return views.job_view(row, spec, indices, task, why)

    def _task(self, job: int, pos: int) -> TaskRow | None:
        """The row of a task, with what only the brain and the spool know while it runs."""
        row = self.store.task(job, pos)
        live = self.cluster.live_task(job, pos)
        if row is not None and live is not None:
            sizes = [self.outputs.size(job, pos, row.attempt, stream) for stream in (1, 2)]
            row = row._replace(started_at=live.started_at, output_bytes=sizes[0], error_bytes=sizes[1])
            if live.cancelling:
                row = row._replace(reason="being cancelled")
        return row

    def task_view(self, job: int, pos: int) -> dict[str, Any]:
        row = self._row(job)
        spec, indices = self.spec(job)
        state = self.cluster.state_of(job, pos) or row.state
        why = self.cluster.why_waiting(job, time.monotonic()) if state not in TERMINAL else None
        return views.task_view(row, spec, indices, pos, state, self._task(job, pos), why)

    def _status(self, request: Request) -> None:
        found: list[dict[str, Any]] = []
        for target in self.targets(request.header["ids"]):
            if target.lo is None or target.hi is None:
                found.append(self._job_view(self._row(target.job)))
            else:
                found += [
                    self.task_view(target.job, pos) for pos in range(target.lo, min(target.hi, target.lo + 999) + 1)
                ]
        self._paged(request, "jobs", found)

    def _list(self, request: Request) -> None:
        header = request.header
        rows = self.store.list_jobs(
            header.get("state"), header.get("name"), header.get("user"), header.get("since"),
            min(header.get("last") or LIST_MAX, LIST_MAX), header.get("before"),
        )  # fmt: skip
        found: list[dict[str, Any]] = []
        size = 0
        for row in rows:
            view = self._job_view(row)
            view.pop("args", None) if header.get("brief") else None
            size += len(json.dumps(view))
            if size > 200_000 and found:
                break
            found.append(view)
        more = len(found) < len(rows)
        self.answer(request, {"jobs": found, "more": found[-1]["id"] if more else None})

    def _paged(self, request: Request, name: str, found: list[dict[str, Any]]) -> None:
        """As much as a frame takes; `more`: how many were left out."""
        size, count = 0, 0
        for view in found:
            size += len(json.dumps(view))
            if size > 200_000 and count:
                break
            count += 1
        self.answer(request, {name: found[:count], "more": len(found) - count})

    def _workers(self, request: Request) -> None:
        raw = self.cluster.worker_views(time.monotonic())
        self._paged(request, "workers", [views.worker_view(item) for item in raw])

    def _prune(self, request: Request) -> None:
        self.answer(request, {"count": self.core.forget(time.time() - request.header["older_than"])})

    def _metrics(self, request: Request) -> None:
        facts = {
            "jobs": self.store.job_counts(), "tasks": self.cluster.counts(), "finished": self.cluster.finished_tasks,
            "ignored": self.cluster.ignored, "workers": self.cluster.worker_views(time.monotonic()),
            "database_bytes": self.store.size_bytes(), "output_bytes": self.outputs.total_bytes(),
            "commits": self.core.committed, "version": __version__,
        }  # fmt: skip
        self.answer(request, {"text": self.metrics.render(facts)})

    def _files(self, request: Request) -> None:
        sel = request.header
        target = self.targets(sel["ids"])[0]
        row = self._row(target.job)
        _, indices = self.spec(target.job)
        lo, hi = (0, row.count - 1) if target.lo is None or target.hi is None else (target.lo, target.hi)
        rows = self.store.tasks(target.job, max(lo, sel.get("from") or 0), hi, limit=2000)
        found = [[task.pos, indices.at(task.pos), task.files, task.state] for task in rows]
        more = found[-1][0] + 1 if len(found) == 2000 else None
        self.answer(request, {"tasks": found, "count": row.count, "more": more, "id": target.job})

    def _resolve(self, request: Request) -> None:
        """Selectors to [job, first position, last position, count]."""
        found = []
        for target in self.targets(request.header["ids"]):
            count = self._row(target.job).count
            lo, hi = (0, count - 1) if target.lo is None or target.hi is None else (target.lo, target.hi)
            found.append([target.job, lo, hi, count])
        self.answer(request, {"targets": found})

    def _info(self, request: Request) -> None:
        workers = self.cluster.worker_views(time.monotonic())
        self.answer(
            request,
            {
                "version": __version__,
                "role": request.conn.peer.role if request.conn is not None else None,
                "secure": self.core.manager.keys is not None,
                "workers": len(workers),
                "slots": sum(item["slots"] for item in workers),
                "jobs": self.store.job_counts(),
                "tasks": self.cluster.counts(),
                "finished_tasks": self.cluster.finished_tasks,
                "database_bytes": self.store.size_bytes(),
                "output_bytes": self.outputs.total_bytes(),
                "disk_full": self.core.full,
            },
        )
