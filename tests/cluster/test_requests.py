"""What clients ask of a manager: waiting, changes, views, nonsense."""

from __future__ import annotations

import collections
import json
import os
import random
from pathlib import Path
from typing import Any
from unittest import mock

from src import keys, verbs
from src.core import messages
from src.core.errors import KeyProblem, Refused
from src.follow import Connection
from src.link import Link
from tests.cluster.fakes import (
    SCRIPT,
    FakeWorker,
    ManagerCase,
    connect,
    hash_of,
    post_read,
    read,
    start_manager,
    status,
    submit,
    submit_large,
    submit_message,
    worker,
)
from tests.support.marks import slow
from tests.support.sim import spec
from tests.support.waiting import wait_until

LARGE = 300_000  # bytes: more than what is stored beside a task's row


def _anything(chance: random.Random) -> Any:
    """A value that may be what a field wants."""
    sel = {
        "job": chance.choice((1, 2, 9, "last")),
        "lo": chance.choice((None, 0, 3)),
        "hi": chance.choice((None, 0, 4)),
    }
    values: list[Any] = [0, 1, 2, 5, 1 << 52, -1, 1.5, True, None, "x", "0" * 32, "f" * 64, [], {}, ["f" * 64], ["lab"]]
    values += [[sel], [sel, sel], [{"job": 1, "to": 3}], [[1, 2]], [["f" * 64, 1]], spec(), spec(count=3), {"job": 1}]
    return chance.choice(values)


def _exists(link: Link, job: int) -> bool:
    try:
        return bool(status(link, job))
    except Refused:
        return False


class TestWaiting(ManagerCase):
    def wait_for(self, *ids: dict[str, Any], timeout: Any = None) -> int:
        return self.link.post({"t": "wait", "ids": list(ids), "timeout": timeout})

    def test_a_job(self) -> None:
        job = submit(self.link)
        number = self.wait_for({"job": job})
        with worker(self.manager) as w:
            w.done(w.task(), exit_code=None, signal=9)
        answer = self.link.answer(number, 60)[0]
        self.assertEqual((answer["done"], answer["total"], answer["failed"]), (True, 1, 1))
        self.assertEqual((answer["results"][0]["state"], answer["results"][0]["signal"]), ("failed", "SIGKILL"))
        self.assertTrue(self.link.answer(self.wait_for({"job": job}), 60)[0]["done"])

    def test_time_runs_out(self) -> None:
        job = submit(self.link)
        for timeout in (0, 0.05):
            self.assertFalse(self.link.answer(self.wait_for({"job": job}, timeout=timeout), 60)[0]["done"])
        self.assertEqual(self.manager.core.desk.waits._by, {})

    def test_tasks_ranges_and_several_jobs(self) -> None:
        job = submit(self.link, count=6, array="0-5")
        other = submit(self.link)
        one = self.wait_for({"job": job, "lo": 2, "hi": 2})
        some = self.wait_for({"job": job, "lo": 0, "hi": 3})
        both = self.wait_for({"job": job}, {"job": other})
        with worker(self.manager, slots=8) as w:
            w.task(6)
            w.done((job, 2, 1))
            self.assertEqual(self.link.answer(one, 60)[0]["results"][0]["id"], f"{job}.2")
            for pos in (0, 1, 3):
                w.done((job, pos, 1), exit_code=int(pos == 3))
            answer = self.link.answer(some, 60)[0]
            self.assertEqual((answer["done"], answer["total"], answer["failed"]), (True, 4, 1))
            w.done((job, 4, 1))
            w.done((other, 0, 1))
            w.done((job, 5, 1))
        answer = self.link.answer(both, 60)[0]
        self.assertEqual((answer["total"], answer["failed"], answer["results"]), (7, 1, []))

    def test_many_tasks_cancelled_at_once(self) -> None:
        job = submit(self.link, count=30_000, array="0-29999")
        one = self.wait_for({"job": job, "lo": 15_000, "hi": 15_000})
        follower = post_read(self.link, job, pos=20, hi=20, wait=60)
        self.link.request({"t": "cancel", "ids": [{"job": job, "lo": 0, "hi": 20_000}]})
        self.assertEqual(self.link.answer(one, 60)[0]["results"][0]["state"], "cancelled")
        self.assertEqual(self.link.answer(follower, 60)[0]["tasks"][0]["state"], "cancelled")
        answer = self.link.answer(self.wait_for({"job": job, "lo": 0, "hi": 20_000}), 60)[0]
        self.assertEqual((answer["done"], answer["failed"]), (True, 20_001))

    def test_who_left_is_forgotten(self) -> None:
        job = submit(self.link)
        other = Link("127.0.0.1", self.manager.port, None)
        other.post({"t": "wait", "ids": [{"job": job}], "timeout": 1000})
        other.post({"t": "read", "job": job, "lo": 0, "hi": 0, "pos": 0, "out": 0, "err": 0, "attempt": 0, "wait": 1000,
                    "live": True})  # fmt: skip
        desk = self.manager.core.desk
        wait_until(lambda: desk.waits._by and desk.reader._polls, what="both to wait")
        other.close()
        wait_until(lambda: not (desk.waits._by or desk.waits._of or desk.reader._polls or desk.reader._of), what="none")

    @slow
    def test_a_thousand_clients(self) -> None:
        job = submit(self.link, count=2, array="0-1")
        links = [connect(self, self.manager) for _ in range(1000)]
        waits = [link.post({"t": "wait", "ids": [{"job": job}], "timeout": None}) for link in links]
        reads = [post_read(link, job, wait=600) for link in links[::10]]
        desk = self.manager.core.desk
        wait_until(lambda: sum(map(len, list(desk.waits._of.values()))) == 1000, 60, "all to wait")
        with worker(self.manager) as w:
            w.done(w.task(0), b"hello")
            for link, number in zip(links[::10], reads):
                self.assertEqual(link.answer(number, 60)[1], b"hello")
            w.done(w.task(1))
        for link, number in zip(links, waits):
            self.assertTrue(link.answer(number, 60)[0]["done"])
        self.assertEqual((desk.waits._by, desk.waits._of), ({}, {}))


class TestChanges(ManagerCase):
    def test_cancel_of_what_waits_and_what_runs(self) -> None:
        job = submit(self.link, count=6, array="0-5")
        with worker(self.manager, slots=1) as w:
            key = w.task()
            w.started(key)
            answer = self.link.request({"t": "cancel", "ids": [{"job": job}], "grace": 3})[0]
            self.assertEqual(answer["cancelled"], [str(job)])
            w.wait(lambda w: key in w.kills, "the kill")
            self.assertEqual(status(self.link, job)["state"], "running")
            for other in w.kills:
                w.done(other, exit_code=None, signal=15, cancelled=True)
        self.assertEqual(status(self.link, job)["tasks"]["cancelled"], 6)
        self.assertEqual(status(self.link, job, 0)["reason"], None)
        self.assertEqual(self.link.request({"t": "cancel", "all": True})[0]["cancelled"], [])
        again = self.link.request({"t": "retry", "ids": [{"job": job, "lo": 2, "hi": 3}]})[0]
        self.assertEqual(again["queued"], [f"{job}.2-3"])
        self.assert_refused("bad-message", {"t": "cancel", "all": False})

    def test_drain_and_resume(self) -> None:
        with worker(self.manager, "lab-1") as w:
            self.link.request({"t": "drain", "names": ["lab-1"]})
            w.wait(lambda w: w.drained is True, "the drain")
            self.assertEqual(self.link.request({"t": "workers"})[0]["workers"][0]["state"], "drained")
            self.link.request({"t": "resume", "names": ["lab-1"]})
            w.wait(lambda w: w.drained is False, "the end of it")
        self.assert_refused("no-such-worker", {"t": "drain", "names": ["lab-2"]})

    def test_prune_forgets_jobs_output_and_content(self) -> None:
        body = b"only of the first"
        header, payload = submit_message(modules=[["m.py", hash_of(body)]])
        self.link.request({"t": "put", "hash": hash_of(body), "size": len(body), "offset": 0}, body)
        first = self.link.request(header, payload)[0]["id"]
        queued = submit(self.link, on=["nowhere"])
        with worker(self.manager) as w:
            key = w.task()
            w.output(key, b"x" * LARGE)
            w.done(key, total=LARGE)
        for name in (hash_of(body), hash_of(SCRIPT)):
            os.utime(self.manager.blobs.path(name), (0, 0))
        self.assertEqual(self.link.request({"t": "prune", "older_than": 1000})[0]["count"], 0)
        self.assertEqual(self.link.request({"t": "prune", "older_than": 0})[0]["count"], 1)
        self.assert_refused("no-such-job", {"t": "status", "ids": [{"job": first}]})
        wait_until(lambda: not os.path.exists(self.manager.blobs.path(hash_of(body))), what="the content to go")
        self.assertTrue(os.path.exists(self.manager.blobs.path(hash_of(SCRIPT))), "another job needs it")
        self.assertEqual(list((Path(self.manager.settings.data) / "output").iterdir()), [])
        self.assertEqual(status(self.link, queued)["state"], "queued")
        self.link.request({"t": "have", "hashes": [hash_of(body)]})
        self.assert_refused("blobs", *submit_message(modules=[["m.py", hash_of(body)]]))

    def test_keep_forgets_by_itself(self) -> None:
        manager = start_manager(self, keep=0.0)
        link = connect(self, manager)
        job = submit(link)
        with worker(manager) as w:
            w.done(w.task())
        wait_until(lambda: manager.store and not _exists(link, job), 30, "the job to be forgotten")


class TestLooking(ManagerCase):
    def test_lists_in_pages(self) -> None:
        numbers = [self.link.post(*submit_message(args=["x" * 900])) for _ in range(450)]
        for number in numbers:
            self.link.answer(number, 60)
        found: list[str] = []
        before = None
        while True:
            answer = self.link.request({"t": "list", "before": before})[0]
            found += [view["id"] for view in answer["jobs"]]
            if answer["more"] is None:
                break
            before = int(answer["more"])
        self.assertEqual(found, [str(n) for n in range(450, 0, -1)])
        self.assertEqual([v["id"] for v in self.link.request({"t": "list", "last": 2})[0]["jobs"]], ["450", "449"])
        every = self.link.request({"t": "status", "ids": [{"job": 1, "to": 450}]})[0]
        self.assertEqual(len(every["jobs"]) + every["more"], 450)
        self.assertGreater(every["more"], 0)

    def test_selectors_are_resolved_in_pages(self) -> None:
        jobs = [submit(self.link, count=3, array="0-2") for _ in range(5)]
        ids = [{"job": jobs[0], "to": jobs[-1]}, {"job": jobs[0], "lo": 1, "hi": 2}]
        with mock.patch("src.looking.RESOLVED_A_PAGE", 2):
            found = verbs._resolve(Connection(lambda _: self.link, self.link, 0.0, print), ids)
        self.assertEqual(found, [[job, 0, 2, 3] for job in jobs] + [[jobs[0], 1, 2, 3]])
        with mock.patch("src.requests.TARGETS_MAX", 4), self.assertRaisesRegex(Refused, "more than 4 jobs at once"):
            self.link.request({"t": "wait", "ids": ids[:1], "timeout": 0})

    def test_a_view_fits_whatever_a_job_says_of_itself(self) -> None:
        long = "\u20ac" * 1000
        given = {"name": long, "returns": [long[:80]] * 1000, "args": [long] * 100, "on": ["x" * 199] * 300}
        job = submit_large(self.link, **given)
        self.assertEqual(status(self.link, job)["args"][0], long)
        self.assertEqual(len(self.link.request({"t": "list"})[0]["jobs"]), 1)

    def test_lines_and_grids_show_the_parameters_of_a_task(self) -> None:
        chunk = b"alpha\nbeta\ngamma"
        self.link.request({"t": "put", "hash": hash_of(chunk), "size": len(chunk), "offset": 0}, chunk)
        lines = submit(self.link, count=3, lines={"chunks": [[0, hash_of(chunk)]]})
        self.assertEqual(status(self.link, lines, 1)["line"], "beta")
        grid = submit(self.link, count=4, grid=[["lr", ["0.1", "0.2"]], ["seed", ["1", "2"]]])
        self.assertEqual(status(self.link, grid, 2)["parameters"], {"lr": "0.2", "seed": "1"})

    def test_many_arguments_are_shown_as_far_as_that_makes_sense(self) -> None:
        args = json.dumps([f"argument {n}" for n in range(10_000)]).encode()
        self.link.request({"t": "put", "hash": hash_of(args), "size": len(args), "offset": 0}, args)
        view = status(self.link, submit(self.link, args=None, args_blob=hash_of(args)))
        self.assertEqual((view["args"][:2], view["args"][-1]), (["argument 0", "argument 1"], ".."))

    def test_workers_and_their_tasks(self) -> None:
        job = submit(self.link, count=2, array="7-8")
        with worker(self.manager, "lab-1", labels=["gpu"]) as w:
            w.task(1)
            w.send({"t": "state", "free_disk": "nonsense", "cold_reasons": {"a": 1, "b": []}, "failing": 7, "warm": 3})
            wait_until(lambda: self.link.request({"t": "workers"})[0]["workers"][0]["warm"] == 3, what="its state")
            (view,) = self.link.request({"t": "workers"})[0]["workers"]
        self.assertEqual((view["name"], view["slots"], view["slots_used"], view["labels"]), ("lab-1", 4, 2, ["gpu"]))
        self.assertEqual(
            (view["running"], view["free_disk"], view["cold_reasons"]), ([f"{job}.7", f"{job}.8"], None, {"a": 1})
        )
        self.assertTrue(view["address"].startswith("127.0.0.1:"))

    def test_info_and_metrics(self) -> None:
        submit(self.link)
        with worker(self.manager) as w:
            w.done(w.task())
        info = self.link.request({"t": "info"})[0]
        self.assertEqual((info["jobs"], info["finished_tasks"], info["secure"]), ({"succeeded": 1}, 1, False))
        text = self.link.request({"t": "metrics"})[0]["text"]
        self.assertIn('microcluster_jobs{state="succeeded"} 1\n', text)
        self.assertIn("microcluster_run_seconds_count 1\n", text)

    def test_returned_files(self) -> None:
        job = submit(self.link)
        with worker(self.manager) as w:
            manifest = b"[]"
            w.send({"t": "put", "hash": hash_of(manifest), "size": 2, "offset": 0}, manifest)
            w.wait(lambda w: any(m["t"] == "put_ok" and m["done"] for m in w.messages), "put_ok")
            w.done(w.task(), files=hash_of(manifest))
        answer = self.link.request({"t": "files", "ids": [{"job": job}]})[0]
        self.assertEqual(answer["tasks"], [[0, 0, hash_of(manifest), "succeeded"]])


class TestStrangeClients(ManagerCase):
    def test_nonsense_is_answered(self) -> None:
        base = {"job": 1, "lo": 0, "hi": 0, "pos": 0, "out": 0, "err": 0, "attempt": 0, "wait": 0, "live": True}
        submit(self.link)
        for header in (
            {"t": "nonsense"},
            {"t": "join"},
            {"t": "status", "ids": []},
            {"t": "status", "ids": [{"job": True}]},
            {"t": "status", "ids": [{"job": 1, "lo": -1}]},
            {"t": "read", **base, "pos": "0"},
            {"t": "read", **base, "job": 1 << 52},
            {"t": "wait", "ids": "x"},
            {"t": "submit", "request_id": "x"},
            {"t": "submit", "request_id": "0" * 32},
            {"t": "submit", "request_id": "0" * 32, "spec": {"after": [{"job": {}}]}},
            {"t": "submit", "request_id": "0" * 32, "spec": {}, "inline": [["x", 1]]},
            {"t": "cancel"},
            {"t": "files", "ids": [{"job": 1}, {"job": 1}]},
            {"t": "status", "ids": [{"job": 1, "to": 1 << 52}], "x": 1},
            {"t": "put", "hash": "0" * 63, "size": 1, "offset": 0},
        ):
            with self.subTest(header=header):
                if header.get("ids") == [{"job": 1, "to": 1 << 52}]:
                    self.link.request(header)  # as far as there are jobs
                else:
                    with self.assertRaises(Refused):
                        self.link.request(header)
        huge = {"t": "read", **base, "pos": 0, "out": 1 << 52, "wait": 1 << 52}
        self.link.post(huge)
        self.link.post({"t": "wait", "ids": [{"job": 1}], "timeout": 1 << 52})
        self.assertEqual(status(self.link, 1)["state"], "queued")
        self.assertEqual(
            self.link.request({"t": "list", "since": 1 << 52, "last": 1 << 52, "before": 1 << 52})[0]["more"], None
        )

    def test_random_requests_are_answered(self) -> None:
        chance = random.Random(20)
        for _ in range(3):
            submit(self.link, count=5, array="0-4")
        numbers = []
        for _ in range(1500):
            kind = chance.choice(sorted(set(messages.CLIENT) - {"prune"}))
            header = {"t": kind, **{name: _anything(chance) for name in messages.CLIENT[kind] if chance.random() < 0.9}}
            header["wait"], header["timeout"] = 0, 0
            numbers.append(self.link.post(header, b"x" * chance.choice((0, 0, 5))))
        codes: collections.Counter[str] = collections.Counter()
        for number in numbers:
            try:
                self.link.answer(number, 60)
            except Refused as error:
                codes[error.code] += 1
        self.assertEqual(codes["internal"], 0, codes)
        self.assertGreater(len(numbers) - sum(codes.values()), 100, codes)

    def test_a_defect_in_one_answer_is_not_the_end(self) -> None:
        self.manager.core.desk._looks["info"] = lambda request: 1 // 0  # type: ignore[assignment]
        with self.assertLogs("src.requests", "ERROR"):
            self.assert_refused("internal", {"t": "info"})
        self.assertEqual(submit(self.link), 1)

    def test_roles(self) -> None:
        home = os.path.join(self.manager.settings.data, "home")
        manager = start_manager(self, insecure=False, key_home=home)
        made = keys.ManagerKeys.load(home)
        submitter, reader = (
            connect(self, manager, made.peer_key("submit")),
            connect(self, manager, made.peer_key("read")),
        )
        job = submit(submitter)
        self.assertEqual(status(reader, job)["state"], "queued")
        for link, header in (
            (reader, {"t": "cancel", "all": True}),
            (reader, submit_message()[0]),
            (submitter, {"t": "prune", "older_than": 0}),
            (submitter, {"t": "drain", "names": ["x"]}),
        ):
            with self.assertRaises(Refused) as caught:
                link.request(header)
            self.assertEqual(caught.exception.code, "forbidden")
        self.assertEqual(
            connect(self, manager, made.peer_key("admin")).request({"t": "prune", "older_than": 0})[0]["count"], 0
        )
        with self.assertRaises(KeyProblem):
            Link("127.0.0.1", manager.port, made.peer_key("worker"))
        with FakeWorker(manager, key=made.peer_key("worker")) as w:
            w.join()
            w.done(w.task(), b"secret")
        self.assertEqual(read(reader, job)[1], b"secret")
