"""From what was typed to a description that the manager takes, and its content."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
import unittest
from typing import Any

from src import submission
from src.api import options_of
from src.core.errors import UsageError
from src.core.messages import check_manifest, check_spec


class SubmissionCase(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        self.script = self.write("script.py", b"import helper\n")
        self.write("helper.py", b"x = 1\n")

    def write(self, name: str, content: bytes = b"") -> str:
        path = os.path.join(self.folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(content)
        return path

    def build(self, *args: str, stdin: Any = None, **options: Any) -> submission.Submission:
        found = submission.build(options_of(options), self.script, list(args), stdin)
        check_spec(found.spec)
        for name, source in found.blobs.items():
            if source.data is not None:
                self.assertEqual(hashlib.sha256(source.data).hexdigest(), name)
        return found

    def data(self, found: submission.Submission, name: str) -> bytes:
        data = found.blobs[name].data
        assert data is not None
        return data


class BuildTest(SubmissionCase):
    def test_the_script_its_modules_and_arguments(self) -> None:
        found = self.build("a", "b c", "line\nbreak", "\udcff")
        self.assertEqual(self.data(found, found.spec["script"]["hash"]), b"import helper\n")
        self.assertEqual([path for path, _ in found.spec["modules"]], ["helper.py"])
        self.assertEqual(found.spec["args"], ["a", "b c", "line\nbreak", {"b64": "/w=="}])
        self.assertEqual(self.build(no_modules=True).spec["modules"], [])

    def test_many_arguments_travel_as_content(self) -> None:
        found = self.build(*["argument"] * 10_000)
        self.assertIsNone(found.spec["args"])
        self.assertEqual(len(json.loads(self.data(found, found.spec["args_blob"]))), 10_000)

    def test_arrays_lines_and_grids(self) -> None:
        self.assertEqual(self.build(array="1-9:2").spec["count"], 5)
        grid = self.build(grid=["lr=0.1,0.2", "seed=1..3"]).spec
        self.assertEqual((grid["count"], grid["grid"]), (6, [["lr", ["0.1", "0.2"]], ["seed", ["1", "2", "3"]]]))
        lines = self.build(each_line="-", stdin=io.BytesIO(b"one\n\ntwo\r\nthree")).spec
        self.assertEqual(lines["count"], 3)
        for both in ({"array": "0-1", "each_line": "x"}, {"array": "0-1", "grid": ["a=1"]}, {"grid": ["a=1", "a=2"]}):
            with self.assertRaises(UsageError):
                self.build(**both)

    def test_lines_in_pieces(self) -> None:
        path = self.write("lines", b"".join(b"%06d\n" % n for n in range(100_000)))
        found = self.build(each_line=path)
        chunks = found.spec["lines"]["chunks"]
        self.assertGreater(len(chunks), 1)
        for (first, name), following in zip(chunks, [*chunks[1:], [100_000, ""]]):
            lines = self.data(found, name).split(b"\n")
            self.assertEqual((lines[0], first + len(lines)), (b"%06d" % first, following[0]))
        with self.assertRaisesRegex(UsageError, "no line"):
            self.build(each_line=self.write("empty", b"\n\n"))

    def test_environment_and_dependencies(self) -> None:
        os.environ["MICROCLUSTER_TEST_COPIED"] = "copied"
        self.addCleanup(os.environ.pop, "MICROCLUSTER_TEST_COPIED")
        found = self.build(env=["A=1=2", "MICROCLUSTER_TEST_COPIED", "NOT_THERE"])
        self.assertEqual(found.spec["env"], {"A": "1=2", "MICROCLUSTER_TEST_COPIED": "copied"})
        after = submission.build(
            options_of({"after": ["7"], "after_any": "8.2", "after_each": ["last"]}), self.script, []
        )
        self.assertEqual(
            [(d["job"], d["index"], d["kind"]) for d in after.spec["after"]],
            [(7, None, "ok"), (8, 2, "any"), ("last", None, "each")],
        )
        with self.assertRaises(UsageError):
            self.build(after=["7-9"])

    def test_standard_input_is_read_once(self) -> None:
        for options in ({"each_line": "-", "stdin": "-"}, {"stdin": "-"}):
            script = self.script if "each_line" in options else "-"
            with self.subTest(options=options), self.assertRaisesRegex(UsageError, "cannot both be -"):
                submission.build(options_of(options), script, [])

    def test_names_that_are_not_utf_8(self) -> None:
        script = self.write("od\udcffd.py", b"pass")
        spec = submission.build(options_of({}), script, []).spec
        check_spec(spec)
        self.assertEqual(spec["name"], "od\ufffdd.py")
        with self.assertRaisesRegex(UsageError, "UTF-8"):
            self.build(requirements=self.write("needs", b"\xff"))

    def test_what_is_not_there(self) -> None:
        for options in ({"send": ["nope"]}, {"stdin": "nope"}, {"requirements": "nope"}, {"each_line": "nope"}):
            with self.subTest(options=options), self.assertRaises(UsageError):
                submission.build(options_of(options), self.script, [])
        for script in ("nope.py", self.folder):
            with self.assertRaises(UsageError):
                submission.build(options_of({}), script, [])


class SendTest(SubmissionCase):
    def entries(self, *paths: str) -> dict[str, list[Any]]:
        found = self.build(send=list(paths))
        manifest = self.data(found, found.spec["send"]["manifest"])
        return {entry[1]: entry for entry in check_manifest(manifest)}

    def test_folders_modes_and_links(self) -> None:
        tree = os.path.join(self.folder, "tree")
        self.write("tree/sub/file.txt", b"content")
        os.mkdir(tree + "/empty")
        os.chmod(self.write("tree/run.sh", b"#!"), 0o755)
        os.symlink("sub/file.txt", tree + "/inside")
        os.symlink(self.script, tree + "/outside")
        found = self.entries(tree)
        kinds = {name: entry[0] for name, entry in found.items()}
        self.assertEqual(
            kinds,
            {"tree": "d", "tree/empty": "d", "tree/sub": "d", "tree/sub/file.txt": "f", "tree/run.sh": "f",
             "tree/inside": "l", "tree/outside": "f"},
        )  # fmt: skip
        self.assertEqual((found["tree/run.sh"][2], found["tree/inside"][2]), (0o755, "sub/file.txt"))

    def test_links_that_leave_and_come_back_are_followed(self) -> None:
        self.write("tree/file", b"x")
        os.symlink(f"../../{os.path.basename(self.folder)}/tree/file", os.path.join(self.folder, "tree", "round"))
        os.symlink(os.path.join(self.folder, "tree", "file"), os.path.join(self.folder, "tree", "absolute"))
        found = self.entries(os.path.join(self.folder, "tree"))
        self.assertEqual((found["tree/round"][0], found["tree/absolute"][0]), ("f", "f"))

    def test_what_cannot_be_sent(self) -> None:
        os.mkfifo(os.path.join(self.folder, "pipe"))
        os.mkdir(os.path.join(self.folder, "loop"))
        os.symlink(self.folder + "/loop", os.path.join(self.folder, "loop", "again"))
        for paths in (["pipe"], ["loop"], ["script.py", "sub/../script.py"]):
            with self.subTest(paths=paths), self.assertRaises(UsageError):
                self.entries(*[os.path.join(self.folder, path) for path in paths])
