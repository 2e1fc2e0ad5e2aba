"""A manager whose disk is full or fails, whose workers lie, whose peers flood it."""

from __future__ import annotations

import threading
from typing import Any

from src import faults
from src.content import Gate
from src.core.errors import DiskFull, StoreError
from src.core.saves import Save
from tests.cluster.fakes import (
    FakeWorker,
    ManagerCase,
    connect,
    hash_of,
    read,
    start_manager,
    status,
    submit,
    submit_message,
    worker,
)
from tests.support.leaks import Case
from tests.support.waiting import wait_until

LARGE = 300_000  # bytes: more than what is stored beside a task's row

LARGE = 300_000  # bytes: more than what is stored beside a task's row


class TestStrangeWorkers(ManagerCase):
    def test_a_report_about_somebody_elses_task(self) -> None:
        job = submit(self.link)
        with worker(self.manager, "honest") as honest, worker(self.manager, "liar") as liar:
            key = honest.task() if not liar.given else liar.task()
            other = liar
            liar.output(key, b"lies")
            liar.finish(key, b"lies", exit_code=1)
            liar.send({"t": "report", "started": [[*key, 1.0, True, None]], "recalled": [list(key)]})
            liar.send({"t": "need", "hashes": ["4" * 64]})
            liar.wait(lambda w: any(m["t"] == "noblob" for m in w.messages), "all to be taken")
            self.assertEqual(status(self.link, job)["state"], "running")
            self.assertEqual(self.manager.outputs.size(*key, 1), 0)
            self.assertEqual(other.acked, [])
            honest.done(key, b"truth")
        self.assertEqual(read(self.link, job)[1], b"truth")

    def test_output_beyond_the_limit(self) -> None:
        job = submit(self.link, max_output=10)
        with worker(self.manager) as w:
            key = w.task()
            w.output(key, b"x" * 10)
            w.wait(lambda w: w.spooled(key) == 10, "the confirmation")
            w.output(key, b"y", offset=10)
            w.wait(lambda w: w.closed, "the end of the connection")
            self.assertEqual(w.messages[-1]["t"], "error")
        self.assertEqual(self.manager.outputs.size(*key, 1), 10)
        self.assertEqual(status(self.link, job)["state"], "running")

    def test_nonsense(self) -> None:
        cases: list[tuple[dict[str, Any], bytes]] = [
            ({"t": "report", "output": [[1, 0, 1, 1, 0, 100]]}, b"short"),
            ({"t": "report", "output": [[1, 0, 1, 3, 0, 1]]}, b"x"),
            ({"t": "report", "output": "x"}, b""),
            ({"t": "report", "finished": [{"task": [1, 0, 1]}]}, b""),
            ({"t": "join"}, b""),
            ({"t": "state", "t2": None}, b""),
        ]
        for header, payload in cases:
            with self.subTest(header=header), FakeWorker(self.manager) as w:
                w.wait(lambda w: w.channel.ready, "the handshake")
                w.send(header, payload)
                w.wait(lambda w: w.closed, "the end of the connection")
        submit(self.link)
        with worker(self.manager) as w:
            key = w.task()
            w.send({"t": "nonsense"})
            w.send({"t": "submit"})
            w.wait(lambda w: len([m for m in w.messages if m["t"] == "error"]) == 2, "both answers")
            w.send({"t": "report", "started": [[*key, 1.0, True, None, "newer"]], "recalled": [[*key, 1, 2]]})
            w.wait(lambda w: len(w.given) > 1, "the task to be given again")

    def test_a_worker_that_says_it_is_another(self) -> None:
        with worker(self.manager, "twin") as one, worker(self.manager, "twin") as two:
            self.assertNotEqual(one.welcome["name"], two.welcome["name"])

    def test_bye_gives_tasks_back(self) -> None:
        job = submit(self.link)
        with worker(self.manager, "one") as w:
            w.task()
            w.send({"t": "bye"})
        with worker(self.manager, "two") as w:
            self.assertEqual(w.task(), (job, 0, 2))

    def test_content_comes_a_few_files_at_a_time(self) -> None:
        files = [bytes([n]) * 700_000 for n in range(9)] + [b"small %d" % n for n in range(50)]
        for body in files:
            self.manager.blobs.put_bytes(body)
        with worker(self.manager) as w:
            w.send({"t": "need", "hashes": [hash_of(body) for body in files]})
            w.wait(lambda w: sum(map(len, w.blobs.values())) == sum(map(len, files)), "all content")
            self.assertEqual(set(w.blobs.values()), set(files))


class TestDisk(ManagerCase):
    """What is done when there is no room, and when the disk fails."""

    def fill(self) -> threading.Event:
        """The store has no room until the event is set."""
        room, apply = threading.Event(), self.manager.store.apply

        def full(saves: list[Save]) -> None:
            if not room.is_set():
                raise DiskFull("the disk is full")
            apply(saves)

        self.manager.store.apply = full  # type: ignore[method-assign,assignment]
        self.addCleanup(room.set)  # before the manager is stopped
        return room

    def test_a_full_disk_loses_nothing(self) -> None:
        first = submit(self.link)
        with worker(self.manager) as w:
            key = w.task()
            with self.assertLogs("src.corethread", "WARNING") as logs:
                room = self.fill()
                w.finish(key, b"result")
                wait_until(lambda: self.manager.core.full, what="the disk to be full")
                self.assert_refused("disk-full", *submit_message())
                looking = self.link.post({"t": "status", "ids": [{"job": first}]})
                self.assertEqual(w.acked, [], "nothing may leave before it is stored")
                room.set()
                w.wait(lambda w: w.acked == [key], "the acknowledgement")
        self.assertEqual(self.link.answer(looking, 60)[0]["jobs"][0]["state"], "succeeded")
        self.assertEqual((submit(self.link), read(self.link, first)[1]), (2, b"result"))
        self.assertEqual(len(logs.output), 2, logs.output)

    def test_a_transaction_that_finds_no_room_is_made_again(self) -> None:
        self.addCleanup(faults.disarm)
        for place in ("store.begin", "store.commit"):
            with self.subTest(place), self.assertLogs("src.corethread", "WARNING"):
                faults.arm(f"{place}:1:ENOSPC")
                job = submit(self.link)
                self.assertTrue(faults.reached(place))
                self.assertEqual(status(self.link, job)["state"], "queued")

    def test_no_room_for_output(self) -> None:
        job = submit(self.link)
        self.addCleanup(faults.disarm)
        with worker(self.manager) as w:
            key = w.task()
            with self.assertLogs("src.manager", "WARNING"):
                faults.arm("output.write:1:ENOSPC")
                w.output(key, b"one ")
                w.output(key, b"two ", offset=4)
                w.done(key, b"three", total=13)
            self.assertEqual(w.spooled(key), 8)
        self.assertEqual(read(self.link, job)[1], b"one two three")

    def test_a_job_that_fills_the_disk_can_be_cancelled(self) -> None:
        job = submit(self.link)
        with worker(self.manager) as w:
            key = w.task()
            w.output(key, b"some ")
            w.wait(lambda w: w.spooled(key) == 5, "the confirmation")
            with self.assertLogs("src.manager", "WARNING") as logs:
                self.manager.content.output_fits = lambda size: False  # type: ignore[method-assign]
                w.output(key, b"more", offset=5)
                wait_until(lambda: logs.output, what="the warning")
            self.link.request({"t": "cancel", "ids": [{"job": job}]})
            w.wait(lambda w: key in w.kills, "the kill")
            w.done(key, total=9, exit_code=None, signal=15, cancelled=True)
        view = status(self.link, job)
        self.assertEqual((view["state"], view["output_bytes"], view["dropped_bytes"]), ("cancelled", 5, 4))
        self.assertEqual(read(self.link, job)[1], b"some ")

    def test_no_room_for_content(self) -> None:
        self.addCleanup(faults.disarm)
        for place in ("blob.write", "blob.sync", "blob.rename"):
            body = place.encode()
            put = {"t": "put", "hash": hash_of(body), "size": len(body), "offset": 0}
            with self.subTest(place):
                faults.arm(f"{place}:1:ENOSPC")
                self.assert_refused("disk-full", put, body)
                self.assertTrue(
                    self.link.request(put, body)[0]["done"]
                    or self.link.request({**put, "offset": len(body)})[0]["done"]
                )

    def test_a_failing_disk_ends_the_manager(self) -> None:
        self.addCleanup(faults.disarm)
        faults.arm("store.commit:1:EIO")
        self.link.post(*submit_message())
        wait_until(lambda: self.manager.error is not None, what="the manager to give up")
        self.assertIsInstance(self.manager.error, StoreError)
        faults.disarm()
        self.restart()
        self.assertEqual(submit(self.link), 1, "what was not confirmed is not there")

    def test_a_failed_sync_of_output_ends_the_manager(self) -> None:
        submit(self.link)
        self.addCleanup(faults.disarm)
        with worker(self.manager) as w:
            key = w.task()
            w.output(key, b"x" * LARGE)
            w.wait(lambda w: w.got, "the confirmation")
            faults.arm("output.sync:1:EIO")
            w.finish(key, total=LARGE)
            wait_until(lambda: self.manager.error is not None, what="the manager to give up")
        self.assertIn("stopping", str(self.manager.error))

    def test_stopping_while_the_disk_is_full(self) -> None:
        with self.assertLogs("src.corethread", "ERROR"):
            self.fill()
            self.link.post(*submit_message())
            wait_until(lambda: self.manager.core.full, what="the disk to be full")
            self.manager.stop()
        self.assertIsInstance(self.manager.error, StoreError)


class TestGate(Case):
    def test_connections_are_not_read_while_too_much_waits(self) -> None:
        calls: list[tuple[str, str]] = []

        class Conn:
            def __init__(self, name: str) -> None:
                self.name = name

            def pause(self) -> None:
                calls.append((self.name, "pause"))

            def resume(self) -> None:
                calls.append((self.name, "resume"))

        gate, one, two = Gate(100), Conn("one"), Conn("two")
        gate.enter(one, 80)  # type: ignore[arg-type]
        gate.enter(two, 40)  # type: ignore[arg-type]
        gate.leave(40)
        self.assertEqual(calls, [("two", "pause")])
        gate.leave(40)
        self.assertEqual(calls, [("two", "pause"), ("two", "resume")])

    def test_a_flood_is_taken_in_order_and_answered_whole(self) -> None:
        manager = start_manager(self)
        link = connect(self, manager)
        manager._gate._most = 20_000  # five messages
        numbers = [link.post({"t": "have", "hashes": ["0" * 64]}) for _ in range(300)]
        numbers += [link.post(*submit_message()) for _ in range(300)]
        for number in numbers:
            link.answer(number, 60)
        self.assertEqual(manager._gate._now, 0)
