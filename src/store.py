"""The job table in SQLite: one connection, one thread, one transaction per batch. Decides nothing.

If you change the schema: raise SCHEMA, add the step to MIGRATIONS, and keep a database of the old one in the tests.
SQL as of SQLite 3.31: no RETURNING, no STRICT. WAL with synchronous=FULL: what was committed survives a power cut.
locking_mode=EXCLUSIVE: a second opener, even a reader, is refused, which also rules out SQLite's WAL-reset bug.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

from . import faults
from .core import events
from .core.errors import DiskFull, StoreError
from .core.jobs import JobRow, TaskRow, spec_blobs
from .core.messages import BadMessage, check_manifest
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
from .spool import make_dir

if sys.platform != "win32":
    import fcntl

SCHEMA = 1
_TABLES = """
CREATE TABLE job (
    id INTEGER PRIMARY KEY, request_id TEXT NOT NULL UNIQUE, once TEXT UNIQUE, name TEXT NOT NULL, user TEXT NOT NULL,
    priority INTEGER NOT NULL, state TEXT NOT NULL, count INTEGER NOT NULL, waiting INTEGER NOT NULL,
    queued INTEGER NOT NULL, running INTEGER NOT NULL, succeeded INTEGER NOT NULL, failed INTEGER NOT NULL,
    cancelled INTEGER NOT NULL, spec TEXT NOT NULL, sets TEXT NOT NULL, submitted_at REAL NOT NULL, started_at REAL,
    finished_at REAL, reason TEXT);
CREATE INDEX job_unfinished ON job(id) WHERE state IN ('waiting', 'queued', 'running');
CREATE INDEX job_state ON job(state, id);
CREATE INDEX job_user ON job(user, id);
CREATE INDEX job_name ON job(name, id);
CREATE INDEX job_submitted ON job(submitted_at);
CREATE INDEX job_finished ON job(finished_at) WHERE finished_at IS NOT NULL;
CREATE TABLE task (
    job INTEGER NOT NULL, pos INTEGER NOT NULL, state TEXT NOT NULL, attempt INTEGER NOT NULL, worker TEXT,
    started_at REAL, finished_at REAL, exit_code INTEGER, signal INTEGER, reason TEXT, cpu_seconds REAL,
    max_rss_bytes INTEGER, output_bytes INTEGER NOT NULL, error_bytes INTEGER NOT NULL, dropped_bytes INTEGER NOT NULL,
    retries INTEGER NOT NULL, crashes INTEGER NOT NULL, timed_out INTEGER NOT NULL, files TEXT, worker_id TEXT,
    PRIMARY KEY (job, pos)) WITHOUT ROWID;
CREATE INDEX task_unfinished ON task(job, pos) WHERE state IN ('queued', 'running');
CREATE INDEX task_failed ON task(job, state, pos) WHERE state IN ('failed', 'cancelled');
CREATE INDEX task_files ON task(files) WHERE files IS NOT NULL;
CREATE TABLE output (job INTEGER NOT NULL, pos INTEGER NOT NULL, out BLOB NOT NULL, err BLOB NOT NULL,
    PRIMARY KEY (job, pos));
CREATE TABLE attempt (job INTEGER NOT NULL, pos INTEGER NOT NULL, attempt INTEGER NOT NULL, worker TEXT, started_at REAL,
    ended_at REAL NOT NULL, reason TEXT NOT NULL, PRIMARY KEY (job, pos, attempt)) WITHOUT ROWID;
CREATE TABLE worker (worker_id TEXT PRIMARY KEY, name TEXT NOT NULL, drained INTEGER NOT NULL, seen_at REAL NOT NULL);
CREATE TABLE meta (key TEXT PRIMARY KEY, value);
CREATE TABLE counter (state TEXT PRIMARY KEY, jobs INTEGER NOT NULL);
CREATE TRIGGER job_new AFTER INSERT ON job BEGIN
    INSERT OR IGNORE INTO counter VALUES (new.state, 0);
    UPDATE counter SET jobs = jobs + 1 WHERE state = new.state; END;
CREATE TRIGGER job_changed AFTER UPDATE OF state ON job WHEN old.state <> new.state BEGIN
    INSERT OR IGNORE INTO counter VALUES (new.state, 0);
    UPDATE counter SET jobs = jobs - 1 WHERE state = old.state;
    UPDATE counter SET jobs = jobs + 1 WHERE state = new.state; END;
CREATE TRIGGER job_gone AFTER DELETE ON job BEGIN UPDATE counter SET jobs = jobs - 1 WHERE state = old.state; END;
"""
_JOB_COLUMNS = ", ".join(JobRow._fields)
_TASK_COLUMNS = ", ".join(TaskRow._fields)
_INSERT_JOB = f"INSERT INTO job ({_JOB_COLUMNS}) VALUES ({', '.join('?' * len(JobRow._fields))})"
_UPSERT_TASK = f"INSERT OR REPLACE INTO task ({_TASK_COLUMNS}) VALUES ({', '.join('?' * len(TaskRow._fields))})"
_STATEMENTS: dict[type, str] = {
    SaveAttempt: "INSERT OR REPLACE INTO attempt VALUES (?, ?, ?, ?, ?, ?, ?)",
    StoreOutput: "INSERT OR REPLACE INTO output VALUES (?, ?, ?, ?)",
    ClearOutput: "DELETE FROM output WHERE job = ? AND pos = ?",
    SaveWorker: "INSERT OR REPLACE INTO worker VALUES (?, ?, ?, ?)",
}
# One step per schema number: MIGRATIONS[n] leads from n to n + 1.
MIGRATIONS: dict[int, Callable[[sqlite3.Connection], None]] = {}

_NETWORK_FS = frozenset(
    ("nfs", "nfs4", "cifs", "smb3", "smbfs", "fuse.sshfs", "9p", "afs", "ceph", "glusterfs", "lustre")
)
_MARKER = "microcluster-data"  # says that a database belongs here: an empty one is then damage, not a first start


class StoreBroken(StoreError):
    """The disk or the database failed: nothing may be trusted or retried; the manager must end."""


class Store(events.History):
    """All of it: the thread that called `open`."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.path = os.path.join(folder, "jobs.db")
        self._db: sqlite3.Connection | None = None
        self._lock_fd = -1

    # -- opening -------------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Lock the folder, then open, check, migrate. Raises StoreError with one line that says what to do."""
        try:
            make_dir(self.folder)
            self._lock()
        except OSError as error:
            raise StoreError(f"cannot use the data directory {self.folder}: {error.strerror}") from None
        try:
            self._refuse_network()
            self._open()
        except BaseException:
            self.close()
            raise

    def _lock(self) -> None:
        path = os.path.join(self.folder, "lock")
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if sys.platform == "win32":
                import msvcrt

                msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
            else:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.read(fd, 20).decode("ascii", "replace").strip() or "?"
            os.close(fd)
            raise StoreError(
                f"another manager (process {holder}) uses {self.folder}: stop it, or choose another one with --data"
            ) from None
        os.ftruncate(fd, 0)
        os.write(fd, str(os.getpid()).encode())
        self._lock_fd = fd

    def _refuse_network(self) -> None:
        kind = file_system_of(self.folder)
        if kind in _NETWORK_FS and os.environ.get("MICROCLUSTER_ALLOW_NETWORK_FS", "") in ("", "0"):
            raise StoreError(
                f"{self.folder} is on a network file system ({kind}), where a database is not safe: choose a local folder"
                " with --data (or set MICROCLUSTER_ALLOW_NETWORK_FS=1)"
            )

    def _open(self) -> None:
        marker = os.path.join(self.folder, _MARKER)
        if os.path.exists(marker) and (not os.path.exists(self.path) or os.path.getsize(self.path) == 0):
            raise StoreError(
                f"{self.path} is {'empty' if os.path.exists(self.path) else 'not there'}, but this folder held jobs:"
                f" restore it from a backup, or move {self.folder} away to start anew"
            )
        try:
            old_mask = os.umask(0o077)
            try:
                db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, cached_statements=200)
            finally:
                os.umask(old_mask)
            self._db = db
            db.execute("PRAGMA locking_mode = EXCLUSIVE")
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            db.execute("PRAGMA temp_store = MEMORY")
            db.execute("PRAGMA cache_size = -16000")
            db.execute("PRAGMA wal_autocheckpoint = 4000")
            self._prepare(db)
        except sqlite3.DatabaseError as error:
            raise StoreError(
                f"{self.path} is damaged ({error}): restore it from a backup; nothing was changed"
            ) from None
        if not os.path.exists(marker):
            with open(marker, "w") as file:
                file.write("The data of a microcluster manager: jobs.db, blobs/, output/.\n")

    def _prepare(self, db: sqlite3.Connection) -> None:
        version = int(db.execute("PRAGMA user_version").fetchone()[0])
        if version > SCHEMA:
            raise StoreError(
                f"{self.path} was written by a newer microcluster (schema {version}; this one knows {SCHEMA}): upgrade"
            )
        fresh = version == 0 and db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
        if fresh:
            db.executescript(f"BEGIN IMMEDIATE;{_TABLES}PRAGMA user_version = {SCHEMA};COMMIT;")
            return
        problem = db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if problem != "ok":
            raise StoreError(f"{self.path} is damaged ({problem}): restore it from a backup; nothing was changed")
        while version < SCHEMA:
            if version not in MIGRATIONS:
                raise StoreError(f"{self.path} has the unknown schema {version}: it is not a microcluster database")
            db.execute("BEGIN IMMEDIATE")
            MIGRATIONS[version](db)
            version += 1
            db.execute(f"PRAGMA user_version = {version}")
            db.execute("COMMIT")

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

    def apply(self, saves: Iterable[Save]) -> None:
        """All of a batch in one transaction, durable on return; or nothing of it: DiskFull (try again later),
        StoreBroken (never)."""
        db = self.db
        try:
            faults.point("store.begin")
            db.execute("BEGIN IMMEDIATE")
            self._write(db, list(saves))
            faults.point("store.commit")
            db.execute("COMMIT")
        except BaseException as error:
            with contextlib.suppress(sqlite3.Error):
                db.execute("ROLLBACK")
            if not isinstance(error, (sqlite3.Error, OSError)):
                raise
            full = getattr(error, "errno", None) == 28 or "full" in str(error)
            if full:
                raise DiskFull(f"the disk with {self.folder} is full") from None
            raise StoreBroken(
                f"cannot write {self.path}: {error}; stopping, nothing that was confirmed is lost"
            ) from error

    def _write(self, db: sqlite3.Connection, saves: list[Save]) -> None:
        at = 0
        while at < len(saves):
            kind, begin = type(saves[at]), at
            while at < len(saves) and type(saves[at]) is kind:
                at += 1
            run: Any = saves[begin:at]
            if kind is SaveTask:
                db.executemany(_UPSERT_TASK, [save.row for save in run])
            elif kind is SaveJob:
                db.executemany(_INSERT_JOB, [save.row for save in run])
                db.execute("INSERT OR REPLACE INTO meta VALUES ('next_id', ?)", (run[-1].row.id + 1,))
            elif kind is UpdateJob:
                self._update_jobs(db, run)
            elif kind is ForgetJob:
                for table, column in (("job", "id"), ("task", "job"), ("output", "job"), ("attempt", "job")):
                    db.executemany(f"DELETE FROM {table} WHERE {column} = ?", [(save.id,) for save in run])
            elif kind in _STATEMENTS:
                db.executemany(_STATEMENTS[kind], run)

    @staticmethod
    def _update_jobs(db: sqlite3.Connection, run: list[UpdateJob]) -> None:
        names: tuple[str, ...] = ()
        rows: list[tuple[Any, ...]] = []
        for save in run:
            if tuple(save.fields) != names:
                if rows:
                    db.executemany(_update_sql(names), rows)
                names, rows = tuple(save.fields), []
            rows.append((*save.fields.values(), save.id))
        if rows:
            db.executemany(_update_sql(names), rows)

    # -- reading -------------------------------------------------------------------------------------------------------

    def load(self) -> events.Loaded:
        """What a start needs."""
        row = self.db.execute("SELECT value FROM meta WHERE key = 'next_id'").fetchone()
        unfinished = "state IN ('waiting', 'queued', 'running')"
        jobs = [JobRow(*r) for r in self.db.execute(f"SELECT {_JOB_COLUMNS} FROM job WHERE {unfinished} ORDER BY id")]
        ids = {job.id for job in jobs}
        found = self.db.execute(f"SELECT {_TASK_COLUMNS} FROM task WHERE state IN ('queued', 'running')")
        tasks = [TaskRow(*r) for r in found if r[0] in ids]
        workers = [
            (r[0], r[1], bool(r[2]))
            for r in self.db.execute("SELECT worker_id, name, drained FROM worker WHERE drained OR seen_at > ?",
                                     (time.time() - 30 * 86400,))
        ]  # fmt: skip
        return events.Loaded(row[0] if row else 1, jobs, tasks, workers)

    def job(self, job: int) -> JobRow | None:
        row = self.db.execute(f"SELECT {_JOB_COLUMNS} FROM job WHERE id = ?", (job,)).fetchone()
        return JobRow(*row) if row else None

    def task(self, job: int, pos: int) -> TaskRow | None:
        row = self.db.execute(f"SELECT {_TASK_COLUMNS} FROM task WHERE job = ? AND pos = ?", (job, pos)).fetchone()
        return TaskRow(*row) if row else None

    def positions(self, job: int, states: Iterable[str], lo: int, hi: int) -> list[int]:
        wanted = tuple(states)
        marks = ", ".join("?" * len(wanted))
        sql = f"SELECT pos FROM task WHERE job = ? AND pos BETWEEN ? AND ? AND state IN ({marks}) ORDER BY pos"
        return [row[0] for row in self.db.execute(sql, (job, lo, hi, *wanted))]

    def tasks(
        self, job: int, lo: int, hi: int, states: tuple[str, ...] | None = None, limit: int | None = None
    ) -> list[TaskRow]:
        """Rows of the tasks lo..hi, in order."""
        sql, values = f"SELECT {_TASK_COLUMNS} FROM task WHERE job = ? AND pos BETWEEN ? AND ?", [job, lo, hi]
        if states is not None:
            sql += f" AND state IN ({', '.join('?' * len(states))})"
            values += list(states)  # type: ignore[arg-type]
        found = self.db.execute(f"{sql} ORDER BY pos LIMIT ?", (*values, -1 if limit is None else limit))
        return [TaskRow(*row) for row in found]

    def by_request(self, request_id: str) -> int | None:
        row = self.db.execute("SELECT id FROM job WHERE request_id = ?", (request_id,)).fetchone()
        return row[0] if row else None

    def by_once(self, once: str) -> int | None:
        row = self.db.execute("SELECT id FROM job WHERE once = ?", (once,)).fetchone()
        return row[0] if row else None

    def newest(self) -> int | None:
        return self.db.execute("SELECT max(id) FROM job").fetchone()[0]  # type: ignore[no-any-return]

    def list_jobs(
        self,
        state: str | None,
        name: str | None,
        user: str | None,
        since: float | None,
        last: int,
        before: int | None = None,
    ) -> list[JobRow]:
        """Newest first; `since`: submitted or not finished within so many seconds; `before`: ids below this."""
        tests: list[str] = ["1"]
        values: list[Any] = []
        for column, value in (("state", state), ("name", name), ("user", user)):
            if value is not None:
                tests.append(f"{column} = ?")
                values.append(value)
        if since is not None:
            # ids grow with time: the first one since then bounds the walk down the ids. (A clock that was set back hides
            # what was submitted just before that.)
            sql = "SELECT id FROM job WHERE submitted_at >= ? ORDER BY submitted_at LIMIT 1"
            first = self.db.execute(sql, (time.time() - since,)).fetchone()
            tests.append("id >= ?")
            values.append(first[0] if first is not None else 1 << 62)
        if before is not None:
            tests.append("id < ?")
            values.append(before)
        sql = f"SELECT {_JOB_COLUMNS} FROM job WHERE {' AND '.join(tests)} ORDER BY id DESC LIMIT ?"
        return [JobRow(*row) for row in self.db.execute(sql, (*values, last))]

    def output(self, job: int, pos: int) -> tuple[bytes, bytes] | None:
        """The stored (small) output of a finished task; None: the spool has it, or there is none."""
        row = self.db.execute("SELECT out, err FROM output WHERE job = ? AND pos = ?", (job, pos)).fetchone()
        return (row[0], row[1]) if row else None

    def attempts(self, job: int, pos: int) -> list[SaveAttempt]:
        """The attempts before the last one."""
        sql = "SELECT * FROM attempt WHERE job = ? AND pos = ? ORDER BY attempt"
        return [SaveAttempt(*row) for row in self.db.execute(sql, (job, pos))]

    def job_counts(self) -> dict[str, int]:
        """Jobs by state."""
        return dict(self.db.execute("SELECT state, jobs FROM counter WHERE jobs > 0").fetchall())

    def finished_before(self, wall: float, limit: int) -> list[int]:
        """Ids of jobs that finished before this time."""
        sql = "SELECT id FROM job WHERE finished_at < ? LIMIT ?"
        return [row[0] for row in self.db.execute(sql, (wall, limit))]

    def live_blobs(self) -> Iterable[str]:
        """Every content hash that a stored job or returned file names."""
        manifests: set[str] = set()
        for (text,) in self.db.execute("SELECT spec FROM job"):
            spec = json.loads(text)
            yield from spec_blobs(spec)
            if spec.get("send"):
                manifests.add(spec["send"]["manifest"])
        manifests.update(row[0] for row in self.db.execute("SELECT files FROM task WHERE files IS NOT NULL"))
        for name in manifests:
            yield name
            path = os.path.join(self.folder, "blobs", name[:2], name[2:])
            if os.path.exists(path):
                with open(path, "rb") as file:
                    manifest = file.read()
                try:
                    entries = check_manifest(manifest)
                except BadMessage:  # a worker can return what it likes as a list of files; nobody will fetch this one
                    continue
                yield from (entry[3] for entry in entries if entry[0] == "f")

    def size_bytes(self) -> int:
        """Of the database and its log."""
        return sum(os.path.getsize(path) for path in (self.path, self.path + "-wal") if os.path.exists(path))

    def backup(self, path: str) -> None:
        """A consistent copy, while all goes on."""
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        with contextlib.closing(sqlite3.connect(path)) as target:
            self.db.backup(target)


def _update_sql(names: tuple[str, ...]) -> str:
    return f"UPDATE job SET {', '.join(f'{name} = ?' for name in names)} WHERE id = ?"


def file_system_of(path: str) -> str | None:
    """The type of the file system that holds a path, where /proc tells; else None."""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
            lines = [line.split() for line in file]
    except OSError:
        return None
    best, kind, real = "", None, os.path.realpath(path)
    for fields in lines:
        mount = fields[4].replace("\\040", " ")
        inside = real == mount or real.startswith(mount.rstrip("/") + "/")
        if inside and len(mount) >= len(best) and "-" in fields:
            best, kind = mount, fields[fields.index("-") + 1]
    return kind
