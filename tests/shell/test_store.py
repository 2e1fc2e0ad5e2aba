"""The job table: what is written is there, whole, after a restart; what is asked is answered exactly; what is refused."""

from __future__ import annotations

import json
import os
import random
import sqlite3
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

from src import schema
from src.core.errors import StoreError
from src.core.jobs import STATES, TERMINAL, JobRow, TaskRow
from src.core.saves import (
    ClearOutput,
    DropOutput,
    ForgetJob,
    KeepOutput,
    Save,
    SaveAttempt,
    SaveJob,
    SaveTask,
    SaveWorker,
    StoreOutput,
    UpdateJob,
)
from src.store import Store
from tests.support.leaks import Case
from tests.support.marks import linux_only
from tests.support.sim import spec

ROOT = Path(__file__).resolve().parents[2]
OLD = ROOT / "tests" / "data" / "schema-1.sql"  # `sqlite3 jobs.db .dump` of the first schema


def job_row(job: int, **changes: Any) -> JobRow:
    sets = '{"waiting":[],"queued":[[0,1]],"cancelled":[]}'
    row = JobRow(
        job, f"{job:032x}", None, "x.py", "ann", 0, "queued", 1, 0, 1, 0, 0, 0, 0, json.dumps(spec()), sets, 100.0 + job,
        None, None, None,
    )  # fmt: skip
    if changes.get("state") in TERMINAL:
        changes.setdefault("finished_at", 200.0 + job)
    return row._replace(**changes)


def task_row(job: int, pos: int = 0, state: str = "running", **changes: Any) -> TaskRow:
    row = TaskRow(job, pos, state, 1, "w", None, None, None, None, None, None, None, 0, 0, 0, 0, 0, 0, None, "id")
    return row._replace(**changes)


class StoreCase(Case):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name + "/data"
        self.store = self.opened()

    def opened(self, folder: str | None = None) -> Store:
        found = Store(folder or self.folder)
        found.open()
        self.addCleanup(found.close)
        return found

    def again(self) -> Store:
        self.store.close()
        self.store = self.opened()
        return self.store

    def everything(self, store: Store) -> dict[str, list[Any]]:
        tables = [row[0] for row in store.db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {table: sorted(store.db.execute(f"SELECT * FROM {table}").fetchall(), key=repr) for table in tables}


class WritingTest(StoreCase):
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
        self.assertEqual(loaded.jobs[0], job_row(1, state="running", running=1, queued=0))
        self.assertEqual(found.job(2), job_row(2, once="nightly", state="failed", failed=1, queued=0, finished_at=7.0))
        self.assertEqual(found.task(2, 0), task_row(2, state="failed", exit_code=3))
        self.assertEqual(found.output(2, 0), (b"\0out", b"err"))
        self.assertEqual(found.attempts(1, 0), [SaveAttempt(1, 0, 1, "w", 1.0, 2.0, "worker lost")])
        self.assertEqual((found.by_request(f"{2:032x}"), found.by_once("nightly"), found.newest()), (2, 2, 2))
        self.assertEqual((found.by_request("f" * 32), found.by_once("daily")), (None, None))
        self.assertEqual(found.job_counts(), {"running": 1, "failed": 1})

    def test_every_column_of_a_row_comes_back_as_it_was(self) -> None:
        job = JobRow(
            9,
            "r" * 32,
            "k",
            "ü\n.py",
            "ann",
            -5,
            "failed",
            10_000_000,
            1,
            2,
            3,
            4,
            5,
            6,
            "{}",
            "[]",
            1.5,
            2.5,
            3.5,
            "why",
        )
        task = TaskRow(
            9,
            9_999_999,
            "failed",
            7,
            "w",
            1.25,
            2.25,
            3,
            9,
            "why",
            0.5,
            1 << 52,
            1 << 40,
            2,
            3,
            4,
            5,
            1,
            "f" * 64,
            "id",
        )
        self.store.apply([SaveJob(job), SaveTask(task)])
        self.assertEqual((self.again().job(9), self.store.task(9, 9_999_999)), (job, task))
        self.assertEqual((self.store.job(8), self.store.task(9, 0)), (None, None))

    def test_a_batch_is_as_good_as_its_saves_one_by_one(self) -> None:
        """The order within a batch counts where it means something, whatever is written at one stroke."""
        chance = random.Random(7)
        for turn in range(30):
            saves: list[Save] = []
            jobs = range(1, 6)
            saves += [SaveJob(job_row(job)) for job in jobs]
            for _ in range(60):
                job, pos = chance.choice(jobs), chance.randrange(3)
                state = chance.choice(STATES)
                kinds: list[Save] = [
                    SaveTask(task_row(job, pos, state, attempt=chance.randrange(9))),
                    UpdateJob(job, {"state": state, "finished_at": 1.0 if state in TERMINAL else None}),
                    UpdateJob(job, {"queued": chance.randrange(9), "reason": chance.choice(["a", None])}),
                    UpdateJob(job, {"reason": "b"}),
                    StoreOutput(job, pos, bytes([chance.randrange(99)]), b""),
                    ClearOutput(job, pos),
                    SaveAttempt(job, pos, chance.randrange(3), "w", None, chance.random(), "lost"),
                    SaveWorker(str(pos), "w", chance.random() < 0.5, chance.random()),
                    KeepOutput(job, pos, 1, b"", None),
                    DropOutput(job, pos, 1),
                ]
                saves.append(chance.choice(kinds))
            saves.append(ForgetJob(chance.choice(jobs)))
            one, other = self.opened(f"{self.folder}-{turn}-a"), self.opened(f"{self.folder}-{turn}-b")
            one.apply(iter(saves))
            for save in saves:
                other.apply([save])
            for store in (one, other):
                store.apply([], clear=store.half_forgotten(9))
            self.assertEqual(self.everything(one), self.everything(other))
            counted = dict(one.db.execute("SELECT state, count(*) FROM job GROUP BY state").fetchall())
            self.assertEqual(one.job_counts(), counted)
            one.close()
            other.close()

    def test_only_the_given_columns_change(self) -> None:
        self.store.apply([SaveJob(job_row(1))])
        self.store.apply(
            [UpdateJob(1, {"reason": "why"}), UpdateJob(1, {"priority": 3}), UpdateJob(77, {"reason": "?"})]
        )
        self.assertEqual(self.store.job(1), job_row(1, reason="why", priority=3))
        self.assertIsNone(self.store.job(77))

    def test_nothing_is_a_batch_too(self) -> None:
        self.store.apply([])
        self.assertEqual(self.store.load(), ((1, [], [], [])))

    def test_a_defect_takes_nothing_of_its_batch(self) -> None:
        self.store.apply([SaveJob(job_row(1))])
        with self.assertRaisesRegex(StoreError, "UNIQUE"):
            self.store.apply([SaveTask(task_row(1)), SaveJob(job_row(2, request_id=f"{1:032x}"))])
        with self.assertRaises(ZeroDivisionError):
            self.store.apply(SaveTask(task_row(1 // pos)) for pos in (1, 0))
        self.assertEqual((self.store.task(1, 0), self.store.job(2)), (None, None))
        self.store.apply([SaveTask(task_row(1))])

    def test_forgotten_jobs_leave_nothing_and_their_ids_do_not_come_back(self) -> None:
        self.store.apply([SaveJob(job_row(4))])
        before = self.everything(self.store)
        self.store.apply(
            [
                SaveJob(job_row(5, state="succeeded", finished_at=50.0, once="key")),
                SaveTask(task_row(5)),
                SaveAttempt(5, 0, 1, "w", None, 1.0, "lost"),
                StoreOutput(5, 0, b"a", b""),
            ]
        )
        self.assertEqual(self.store.finished_before(60.0, 10), [5])
        self.store.apply([ForgetJob(5)])
        self.assertEqual(self.store.half_forgotten(9), [5])
        self.store.apply([], clear=[5])
        after = self.everything(self.store)
        self.assertEqual((before.pop("meta"), after.pop("meta")), ([("next_id", 5)], [("next_id", 6)]))
        self.assertEqual(after, before)
        self.assertEqual(self.again().load().next_id, 6)
        self.store.apply([SaveJob(job_row(6, once="key", request_id=f"{5:032x}"))])

    def test_a_large_job_is_forgotten_in_pieces(self) -> None:
        tasks = [SaveTask(task_row(1, pos * 2, "succeeded")) for pos in range(100)]
        outputs = [StoreOutput(1, pos * 2, b"x", b"") for pos in range(100)]
        others = [SaveTask(task_row(3, pos)) for pos in range(5)]
        self.store.apply([*(SaveJob(job_row(job)) for job in (1, 2, 3)), *tasks, *outputs, *others])
        counts = []
        with mock.patch("src.store.CLEAR_ROWS", 30):
            self.store.apply([ForgetJob(1), ForgetJob(2)])
            self.assertEqual((self.store.job(1), self.store.job(2), self.store.newest()), (None, None, 3))
            while self.again().half_forgotten(9):
                counts.append(len(self.store.tasks(1, 0, 1000)))
                self.assertLess(len(counts), 20)
                self.assertEqual([row.id for row in self.store.load().jobs], [3])
                self.store.apply([], clear=self.store.half_forgotten(9))
        self.assertEqual(counts, [100, 70, 40, 10])
        self.assertEqual(self.store.db.execute("SELECT count(*) FROM output").fetchone()[0], 0)
        self.assertEqual(len(self.store.tasks(3, 0, 9)), 5)

    def test_a_retry_clears_the_output(self) -> None:
        self.store.apply([SaveJob(job_row(1)), StoreOutput(1, 0, b"old", b"")])
        self.store.apply([ClearOutput(1, 0)])
        self.assertIsNone(self.store.output(1, 0))

    def test_workers_that_were_not_seen_for_long_are_not_remembered_unless_drained(self) -> None:
        with mock.patch("src.store.time.time", return_value=100 * 86400.0):
            self.store.apply(
                [
                    SaveWorker("a", "old", False, 1.0),
                    SaveWorker("b", "off", True, 1.0),
                    SaveWorker("c", "new", False, 9e6),
                ]
            )
            self.assertEqual(sorted(self.store.load().workers), [("b", "off", True), ("c", "new", False)])


class QuestionsTest(StoreCase):
    def test_lists_are_what_a_plain_look_through_all_jobs_gives(self) -> None:
        chance = random.Random(5)
        rows = [
            job_row(
                job, state=chance.choice(STATES), user=chance.choice(["ann", "bob"]), name=chance.choice("xyz"),
                submitted_at=1000.0 + job,
            )
            for job in range(1, 120) if job % 7
        ]  # fmt: skip
        self.store.apply([SaveJob(row) for row in rows])
        with mock.patch("src.store.time.time", return_value=1120.0):
            for _ in range(300):
                state, name = chance.choice([None, *STATES]), chance.choice([None, "x", "nobody"])
                user, since = chance.choice([None, "ann"]), chance.choice([None, 0.0, 50.5, 60.0, 1e9])
                last, before = chance.choice([1, 5, 1000]), chance.choice([None, 1, 60])
                wanted = [
                    row
                    for row in reversed(rows)
                    if state in (None, row.state) and name in (None, row.name) and user in (None, row.user)
                    and (since is None or row.submitted_at >= 1120.0 - since) and (before is None or row.id < before)
                ]  # fmt: skip
                found = self.store.list_jobs(state, name, user, since, last, before)
                self.assertEqual(found, wanted[:last], (state, name, user, since, last, before))

    def test_no_question_looks_through_the_whole_table(self) -> None:
        seen: list[str] = []
        self.store.apply([SaveJob(job_row(1))])
        self.store.db.set_trace_callback(seen.append)
        for name in (None, "x"):
            for user in (None, "ann"):
                for state in (None, "failed", "queued"):
                    self.store.list_jobs(state, name, user, 5.0, 50, 9)
        self.store.load()
        self.store.finished_before(1.0, 10)
        self.store.newest()
        self.store.positions(1, ("failed", "cancelled"), 0, 9)
        self.store.by_request("r")
        self.store.by_once("k")
        self.store.tasks(1, 0, 5, ("failed",))
        list(self.store.live_blobs())
        self.store.db.set_trace_callback(None)
        self.assertGreater(len(seen), 40)
        for sql in set(seen):
            for row in self.store.db.execute(f"EXPLAIN QUERY PLAN {sql}"):
                narrow = (
                    "INDEX" in row[3]
                    or "PRIMARY KEY" in row[3]
                    or row[3].startswith(("SEARCH job", "SEARCH TABLE job"))
                )
                small = row[3].startswith(("SCAN worker", "SCAN TABLE worker"))
                self.assertTrue((narrow and "TEMP B-TREE" not in row[3]) or small, f"{row[3]}: {sql}")

    def test_tasks_and_positions(self) -> None:
        self.store.apply([SaveJob(job_row(1)), SaveTask(task_row(2, 3, "failed"))])
        self.store.apply([SaveTask(task_row(1, pos, "failed" if pos % 2 else "succeeded")) for pos in range(10)])
        self.assertEqual(self.store.positions(1, ("failed",), 2, 7), [3, 5, 7])
        self.assertEqual(self.store.positions(1, iter(("failed", "succeeded")), 8, 99), [8, 9])
        self.assertEqual([row.pos for row in self.store.tasks(1, 0, 9, ("succeeded",), 2)], [0, 2])
        self.assertEqual([row.pos for row in self.store.tasks(1, 4, 6)], [4, 5, 6])
        self.assertEqual(self.store.tasks(1, 4, 6, ()), [])

    def test_what_finished_before(self) -> None:
        self.store.apply([SaveJob(job_row(job, state="failed", finished_at=float(job))) for job in range(1, 9)])
        self.store.apply([SaveJob(job_row(9))])
        self.assertEqual(sorted(self.store.finished_before(4.0, 10)), [1, 2, 3])
        self.assertEqual(len(self.store.finished_before(1e9, 2)), 2)

    def test_live_blobs(self) -> None:
        os.makedirs(self.folder + "/blobs/00")
        sent = self._manifest(1, [["d", "sub", 493], ["f", "sub/x", 420, "a" * 64, 5], ["l", "y", "sub/x"]])
        returned = self._manifest(2, [["f", "r", 420, "b" * 64, 5]])
        strange = self._manifest(3, None)
        text = json.dumps({**spec(), "stdin": "c" * 64, "send": {"manifest": sent, "files": 1, "bytes": 5}})
        self.store.apply([SaveJob(job_row(1, spec=text)), *(SaveJob(job_row(job)) for job in range(2, 9))])
        names = [returned, strange, "f" * 64, returned]
        self.store.apply([SaveTask(task_row(1, pos, files=name)) for pos, name in enumerate(names)])
        found = set()
        with mock.patch("src.store.BLOBS_A_LOOK", 2):
            for name in self.store.live_blobs():
                found.add(name)
                self.store.apply([UpdateJob(1, {"priority": len(found)})])
                with self.assertRaises(StoreError):  # rolled back, which must not disturb the reading
                    self.store.apply([SaveJob(job_row(1))])
        self.assertEqual(found, {"0" * 64, "a" * 64, "b" * 64, "c" * 64, "f" * 64, sent, returned, strange})

    def _manifest(self, number: int, entries: Any) -> str:
        name = f"{number:064x}"
        path = Path(self.folder, "blobs", name[:2], name[2:])
        path.write_bytes(json.dumps(entries).encode() if entries is not None else b"{nonsense")
        return name

    def test_size(self) -> None:
        before = self.store.size_bytes()
        self.store.apply([SaveJob(job_row(1, name="x" * 100_000))])
        self.assertGreater(self.store.size_bytes(), before + 100_000)

    def test_a_backup_is_a_whole_database(self) -> None:
        self.store.apply([SaveJob(job_row(1)), StoreOutput(1, 0, b"a", b"b")])
        os.mkdir(self.folder + "/copy")
        path = self.folder + "/copy/jobs.db"
        self.store.backup(path)
        self.store.apply([SaveJob(job_row(2))])
        self.assertEqual(stat.S_IMODE(os.stat(path).st_mode), 0o600)
        with self.assertRaisesRegex(StoreError, "cannot make a backup"):
            self.store.backup(path)
        other = self.opened(self.folder + "/copy")
        self.assertEqual((other.job(1), other.output(1, 0), other.job(2)), (job_row(1), (b"a", b"b"), None))


class OpeningTest(StoreCase):
    def refused(self, pattern: str, folder: str | None = None) -> None:
        with self.assertRaisesRegex(StoreError, pattern) as caught:
            self.opened(folder)
        self.assertNotIn("\n", str(caught.exception))

    def test_everything_is_private(self) -> None:
        old = os.umask(0)
        self.addCleanup(os.umask, old)
        folder = self.folder + "-2"
        store = self.opened(folder)
        store.apply([SaveJob(job_row(1))])
        self.assertEqual(stat.S_IMODE(os.stat(folder).st_mode), 0o700)
        modes = {name: stat.S_IMODE(os.stat(f"{folder}/{name}").st_mode) for name in os.listdir(folder)}
        self.assertEqual(set(modes), {"jobs.db", "jobs.db-wal", "lock", "microcluster-data"})
        self.assertEqual(set(modes.values()), {0o600})

    def test_a_second_manager(self) -> None:
        self.refused(f"another manager \\(process {os.getpid()}\\) uses {self.folder}")
        self.assertEqual(self.store.load().next_id, 1)

    def test_a_second_manager_in_another_process(self) -> None:
        code = "import sys; from src.store import Store; Store(sys.argv[1]).open()"
        command = [sys.executable, "-c", code, self.folder]
        done = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, timeout=60)
        self.assertIn(f"another manager (process {os.getpid()})".encode(), done.stderr)
        self.store.close()
        self.assertEqual(subprocess.run(command, cwd=ROOT, timeout=60).returncode, 0)

    def test_somebody_elses_program_has_the_database_open(self) -> None:
        self.store.apply([SaveJob(job_row(1))])
        self.store.close()
        other = sqlite3.connect(self.store.path, isolation_level=None)
        self.addCleanup(other.close)
        other.execute("BEGIN IMMEDIATE")
        other.execute("UPDATE job SET reason = 'mine'")
        with mock.patch("src.schema.sqlite3.connect", lambda path, **kw: sqlite3.Connection(path, timeout=0.0, **kw)):
            self.refused("another program has it open")
        other.execute("ROLLBACK")
        other.close()
        self.assertEqual(self.again().job(1), job_row(1))

    def test_a_newer_schema(self) -> None:
        self.store.db.execute(f"PRAGMA user_version = {schema.SCHEMA + 1}")
        self.store.close()
        self.refused(f"newer microcluster \\(schema {schema.SCHEMA + 1}")

    def test_a_database_of_something_else(self) -> None:
        self.store.close()
        for path in Path(self.folder).iterdir():
            path.unlink()
        with sqlite3.connect(self.store.path) as other:
            other.execute("CREATE TABLE cat (name TEXT)")
        other.close()
        self.refused("unknown schema 0")

    def test_damage(self) -> None:
        self.store.apply([SaveJob(job_row(job)) for job in range(1, 300)])
        self.store.close()
        whole = Path(self.store.path).read_bytes()
        torn = whole[:8192] + b"\xff" * 4096 + whole[12288:]
        for content, word in (
            (b"", "is empty"),
            (b"nonsense" * 1000, "damaged"),
            (torn, "damaged"),
            (whole[:9000], "damaged"),
        ):
            with self.subTest(word, size=len(content)):
                Path(self.store.path).write_bytes(content)
                self.refused(word)
                self.assertEqual(Path(self.store.path).read_bytes(), content, "what is damaged is left as it is")
        Path(self.store.path).write_bytes(torn)
        with mock.patch("src.schema.CHECK_MAX_BYTES", 1):  # a large one is not looked through
            self.assertEqual(self.again().newest(), 299)
        self.store.close()
        os.unlink(self.store.path)
        self.refused("is not there, but this folder held jobs")
        Path(self.store.path).write_bytes(whole)
        self.assertEqual(self.again().newest(), 299)

    def test_a_first_start_that_was_cut_off_is_repeated(self) -> None:
        folder = self.folder + "-2"
        os.mkdir(folder, 0o700)
        Path(folder, "jobs.db").touch()
        self.assertEqual(self.opened(folder).load().next_id, 1)

    def test_a_folder_that_cannot_be_used(self) -> None:
        Path(self.folder + "-2").write_text("a file")
        self.refused("cannot use the data directory", self.folder + "-2")
        self.refused("cannot use the data directory", self.folder + "-2/below")

    def test_a_network_file_system(self) -> None:
        self.store.close()
        with mock.patch("src.schema.file_system_of", return_value="nfs4"):
            self.refused("network file system \\(nfs4\\)")
            with mock.patch.dict(os.environ, {"MICROCLUSTER_ALLOW_NETWORK_FS": "1"}):
                self.opened().close()

    @linux_only
    def test_the_file_system_of_a_path(self) -> None:
        table = (
            "22 1 0:1 / / rw - ext4 /dev/a rw\n23 22 0:2 / /net rw shared:1 - nfs4 host:/x rw\n"
            "24 23 0:3 / /net/my\\040disk rw - xfs /dev/b rw\n"
        )
        for path, kind in (("/home", "ext4"), ("/net", "nfs4"), ("/network", "ext4"), ("/net/my disk/data", "xfs")):
            with mock.patch("builtins.open", mock.mock_open(read_data=table)):
                self.assertEqual(schema.file_system_of(path), kind)
        self.assertIsNotNone(schema.file_system_of("/proc/self"))


class SchemaTest(StoreCase):
    def old(self, version: int = 1) -> sqlite3.Connection:
        """A database as an older release left it, in place of ours."""
        self.store.close()
        for path in Path(self.folder).iterdir():
            path.unlink()
        plain = sqlite3.connect(self.store.path, isolation_level=None)
        self.addCleanup(plain.close)
        plain.executescript(OLD.read_text("utf-8"))
        plain.execute(f"PRAGMA user_version = {version}")
        return plain

    def test_the_first_schema_is_converted(self) -> None:
        for also in ("", "DROP INDEX job_user; CREATE INDEX job_user ON job(user, state, id);"):  # both were around
            with self.subTest(also=also):
                old = self.old()
                old.executescript(also)
                old.close()
                self._check_converted(self.converted())
                self.assertEqual(self.again().newest(), 4)

    def converted(self) -> Store:
        with self.assertLogs("src.schema", "WARNING"):
            return self.again()

    def _check_converted(self, store: Store) -> None:
        self.assertEqual(store.db.execute("PRAGMA user_version").fetchone()[0], schema.SCHEMA)
        loaded = store.load()
        self.assertEqual((loaded.next_id, [row.id for row in loaded.jobs]), (5, [2, 4]))
        self.assertEqual(loaded.tasks, [task_row(2, 1)])
        row = job_row(1, state="succeeded", queued=0, succeeded=1, started_at=1.0, finished_at=201.0, once="key")
        self.assertEqual(store.job(1), row)
        self.assertEqual(store.output(1, 0), (b"out\n", b"\xff"))
        self.assertEqual(store.job_counts(), {"succeeded": 1, "failed": 1, "running": 1, "queued": 1})
        self.assertEqual([row.id for row in store.list_jobs(None, None, "ann", None, 9)], [4, 3, 2, 1])
        self.assertEqual([row.id for row in store.list_jobs("failed", "x.py", "ann", None, 9)], [3])
        self.assertEqual(store.positions(3, ("failed",), 0, 9), [0])
        store.apply([UpdateJob(4, {"state": "failed", "finished_at": 1.0}), ForgetJob(1)])
        self.assertEqual(store.job_counts(), {"failed": 2, "running": 1})

    def test_what_is_converted_is_as_what_is_made_new(self) -> None:
        """If this fails, a step of MIGRATIONS is missing or does not lead to TABLES."""
        sql = "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY name"
        new = self.store.db.execute(sql).fetchall()
        self.old().close()
        converted = self.converted().db.execute(sql).fetchall()
        self.assertEqual([tuple(map(_squeezed, row)) for row in converted], [tuple(map(_squeezed, row)) for row in new])

    def test_a_row_whose_end_nobody_noted_is_not_lost_in_a_conversion(self) -> None:
        old = self.old()
        old.execute("UPDATE job SET finished_at = NULL WHERE id = 1")
        old.execute("UPDATE job SET finished_at = 9.0 WHERE id = 2")
        old.close()
        store = self.converted()
        self.assertEqual([row.id for row in store.load().jobs], [2, 4])
        self.assertEqual([row.id for row in store.list_jobs("succeeded", None, None, None, 9)], [1])

    def test_a_conversion_that_fails_changes_nothing(self) -> None:
        def fails(db: sqlite3.Connection) -> None:
            step(db)
            db.execute("INSERT INTO nowhere VALUES (1)")

        step = schema.MIGRATIONS[1]
        plain = self.old()
        before = list(plain.iterdump())
        plain.close()
        with mock.patch.dict(schema.MIGRATIONS, {1: fails}), self.assertRaisesRegex(StoreError, "nowhere"):
            self.converted()
        plain = sqlite3.connect(self.store.path)
        self.addCleanup(plain.close)
        self.assertEqual((list(plain.iterdump()), plain.execute("PRAGMA user_version").fetchone()), (before, (1,)))
        plain.close()
        self._check_converted(self.converted())

    def test_a_death_within_a_conversion_is_repeated(self) -> None:
        code = (
            "import os, sys; from src import schema; from src.store import Store\n"
            "step = schema.MIGRATIONS[1]\n"
            "schema.MIGRATIONS[1] = lambda db: (step(db), os._exit(3))\n"
            "Store(sys.argv[1]).open()"
        )
        self.old().close()
        command = [sys.executable, "-c", code, self.folder]
        self.assertEqual(subprocess.run(command, cwd=ROOT, timeout=60, stderr=subprocess.DEVNULL).returncode, 3)
        self._check_converted(self.converted())

    def test_a_schema_that_nobody_knows_the_way_from(self) -> None:
        self.old(version=0).close()
        with self.assertRaisesRegex(StoreError, "unknown schema 0"):
            self.again()


def _squeezed(text: str | None) -> str:
    return " ".join((text or "").split())
