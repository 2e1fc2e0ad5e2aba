"""What may come in, from whom, and what a job's description must look like."""

from __future__ import annotations

import json
import random
import unittest
from typing import Any

from src.core import messages
from src.core.messages import BadMessage, check, check_manifest, check_spec, link_stays_inside, safe_relpath
from tests.support.sim import spec

FIN: dict[str, Any] = {
    "task": [1, 0, 1], "exit_code": 0, "finished_at": 1.0, "out": [3, 3], "err": [0, 0], "dropped": 0,
    "timed_out": False, "never_ran": False, "cancelled": False,
}  # fmt: skip


class RolesTest(unittest.TestCase):
    def test_default_is_no(self) -> None:
        for role, kind in (
            ("worker", "submit"), ("worker", "list"), ("read", "cancel"), ("read", "submit"), ("submit", "drain"),
            ("submit", "report"), ("admin", "join"), ("", "list"), ("submit", "nonsense"),
        ):  # fmt: skip
            self.assertFalse(messages.allowed(role, kind), (role, kind))
        for role, kind in (("worker", "report"), ("read", "read"), ("submit", "cancel"), ("admin", "prune")):
            self.assertTrue(messages.allowed(role, kind), (role, kind))

    def test_every_kind_is_for_somebody(self) -> None:
        for kinds in (messages.CLIENT, messages.WORKER):
            for kind in kinds:
                self.assertTrue(any(messages.allowed(role, kind) for role in messages.ALLOWED), kind)


class CheckTest(unittest.TestCase):
    def test_good_ones(self) -> None:
        check(
            "CLIENT",
            {"t": "status", "n": 1, "ids": [{"job": 7}, {"job": "last"}, {"job": 7, "lo": 1, "hi": 2}], "new": 1},
        )
        check("WORKER", {"t": "report", "finished": [dict(FIN)], "output": [[1, 0, 1, 2, 0, 5]]})

    def test_bad_ones(self) -> None:
        bad: list[tuple[str, dict[str, Any]]] = [
            ("CLIENT", {"t": "status", "n": 1}),
            ("CLIENT", {"t": "status", "n": True, "ids": [{"job": 1}]}),
            ("CLIENT", {"t": "status", "n": 1, "ids": [{"job": -1}]}),
            ("CLIENT", {"t": "status", "n": 1, "ids": [{"job": "../x"}]}),
            ("CLIENT", {"t": "report", "n": 1}),
            ("CLIENT", {"t": ["status"], "n": 1}),
            ("CLIENT", {"t": "get", "n": 1, "hash": "../../etc/passwd", "offset": 0, "max": 1}),
            ("CLIENT", {"t": "submit", "n": 1, "request_id": "0" * 32, "inline": [["x", 1]]}),
            ("WORKER", {"t": "report", "output": [[1, 0, 1, 3, 0, 5]]}),
            ("WORKER", {"t": "report", "output": [[1, 0, 1, 1, -1, 5]]}),
            ("WORKER", {"t": "report", "finished": [{**FIN, "out": [3, 4]}]}),
            ("WORKER", {"t": "report", "finished": [{**FIN, "exit_code": "0"}]}),
            ("WORKER", {"t": "report", "finished": [{**FIN, "files": "x"}]}),
            ("WORKER", {"t": "report", "recalled": [[1, 2]]}),
        ]
        for direction, header in bad:
            with self.subTest(header=header), self.assertRaises(BadMessage):
                check(direction, header)

    def test_reasons_from_workers_are_shown_escaped(self) -> None:
        fin = {**FIN, "reason": "evil\x1b[2J\nline"}
        check("WORKER", {"t": "report", "finished": [fin]})
        self.assertEqual(fin["reason"], "evil\\x1b[2J\\nline")

    def test_mutated_messages_are_refused_or_whole(self) -> None:
        whole = {
            "t": "report",
            "finished": [dict(FIN)],
            "started": [[1, 0, 1, 1.0, True, None]],
            "output": [[1, 0, 1, 1, 0, 1]],
        }
        for seed in range(300):
            chance = random.Random(seed)
            message = json.loads(json.dumps(whole))
            target = chance.choice([message, message["finished"][0]])
            target[chance.choice(list(target))] = chance.choice([None, -1, "x", [], {}, 1 << 60, [[]], True, 1.5])
            try:
                check("WORKER", message)
            except BadMessage:
                continue


class SpecTest(unittest.TestCase):
    def test_the_default_is_good(self) -> None:
        check_spec(spec())
        check_spec(spec(count=100, array="0-99"))

    def test_bad_ones(self) -> None:
        for changes in (
            {"count": 0}, {"count": 10_000_001}, {"count": 3, "array": "0-99"}, {"cpus": 0}, {"cpus": True},
            {"timeout": -1}, {"timeout": 0}, {"script": {"name": "../x.py", "hash": "0" * 64}}, {"retries": -1},
            {"script": {"name": "a/b.py", "hash": "0" * 64}}, {"script": {"name": "x.py", "hash": "0"}},
            {"modules": [["../evil.py", "0" * 64]]}, {"modules": [["/etc/x.py", "0" * 64]]}, {"env": {"A=B": "x"}},
            {"args": ["a\0b"]}, {"returns": ["../*"]}, {"returns": ["/etc/*"]}, {"if_lost": "maybe"}, {"on": ["a b"]},
            {"after": [{"job": 1, "kind": "never"}]}, {"resources": {"../x": 1}}, {"requires_python": "about 3"},
            {"preload": ["os; evil"]}, {"grid": [["lr", []]]},
        ):  # fmt: skip
            with self.subTest(changes=changes), self.assertRaises(BadMessage):
                check_spec(spec(**changes))
        for missing in spec():
            with self.subTest(missing=missing), self.assertRaises(BadMessage):
                check_spec({key: value for key, value in spec().items() if key != missing})


class PathTest(unittest.TestCase):
    def test_paths_stay_below(self) -> None:
        for path in ("a", "a/b.txt", "ü/x", "...", "a b"):
            self.assertTrue(safe_relpath(path), path)
        for path in ("", "/a", "a//b", "../a", "a/../b", "./a", "a/", "a\0b", "x" * 256, "/".join("a" * 70)):
            self.assertFalse(safe_relpath(path), path)

    def test_links_stay_inside(self) -> None:
        for path, target in (("a", "b"), ("a/b", "../c"), ("a/b/c", "../../d"), ("a", "b/../c")):
            self.assertTrue(link_stays_inside(path, target), (path, target))
        for path, target in (("a", "/etc"), ("a", "../b"), ("a/b", "../../c"), ("a", "b/../../c"), ("a", "")):
            self.assertFalse(link_stays_inside(path, target), (path, target))

    def test_manifests(self) -> None:
        good = [["d", "a", 0o755], ["f", "a/x", 0o644, "0" * 64, 3], ["l", "a/y", "x"]]
        self.assertEqual(check_manifest(json.dumps(good).encode()), good)
        for entry in (
            ["f", "../x", 0o644, "0" * 64, 3], ["l", "y", "../../etc"], ["f", "x", 0o644, "0", 3], ["x", "y", "z"],
            ["f", "a/x", 0o644, "0" * 64, 3], ["d", "/a", 1],
        ):  # fmt: skip
            with self.subTest(entry=entry), self.assertRaises(BadMessage):
                check_manifest(json.dumps([*good, entry]).encode())
