"""fetch: files of a manager that may lie, into a folder and nowhere else."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import sys
import tempfile
import unittest
from typing import Any
from unittest import mock

from src import downloads
from src.core.errors import MicroclusterError, Refused


class FakeManager:
    """One task's files; `blobs` by name, which need not fit their content."""

    def __init__(self, array: bool = False) -> None:
        self.blobs: dict[str, bytes] = {}
        self.array = array
        self.manifest: str | None = None
        self.state = "succeeded"
        self.asked: list[tuple[str, int]] = []

    def add(self, data: bytes) -> str:
        name = hashlib.sha256(data).hexdigest()
        self.blobs[name] = data
        return name

    def returns(self, *entries: list[Any]) -> None:
        self.manifest = self.add(json.dumps(entries).encode())

    def request(self, header: dict[str, Any], payload: bytes = b"") -> tuple[dict[str, Any], bytes]:
        if header["t"] == "status":
            return {"jobs": [{"id": "7", "tasks": {"total": 1} if self.array else None}]}, b""
        if header["t"] == "files":
            return {"tasks": [[0, 5, self.manifest, self.state]], "count": 1, "more": None, "id": 7}, b""
        data = self.blobs[header["hash"]]
        self.asked.append((header["hash"], header["offset"]))
        return {"size": len(data)}, data[header["offset"] : header["offset"] + min(header["max"], 4)]


class FetchTest(unittest.TestCase):
    def setUp(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="microcluster-fetch-")
        self.addCleanup(shutil.rmtree, self.folder)
        self.into = os.path.join(self.folder, "into")
        os.mkdir(self.into)

    def fetch(self, manager: Any) -> list[str]:
        printed = io.TextIOWrapper(io.BytesIO(), "utf-8", "surrogateescape")
        with mock.patch.object(sys, "stdout", printed), contextlib.redirect_stderr(io.StringIO()):
            self.assertEqual(downloads.fetch(manager, {"job": 7}, self.into), 0)
        printed.seek(0)
        return [os.path.relpath(line.rstrip("\n"), self.into) for line in printed]

    def content(self, path: str) -> bytes:
        with open(os.path.join(self.into, path), "rb") as file:
            return file.read()

    def test_files_folders_links_and_modes(self) -> None:
        manager = FakeManager()
        text = manager.add(b"some content")
        manager.returns(
            ["d", "out", 0o755], ["f", "out/a.txt", 0o755, text, 12], ["l", "out/b", "a.txt"], ["d", "empty", 0o755],
            ["f", {"b64": "/w=="}, 0o600, manager.add(b""), 0],
        )  # fmt: skip
        self.assertEqual(self.fetch(manager), ["out/a.txt", "out/b", "\udcff"])
        self.assertEqual(self.content("out/a.txt"), b"some content")
        self.assertEqual(os.readlink(os.path.join(self.into, "out/b")), "a.txt")
        self.assertEqual(os.stat(os.path.join(self.into, "out/a.txt")).st_mode & 0o777, 0o755)
        self.assertTrue(os.path.isdir(os.path.join(self.into, "empty")))

    def test_a_task_of_an_array_has_its_folder_even_when_it_is_the_only_one(self) -> None:
        manager = FakeManager(array=True)
        manager.returns(["f", "a", 0o644, manager.add(b"x"), 1])
        self.assertEqual(self.fetch(manager), ["7.5/a"])

    def test_nothing_is_written_outside(self) -> None:
        os.symlink(self.folder, os.path.join(self.into, "way"))
        for entry in (
            ["f", "../evil", 0o644, "", 4], ["f", "/tmp/evil", 0o644, "", 4], ["f", "a/../../evil", 0o644, "", 4],
            ["f", "way/evil", 0o644, "", 4], ["l", "evil", "../outside"], ["l", "evil", "/etc"], ["f", "", 0o644, "", 4],
        ):  # fmt: skip
            manager = FakeManager()
            if entry[0] == "f":
                entry[3] = manager.add(b"evil")
            manager.returns(entry)
            with self.subTest(entry=entry), self.assertRaises(MicroclusterError):
                self.fetch(manager)
        self.assertEqual(sorted(os.listdir(self.folder)), ["into"])
        self.assertEqual(os.listdir(self.into), ["way"])

    def test_a_link_of_the_list_is_not_followed(self) -> None:
        manager = FakeManager()
        manager.returns(["d", "d", 0o755], ["l", "a", "d"], ["f", "a/x", 0o644, manager.add(b"x"), 1])
        with self.assertRaises(MicroclusterError):
            self.fetch(manager)
        self.assertEqual(os.listdir(os.path.join(self.into, "d")), [])

    def test_a_link_in_the_way_is_replaced_not_written_through(self) -> None:
        precious = os.path.join(self.folder, "precious")
        with open(precious, "w") as file:
            file.write("mine")
        os.symlink(precious, os.path.join(self.into, "a"))
        manager = FakeManager()
        manager.returns(["f", "a", 0o644, manager.add(b"theirs"), 6])
        self.fetch(manager)
        with open(precious) as file:
            self.assertEqual(file.read(), "mine")
        self.assertEqual(self.content("a"), b"theirs")

    def test_a_part_is_gone_on_with(self) -> None:
        manager = FakeManager()
        name = manager.add(b"0123456789")
        manager.returns(["f", "a", 0o644, name, 10])
        with open(os.path.join(self.into, f".{name[:16]}.part"), "wb") as file:
            file.write(b"012345")
        self.fetch(manager)
        self.assertEqual([offset for digest, offset in manager.asked if digest == name], [6])
        self.assertEqual((self.content("a"), os.listdir(self.into)), (b"0123456789", ["a"]))

    def test_content_that_does_not_fit_its_hash(self) -> None:
        manager = FakeManager()
        name = manager.add(b"right")
        manager.returns(["f", "a", 0o644, name, 5])
        manager.blobs[name] = b"wrong"
        with self.assertRaisesRegex(Refused, "did not arrive"):
            self.fetch(manager)
        self.assertEqual(os.listdir(self.into), [])
        assert manager.manifest is not None
        manager.blobs[manager.manifest] = b"[]"
        with self.assertRaisesRegex(Refused, "hash"):
            self.fetch(manager)

    def test_nothing_returned_and_nothing_yet(self) -> None:
        manager = FakeManager()
        self.assertEqual(self.fetch(manager), [])
        manager.state = "running"
        with self.assertRaisesRegex(Refused, "not finished"):
            self.fetch(manager)


if __name__ == "__main__":
    unittest.main()
