"""The file of the job table: its tables, how an older one becomes a newer one, and what is refused before it is used.

If you change the tables: raise SCHEMA, add the step to MIGRATIONS, and keep a database of the old one in tests/data.
SQL as of SQLite 3.31: no RETURNING, no STRICT. WAL with synchronous=FULL: what was committed survives a power cut.
locking_mode=EXCLUSIVE: a second opener, even a reader, is refused, which also rules out SQLite's WAL-reset bug.
Called by store.py alone.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import sys
from collections.abc import Callable

from .core.errors import StoreError
from .spool import create_private, sync_dir

if sys.platform != "win32":
    import fcntl

log = logging.getLogger(__name__)

SCHEMA = 2
CHECK_MAX_BYTES = 64 << 20  # a larger database is not looked through at the start: 1.2 s for each GB

# What most often changes is in few indexes: a job that waits or runs is in job_unfinished alone. A partial index has
# its condition checked at every write, and an IN of three texts costs more there than the index itself: hence
# finished_at, which a job has exactly when its state is a final one.
TABLES = """
CREATE TABLE job (
    id INTEGER PRIMARY KEY, request_id TEXT NOT NULL UNIQUE, once TEXT UNIQUE, name TEXT NOT NULL, user TEXT NOT NULL,
    priority INTEGER NOT NULL, state TEXT NOT NULL, count INTEGER NOT NULL, waiting INTEGER NOT NULL,
    queued INTEGER NOT NULL, running INTEGER NOT NULL, succeeded INTEGER NOT NULL, failed INTEGER NOT NULL,
    cancelled INTEGER NOT NULL, spec TEXT NOT NULL, sets TEXT NOT NULL, submitted_at REAL NOT NULL, started_at REAL,
    finished_at REAL, reason TEXT);
CREATE INDEX job_unfinished ON job(state, id, user, name) WHERE finished_at IS NULL;
CREATE INDEX job_state ON job(state) WHERE finished_at IS NOT NULL;
CREATE INDEX job_user ON job(user, state) WHERE finished_at IS NOT NULL;
CREATE INDEX job_name ON job(name, state, id, user) WHERE finished_at IS NOT NULL;
CREATE INDEX job_submitted ON job(submitted_at);
CREATE INDEX job_finished ON job(finished_at) WHERE finished_at IS NOT NULL;
CREATE TABLE task (
    job INTEGER NOT NULL, pos INTEGER NOT NULL, state TEXT NOT NULL, attempt INTEGER NOT NULL, worker TEXT,
    started_at REAL, finished_at REAL, exit_code INTEGER, signal INTEGER, reason TEXT, cpu_seconds REAL,
    max_rss_bytes INTEGER, output_bytes INTEGER NOT NULL, error_bytes INTEGER NOT NULL, dropped_bytes INTEGER NOT NULL,
    retries INTEGER NOT NULL, crashes INTEGER NOT NULL, timed_out INTEGER NOT NULL, files TEXT, worker_id TEXT,
    PRIMARY KEY (job, pos)) WITHOUT ROWID;
CREATE INDEX task_unfinished ON task(job, pos) WHERE state IN ('queued', 'running');
CREATE INDEX task_failed ON task(job, pos, state) WHERE state IN ('failed', 'cancelled');
CREATE INDEX task_files ON task(files) WHERE files IS NOT NULL;
CREATE TABLE output (job INTEGER NOT NULL, pos INTEGER NOT NULL, out BLOB NOT NULL, err BLOB NOT NULL,
    PRIMARY KEY (job, pos));
CREATE TABLE attempt (job INTEGER NOT NULL, pos INTEGER NOT NULL, attempt INTEGER NOT NULL, worker TEXT, started_at REAL,
    ended_at REAL NOT NULL, reason TEXT NOT NULL, PRIMARY KEY (job, pos, attempt)) WITHOUT ROWID;
CREATE TABLE forgotten (job INTEGER PRIMARY KEY);
CREATE TABLE worker (worker_id TEXT PRIMARY KEY, name TEXT NOT NULL, drained INTEGER NOT NULL, seen_at REAL NOT NULL);
CREATE TABLE meta (key TEXT PRIMARY KEY, value);
CREATE TABLE counter (state TEXT PRIMARY KEY, jobs INTEGER NOT NULL);
INSERT INTO counter VALUES
    ('waiting', 0), ('queued', 0), ('running', 0), ('succeeded', 0), ('failed', 0), ('cancelled', 0);
CREATE TRIGGER job_new AFTER INSERT ON job BEGIN UPDATE counter SET jobs = jobs + 1 WHERE state = new.state; END;
CREATE TRIGGER job_changed AFTER UPDATE OF state ON job WHEN old.state <> new.state BEGIN
    UPDATE counter SET jobs = jobs + (state = new.state) - (state = old.state) WHERE state IN (old.state, new.state);
END;
CREATE TRIGGER job_gone AFTER DELETE ON job BEGIN UPDATE counter SET jobs = jobs - 1 WHERE state = old.state; END;
"""
# From schema 1, whose lists by state and user walked through all jobs of the user. Its job_user was not the same in all
# databases, hence IF EXISTS. The text stays as it is, whatever becomes of TABLES.
_TO_2 = (
    "UPDATE job SET finished_at = submitted_at WHERE finished_at IS NULL AND state IN ('succeeded', 'failed', 'cancelled')",
    "UPDATE job SET finished_at = NULL WHERE state IN ('waiting', 'queued', 'running') AND finished_at IS NOT NULL",
    "DROP INDEX IF EXISTS job_unfinished",
    "DROP INDEX IF EXISTS job_state",
    "DROP INDEX IF EXISTS job_user",
    "DROP INDEX IF EXISTS job_name",
    "DROP INDEX IF EXISTS task_failed",
    "DROP TRIGGER job_new",
    "DROP TRIGGER job_changed",
    "CREATE INDEX job_unfinished ON job(state, id, user, name) WHERE finished_at IS NULL",
    "CREATE INDEX job_state ON job(state) WHERE finished_at IS NOT NULL",
    "CREATE INDEX job_user ON job(user, state) WHERE finished_at IS NOT NULL",
    "CREATE INDEX job_name ON job(name, state, id, user) WHERE finished_at IS NOT NULL",
    "CREATE INDEX task_failed ON task(job, pos, state) WHERE state IN ('failed', 'cancelled')",
    "CREATE TABLE forgotten (job INTEGER PRIMARY KEY)",
    """INSERT OR IGNORE INTO counter VALUES
        ('waiting', 0), ('queued', 0), ('running', 0), ('succeeded', 0), ('failed', 0), ('cancelled', 0)""",
    "CREATE TRIGGER job_new AFTER INSERT ON job BEGIN UPDATE counter SET jobs = jobs + 1 WHERE state = new.state; END",
    """CREATE TRIGGER job_changed AFTER UPDATE OF state ON job WHEN old.state <> new.state BEGIN
    UPDATE counter SET jobs = jobs + (state = new.state) - (state = old.state) WHERE state IN (old.state, new.state);
END""",
)


def _all(statements: tuple[str, ...]) -> Callable[[sqlite3.Connection], None]:
    def step(db: sqlite3.Connection) -> None:
        for statement in statements:
            db.execute(statement)

    return step


# One step per schema number: MIGRATIONS[n] leads from n to n + 1, in a transaction that is not its own.
MIGRATIONS: dict[int, Callable[[sqlite3.Connection], None]] = {1: _all(_TO_2)}

_NETWORK_FS = frozenset(
    ("nfs", "nfs4", "cifs", "smb3", "smbfs", "fuse.sshfs", "9p", "afs", "ceph", "glusterfs", "fuse.glusterfs", "lustre")
)
_MARKER = "microcluster-data"  # says that a database belongs here: an empty one is then damage, not a first start
_LOCKED_AT = 1 << 20  # Windows: beyond what the lock file says, since nobody else can read what is locked


def lock(folder: str) -> int:
    """The descriptor that holds the folder for this process. Raises StoreError that names who holds it; OSError."""
    fd = os.open(os.path.join(folder, "lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(fd, _LOCKED_AT, os.SEEK_SET)
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
            os.lseek(fd, 0, os.SEEK_SET)
        else:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(fd, 0)
        os.write(fd, str(os.getpid()).encode())
        return fd
    except (BlockingIOError, PermissionError):
        os.lseek(fd, 0, os.SEEK_SET)
        holder = os.read(fd, 20).decode("ascii", "replace").strip() or "?"
        os.close(fd)
        raise StoreError(
            f"another manager (process {holder}) uses {folder}: stop it, or choose another one with --data"
        ) from None
    except OSError:
        os.close(fd)
        raise


def refuse_network(folder: str) -> None:
    """Raises StoreError where the file system is one of several machines: its locks and syncs cannot be trusted."""
    kind = file_system_of(folder)
    if kind in _NETWORK_FS and os.environ.get("MICROCLUSTER_ALLOW_NETWORK_FS", "") in ("", "0"):
        raise StoreError(
            f"{folder} is on a network file system ({kind}), where a database is not safe: choose a local folder"
            " with --data (or set MICROCLUSTER_ALLOW_NETWORK_FS=1)"
        )


def connect(folder: str, path: str) -> sqlite3.Connection:
    """The database of this folder, made, checked or migrated. Raises StoreError with one line that says what to do,
    and has changed nothing then; OSError."""
    marker = os.path.join(folder, _MARKER)
    if os.path.exists(marker) and (not os.path.exists(path) or os.path.getsize(path) == 0):
        raise StoreError(
            f"{path} is {'empty' if os.path.exists(path) else 'not there'}, but this folder held jobs:"
            f" restore it from a backup, or move {folder} away to start anew"
        )
    create_private(path)
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=200)
    try:
        for setting in (
            "locking_mode = EXCLUSIVE", "journal_mode = WAL", "synchronous = FULL", "fullfsync = ON",
            "checkpoint_fullfsync = ON", "temp_store = MEMORY", "cache_size = -16000", "wal_autocheckpoint = 4000",
        ):  # fmt: skip
            db.execute(f"PRAGMA {setting}")
        _prepare(db, path)
        if not os.path.exists(marker):
            create_private(marker, b"The data of a microcluster manager: jobs.db, blobs/, output/.\n")
            sync_dir(folder)
    except BaseException as error:
        db.close()
        if isinstance(error, sqlite3.Error):
            raise StoreError(_what(error, path)) from None
        raise
    return db


def _what(error: sqlite3.Error, path: str) -> str:
    if not isinstance(error, sqlite3.OperationalError):
        return f"{path} is damaged ({error}): restore it from a backup; nothing was changed"
    if "locked" in str(error):
        return f"cannot open {path}: another program has it open; close that"
    return f"cannot open {path}: {error}"


def _prepare(db: sqlite3.Connection, path: str) -> None:
    version = int(db.execute("PRAGMA user_version").fetchone()[0])
    if version > SCHEMA:
        raise StoreError(
            f"{path} was written by a newer microcluster (schema {version}; this one knows {SCHEMA}): upgrade"
        )
    if version == 0 and db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
        db.executescript(f"BEGIN IMMEDIATE;{TABLES}PRAGMA user_version = {SCHEMA};COMMIT;")
        return
    large = os.path.getsize(path) > CHECK_MAX_BYTES
    problem = "ok" if large else db.execute("PRAGMA quick_check(1)").fetchone()[0]
    if problem != "ok":
        what = " ".join(problem.split())
        raise StoreError(f"{path} is damaged ({what}): restore it from a backup; nothing was changed")
    missing = [step for step in range(version, SCHEMA) if step not in MIGRATIONS]
    if missing:
        raise StoreError(f"{path} has the unknown schema {version}: it is not a microcluster database")
    if version == SCHEMA:
        return
    log.warning("converting %s from schema %d to %d: a few seconds for each million jobs", path, version, SCHEMA)
    db.execute("BEGIN IMMEDIATE")  # all steps or none
    for step in range(version, SCHEMA):
        MIGRATIONS[step](db)
    db.execute(f"PRAGMA user_version = {SCHEMA}")
    db.execute("COMMIT")


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
