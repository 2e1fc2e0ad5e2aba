"""The job table: what is written is there, whole, after anything; and what is refused."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
import subprocess
import sys
import tempfile
import unittest
from typing import Any

from src import faults, store
from src.core.errors import DiskFull, StoreError
from src.core.jobs import JobRow, TaskRow
from src.core.saves import (
    ClearOutput,
    ForgetJob,
    SaveAttempt,
    SaveJob,
    SaveTask,
    SaveWorker,
    StoreOutput,
    UpdateJob,
)
from src.store import Store, StoreBroken
from tests.support.sim import spec

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def job_row(job: int, **changes: Any) -> JobRow:
    sets = '{"waiting":[],"queued":[[0,1]],"cancelled":[]}'
    row = JobRow(
        job, f"{job:032x}", None, "x.py", "ann", 0, "queued", 1, 0, 1, 0, 0, 0, 0, json.dumps(spec()), sets, 100.0 + job,
        None, None, None,
    )  # fmt: skip
    return row._replace(**changes)


def task_row(job: int, pos: int = 0, state: str = "running", **changes: Any) -> TaskRow:
    row = TaskRow(job, pos, state, 1, "w", None, None, None, None, None, None, None, 0, 0, 0, 0, 0, 0, None, "id")
    return row._replace(**changes)


class StoreCase(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.addCleanup(faults.disarm)
        self.folder = folder.name + "/data"
        self.store = self.opened()

    def opened(self) -> Store:
        found = Store(self.folder)
        found.open()
        self.addCleanup(found.close)
        return found

    def again(self) -> Store:
        self.store.close()
        self.store = self.opened()
        return self.store


class StoreTest(StoreCase):
    def test_what_is_written_is_there_after_a_restart(self) -> None:
        self.store.apply(
            [
                SaveJob(job_row(1)),
                SaveJob(job_row(2, once="nightly")),
                SaveTask(task_row(1)),
                SaveTask(task_row(2, state="failed", exit_code=3)),
                UpdateJob(1, {"state": "running", "running": 1, "queued": 0}),
                UpdateJob(2, {"state": "failed", "failed": 1, "queued": 0, "finished_at": 7.0}),
                StoreOutput(2, 0, b"\0out", b"err"),
                SaveAttempt(1, 0, 1, "w", 1.0, 2.0, "worker lost"),
                SaveWorker("id", "w", True, 1.0),
            ]
        )
        found = self.again()
        loaded = found.load()
        self.assertEqual(
            (loaded.next_id, [row.id for row in loaded.jobs], loaded.workers), (3, [1], [("id", "w", True)])
        )
        self.assertEqual(loaded.tasks, [task_row(1)])
        self.assertEqual(found.job(2), job_row(2, once="nightly", state="failed", failed=1, queued=0, finished_at=7.0))
        self.assertEqual(found.task(2, 0), task_row(2, state="failed", exit_code=3))
        self.assertEqual(found.output(2, 0), (b"\0out", b"err"))
        self.assertEqual(found.attempts(1, 0)[0].reason, "worker lost")
        self.assertEqual((found.by_request(f"{2:032x}"), found.by_once("nightly"), found.newest()), (2, 2, 2))
        self.assertEqual(found.job_counts(), {"running": 1, "failed": 1})

    def test_queries(self) -> None:
        self.store.apply([SaveJob(job_row(n, user="ann" if n % 2 else "bob", name=f"n{n % 3}")) for n in range(1, 10)])
        self.store.apply([SaveTask(task_row(1, pos, "failed" if pos % 2 else "succeeded")) for pos in range(10)])
        self.assertEqual([row.id for row in self.store.list_jobs(None, None, None, None, 3)], [9, 8, 7])
        self.assertEqual([row.id for row in self.store.list_jobs(None, None, "bob", None, 9, 6)], [4, 2])
        self.assertEqual([row.id for row in self.store.list_jobs("queued", "n0", None, None, 9)], [9, 6, 3])
        self.assertEqual(self.store.positions(1, ("failed",), 2, 7), [3, 5, 7])
        self.assertEqual([row.pos for row in self.store.tasks(1, 0, 9, ("succeeded",), 2)], [0, 2])

    def test_forgotten_jobs_leave_nothing_and_their_ids_do_not_come_back(self) -> None:
        self.store.apply(
            [
                SaveJob(job_row(5, state="succeeded", finished_at=50.0)),
                SaveTask(task_row(5)),
                StoreOutput(5, 0, b"a", b""),
            ]
        )
        self.assertEqual(self.store.finished_before(60.0, 10), [5])
        self.store.apply([ForgetJob(5)])
        self.assertEqual((self.store.job(5), self.store.task(5, 0), self.store.output(5, 0)), (None, None, None))
        self.assertEqual(self.again().load().next_id, 6)
        self.assertEqual(self.store.job_counts(), {})

    def test_a_retry_clears_the_output(self) -> None:
        self.store.apply([SaveJob(job_row(1)), StoreOutput(1, 0, b"old", b""), ClearOutput(1, 0)])
        self.assertIsNone(self.store.output(1, 0))

    def test_private(self) -> None:
        self.assertEqual(stat.S_IMODE(os.stat(self.folder).st_mode), 0o700)
        self.assertEqual(stat.S_IMODE(os.stat(self.store.path).st_mode), 0o600)

    def test_a_backup_is_a_whole_database(self) -> None:
        self.store.apply([SaveJob(job_row(1))])
        os.mkdir(self.folder + "/copy")
        self.store.backup(self.folder + "/copy/jobs.db")
        other = Store(self.folder + "/copy")
        other.open()
        self.addCleanup(other.close)
        self.assertEqual(other.job(1), job_row(1))

    def test_live_blobs(self) -> None:
        self.store.apply([SaveJob(job_row(1)), SaveTask(task_row(1, files="f" * 64))])
        self.assertEqual(set(self.store.live_blobs()), {"0" * 64, "f" * 64})

    def test_a_returned_list_that_is_nonsense_does_not_stop_the_sweep(self) -> None:
        name = "ab" + "0" * 62
        os.makedirs(f"{self.folder}/blobs/ab")
        with open(f"{self.folder}/blobs/ab/{'0' * 62}", "wb") as file:
            file.write(b'[["f", "../evil"]]')
        self.store.apply([SaveJob(job_row(1)), SaveTask(task_row(1, files=name))])
        self.assertEqual(set(self.store.live_blobs()), {"0" * 64, name})

    def test_lists_never_read_all_jobs(self) -> None:
        asked: list[str] = []
        self.store.db.set_trace_callback(asked.append)
        for state, name, user, since in (
            (None, None, "ann", None),
            ("failed", None, None, None),
            (None, "x", None, None),
        ):
            self.store.list_jobs(state, name, user, since, 50)
        self.store.list_jobs(None, None, None, 60.0, 50)
        self.store.db.set_trace_callback(None)
        for sql in asked:
            plan = " ".join(row[3] for row in self.store.db.execute(f"EXPLAIN QUERY PLAN {sql}"))
            self.assertIn("SEARCH", plan, sql)
            self.assertNotIn("TEMP B-TREE", plan, sql)


class RefusalTest(StoreCase):
    def test_a_second_manager(self) -> None:
        with self.assertRaisesRegex(StoreError, f"process {os.getpid()}"):
            Store(self.folder).open()

    def test_a_newer_schema(self) -> None:
        self.store.db.execute(f"PRAGMA user_version = {store.SCHEMA + 1}")
        self.store.close()
        with self.assertRaisesRegex(StoreError, "newer"):
            Store(self.folder).open()

    def test_damage(self) -> None:
        self.store.apply([SaveJob(job_row(n)) for n in range(1, 300)])
        self.store.close()
        for content, word in ((b"", "empty"), (b"nonsense" * 1000, "damaged")):
            with open(self.store.path, "wb") as file:
                file.write(content)
            for more in ("-wal", "-shm"):
                if os.path.exists(self.store.path + more):
                    os.unlink(self.store.path + more)
            with self.subTest(word), self.assertRaisesRegex(StoreError, word):
                Store(self.folder).open()
        os.unlink(self.store.path)
        with self.assertRaisesRegex(StoreError, "not there"):
            Store(self.folder).open()

    def test_a_network_file_system(self) -> None:
        self.store.close()
        real, store.file_system_of = store.file_system_of, lambda path: "nfs4"
        self.addCleanup(setattr, store, "file_system_of", real)
        with self.assertRaisesRegex(StoreError, "network file system"):
            Store(self.folder).open()

    def test_an_older_schema_is_migrated(self) -> None:
        self.store.apply([SaveJob(job_row(1))])
        self.store.close()
        plain = sqlite3.connect(self.store.path)
        plain.execute("DROP INDEX job_name")
        plain.execute("PRAGMA user_version = 0")
        plain.commit()
        plain.close()
        with self.assertRaisesRegex(StoreError, "unknown schema"):
            Store(self.folder).open()

        def add_index(db: sqlite3.Connection) -> None:
            db.execute("CREATE INDEX job_name ON job(name, id)")

        store.MIGRATIONS[0] = add_index
        self.addCleanup(store.MIGRATIONS.clear)
        again = self.opened()
        self.assertEqual(again.db.execute("PRAGMA user_version").fetchone()[0], store.SCHEMA)
        self.assertEqual(again.job(1), job_row(1))


class FaultTest(StoreCase):
    def test_a_full_disk_takes_nothing_of_the_batch(self) -> None:
        for place in ("store.begin", "store.commit"):
            faults.arm(f"{place}:1:ENOSPC")
            with self.assertRaises(DiskFull):
                self.store.apply([SaveJob(job_row(1)), SaveTask(task_row(1))])
            self.assertIsNone(self.store.job(1))
        self.store.apply([SaveJob(job_row(1))])
        self.assertIsNotNone(self.again().job(1))

    def test_sqlites_own_full(self) -> None:
        self.store.db.execute("PRAGMA max_page_count = 60")
        with self.assertRaises(DiskFull):
            self.store.apply([SaveJob(job_row(n, name="x" * 3000)) for n in range(1, 500)])
        self.assertEqual(self.store.newest(), None)
        self.store.db.execute("PRAGMA max_page_count = 1000000")
        self.store.apply([SaveJob(job_row(1))])

    def test_an_io_error_is_final(self) -> None:
        faults.arm("store.commit:1:EIO")
        with self.assertRaises(StoreBroken):
            self.store.apply([SaveJob(job_row(1))])

    def test_a_death_at_any_step_keeps_what_was_confirmed(self) -> None:
        code = (
            "import sys; from tests.shell.test_store import *; s = Store(sys.argv[1]); s.open()\n"
            "for n in range(1, 4):\n"
            "    s.apply([SaveJob(job_row(n)), SaveTask(task_row(n))]); print(n, flush=True)"
        )
        for nth in range(1, 8):
            folder = f"{self.folder}-{nth}"
            environ = {**os.environ, "MICROCLUSTER_FAULTS": f"any:{nth}:die"}
            command = [sys.executable, "-c", code, folder]
            done = subprocess.run(command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, timeout=60)
            found = Store(folder)
            found.open()
            confirmed = [int(line) for line in done.stdout.split()]
            self.assertEqual([n for n in (1, 2, 3) if found.job(n) is not None], confirmed)
            self.assertEqual(found.task(len(confirmed), 0) is not None, bool(confirmed))
            found.close()
            if done.returncode == 0:
                return
        self.fail("it never came to its end")
