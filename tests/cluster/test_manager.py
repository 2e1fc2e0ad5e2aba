"""The manager's shell on real sockets, with scripted workers and plain client links in this process."""

from __future__ import annotations

import json
import os
import secrets
import time
from pathlib import Path

from src.config import ManagerSettings
from src.core.errors import MicroclusterError, Refused, StoreError
from src.manager import Manager
from tests.cluster.fakes import (
    SCRIPT,
    FakeWorker,
    ManagerCase,
    hash_of,
    post_read,
    read,
    start_manager,
    status,
    submit,
    submit_message,
    worker,
)
from tests.support.waiting import wait_until

LARGE = 300_000  # bytes: more than what is stored beside a task's row


class TestSubmit(ManagerCase):
    def test_the_same_request_is_the_same_job(self) -> None:
        message = submit_message()
        first = self.link.request(*message)[0]
        again = self.link.request(*message)[0]
        self.assertEqual((first["id"], again["id"], again["again"]), (1, 1, True))
        self.restart()
        self.assertEqual(self.link.request(*message)[0]["id"], 1)
        self.assertEqual(submit(self.link), 2)

    def test_the_same_request_twice_at_once(self) -> None:
        message = submit_message()
        numbers = [self.link.post(*message) for _ in range(20)]
        self.assertEqual({self.link.answer(number, 60)[0]["id"] for number in numbers}, {1})

    def test_a_warning_when_no_worker_can_run_it(self) -> None:
        answer = self.link.request(*submit_message(on=["gpu"]))[0]
        self.assertIn("gpu", answer["warning"])

    def test_content_that_is_missing_is_asked_for(self) -> None:
        body = b"some module" * 1000
        header, payload = submit_message(modules=[["m.py", hash_of(body)]])
        refused = self.assert_refused("blobs", header, payload)
        self.assertEqual(refused.detail["missing"], [hash_of(body)])
        put = {"t": "put", "hash": hash_of(body), "size": len(body), "offset": 0}
        self.assertEqual(self.link.request(put)[0]["offset"], 0)
        half = self.link.request(put, body[:5000])[0]
        self.assertEqual((half["offset"], half["done"]), (5000, False))
        elsewhere = self.link.request({**put, "offset": 9000}, b"not the next")[0]
        self.assertEqual(elsewhere["offset"], 5000)
        whole = self.link.request({**put, "offset": 5000}, body[5000:])[0]
        self.assertEqual((whole["offset"], whole["done"]), (len(body), True))
        self.assertEqual(self.link.request(header, payload)[0]["id"], 1)
        missing = self.link.request({"t": "have", "hashes": [hash_of(body), "0" * 64]})[0]["missing"]
        self.assertEqual(missing, ["0" * 64])
        answer, data = self.link.request({"t": "get", "hash": hash_of(body), "offset": 10, "max": 20})
        self.assertEqual((answer["size"], data), (len(body), body[10:30]))

    def test_content_that_does_not_fit_its_hash_is_refused(self) -> None:
        self.assert_refused("blob", {"t": "put", "hash": "1" * 64, "size": 3, "offset": 0}, b"abc")
        header, _ = submit_message()
        self.assert_refused("blob", header, b"x" * len(SCRIPT))
        self.assert_refused("no-blob", {"t": "get", "hash": "1" * 64, "offset": 0, "max": 10})

    def test_uploads_leave_room_for_the_job_table(self) -> None:
        put = {"t": "put", "hash": "1" * 64, "size": 1 << 52, "offset": 0}
        self.assertIn("try again", str(self.assert_refused("disk-full", put, b"abc")))

    def test_files_of_a_sent_folder_are_asked_for_too(self) -> None:
        manifest = json.dumps([["f", "data.csv", 0o644, "2" * 64, 10]]).encode()
        put = {"t": "put", "hash": hash_of(manifest), "size": len(manifest), "offset": 0}
        self.link.request(put, manifest)
        header, payload = submit_message(send={"manifest": hash_of(manifest), "files": 1, "bytes": 10})
        self.assertEqual(self.assert_refused("blobs", header, payload).detail["missing"], ["2" * 64])

    def test_a_description_as_content(self) -> None:
        header, payload = submit_message(args=["x" * 1000] * 200)
        text = json.dumps(header.pop("spec")).encode()
        self.assert_refused("blobs", {**header, "spec_blob": hash_of(text)}, payload)
        self.link.request({"t": "put", "hash": hash_of(text), "size": len(text), "offset": 0}, text)
        self.link.request({**header, "spec_blob": hash_of(text)}, payload)
        with worker(self.manager) as w:
            w.task()
            name = w.jobs[1]["spec_blob"]
            w.send({"t": "need", "hashes": [name, "3" * 64]})
            w.wait(lambda w: any(m["t"] == "noblob" and m["hash"] == "3" * 64 for m in w.messages))
            self.assertEqual(json.loads(w.blobs[name])["args"], ["x" * 1000] * 200)

    def test_a_description_that_is_no_description(self) -> None:
        for raw in (b"[" * 100_000, b"not JSON", b"[]", b'{"name": 1}'):
            self.link.request({"t": "put", "hash": hash_of(raw), "size": len(raw), "offset": 0}, raw)
            header = {"t": "submit", "request_id": secrets.token_hex(16), "spec_blob": hash_of(raw)}
            with self.subTest(raw[:20]):
                self.assert_refused("bad-message", header)

    def test_dependencies_by_index_and_last(self) -> None:
        submit(self.link, count=3, array="5-7")
        second = submit(self.link, after=[{"job": "last", "index": 6, "kind": "ok"}])
        self.assertEqual(status(self.link, second)["state"], "waiting")
        header, payload = submit_message(after=[{"job": 1, "index": 4, "kind": "ok"}])
        self.assertIn("no task 4", str(self.assert_refused("no-such-job", header, payload)))


class TestReading(ManagerCase):
    def test_a_running_task_is_followed_by_offset(self) -> None:
        job = submit(self.link)
        with worker(self.manager) as w:
            waiting = post_read(self.link, job, wait=60)
            key = w.task()
            w.started(key)
            w.output(key, b"first\n")
            answer, data = self.link.answer(waiting, 60)
            self.assertEqual((data, answer["tasks"][0]["out"], answer["done"]), (b"first\n", [0, 6], False))
            w.wait(lambda w: w.spooled(key) == 6, "the confirmation")
            waiting = post_read(self.link, job, out=6, attempt=1, wait=60)
            w.output(key, b"oops\n", stream=2)
            self.assertEqual(self.link.answer(waiting, 60)[1], b"oops\n")
            waiting = post_read(self.link, job, out=6, err=5, attempt=1, wait=60)
            w.finish(key, b"last\n", total=11, err=[5, 0], exit_code=3)
            answer, data = self.link.answer(waiting, 60)
            if not answer["done"]:  # the bytes may be there a moment before the end is known: it comes by itself
                self.assertEqual(data, b"last\n")
                waiting = post_read(self.link, job, out=11, err=5, attempt=1, wait=60)
                answer, rest = self.link.answer(waiting, 60)
                data += rest
        self.assertEqual((data, answer["done"], answer["next"]), (b"last\n", True, 1))
        self.assertEqual((answer["tasks"][0]["end"]["state"], answer["tasks"][0]["end"]["exit_code"]), ("failed", 3))
        answer, data = read(self.link, job)
        self.assertEqual(
            (data, answer["tasks"][0]["out"], answer["tasks"][0]["err"]), (b"first\nlast\noops\n", [0, 11], [0, 5])
        )

    def test_nothing_new_is_said_after_a_while(self) -> None:
        job = submit(self.link)
        for wait in (0, 0.05):
            answer, data = read(self.link, job, wait=wait)
            self.assertEqual((answer["tasks"], answer["done"], data), ([], False, b""))

    def test_large_output_comes_in_pieces_and_stays_in_the_spool(self) -> None:
        job = submit(self.link)
        data = os.urandom(LARGE)
        with worker(self.manager) as w:
            key = w.task()
            w.output(key, data[:200_000])
            w.output(key, data[200_000:], offset=200_000)
            w.done(key, total=LARGE)
        _, found = read(self.link, job, out=1000, attempt=1)
        self.assertEqual(found, data[1000:])
        self.restart()
        self.assertEqual(read(self.link, job)[1], data)

    def test_small_output_leaves_the_spool(self) -> None:
        job = submit(self.link)
        with worker(self.manager) as w:
            key = w.task()
            w.output(key, b"piece")
            w.done(key, b"s", total=6)
        self.assertEqual(read(self.link, job)[1], b"pieces")
        output = Path(self.manager.settings.data) / "output"
        wait_until(lambda: not list(output.iterdir()), what="the spool to be empty")

    def test_tasks_of_an_array_come_in_order(self) -> None:
        job = submit(self.link, count=3, array="10-12")
        with worker(self.manager) as w:
            for number in (2, 0):
                w.done((job, w.task(number)[1], 1), b"task %d\n" % number)
            answer, data = read(self.link, job, hi=2, live=False)
            self.assertEqual((data, answer["next"], answer["done"]), (b"task 0\n", 1, False))
            self.assertEqual([segment["index"] for segment in answer["tasks"]], [10])
            waiting = post_read(self.link, job, hi=2, pos=1, wait=60, live=False)
            w.done(w.task(1), b"task 1\n")
        answer, data = self.link.answer(waiting, 60)
        self.assertEqual((data, answer["next"], answer["done"]), (b"task 1\ntask 2\n", 3, True))

    def test_a_new_attempt_starts_at_its_beginning(self) -> None:
        job = submit(self.link, retries=1)
        with worker(self.manager) as w:
            first = w.task()
            w.output(first, b"first try")
            w.wait(lambda w: w.got, "the confirmation")
            w.done(first, total=9, exit_code=1)
            second = w.task(1)
            self.assertEqual(second, (job, 0, 2))
            w.done(second, b"second try")
        answer, data = read(self.link, job, out=9, attempt=1)
        self.assertEqual((answer["tasks"][0]["attempt"], data), (2, b"second try"))

    def test_output_that_does_not_continue_is_not_taken(self) -> None:
        submit(self.link)
        with worker(self.manager) as w:
            key = w.task()
            w.output(key, b"end", offset=5)
            w.wait(lambda w: w.spooled(key) is not None, "the size")
            self.assertEqual(w.spooled(key), 0)
            w.output(key, b"begin")
            w.output(key, b"begin and end")
            w.wait(lambda w: w.spooled(key) == 13, "the size")

    def test_no_such_job(self) -> None:
        self.assert_refused("no-such-job", {"t": "status", "ids": [{"job": "last"}]})
        self.assert_refused("no-such-job", {"t": "status", "ids": [{"job": 7}]})
        with self.assertRaises(Refused):
            read(self.link, 7)
        submit(self.link)
        self.assert_refused("no-such-job", {"t": "status", "ids": [{"job": 1, "lo": 1, "hi": 1}]})
        self.assert_refused("no-such-job", {"t": "status", "ids": [{"job": 5, "to": 9}]})


class TestRestart(ManagerCase):
    def test_everything_is_still_there(self) -> None:
        done, queued = submit(self.link), submit(self.link, count=1000, array="0-999", on=["later"])
        with worker(self.manager) as w:
            w.done(w.task(), b"out")
        self.restart()
        self.assertEqual(read(self.link, done)[1], b"out")
        self.assertEqual(status(self.link, done)["state"], "succeeded")
        self.assertEqual(status(self.link, queued)["tasks"]["queued"], 1000)
        with worker(self.manager, labels=["later"]) as w:
            self.assertEqual(w.task(), (queued, 0, 1))

    def test_what_ran_is_adopted(self) -> None:
        job = submit(self.link)
        with FakeWorker(self.manager) as w:
            w.join()
            key = w.task()
            w.output(key, b"before ")
            w.wait(lambda w: w.got, "the confirmation")
            boot = w.offer["boot"]
        self.restart()
        with FakeWorker(self.manager, boot=boot) as w:
            w.join([[*key, "running", time.time()], [99, 0, 1, "done", None, "newer field"]])
            self.assertEqual(w.welcome["keep"], [[*key, 7, 0]])
            self.assertEqual(w.welcome["kill"], [[99, 0, 1]])
            w.done(key, b"after", total=12)
            w.finish((99, 0, 1))
            w.wait(lambda w: (99, 0, 1) in w.acked, "the acknowledgement of what is superseded")
        self.assertEqual(read(self.link, job)[1], b"before after")
        self.assertEqual(status(self.link, job)["attempt"], 1)

    def test_a_second_manager_on_the_data(self) -> None:
        with self.assertRaises(StoreError):
            Manager(ManagerSettings(data=self.manager.settings.data, port=0, insecure=True)).start()

    def test_a_port_in_use(self) -> None:
        with self.assertRaises(MicroclusterError) as caught:
            start_manager(self, port=self.manager.port)
        self.assertIn(str(self.manager.port), str(caught.exception))
