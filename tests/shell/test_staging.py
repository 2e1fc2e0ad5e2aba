"""Where a job's files lie: scripts, working folders, sent files; content fetched from a made-up manager."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import tempfile
from pathlib import Path
from typing import Any, Callable, Optional
from unittest import mock

from src import fetching, staging
from src.core.errors import MicroclusterError, StoreError
from src.core.jobs import TaskKey
from src.core.syntax import to_wire
from src.fetching import Fetches
from src.spool import Blobs
from src.staging import Plan, Stage
from tests.support.leaks import Case
from tests.support.marks import linux_only
from tests.support.sim import spec
from tests.support.waiting import wait_until


def hash_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class StageCase(Case):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = Path(folder.name)
        self.blobs = Blobs(str(self.root / "blobs"), durable=False)
        self.stage = Stage(self.root, self.blobs)
        self.addCleanup(self.close)

    def close(self) -> None:
        if self.stage is not None:
            self.stage.close()

    def plan(self, script: bytes = b"print(1)\n", name: str = "x.py", job: int = 7, **changes: Any) -> Plan:
        """A job whose content is all here."""
        modules = [[to_wire(path), self.blobs.put_bytes(data)] for path, data in changes.pop("modules", {}).items()]
        found = spec(script={"name": to_wire(name), "hash": self.blobs.put_bytes(script)}, modules=modules, **changes)
        plan = Plan(job, found)
        plan.load(self.blobs)
        return plan

    def empty(self) -> bool:
        return not list((self.root / "trash").iterdir())


class TestScripts(StageCase):
    def test_the_same_script_has_the_same_path_from_job_to_job(self) -> None:
        modules = {"helper.py": b"A = 1\n", "pack/__init__.py": b"", "pack/inner.py": b"B = 2\n"}
        plans = [self.plan(modules=modules, job=job) for job in (1, 2)]
        for plan in plans:
            self.stage.lay_out(plan)
        self.assertEqual(plans[0].script, plans[1].script)
        folder = Path(plans[0].script).parent
        self.assertEqual(Path(plans[0].script).name, "x.py")
        self.assertEqual((folder / "pack" / "inner.py").read_bytes(), b"B = 2\n")
        other = self.plan(modules={"helper.py": b"A = 2\n"})
        self.stage.lay_out(other)
        self.assertNotEqual(other.script, plans[0].script)

    def test_any_name(self) -> None:
        for name in ("new\nline.py", "\udcff.py", "-c", "ünï.py"):
            plan = self.plan(name=name)
            self.stage.lay_out(plan)
            self.assertEqual(Path(plan.script).read_bytes(), b"print(1)\n")

    def test_a_script_that_a_job_changed_is_laid_out_again(self) -> None:
        plan = self.plan(modules={"helper.py": b"A = 1\n"})
        self.stage.lay_out(plan)
        before = plan.script
        self.stage.check_script(plan)
        Path(plan.script).write_bytes(b"evil()\n\n")
        self.stage.check_script(plan)
        self.assertEqual((plan.script, Path(plan.script).read_bytes()), (before, b"print(1)\n"))
        Path(plan.script).unlink()
        self.stage.check_script(plan)
        self.assertTrue(Path(plan.script).exists())
        Path(plan.script).with_name("helper.py").write_bytes(b"A = 9\n")
        again = self.plan(modules={"helper.py": b"A = 1\n"})
        self.stage.lay_out(again)
        self.assertEqual(Path(again.script).with_name("helper.py").read_bytes(), b"A = 1\n")

    def test_content_is_never_shared_with_a_job(self) -> None:
        plan = self.plan()
        self.stage.lay_out(plan)
        Path(plan.script).write_bytes(b"changed")
        self.assertEqual(Path(self.blobs.path(plan.spec["script"]["hash"])).read_bytes(), b"print(1)\n")

    def test_unused_ones_are_evicted_the_oldest_first(self) -> None:
        with mock.patch.object(staging, "SCRIPTS_KEPT", 2):
            plans = [self.plan(script=b"%d" % n, job=n) for n in range(4)]
            for plan in plans:
                self.stage.lay_out(plan)
                os.utime(Path(plan.script).parent, (1000 + plan.job, 1000 + plan.job))
            for plan in plans[1:]:
                self.stage.release(plan)
            self.stage.lay_out(self.plan(script=b"new"))
        there = [Path(plan.script).exists() for plan in plans]
        self.assertEqual(there, [True, False, True, True])


class TestArguments(StageCase):
    def test_what_travels_as_content(self) -> None:
        args, env = [f"{n}" for n in range(10_000)] + [{"b64": "/w=="}], {"A": "b"}
        plan = self.plan(
            args=None, args_blob=self.blobs.put_bytes(json.dumps(args).encode()),
            env=None, env_blob=self.blobs.put_bytes(json.dumps(env).encode()),
        )  # fmt: skip
        self.assertEqual(plan.argv(0, self.blobs)[-2:], ["9999", "\udcff"])
        self.assertEqual(plan.env, env)
        self.assertIn(plan.spec["args_blob"], plan.pinned())

    def test_lines(self) -> None:
        chunks = [b"zero\none\ntwo", b"three\n\xff\xfe", b"five"]
        listed = [[first, self.blobs.put_bytes(data)] for first, data in zip((0, 3, 5), chunks)]
        plan = self.plan(args=["-v"], lines={"chunks": listed}, count=6)
        found = [plan.argv(pos, self.blobs) for pos in (5, 0, 1, 2, 3, 4)]
        self.assertEqual([words[1] for words in found], ["five", "zero", "one", "two", "three", "\udcff\udcfe"])
        self.assertEqual(plan.chunk_of(4), listed[1][1])
        self.assertNotIn(listed[0][1], plan.blobs)
        self.assertIsNone(self.plan().chunk_of(0))

    def test_a_grid(self) -> None:
        plan = self.plan(args=["train"], grid=[["lr", ["1", "2"]], ["seed", ["7", "8"]]], count=4)
        self.assertEqual(plan.argv(2, self.blobs), ["train", "--lr", "2", "--seed", "7"])


class TestFolders(StageCase):
    KEY = TaskKey(7, 3, 1)

    def manifest(self, *entries: list[Any]) -> dict[str, Any]:
        return {"manifest": self.blobs.put_bytes(json.dumps(entries).encode()), "files": 1, "bytes": 1}

    def test_new_private_and_gone_afterwards(self) -> None:
        folder, temp = self.stage.make(self.KEY)
        self.assertEqual([stat.S_IMODE(os.stat(path).st_mode) for path in (folder, temp)], [0o700, 0o700])
        self.assertEqual(os.listdir(folder), [])
        self.stage.clear(folder, temp)
        self.assertFalse(os.path.exists(folder) or os.path.exists(temp))
        self.assertIsNone(self.stage._janitor, "empty folders need no thread")

    def test_whatever_is_in_them(self) -> None:
        folder, temp = self.stage.make(self.KEY)
        deep = Path(folder, "a", "b")
        deep.mkdir(parents=True)
        (deep / "file").write_text("x")
        (deep / "file").chmod(0)
        (deep / "out").symlink_to(self.root / "blobs")
        for path in (deep, deep.parent, Path(folder)):
            path.chmod(0o500)
        Path(temp).rmdir()
        Path(temp).symlink_to(self.root / "blobs")
        before = sorted((self.root / "blobs").rglob("*"))
        self.stage.clear(folder, temp)
        self.assertFalse(os.path.lexists(folder) or os.path.lexists(temp))
        wait_until(self.empty, what="the trash to be emptied")
        self.assertEqual(sorted((self.root / "blobs").rglob("*")), before)

    def test_very_deep_ones(self) -> None:
        folder, temp = self.stage.make(self.KEY)
        at = os.open(folder, os.O_RDONLY)
        for _ in range(1500):
            os.mkdir("d", dir_fd=at)
            inner = os.open("d", os.O_RDONLY, dir_fd=at)
            os.close(at)
            at = inner
        os.close(at)
        self.stage.clear(folder, temp)
        wait_until(self.empty, what="the trash to be emptied")

    def test_folders_of_a_worker_that_was_killed_are_removed(self) -> None:
        folder, temp = self.stage.make(self.KEY)
        Path(folder, "x").write_text("x")
        second = Stage(self.root, self.blobs)
        self.addCleanup(second.close)
        self.assertFalse(os.path.exists(folder) or os.path.exists(temp))
        second.make(self.KEY)

    def test_sent_files(self) -> None:
        names = [self.blobs.put_bytes(data) for data in (b"run me", b"large" * 100_000, b"")]
        plan = self.plan(
            send=self.manifest(
                ["d", "data", 0o555],
                ["d", "data/empty", 0o755],
                ["f", "data/run", 0o755, names[0], 6],
                ["f", "data/large", 0o400, names[1], 500_000],
                ["f", {"b64": "/w=="}, 0o644, names[2], 0],
                ["l", "data/link", "../top"],
                ["l", "top", "data/run"],
            )
        )
        self.assertEqual(set(plan.load(self.blobs)), set(names))
        self.assertFalse(plan.large())
        folder, temp = self.stage.make(self.KEY)
        self.stage.fill(plan, folder)
        modes = {
            name: stat.S_IMODE(os.lstat(f"{folder}/{name}").st_mode) for name in ("data", "data/run", "data/large")
        }
        self.assertEqual(modes, {"data": 0o555, "data/run": 0o755, "data/large": 0o400})
        self.assertEqual(Path(folder, "data/link").read_bytes(), b"run me")
        self.assertEqual(Path(folder, "data/large").stat().st_size, 500_000)
        self.assertEqual(Path(folder, "data/run").stat().st_nlink, 1)
        self.assertTrue(os.path.exists(f"{folder}/\udcff"))
        self.stage.clear(folder, temp)
        wait_until(self.empty, what="the trash to be emptied")

    def test_a_manifest_cannot_lead_outside(self) -> None:
        name = self.blobs.put_bytes(b"x")
        for entry in (
            ["f", "../x", 0o644, name, 1], ["f", "/etc/x", 0o644, name, 1], ["d", "a/../../x", 0o755],
            ["l", "x", "/etc"], ["l", "a/x", "../../etc"], ["f", "a//b", 0o644, name, 1], ["p", "x", 0o644],
        ):  # fmt: skip
            with self.assertRaises(MicroclusterError, msg=str(entry)):
                self.plan(send=self.manifest(entry))

    def test_nothing_is_written_through_a_link(self) -> None:
        name = self.blobs.put_bytes(b"x")
        plan = self.plan(send=self.manifest(["l", "a", "b"], ["d", "b", 0o755], ["f", "a/x", 0o644, name, 1]))
        folder, _ = self.stage.make(self.KEY)
        with self.assertRaises(OSError):
            self.stage.fill(plan, folder)

    def test_a_socket_fits_into_the_temporary_folder(self) -> None:
        deep = self.root / ("d" * 60) / ("e" * 60)
        deep.mkdir(parents=True)
        stage = Stage(deep, self.blobs)
        _, temp = stage.make(self.KEY)
        self.assertLess(len(temp), staging.TEMP_LENGTH + 30)
        self.assertEqual(staging.temp_root(deep), os.path.dirname(temp), "the next worker finds it")
        stage.close()
        wait_until(lambda: not os.path.exists(os.path.dirname(temp)), what="it to be removed")

    @linux_only
    def test_each_worker_claims_a_folder_of_its_own(self) -> None:
        one, first = staging.claim(self.root / "data")
        two, second = staging.claim(self.root / "data")
        self.assertEqual((one.name, two.name), ("1", "2"))
        os.close(first)
        three, third = staging.claim(self.root / "data")
        self.assertEqual(three, one)
        os.close(second)
        os.close(third)
        (self.root / "file").write_text("")
        with self.assertRaisesRegex(StoreError, "--data"):
            staging.claim(self.root / "file")


class FakeManager:
    """Answers `need` from what it has, in pieces, when told to."""

    outbox_bytes = 0

    def __init__(self, *contents: bytes) -> None:
        self.has = {hash_of(data): data for data in contents}
        self.asked: list[str] = []

    def send(self, header: dict[str, Any], payload: Any = b"") -> None:
        assert header["t"] == "need" and len(header["hashes"]) <= 2000
        self.asked += header["hashes"]

    def answer(self, target: Fetches, piece: int = 256 * 1024, pieces: int = 1 << 30) -> None:
        while self.asked:
            name = self.asked.pop(0)
            if name not in self.has:
                target.on_missing(name)
                continue
            data = self.has[name]
            for start in range(0, max(len(data), 1), piece):
                if pieces <= 0:
                    return
                pieces -= 1
                target.on_blob(name, len(data), start, data[start : start + piece])


class TestFetching(StageCase):
    def setUp(self) -> None:
        super().setUp()
        self.ends: list[Optional[str]] = []

    def fetches(self, limit: int = 1 << 30, pinned: Optional[set[str]] = None) -> Fetches:
        return Fetches(self.blobs, self.helper, lambda: pinned or set(), limit)

    @staticmethod
    def helper(work: Callable[[], Any], done: Callable[[Any, Optional[Exception]], None]) -> None:
        try:
            found = work()
        except (OSError, ValueError) as error:
            done(None, error)
        else:
            done(found, None)

    def want(self, fetches: Fetches, *contents: bytes) -> None:
        fetches.want([hash_of(data) for data in contents], self.ends.append)

    def test_what_is_missing_is_asked_for_once(self) -> None:
        fetches, manager = self.fetches(), FakeManager(b"a", b"b", b"")
        self.want(fetches, b"a", b"b")
        self.assertEqual(manager.asked, [])
        fetches.on_welcome(manager)
        self.want(fetches, b"b", b"")
        self.assertEqual(sorted(manager.asked), sorted(hash_of(data) for data in (b"a", b"b", b"")))
        manager.answer(fetches)
        self.assertEqual(self.ends, [None, None])
        self.want(fetches, b"a", b"b")
        self.assertEqual(self.ends, [None] * 3)
        self.assertEqual(manager.asked, [])

    def test_large_content_through_cuts(self) -> None:
        data = os.urandom(1_000_000)
        fetches, manager = self.fetches(), FakeManager(data)
        with mock.patch.object(fetching, "LARGE_BYTES", 1000):
            self.want(fetches, data)
            for piece in (70_000, 110_000, 256_000):
                fetches.on_welcome(manager)
                manager.answer(fetches, piece, pieces=4)
                fetches.on_disconnected()
            fetches.on_welcome(manager)
            manager.answer(fetches)
        self.assertEqual(self.ends, [None])
        self.assertEqual(Path(self.blobs.path(hash_of(data))).read_bytes(), data)

    def test_what_the_manager_lost(self) -> None:
        fetches, manager = self.fetches(), FakeManager(b"b")
        fetches.on_welcome(manager)
        self.want(fetches, b"a", b"b")
        manager.answer(fetches)
        self.assertEqual(self.ends, ["the manager does not have its files any more"])

    def test_what_arrives_broken_is_asked_for_again_but_not_for_ever(self) -> None:
        fetches, manager = self.fetches(), FakeManager(b"good")
        fetches.on_welcome(manager)
        self.want(fetches, b"good")
        manager.asked.clear()
        fetches.on_blob(hash_of(b"good"), 4, 0, b"evil")
        self.assertEqual(len(manager.asked), 1)
        manager.answer(fetches)
        self.assertEqual(self.ends, [None])
        self.want(fetches, b"never")
        for _ in range(fetching.TRIES):
            fetches.on_blob(hash_of(b"never"), 4, 0, b"evil")
        self.assertIn("does not fit its hash", self.ends[1] or "")

    def test_a_full_disk_is_said(self) -> None:
        fetches, manager = self.fetches(), FakeManager(b"a")
        fetches.on_welcome(manager)
        self.want(fetches, b"a")
        with mock.patch.object(self.blobs, "upload", side_effect=OSError(28, "No space left on device")):
            manager.answer(fetches)
        self.assertEqual(self.ends, ["its files could not be stored here: No space left on device"])

    def test_few_at_a_time(self) -> None:
        contents = [b"%d" % n for n in range(1000)]
        fetches, manager = self.fetches(), FakeManager(*contents)
        fetches.on_welcome(manager)
        self.want(fetches, *contents)
        self.assertEqual(len(manager.asked), fetching.AT_A_TIME)
        self.want(fetches, b"0")
        manager.answer(fetches)
        self.assertEqual(self.ends, [None, None])

    def test_the_cache_is_kept_in_bounds_without_what_is_in_use(self) -> None:
        contents = [bytes([n]) * 1000 for n in range(20)]
        used = {hash_of(contents[0])}
        fetches, manager = self.fetches(limit=5000, pinned=used), FakeManager(*contents)
        fetches.on_welcome(manager)
        for n, data in enumerate(contents):
            self.want(fetches, data)
            manager.answer(fetches)
            os.utime(self.blobs.path(hash_of(data)), (1000 + n, 1000 + n))
        self.assertEqual(self.ends, [None] * 20)
        self.assertLess(self.blobs.total_bytes(), 7000)
        self.assertTrue(self.blobs.has(hash_of(contents[0])) and self.blobs.has(hash_of(contents[19])))
