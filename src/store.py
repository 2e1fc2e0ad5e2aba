"""The job table: what the brain wants saved, one transaction per batch, and what anybody wants to know of it.

Decides nothing. One connection, one thread: the one that called `open`, or another that took over. schema.py has the
tables and what may be wrong with the file.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator
from typing import Any

from . import faults, schema
from .core import events
from .core.errors import DiskFull, MicroclusterError, StoreError
from .core.jobs import CANCELLED, FAILED, STATES, TERMINAL, JobRow, TaskRow, spec_blobs
from .core.messages import check_manifest
from .core.saves import (
    ClearOutput,
    ForgetJob,
    Save,
    SaveAttempt,
    SaveJob,
    SaveTask,
    SaveWorker,
    StoreOutput,
    UpdateJob,
)
from .spool import create_private, make_dir

WORKERS_KEPT_S = 30 * 86400.0  # how long a worker's name stays its own
CLEAR_ROWS = 5_000  # of forgotten jobs that one batch deletes: 20 ms at most, measured
BLOBS_A_LOOK = 500  # jobs, or lists of files, that live_blobs reads at once

_JOB = f"SELECT {', '.join(JobRow._fields)} FROM job"
_TASK = f"SELECT {', '.join(TaskRow._fields)} FROM task"
_INSERT_JOB = f"INSERT INTO job ({', '.join(JobRow._fields)}) VALUES ({', '.join('?' * len(JobRow._fields))})"
_SAVE_TASK = (
    f"INSERT OR REPLACE INTO task ({', '.join(TaskRow._fields)}) VALUES ({', '.join('?' * len(TaskRow._fields))})"
)
_NEXT_ID = "INSERT OR REPLACE INTO meta VALUES ('next_id', ?)"
_STORE_OUTPUT = "INSERT OR REPLACE INTO output VALUES (?, ?, ?, ?)"
_CLEAR_OUTPUT = "DELETE FROM output WHERE job = ? AND pos = ?"
_SAVE_ATTEMPT = "INSERT OR REPLACE INTO attempt VALUES (?, ?, ?, ?, ?, ?, ?)"
_SAVE_WORKER = "INSERT OR REPLACE INTO worker VALUES (?, ?, ?, ?)"
# The conditions of partial indexes, word for word: only so do they serve a question.
_ENDED, _NOT_ENDED = "finished_at IS NOT NULL", "finished_at IS NULL"
_BAD = "state IN ('failed', 'cancelled')"


class StoreBroken(StoreError):
    """The disk or the database failed: nothing may be trusted or retried; the manager must end."""


class Store(events.History):
    """See the module."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.path = os.path.join(folder, "jobs.db")
        self._db: sqlite3.Connection | None = None
        self._lock_fd = -1

    def open(self) -> None:
        """Lock the folder, then open, check, migrate. Raises StoreError with one line that says what to do."""
        try:
            make_dir(self.folder)
            self._lock_fd = schema.lock(self.folder)
            schema.refuse_network(self.folder)
            self._db = schema.connect(self.folder, self.path)
        except OSError as error:
            self.close()
            raise StoreError(f"cannot use the data directory {self.folder}: {error.strerror}") from None
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._db is not None:
            with contextlib.suppress(sqlite3.Error):
                self._db.close()
            self._db = None
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    @property
    def db(self) -> sqlite3.Connection:
        assert self._db is not None, "the store is not open"
        return self._db

    # -- writing -------------------------------------------------------------------------------------------------------

    def apply(self, saves: Iterable[Save], clear: Iterable[int] = ()) -> None:
        """All of a batch in one transaction, durable on return; or nothing of it: DiskFull (try again later),
        StoreBroken (never). Of the half-forgotten jobs to clear some rows of tasks go too: one may have ten million."""
        db = self.db
        try:
            faults.point("store.begin")
            db.execute("BEGIN IMMEDIATE")
            _write(db, saves)
            _clear(db, clear)
            faults.point("store.commit")
            db.execute("COMMIT")
        except BaseException as error:
            with contextlib.suppress(sqlite3.Error):
                db.execute("ROLLBACK")
            if isinstance(error, (sqlite3.Error, OSError)):
                raise self._failed(error) from error
            raise

    def _failed(self, error: Exception) -> StoreError:
        full = getattr(error, "errno", None) == errno.ENOSPC or str(error) == "database or disk is full"
        if full:
            return DiskFull(f"the disk with {self.folder} is full")
        return StoreBroken(f"cannot write {self.path}: {error}; stopping, nothing that was confirmed is lost")

    # -- reading: what the brain asks ----------------------------------------------------------------------------------

    def load(self) -> events.Loaded:
        """What a start needs."""
        next_id = self._one("SELECT value FROM meta WHERE key = 'next_id'") or 1
        found = self.db.execute(f"{_JOB} WHERE {_NOT_ENDED}")  # with ORDER BY it would walk through all jobs
        jobs = [JobRow._make(row) for row in sorted(found)]
        ids = {job.id for job in jobs}
        found = self.db.execute(f"{_TASK} WHERE state IN ('queued', 'running')")
        tasks = [TaskRow._make(r) for r in found if r[0] in ids]
        sql = "SELECT worker_id, name, drained FROM worker WHERE drained OR seen_at > ?"
        workers = [(r[0], r[1], bool(r[2])) for r in self.db.execute(sql, (time.time() - WORKERS_KEPT_S,))]
        return events.Loaded(next_id, jobs, tasks, workers)

    def job(self, job: int) -> JobRow | None:
        row = self.db.execute(f"{_JOB} WHERE id = ?", (job,)).fetchone()
        return JobRow._make(row) if row else None

    def task(self, job: int, pos: int) -> TaskRow | None:
        row = self.db.execute(f"{_TASK} WHERE job = ? AND pos = ?", (job, pos)).fetchone()
        return TaskRow._make(row) if row else None

    def positions(self, job: int, states: Iterable[str], lo: int, hi: int) -> list[int]:
        wanted = tuple(states)
        sql = f"SELECT pos FROM task WHERE job = ? AND pos BETWEEN ? AND ?{_in(wanted)} ORDER BY pos"
        return [row[0] for row in self.db.execute(sql, (job, lo, hi, *wanted))]

    def by_request(self, request_id: str) -> int | None:
        return self._one("SELECT id FROM job WHERE request_id = ?", request_id)

    def by_once(self, once: str) -> int | None:
        return self._one("SELECT id FROM job WHERE once = ?", once)

    def _one(self, sql: str, *values: Any) -> int | None:
        row = self.db.execute(sql, values).fetchone()
        return row[0] if row else None

    # -- reading: what clients ask -------------------------------------------------------------------------------------

    def ids(self, first: int, last: int, limit: int) -> list[int]:
        """Of the jobs first..last that there are, in order, at most so many."""
        sql = "SELECT id FROM job WHERE id BETWEEN ? AND ? ORDER BY id LIMIT ?"
        return [row[0] for row in self.db.execute(sql, (first, last, limit))]

    def newest(self) -> int | None:
        return self._one("SELECT max(id) FROM job")

    def tasks(
        self, job: int, lo: int, hi: int, states: tuple[str, ...] | None = None, limit: int | None = None
    ) -> list[TaskRow]:
        """Rows of the tasks lo..hi, in order."""
        sql = f"{_TASK} WHERE job = ? AND pos BETWEEN ? AND ?{_in(states) if states is not None else ''} ORDER BY pos"
        found = self.db.execute(f"{sql} LIMIT ?", (job, lo, hi, *(states or ()), -1 if limit is None else limit))
        return [TaskRow._make(row) for row in found]

    def output(self, job: int, pos: int) -> tuple[bytes, bytes] | None:
        """The stored (small) output of a finished task; None: the spool has it, or there is none."""
        row = self.db.execute("SELECT out, err FROM output WHERE job = ? AND pos = ?", (job, pos)).fetchone()
        return (row[0], row[1]) if row else None

    def attempts(self, job: int, pos: int) -> list[SaveAttempt]:
        """The attempts before the last one."""
        sql = "SELECT * FROM attempt WHERE job = ? AND pos = ? ORDER BY attempt"
        return [SaveAttempt._make(row) for row in self.db.execute(sql, (job, pos))]

    def job_counts(self) -> dict[str, int]:
        """Jobs by state."""
        return dict(self.db.execute("SELECT state, jobs FROM counter WHERE jobs > 0").fetchall())

    def list_jobs(
        self, state: str | None, name: str | None, user: str | None, since: float | None, last: int,
        before: int | None = None,
    ) -> list[JobRow]:  # fmt: skip
        """Newest first; `since`: submitted at most so many seconds ago; `before`: ids below this."""
        first = 0 if since is None else self._first_since(time.time() - since)
        bounds = (first, (1 << 62) if before is None else before, last)
        if state is None and name is None and user is None:
            found = self.db.execute(f"{_JOB} WHERE id >= ? AND id < ? ORDER BY id DESC LIMIT ?", bounds)
            return [JobRow._make(row) for row in found]
        # One question for each state: each then walks its index from its end, and stops in time. `+` keeps a column
        # from being looked up: of name and user, the name finds fewer.
        tests = ""
        values: list[str] = []
        for column, value in (("name", name), ("user" if name is None else "+user", user)):
            if value is not None:
                tests += f" AND {column} = ?"
                values.append(value)
        ids: list[int] = []
        for one in STATES if state is None else (state,):
            where = f"{_ENDED if one in TERMINAL else _NOT_ENDED} AND state = ?{tests} AND id >= ? AND id < ?"
            sql = f"SELECT id FROM job WHERE {where} ORDER BY id DESC LIMIT ?"
            ids += [row[0] for row in self.db.execute(sql, (one, *values, *bounds))]
        rows = (self.job(job) for job in sorted(ids, reverse=True)[:last])
        return [row for row in rows if row is not None]

    def _first_since(self, wall: float) -> int:
        """Ids grow with time: the first one since then bounds the walk down the ids. (A clock that was set back hides
        what was submitted just before that.)"""
        first = self._one("SELECT id FROM job WHERE submitted_at >= ? ORDER BY submitted_at LIMIT 1", wall)
        return first if first is not None else 1 << 62

    # -- keeping house -------------------------------------------------------------------------------------------------

    def finished_before(self, wall: float, limit: int) -> list[int]:
        """Ids of jobs that finished before this time."""
        sql = "SELECT id FROM job WHERE finished_at < ? LIMIT ?"
        return [row[0] for row in self.db.execute(sql, (wall, limit))]

    def half_forgotten(self, limit: int) -> list[int]:
        """Forgotten jobs of which there may be rows of tasks yet, and output files."""
        return [row[0] for row in self.db.execute("SELECT job FROM forgotten LIMIT ?", (limit,))]

    def live_blobs(self) -> Iterator[str]:
        """Every content hash that a stored job or returned file names, some more than once. What is stored meanwhile may
        be left out. Reads a little at a time: batches may be applied in between."""
        manifests: set[str] = set()
        rows: list[tuple[int, str]] = [(0, "")]
        while rows:
            sql = "SELECT id, spec FROM job WHERE id > ? ORDER BY id LIMIT ?"
            rows = self.db.execute(sql, (rows[-1][0], BLOBS_A_LOOK)).fetchall()
            for _, text in rows:
                spec = json.loads(text)
                yield from spec_blobs(spec)
                if spec.get("send"):
                    manifests.add(spec["send"]["manifest"])
        for manifest in manifests:
            yield from self._files_of(manifest)
        names: list[tuple[str]] = [("",)]
        while names:
            sql = "SELECT DISTINCT files FROM task WHERE files > ? ORDER BY files LIMIT ?"
            names = self.db.execute(sql, (names[-1][0], BLOBS_A_LOOK)).fetchall()
            for (manifest,) in names:
                yield manifest
                yield from self._files_of(manifest)

    def _files_of(self, manifest: str) -> list[str]:
        """The files that a list of files names; none where there is no such list, or what is there is none."""
        try:
            with open(os.path.join(self.folder, "blobs", manifest[:2], manifest[2:]), "rb") as file:
                return [entry[3] for entry in check_manifest(file.read()) if entry[0] == "f"]
        except (FileNotFoundError, MicroclusterError):
            return []

    def size_bytes(self) -> int:
        """Of the database and its log."""
        return sum(os.path.getsize(path) for path in (self.path, self.path + "-wal") if os.path.exists(path))

    def backup(self, path: str) -> None:
        """A consistent copy; nothing else happens meanwhile. Raises StoreError: then there is no copy."""
        try:
            create_private(path, new=True)
        except OSError as error:
            raise StoreError(f"cannot make a backup at {path}: {error.strerror}") from None
        try:
            with contextlib.closing(sqlite3.connect(path)) as target:
                self.db.backup(target)
        except sqlite3.Error as error:
            os.unlink(path)
            raise StoreError(f"cannot make a backup at {path}: {error}") from None


def _in(states: tuple[str, ...]) -> str:
    few = f" AND {_BAD}" if set(states) <= {FAILED, CANCELLED} else ""
    return f"{few} AND state IN ({', '.join('?' * len(states))})"


def _write(db: sqlite3.Connection, saves: Iterable[Save]) -> None:
    """What comes last of a task, a job's columns or an output is what counts, so a batch writes each of them once; and
    each kind of row goes at one stroke. New jobs come before changes of jobs, forgotten ones last of all."""
    news: list[JobRow] = []
    changes: dict[int, dict[str, Any]] = {}
    tasks: dict[tuple[int, int], TaskRow] = {}
    outputs: dict[tuple[int, int], StoreOutput | None] = {}
    attempts: list[SaveAttempt] = []
    workers: list[SaveWorker] = []
    forgotten: list[tuple[int]] = []
    for save in saves:
        if isinstance(save, SaveTask):
            tasks[save.row[:2]] = save.row
        elif isinstance(save, StoreOutput):
            outputs[save[:2]] = save
        elif isinstance(save, UpdateJob):
            changes.setdefault(save.id, {}).update(save.fields)
        elif isinstance(save, SaveJob):
            news.append(save.row)
        elif isinstance(save, ClearOutput):
            outputs[save[:2]] = None
        elif isinstance(save, SaveAttempt):
            attempts.append(save)
        elif isinstance(save, SaveWorker):
            workers.append(save)
        elif isinstance(save, ForgetJob):
            forgotten.append((save.id,))
    if news:
        db.executemany(_INSERT_JOB, news)
        db.execute(_NEXT_ID, (news[-1].id + 1,))
    _update(db, changes)
    db.executemany(_SAVE_TASK, tasks.values())
    db.executemany(_STORE_OUTPUT, [output for output in outputs.values() if output is not None])
    db.executemany(_CLEAR_OUTPUT, [key for key, output in outputs.items() if output is None])
    db.executemany(_SAVE_ATTEMPT, attempts)
    db.executemany(_SAVE_WORKER, workers)
    db.executemany("DELETE FROM job WHERE id = ?", forgotten)
    db.executemany("INSERT OR IGNORE INTO forgotten VALUES (?)", forgotten)


def _update(db: sqlite3.Connection, changes: dict[int, dict[str, Any]]) -> None:
    alike: dict[tuple[str, ...], list[tuple[Any, ...]]] = {}  # by the columns that change
    for job, fields in changes.items():
        alike.setdefault(tuple(fields), []).append((*fields.values(), job))
    for columns, rows in alike.items():
        db.executemany(f"UPDATE job SET {', '.join(f'{column} = ?' for column in columns)} WHERE id = ?", rows)


def _clear(db: sqlite3.Connection, jobs: Iterable[int]) -> None:
    left = CLEAR_ROWS
    for job in jobs:
        more = db.execute("SELECT pos FROM task WHERE job = ? ORDER BY pos LIMIT 1 OFFSET ?", (job, left)).fetchone()
        end = more[0] if more else 1 << 62
        for table in ("task", "output", "attempt"):
            left -= db.execute(f"DELETE FROM {table} WHERE job = ? AND pos < ?", (job, end)).rowcount
        if more is None:
            db.execute("DELETE FROM forgotten WHERE job = ?", (job,))
        if left <= 0:
            return
