"""The disk fails, or the process dies, at the first place where it can, then at the second, and so on until all went well:
what was confirmed is there, what was not is there whole or not at all, and doing it again ends well."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import unittest
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from src import faults
from src.core.errors import DiskFull, StoreError
from src.core.saves import ClearOutput, ForgetJob, SaveAttempt, SaveJob, SaveTask, SaveWorker, StoreOutput, UpdateJob
from src.spool import Blobs, Outputs, hash_file
from src.store import Store, StoreBroken
from tests.shell.test_store import job_row, task_row
from tests.support.leaks import Case
from tests.support.marks import slow

ROOT = Path(__file__).resolve().parents[2]
DATA = bytes(range(256)) * 1000
DATA_HASH = hashlib.sha256(DATA).hexdigest()
PIECE = 100_000
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # where a sync takes no time: there are thousands
BATCHES: list[list[Any]] = [
    [SaveJob(job_row(1)), SaveJob(job_row(2)), SaveWorker("id", "w", False, 1e12)],
    [SaveTask(task_row(1)), UpdateJob(1, {"state": "running", "running": 1, "queued": 0}), SaveTask(task_row(2))],
    [SaveTask(task_row(2, attempt=2)), SaveAttempt(2, 0, 1, "w", 1.0, 2.0, "worker lost"), ClearOutput(2, 0)],
    [
        SaveTask(task_row(1, state="succeeded")),
        StoreOutput(1, 0, b"o" * 9000, b"e"),
        UpdateJob(1, {"state": "succeeded", "running": 0, "succeeded": 1, "finished_at": 9.0}),
    ],
    [ForgetJob(1), SaveJob(job_row(3))],
]
STEPS = len(BATCHES) + 5


class Place:
    """A data folder, and what to do in it: steps that may each be repeated. Leaves in order whatever happens."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.store = Store(folder)

    def __enter__(self) -> Place:
        with contextlib.ExitStack() as stack:
            stack.callback(self.store.close)
            self.store.open()
            self.blobs = Blobs(self.folder + "/blobs")
            self.outputs = Outputs(self.folder + "/output")
            stack.callback(self.outputs.close)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def steps(self) -> Iterator[tuple[str, Callable[[], Any]]]:
        yield "blob", lambda: self.blobs.put_bytes(b"content")
        yield "upload", self._upload
        for number, batch in enumerate(BATCHES):
            yield f"batch {number}", partial(self._batch, number, batch)
        yield "clear", lambda: self.store.apply([], clear=self.store.half_forgotten(9))
        yield "output", self._output
        yield "removal", lambda: self.outputs.remove(1, 0, 1)

    def _upload(self) -> None:
        offset, done = self.blobs.upload(DATA_HASH, len(DATA), 0, b"")
        while not done:
            offset, done = self.blobs.upload(DATA_HASH, len(DATA), offset, DATA[offset : offset + PIECE])

    def _batch(self, number: int, batch: list[Any]) -> None:
        if number not in self.batches():
            self.store.apply(batch)

    def _output(self) -> None:
        for attempt in (1, 2):
            for stream in (1, 2):
                self.outputs.write(1, 0, attempt, stream, 0, DATA[:PIECE])
                self.outputs.write(1, 0, attempt, stream, PIECE, DATA[PIECE:])
            self.outputs.sync(1, 0, attempt, 1)

    def batches(self) -> list[int]:
        """Which batches are there, each whole: raises AssertionError otherwise."""
        store = self.store
        job, row = store.job(1), store.task(2, 0)
        if store.job(3) is not None:
            half = bool(store.half_forgotten(9))
            assert (job, store.task(1, 0) is not None, store.output(1, 0) is not None) == (None, half, half)
            done = 5
        elif job is None:
            assert store.newest() is None and row is None
            done = 0
        elif row is None:
            assert (job, store.job(2), store.task(1, 0)) == (job_row(1), job_row(2), None)
            done = 1
        elif store.output(1, 0) is not None:
            assert store.output(1, 0) == (b"o" * 9000, b"e")
            task = store.task(1, 0)
            assert job.state == "succeeded" and task is not None and task.state == "succeeded"
            done = 4
        else:
            assert job.state == "running" and store.task(1, 0) == task_row(1)
            done = row.attempt + 1
        assert len(store.attempts(2, 0)) == (done >= 3)
        assert sum(store.job_counts().values()) == (2 if done else 0)
        return list(range(done))

    def check(self, confirmed: list[str]) -> None:
        """All that was confirmed is there; the rest is there whole, or not at all."""
        done = self.batches()
        wanted = {"blob": hashlib.sha256(b"content").hexdigest(), "upload": DATA_HASH}
        for step, name in wanted.items():
            there = Blobs(self.folder + "/blobs").has(name)
            assert there or step not in confirmed, f"{step} is lost"
            assert not there or hash_file(self.blobs.path(name)) == name, f"{step} is not whole"
        assert "clear" not in confirmed or not self.store.half_forgotten(9), "a forgotten job came back"
        for number in range(len(BATCHES)):
            assert number in done or f"batch {number}" not in confirmed, f"batch {number} is lost"
        for attempt in (1, 2):
            for stream in (1, 2):
                text = self.outputs.read(1, 0, attempt, stream, 0, 1 << 20)
                assert DATA.startswith(text)
                assert len(text) == len(DATA) or "output" not in confirmed or (attempt == 1 and not text)


class EachPlaceTest(Case):
    def folder(self) -> str:
        made = tempfile.TemporaryDirectory(dir=MEMORY)
        self.addCleanup(made.cleanup)
        self.addCleanup(faults.disarm)
        return made.name + "/data"

    def scenario(self, folder: str, what: str, nth: int) -> bool:
        """Everything with a fault at the nth place; whether that was reached."""
        confirmed: list[str] = []
        faults.arm(f"any:{nth}:{what}")
        try:
            with Place(folder) as place:
                for name, step in place.steps():
                    step()
                    confirmed.append(name)
        except (OSError, StoreError) as error:
            self.assert_right_kind(error, what)
        reached = faults.reached("any")
        self.assertEqual(len(confirmed) == STEPS, not reached, "a fault is not passed over in silence")
        faults.disarm()
        with Place(folder) as place:
            place.check(confirmed)
            for _, step in place.steps():
                step()
            place.check([name for name, _ in place.steps()])
            self.assertEqual(os.listdir(place.blobs.folder + "/partial"), [])
        return reached

    def assert_right_kind(self, error: Exception, what: str) -> None:
        if isinstance(error, (DiskFull, StoreBroken)):
            self.assertEqual(isinstance(error, DiskFull), what == "ENOSPC")
        elif isinstance(error, OSError):
            self.assertEqual(errno.errorcode[error.errno or 0], what)

    def test_the_disk_is_full(self) -> None:
        self._each("ENOSPC")

    @slow
    def test_the_disk_fails(self) -> None:
        self._each("EIO")

    @slow
    def test_too_many_files_are_open(self) -> None:
        self._each("EMFILE")

    def _each(self, what: str) -> None:
        for nth in range(1, 200):
            with self.subTest(nth=nth):
                if not self.scenario(self.folder(), what, nth):
                    self.assertGreater(nth, 30)
                    return
        self.fail("it never came to its end")

    def test_the_same_process_goes_on_once_there_is_room(self) -> None:
        """A full disk ends nothing: what could not be stored is tried again, without a restart."""
        with Place(self.folder()) as place:
            confirmed: list[str] = []
            for name, step in place.steps():
                for nth in range(1, 50):
                    faults.arm(f"any:{nth}:ENOSPC")
                    with contextlib.suppress(OSError, DiskFull):
                        step()
                    reached = faults.reached("any")
                    faults.disarm()
                    place.check(confirmed)
                    if not reached:
                        break
                confirmed.append(name)
                place.check(confirmed)

    @slow
    def test_the_process_dies(self) -> None:
        code = (
            "import sys; from tests.shell.test_faults import Place\n"
            "with Place(sys.argv[1]) as place:\n"
            "    for name, step in place.steps():\n"
            "        step(); print(name, flush=True)\n"
        )
        for nth in range(1, 200):
            folder = self.folder()
            environ = {**os.environ, "MICROCLUSTER_FAULTS": f"any:{nth}:die"}
            command = [sys.executable, "-c", code, folder]
            done = subprocess.run(command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, timeout=60)
            confirmed = done.stdout.decode().splitlines()
            with self.subTest(nth=nth), Place(folder) as place:
                place.check(confirmed)
                for _, step in place.steps():
                    step()
                place.check([name for name, _ in place.steps()])
            if done.returncode == 0:
                self.assertEqual(len(confirmed), STEPS)
                return
            self.assertEqual(done.returncode, faults.DIED)
        self.fail("it never came to its end")


WRITER = """
import sys
from tests.shell.test_store import *
store = Store(sys.argv[1])
store.open()
for job in range(1, 400):
    store.apply([SaveJob(job_row(job, name="n" * 3000)), SaveTask(task_row(job)), StoreOutput(job, 0, b"o" * 9000, b"")])
    print(job, flush=True)
"""


@unittest.skipUnless(hasattr(signal, "SIGKILL"), "needs POSIX")
class RealFaultTest(Case):
    """Faults inside SQLite, by the kernel's hand."""

    def setUp(self) -> None:
        made = tempfile.TemporaryDirectory()
        self.addCleanup(made.cleanup)
        self.folder = made.name + "/data"

    def assert_whole(self, folder: str, confirmed: int) -> None:
        store = Store(folder)
        store.open()
        newest = store.newest() or 0
        self.assertIn(newest, (confirmed, confirmed + 1))
        for job in range(1, newest + 1):
            self.assertEqual(store.output(job, 0), (b"o" * 9000, b""))
            self.assertEqual((store.task(job, 0), store.by_request(f"{job:032x}")), (task_row(job), job))
        self.assertEqual(store.load().next_id, newest + 1)
        self.assertEqual(store.db.execute("PRAGMA integrity_check").fetchone()[0], "ok")
        store.close()

    @slow
    def test_killed_at_any_moment(self) -> None:
        for at in (1, 2, 9, 30, 60):
            folder = f"{self.folder}-{at}"
            with subprocess.Popen([sys.executable, "-c", WRITER, folder], cwd=ROOT, stdout=subprocess.PIPE) as process:
                assert process.stdout is not None
                confirmed = 0
                for line in process.stdout:
                    confirmed = int(line)
                    if confirmed == at:
                        process.kill()
            self.assertGreaterEqual(confirmed, at)
            self.assert_whole(folder, confirmed)

    @slow
    def test_writes_that_fail_inside_sqlite(self) -> None:
        """A limit on the size of files: the write that would cross it fails, wherever that is."""
        code = (
            "import resource, signal\n"
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))\n"
        )
        program = WRITER.replace("store = Store", code + "store = Store", 1)
        for pages in (1, 12, 30, 41, 52, 63, 74):
            folder = f"{self.folder}-{pages}"
            command = [sys.executable, "-c", program, folder, str(pages * 4096 + 100)]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=60)
            self.assertEqual(done.returncode, 1)
            last = done.stderr.decode().splitlines()[-1]
            self.assertRegex(last, "StoreBroken: cannot write|StoreError: cannot open")
            self.assert_whole(folder, len(done.stdout.split()))

    def test_sqlites_own_full(self) -> None:
        store = Store(self.folder)
        store.open()
        self.addCleanup(store.close)
        store.db.execute("PRAGMA max_page_count = 60")
        with self.assertRaises(DiskFull):
            store.apply([SaveJob(job_row(n, name="x" * 3000)) for n in range(1, 500)])
        self.assertEqual((store.newest(), store.job_counts()), (None, {}))
        store.db.execute("PRAGMA max_page_count = 1000000")
        store.apply([SaveJob(job_row(1))])

    @slow
    def test_descriptors_run_out(self) -> None:
        code = (
            "import resource, sys; from src.spool import *\n"
            "outputs = Outputs(sys.argv[1])\n"
            "resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20))\n"
            "for pos in range(50):\n"
            "    try: outputs.write(1, pos, 1, 1, 0, b'x')\n"
            "    except OSError as error: print(error.errno); break\n"
            "print(outputs.write(1, 0, 1, 1, 1, b'y'))\n"
            "outputs.close()\n"
            "print(outputs.write(1, pos, 1, 1, 0, b'x'))\n"
        )
        command = [sys.executable, "-c", code, self.folder]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, timeout=60)
        self.assertEqual(done.stdout.split(), [str(errno.EMFILE).encode(), b"2", b"1"])


class PointsTest(Case):
    def setUp(self) -> None:
        self.addCleanup(faults.disarm)

    def test_nothing_happens_unless_armed(self) -> None:
        faults.point("store.commit")
        self.assertFalse(faults.reached("store.commit"))

    def test_the_nth_call_fails_and_no_other(self) -> None:
        faults.arm("here:2:EIO,there:1:ENOSPC")
        faults.point("here")
        faults.point("elsewhere")
        for name, number in (("here", errno.EIO), ("there", errno.ENOSPC)):
            self.assertFalse(faults.reached(name))
            with self.assertRaises(OSError) as caught:
                faults.point(name)
            self.assertEqual(caught.exception.errno, number)
            self.assertTrue(faults.reached(name))
            faults.point(name)

    def test_arming_again_starts_from_the_beginning(self) -> None:
        faults.arm("here:2:EIO")
        faults.point("here")
        faults.arm("here:2:EIO")
        faults.point("here")
        with self.assertRaises(OSError):
            faults.point("here")

    def test_every_place_of_the_source_is_in_the_scenario(self) -> None:
        """A point that nothing passes is never tested."""
        named = set()
        for path in (ROOT / "src").rglob("*.py"):
            for part in path.read_text("utf-8").split('faults.point("')[1:]:
                named.add(part.split('"')[0])
        with tempfile.TemporaryDirectory() as folder, Place(folder + "/data") as place:
            for _, step in place.steps():
                faults.arm(",".join(f"{name}:{1 << 40}:EIO" for name in named))
                step()
                named -= {name for name in named if faults.passed(name)}
        self.assertEqual(named, set())
