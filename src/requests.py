"""The desk: what clients ask, in the core thread. Changes become events for the brain; who only looks is answered after
the batch's commit (looking.py, reading.py, waiting.py), so that nobody is told what is not on disk.
"""

from __future__ import annotations

import json
import logging
import shutil
import sqlite3
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .core import events, framing, messages, views
from .core.errors import DiskFull, StoreError, UsageError
from .core.indexes import Indexes, spec_indices
from .core.jobs import JobRow, spec_blobs
from .core.saves import DropOutput
from .looking import Looks
from .metrics import Metrics
from .reading import Reader
from .waiting import Waits

if TYPE_CHECKING:
    from .corethread import Core, Request

log = logging.getLogger(__name__)

RESERVE_BYTES = 16 << 20  # of the disk: for what is accepted already, not for new jobs
SPECS_KEPT = 500  # parsed ones
SPEC_MAX = 32 << 20  # bytes of a description that comes as content
ARGS_MAX = 8 << 20  # bytes of arguments that are content
MANIFEST_MAX = 256 << 20  # bytes of a list of files
WHOLE_KEPT = 10_000  # lists of files that are known to be here with all their files
TARGETS_MAX = 100_000  # jobs of one request
TEXTS_MAX = 5000  # ids in one answer


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
        self._whole: set[str] = set()
        self._changes: dict[str, Callable[[Request], events.Event | None]] = {
            "submit": self._submit, "cancel": self._cancel, "retry": self._retry, "drain": self._drain,
            "resume": self._drain,
        }  # fmt: skip
        self.looks = Looks(self)
        self._looks: dict[str, Callable[[Request], None]] = {
            **self.looks.kinds, "wait": self.waits.take, "read": self.reader.take, "prune": self._prune,
        }  # fmt: skip

    # -- in and out ----------------------------------------------------------------------------------------------------

    def take(self, request: Request) -> events.Event | None:
        """A request of this batch; what it means for the brain, if anything."""
        kind = request.kind
        if kind == "gone":
            self.waits.gone(request.conn)
            self.reader.gone(request.conn)
        elif kind in self._changes:
            event: events.Event | None = self._tried(request, self._changes[kind])
            return event
        else:
            self._later.append((request, self._looks[kind]))
        return None

    def after_commit(self, notes: list[events.Note]) -> None:
        """The batch is on disk: answer who only looks, wake who waits."""
        self.metrics.count(notes, self.cluster.jobs)
        self.waits.wake(notes)
        self.reader.wake(notes)
        later, self._later = self._later, []
        for request, look in later:
            self._tried(request, look)

    def _tried(self, request: Request, fn: Callable[[Request], Any]) -> Any:
        """fn(request), or an error as its answer."""
        try:
            return fn(request)
        except (UsageError, DiskFull) as error:
            self.fail(request, error.code, str(error))
        except (StoreError, sqlite3.Error):
            raise
        except Exception:  # of one request, before the brain heard of it: a defect of ours must not end the manager
            log.exception("a request could not be answered: kind=%s", request.kind)
            self.fail(request, "internal", f"the manager could not answer {request.kind}: its log says why")
        return None

    def answer(self, request: Request, header: dict[str, Any], payload: Any = b"") -> None:
        header["t"], header["n"] = "ok", request.header["n"]
        self.core.answers.append((request.conn, header, payload))

    def fail(self, request: Request, code: str, message: str, **more: Any) -> None:
        header = {"t": "error", "n": request.header.get("n"), "code": code, "message": message, **more}
        self.core.answers.append((request.conn, header, b""))

    # -- submit --------------------------------------------------------------------------------------------------------

    def _submit(self, request: Request) -> events.Event | None:
        header = request.header
        known = self.store.by_request(header["request_id"])
        if known is not None:
            self.answered(("submit", request, None), {"id": known, "warning": None, "again": True})
            return None
        total, _, free = shutil.disk_usage(self.store.folder)
        if free < min(RESERVE_BYTES, total // 50):
            raise DiskFull(f"the manager's disk has only {free >> 20} MiB left: try again later")
        spec, text = self._spec_of(header)
        missing = self._missing(spec)
        if missing:
            self.fail(request, "blobs", f"{len(missing)} files must be sent first", missing=missing[:2000])
            return None
        return events.JobSubmitted(header["request_id"], spec, text, ("submit", request, None))

    def _spec_of(self, header: dict[str, Any]) -> tuple[dict[str, Any], str]:
        """The checked description and its text."""
        if header.get("spec_blob"):
            raw = self._blob(header["spec_blob"], SPEC_MAX)
            if raw is None:
                raise messages.BadMessage("the job's description must be sent first", "blobs")
            try:
                spec: Any = framing.parse_header(raw)
            except framing.FrameError as error:
                raise messages.BadMessage(f"the job's description: {error}") from None
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

    def _blob(self, name: str, most: int) -> bytes | None:
        """Content, or None when it is not here; raises BadMessage when it is too large for what it should be."""
        try:
            with open(self.blobs.path(name), "rb") as file:
                raw = file.read(most + 1)
        except OSError:
            return None
        if len(raw) > most:
            raise messages.BadMessage(f"a description of more than {most >> 20} MiB")
        return raw

    def _missing(self, spec: dict[str, Any]) -> list[str]:
        """Content of the job that is not here; what it needs is not swept away meanwhile."""
        wanted = list(dict.fromkeys(spec_blobs(spec)))
        self.core.forgetter.keep(wanted)
        missing = self.blobs.missing(wanted)
        if missing or not spec["send"] or spec["send"]["manifest"] in self._whole:
            return missing
        name = spec["send"]["manifest"]
        entries = messages.check_manifest(self._blob(name, MANIFEST_MAX) or b"")
        files = list(dict.fromkeys(entry[3] for entry in entries if entry[0] == "f"))
        self.core.forgetter.keep(files)
        missing = self.blobs.missing(files)
        if not missing:
            self._whole.add(name)
            if len(self._whole) > WHOLE_KEPT:
                self._whole.clear()
        return missing

    # -- other changes -------------------------------------------------------------------------------------------------

    def _cancel(self, request: Request) -> events.Event:
        header = request.header
        if not header.get("all") and not header.get("ids"):
            raise messages.BadMessage("cancel: neither ids nor all")
        targets = None if header.get("all") else self.targets(header["ids"])
        return events.CancelAsked(targets, header.get("grace"), ("ids", request, "cancelled"))

    def _retry(self, request: Request) -> events.Event:
        return events.RetryAsked(self.targets(request.header["ids"]), ("ids", request, "queued"))

    def _drain(self, request: Request) -> events.Event:
        return events.DrainAsked(request.header["names"], request.kind == "drain", ("plain", request, None))

    def _prune(self, request: Request) -> None:
        def done(count: int, problem: Exception | None) -> None:
            if problem is None:
                self.answer(request, {"count": count})
            else:
                self.fail(request, "disk-full", f"{count} jobs forgotten; then: {problem}; try again later")

        self.core.forgetter.forget(time.time() - request.header["older_than"], done)

    def answered(self, reply_to: tuple[str, Request, Any], answer: dict[str, Any]) -> None:
        """The brain's answer to a change; the batch is on disk."""
        kind, request, extra = reply_to
        if "error" in answer:
            self.fail(request, answer["error"], answer["message"])
        elif kind == "submit":
            if request.header.get("view"):
                self._later.append((request, lambda request: self._submitted(request, answer)))
            else:
                self.answer(request, answer)
        elif kind == "ids":
            texts: list[str] = []
            for job, ranges, whole in answer[extra]:
                texts += [str(job)] if whole else self._range_texts(job, ranges)
                self.waits.look_again(job)
                self.reader.look_again(job)
            self.answer(request, {extra: texts[:TEXTS_MAX]})
        else:
            self.answer(request, answer)

    def _submitted(self, request: Request, answer: dict[str, Any]) -> None:
        self.answer(request, {**answer, "job": self.looks.job_view(self.row(answer["id"]))})

    def _range_texts(self, job: int, ranges: list[tuple[int, int]]) -> list[str]:
        _, indices = self.spec(job)
        return [
            f"{job}.{indices.at(lo)}" if lo == hi else f"{job}.{indices.at(lo)}-{indices.at(hi)}"
            for lo, hi in ranges[:TEXTS_MAX]
        ]

    # -- names of things -----------------------------------------------------------------------------------------------

    def row(self, job: int) -> JobRow:
        """A job's row; raises NoSuch."""
        row = self.store.job(job)
        if row is None:
            raise NoSuch(f"there is no job {job} (see `list`)")
        return row

    def spec(self, job: int) -> tuple[dict[str, Any], Indexes]:
        """A job's spec and the indices of its tasks."""
        found = self._specs.get(job)
        if found is None:
            spec = json.loads(self.row(job).spec)
            if spec["args_blob"] is not None:
                spec["args"] = self._args(spec["args_blob"])
            found = (spec, spec_indices(spec))
            if len(self._specs) > SPECS_KEPT:
                self._specs.clear()
            self._specs[job] = found
        return found

    def _args(self, name: str) -> list[str] | None:
        """Many arguments, which are content, as far as they are shown."""
        try:
            return views.few_args(json.loads(self._blob(name, ARGS_MAX) or b"null"))
        except (UsageError, ValueError, TypeError):
            return None

    def targets(self, ids: list[dict[str, Any]]) -> list[events.Target]:
        """Selectors to jobs and positions (None: all of the job); raises NoSuch, UsageError."""
        found: list[events.Target] = []
        for sel in ids:
            job = sel["job"]
            if job == "last":
                job = self.store.newest()
                if job is None:
                    raise NoSuch("there is no job yet")
            if sel.get("to") is not None:
                found += self._jobs(job, sel["to"])
            elif sel.get("lo") is None:
                self.row(job)
                found.append(events.Target(job, None, None))
            else:
                found.append(self._tasks(job, sel["lo"], sel["lo"] if sel.get("hi") is None else sel["hi"]))
            if len(found) > TARGETS_MAX:
                raise UsageError(f"more than {TARGETS_MAX} jobs at once")
        return found

    def _jobs(self, first: int, last: int) -> list[events.Target]:
        last = min(last, self.cluster.next_id - 1)
        found = [events.Target(n, None, None) for n in self.store.ids(first, last, TARGETS_MAX + 1)]
        if not found:
            raise NoSuch(f"there is no job from {first} to {last} (see `list`)")
        return found

    def _tasks(self, job: int, lo: int, hi: int) -> events.Target:
        self.row(job)
        _, indices = self.spec(job)
        span = indices.span(lo, hi)
        if span is None:
            which = str(lo) if lo == hi else f"{lo}-{hi}"
            raise NoSuch(f"job {job} has no task {which} (its tasks are {indices.text[:200]})")
        return events.Target(job, *span)
