"""Returned files: what a pattern matches, what is left out, and how it gets to a manager that fails in between."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import tempfile
from collections import deque
from pathlib import Path
from typing import Any, Callable, Optional

from src import uploads
from src.core.jobs import TaskKey
from src.core.messages import check_manifest
from src.loop import Loop
from src.spool import Blobs, FileRange
from src.uploads import Uploads, gather
from tests.support.leaks import Case
from tests.support.marks import linux_only

KEY = TaskKey(7, 0, 1)


class FolderCase(Case):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = Path(folder.name)
        self.folder = self.root / "work"
        self.folder.mkdir()

    def put(self, path: str, data: bytes = b"x", mode: int = 0o644) -> Path:
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        file.chmod(mode)
        return file

    def found(self, *patterns: str) -> list[str]:
        entries = gather(str(self.folder), list(patterns)).entries
        check_manifest(json.dumps(entries).encode())
        return [entry[1] for entry in entries if entry[0] != "d"]


class TestGather(FolderCase):
    def test_patterns(self) -> None:
        for path in ("a.csv", "b.txt", "out/a.csv", "out/deep/b.csv", ".hidden.csv", "out/.git/c.csv"):
            self.put(path)
        self.assertEqual(self.found("*.csv"), ["a.csv"])
        self.assertEqual(self.found("**/*.csv"), ["a.csv", "out/a.csv", "out/deep/b.csv"])
        self.assertEqual(self.found("out/*/b.csv"), ["out/deep/b.csv"])
        self.assertEqual(self.found("./out/a.csv", "[ab].*"), ["a.csv", "b.txt", "out/a.csv"])
        self.assertEqual(self.found("nothing", "*/nothing"), [])
        self.assertEqual(self.found(".*"), [".hidden.csv"])
        self.assertEqual(self.found("**"), ["a.csv", "b.txt", "out/.git/c.csv", "out/a.csv", "out/deep/b.csv"])

    def test_a_folder_is_returned_whole_with_its_parents_first(self) -> None:
        self.put("out/deep/x", mode=0o755)
        (self.folder / "out" / "empty").mkdir()
        entries = gather(str(self.folder), ["out/deep", "out/empty"]).entries
        self.assertEqual([(entry[0], entry[1]) for entry in entries],
                         [("d", "out"), ("d", "out/deep"), ("f", "out/deep/x"), ("d", "out/empty")])  # fmt: skip
        self.assertEqual(entries[2][2:], [0o755, hashlib.sha256(b"x").hexdigest(), 1])

    def test_nothing_outside(self) -> None:
        (self.root / "secret").write_text("s")
        (self.folder / "up").symlink_to(self.root)
        self.assertEqual(self.found("../secret", "up/secret", "**/secret", "*/secret", "/etc/passwd"), [])

    def test_links_that_stay_inside_are_kept(self) -> None:
        self.put("data/a")
        (self.folder / "good").symlink_to("data/a")
        (self.folder / "data" / "up").symlink_to("../good")
        (self.folder / "folder").symlink_to("data")
        (self.folder / "bad").symlink_to("../../etc")
        (self.folder / "worse").symlink_to("/etc/passwd")
        (self.folder / "dangling").symlink_to("not/there")
        result = gather(str(self.folder), ["*"])
        self.assertEqual(
            [entry[1] for entry in result.entries if entry[0] == "l"], ["dangling", "data/up", "folder", "good"]
        )
        self.assertEqual(
            result.note, "not returned: bad (a link that leads outside), worse (a link that leads outside)"
        )

    @linux_only
    def test_special_files_are_named(self) -> None:
        self.put("a")
        os.mkfifo(self.folder / "fifo")
        server = socket.socket(socket.AF_UNIX)
        self.addCleanup(server.close)
        server.bind(str(self.folder / "socket"))
        os.mkfifo(self.folder / "x\ny")
        os.mkfifo(self.folder / "z")
        result = gather(str(self.folder), ["*"])
        self.assertEqual([entry[1] for entry in result.entries], ["a"])
        self.assertEqual(
            result.note,
            "not returned: fifo (a special file), socket (a special file), x?y (a special file) and 1 more",
        )

    def test_what_the_job_locked_is_returned_all_the_same(self) -> None:
        self.put("locked/a", mode=0)
        (self.folder / "locked").chmod(0)
        entries = gather(str(self.folder), ["locked"]).entries
        self.assertEqual([entry[:3] for entry in entries], [["d", "locked", 0], ["f", "locked/a", 0]])

    def test_any_name(self) -> None:
        for name in (b"new\nline", b"\xff\xfe", "ü".encode(), b"-rf"):
            Path(os.fsdecode(os.fsencode(self.folder) + b"/" + name)).write_bytes(b"x")
        result = gather(str(self.folder), ["*"])
        self.assertEqual(len(check_manifest(json.dumps(result.entries).encode())), 4)

    def test_no_folder(self) -> None:
        self.assertEqual(gather(str(self.root / "gone"), ["**"]), uploads.Gathered([], {}, None))


class FakeManager:
    """The connection and the other side of it: takes pieces into a real store, answers when `turn` is called."""

    outbox_bytes = 0

    def __init__(self, blobs: Blobs) -> None:
        self.blobs = blobs
        self.pieces: deque[tuple[dict[str, Any], bytes]] = deque()
        self.bytes = 0
        self.full = False

    def send(self, header: dict[str, Any], payload: Any = b"") -> None:
        if isinstance(payload, FileRange):
            try:
                with open(payload.path, "rb") as file:
                    file.seek(payload.offset)
                    payload = file.read(payload.length)
            except OSError:
                payload = b""
        assert len(payload) <= 1 << 20
        self.bytes += len(payload)
        self.pieces.append((dict(header), payload))

    def turn(self, target: Uploads, most: int = 1 << 30) -> None:
        while self.pieces and most > 0:
            most -= 1
            header, data = self.pieces.popleft()
            assert header["t"] == "put"
            if self.full:
                target.on_error("disk-full")
                continue
            try:
                offset, done = self.blobs.upload(header["hash"], header["size"], header["offset"], data)
            except ValueError:
                target.on_error("blob")
                continue
            target.on_put_ok(header["hash"], offset, done)


class TestUploads(FolderCase):
    def setUp(self) -> None:
        super().setUp()
        self.loop = Loop()
        self.addCleanup(self.loop.close)
        self.blobs = Blobs(str(self.root / "blobs"), durable=False)
        self.uploads = Uploads(self.loop, self.helper)
        self.manager = FakeManager(self.blobs)
        self.ends: list[tuple[Optional[str], Optional[str]]] = []

    def helper(self, work: Callable[[], Any], done: Callable[[Any, Optional[Exception]], None]) -> None:
        done(work(), None)

    def connect(self) -> None:
        self.manager.pieces.clear()
        self.uploads.on_welcome(self.manager)

    def collect(self, *patterns: str, key: TaskKey = KEY) -> None:
        self.uploads.collect(key, str(self.folder), list(patterns), lambda *end: self.ends.append(end))

    def returned(self) -> dict[str, bytes]:
        """What the manager can give to `fetch` after the last end."""
        name = self.ends[-1][0]
        assert name is not None
        entries = check_manifest(Path(self.blobs.path(name)).read_bytes())
        return {entry[1]: Path(self.blobs.path(entry[3])).read_bytes() for entry in entries if entry[0] == "f"}

    def test_files_arrive(self) -> None:
        files = {"a": b"hello", "empty": b"", "large": os.urandom(3_000_000), "same": b"hello"}
        for name, data in files.items():
            self.put(name, data)
        self.connect()
        self.collect("*")
        self.manager.turn(self.uploads)
        self.assertEqual(self.returned(), files)
        self.assertEqual(len(self.ends), 1)
        self.assertIsNone(self.ends[0][1])

    def test_what_the_manager_has_is_not_sent(self) -> None:
        data = os.urandom(2_000_000)
        self.blobs.put_bytes(data)
        self.put("large", data)
        self.connect()
        self.collect("*")
        self.manager.turn(self.uploads)
        self.assertLess(self.manager.bytes, 1000)
        self.assertEqual(self.returned(), {"large": data})

    def test_nothing_to_return(self) -> None:
        self.connect()
        self.collect("*")
        self.assertEqual(self.ends, [(None, None)])

    def test_it_goes_on_where_it_was_after_a_cut(self) -> None:
        data = os.urandom(6_000_000)
        self.put("large", data)
        self.collect("*")
        self.assertEqual(self.ends, [], "there is no connection yet")
        for _ in range(4):
            self.connect()
            self.manager.turn(self.uploads, most=6)
            self.uploads.on_disconnected()
        self.connect()
        self.manager.turn(self.uploads)
        self.assertEqual(self.returned(), {"large": data})
        self.assertLess(self.manager.bytes, 30_000_000)
        self.assertEqual(len(self.ends), 1)

    def test_not_too_much_is_on_its_way(self) -> None:
        self.put("large", os.urandom(8_000_000))
        self.connect()
        self.collect("*")
        for _ in range(3):
            self.manager.turn(self.uploads, most=1)
            self.assertLessEqual(len(self.manager.pieces), uploads.IN_FLIGHT)

    def test_a_full_disk_of_the_manager_is_waited_for(self) -> None:
        self.put("a", b"hello")
        self.connect()
        self.manager.full = True
        self.collect("*")
        self.manager.turn(self.uploads)
        self.assertEqual(self.ends, [])
        self.manager.full = False
        self.uploads._restart()  # its timer
        self.manager.turn(self.uploads)
        self.assertEqual(self.returned(), {"a": b"hello"})

    def test_a_file_that_changes_meanwhile_is_left_out_and_said(self) -> None:
        self.put("good", b"good")
        path = self.put("bad", os.urandom(1_000_000))
        self.collect("*")
        path.write_bytes(b"y" * 1_000_000)
        self.connect()
        for _ in range(uploads.TRIES + 1):
            self.manager.turn(self.uploads)
            self.loop.turn(0)
        self.assertEqual(self.returned(), {"good": b"good"})
        self.assertIn("changed", self.ends[0][1] or "")

    def test_a_file_that_vanishes_meanwhile_is_left_out(self) -> None:
        self.put("good", b"good")
        path = self.put("bad", os.urandom(1_000_000))
        self.collect("*")
        path.unlink()
        self.connect()
        for _ in range(uploads.TRIES + 1):
            self.manager.turn(self.uploads)
            self.loop.turn(0)
        self.assertEqual(self.returned(), {"good": b"good"})

    def test_discarded_ones_are_not_sent_and_others_go_on(self) -> None:
        self.put("same", b"z" * 500_000)
        self.collect("*")
        self.collect("*", key=TaskKey(7, 1, 1))
        self.uploads.discard(KEY)
        self.uploads.discard(KEY)
        self.connect()
        self.manager.turn(self.uploads)
        self.assertEqual(len(self.ends), 1)
        self.uploads.discard(TaskKey(7, 1, 1))
        self.assertEqual((self.uploads._contents, self.uploads._active, self.uploads._returns), ({}, {}, {}))

    def test_many_files_of_many_tasks(self) -> None:
        for n in range(60):
            self.put(f"out/{n}", b"%d" % n)
        self.connect()
        for pos in range(5):
            self.collect("out/*", key=TaskKey(7, pos, 1))
        self.manager.turn(self.uploads)
        self.assertEqual(len(self.ends), 5)
        self.assertEqual(len(self.returned()), 60)
        self.assertLess(self.manager.bytes, 60_000)
