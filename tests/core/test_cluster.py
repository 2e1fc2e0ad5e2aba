"""The manager's brain, one situation at a time: what is decided, what is saved, what is told to whom."""

from __future__ import annotations

import json
import unittest
from typing import Any

from src.core import events
from src.core.cluster import Cluster
from src.core.jobs import STATES, TRANSITIONS, Finish, IllegalTransition, TaskKey, after
from tests.support.sim import Disk, Settings, spec


class Bench:
    """A cluster with a disk, where each step commits at once."""

    def __init__(self) -> None:
        self.disk = Disk()
        self.now = 100.0
        self.requests = 0
        self.mail: dict[Any, Any] = {}
        self.answers: list[dict[str, Any]] = []
        self.notes: list[events.Note] = []
        self.restart()

    def restart(self) -> None:
        self.cluster = Cluster(self.disk, Settings())
        self.cluster.load(self.disk.load(), self.now, self.now)

    def step(self, *happened: Any, seconds: float = 0.0) -> Bench:
        self.now += seconds
        for event in happened or (events.Tick(),):
            self.cluster.handle(event, self.now, self.now)
            self.cluster.check()
        effects = self.cluster.take_effects(self.now, self.now)
        self.cluster.check()
        self.disk.apply(effects.saves)
        self.mail, self.notes = effects.mail, effects.notes
        self.answers = [answer for _, answer in effects.replies]
        return self

    def submit(self, request: str | None = None, **changes: Any) -> int:
        self.requests += 1
        job = spec(**changes)
        self.step(events.JobSubmitted(request or f"r{self.requests}", job, json.dumps(job), "me"))
        return int(self.answers[0]["id"])

    def join(self, link: str, slots: int = 1, boot: str = "b", **changes: Any) -> Bench:
        info = {
            "name": link, "worker_id": "id-" + link, "boot": boot, "slots": slots, "cpus": slots, "memory": 1 << 30,
            "gpus": 0, "labels": [], "resources": {}, "pythons": {"3.11": "3.11.7"}, "version": "0", "python": "3.11.7",
            "holding": [],
        }  # fmt: skip
        info.update(changes)
        return self.step(events.WorkerJoined(changes.pop("as_link", link), info))

    def finish(self, link: str, key: TaskKey, code: int = 0, seconds: float = 0.0, **changes: Any) -> Bench:
        fin = Finish(
            *key, code, None, None, self.now, self.now + 1, 0.1, 1, 0, 0, 0, None, False, False, False, b"", b""
        )
        return self.step(events.WorkerReported(link, [], [fin._replace(**changes)], []), seconds=seconds)

    def given(self, link: str) -> list[TaskKey]:
        return self.mail[link].run if link in self.mail else []

    def state(self, job: int, pos: int = 0) -> str | None:
        return self.cluster.state_of(job, pos)

    def why(self, job: int) -> str | None:
        return self.cluster.why_waiting(job, self.now)


class TransitionsTest(unittest.TestCase):
    def test_every_pair_is_listed_or_refused(self) -> None:
        happenings = {happening for _, happening in TRANSITIONS}
        for state in STATES:
            for happening in happenings:
                if (state, happening) in TRANSITIONS:
                    self.assertIn(after(state, happening), STATES)
                else:
                    with self.assertRaises(IllegalTransition):
                        after(state, happening)


class SubmitTest(unittest.TestCase):
    def setUp(self) -> None:
        self.bench = Bench()

    def test_one_job_from_submit_to_end(self) -> None:
        job = self.bench.submit()
        self.assertEqual((job, self.bench.state(job)), (1, "queued"))
        self.bench.join("w")
        self.assertEqual(self.bench.given("w"), [TaskKey(1, 0, 1)])
        self.assertIn(1, self.bench.mail["w"].jobs)
        self.bench.finish("w", TaskKey(1, 0, 1))
        self.assertEqual(self.bench.mail["w"].ack, [TaskKey(1, 0, 1)])
        self.assertEqual(self.bench.disk.jobs[1].state, "succeeded")
        self.assertEqual(self.bench.cluster.jobs, {})

    def test_the_same_request_is_the_same_job(self) -> None:
        first = self.bench.submit(request="same")
        self.assertEqual(self.bench.submit(request="same"), first)
        self.bench.restart()
        self.assertEqual(self.bench.submit(request="same"), first)

    def test_once_gives_the_first_job_again(self) -> None:
        self.assertEqual(self.bench.submit(once="nightly"), self.bench.submit(once="nightly"))

    def test_what_no_worker_can_run_is_said_and_queued(self) -> None:
        self.bench.join("w", slots=2)
        for need, words in (
            ({"on": ["gpu"]}, "needs label gpu, which no worker has"),
            ({"cpus": 8}, "needs 8 CPUs; the most that a worker has is 2 CPUs"),
            ({"python": "3.14"}, "needs Python 3.14, which no worker offers"),
            ({"resources": {"licence": 1}}, "needs 1 licence; the most that a worker has is 0 licence"),
        ):
            job = self.bench.submit(**need)
            self.assertEqual((self.bench.answers[0]["warning"], self.bench.why(job)), (words, words))
            self.assertEqual(self.bench.state(job), "queued")

    def test_ten_million_tasks_are_one_row(self) -> None:
        job = self.bench.submit(count=10_000_000, array="0-9999999")
        self.assertEqual(
            len(self.bench.disk.jobs[job].sets), len('{"waiting":[],"queued":[[0,10000000]],"cancelled":[]}')
        )
        self.bench.step(events.CancelAsked([events.Target(job, None, None)], None, "me"))
        self.assertEqual(self.bench.answers, [{"cancelled": [(job, [(0, 9_999_999)], True)]}])
        self.assertEqual(self.bench.disk.jobs[job].state, "cancelled")


class LostTest(unittest.TestCase):
    def setUp(self) -> None:
        self.bench = Bench()
        self.bench.join("w")
        self.job = self.bench.submit()
        self.key = TaskKey(self.job, 0, 1)

    def test_a_short_absence_changes_nothing(self) -> None:
        self.bench.step(events.WorkerGone("w", False))
        self.bench.step(seconds=59)
        self.assertEqual(self.bench.state(self.job), "running")
        self.bench.join("w", as_link="w2", holding=[[*self.key, "running", 1.0]])
        self.assertEqual(self.bench.mail["w2"].welcome["keep"], [self.key])
        self.bench.finish("w2", self.key)
        self.assertEqual(self.bench.disk.tasks[self.job, 0].attempt, 1)

    def test_a_lost_worker_queues_its_task_again_and_the_old_attempt_is_ignored(self) -> None:
        self.bench.step(events.WorkerGone("w", False))
        self.bench.step(seconds=61)
        self.assertEqual(self.bench.state(self.job), "queued")
        self.bench.join("v")
        self.assertEqual(self.bench.given("v"), [TaskKey(self.job, 0, 2)])
        self.bench.join("w", as_link="w2", holding=[[*self.key, "done", 1.0]])
        self.assertEqual(self.bench.mail["w2"].welcome["kill"], [self.key])
        self.bench.finish("w2", self.key, code=3)
        self.assertEqual(self.bench.state(self.job), "running")
        self.bench.finish("v", TaskKey(self.job, 0, 2))
        self.assertEqual(self.bench.disk.tasks[self.job, 0].exit_code, 0)

    def test_a_lost_worker_that_is_back_before_the_next_start_goes_on(self) -> None:
        self.bench.step(events.WorkerGone("w", False))
        self.bench.step(seconds=61)
        self.bench.join("w", as_link="w2", holding=[[*self.key, "running", 1.0]])
        self.assertEqual(self.bench.mail["w2"].welcome["keep"], [self.key])
        self.assertEqual(self.bench.given("w2"), [])

    def test_three_lost_workers_are_the_limit(self) -> None:
        for boot in "cde":
            self.assertEqual(self.bench.state(self.job), "running")
            self.bench.step(events.WorkerGone("w", False))
            self.bench.join("w", boot=boot)
        row = self.bench.disk.tasks[self.job, 0]
        self.assertEqual((row.state, row.reason, row.attempt), ("failed", "worker lost 3 times", 3))

    def test_if_lost_fail(self) -> None:
        self.bench.finish("w", self.key)
        job = self.bench.submit(if_lost="fail")
        self.bench.step(events.WorkerGone("w", False))
        self.bench.step(seconds=61)
        self.assertEqual(self.bench.disk.tasks[job, 0].reason, "worker lost")

    def test_an_orderly_leave_is_no_crash(self) -> None:
        self.bench.step(events.WorkerGone("w", True))
        self.assertEqual((self.bench.state(self.job), self.bench.disk.tasks[self.job, 0].crashes), ("queued", 0))

    def test_an_assignment_that_did_not_arrive_is_no_crash(self) -> None:
        self.bench.step(events.WorkerGone("w", False))
        self.bench.join("w", as_link="w2")
        self.assertEqual(self.bench.given("w2"), [self.key], "it never began: its number is free")
        self.assertEqual(self.bench.disk.tasks[self.job, 0].crashes, 0)

    def test_a_restart_of_the_manager_adopts_what_runs(self) -> None:
        self.bench.restart()
        self.assertEqual(self.bench.state(self.job), "running")
        self.bench.join("w", holding=[[*self.key, "running", 1.0]])
        self.assertEqual(self.bench.mail["w"].welcome["keep"], [self.key])

    def test_a_cloned_worker_is_another_worker(self) -> None:
        self.bench.join("w", boot="other", as_link="clone")
        self.assertEqual(self.bench.state(self.job), "running")
        self.assertEqual(self.bench.mail["clone"].welcome["name"], "w-2")
        self.assertIsNone(self.bench.mail["clone"].close)


class CancelTest(unittest.TestCase):
    def setUp(self) -> None:
        self.bench = Bench()
        self.bench.join("w")

    def cancel(self, job: int, lo: int | None = None, hi: int | None = None) -> None:
        self.bench.step(events.CancelAsked([events.Target(job, lo, hi)], None, "me"))

    def test_running_queued_and_parts(self) -> None:
        job = self.bench.submit(count=5, array="0-4", timeout=900.0)
        self.cancel(job, 3, 4)
        self.assertEqual(self.bench.answers[0]["cancelled"], [(job, [(3, 4)], False)])
        self.cancel(job, 0, 0)
        key = self.bench.mail["w"].kill[0][0]
        self.assertEqual(key, TaskKey(job, 0, 1))
        self.bench.finish("w", key, code=0)
        self.assertEqual(self.bench.state(job, 0), "cancelled", "however its script ended")
        self.assertEqual([self.bench.state(job, pos) for pos in (3, 4)], ["cancelled", "cancelled"])

    def test_it_reaches_a_worker_that_is_away_and_survives_a_restart(self) -> None:
        job = self.bench.submit()
        self.bench.step(events.WorkerGone("w", False))
        self.cancel(job)
        self.bench.restart()
        self.bench.join("w", holding=[[job, 0, 1, "running", 1.0]])
        self.assertEqual(self.bench.mail["w"].kill[0][0], TaskKey(job, 0, 1))

    def test_retry_runs_what_failed_again(self) -> None:
        job = self.bench.submit(count=2, array="0-1")
        self.bench.finish("w", TaskKey(job, 0, 1), code=1)
        self.bench.finish("w", TaskKey(job, 1, 1))
        self.assertEqual(self.bench.disk.jobs[job].state, "failed")
        self.bench.step(events.RetryAsked([events.Target(job, None, None)], "me"))
        self.assertEqual(self.bench.answers, [{"queued": [(job, [(0, 0)], False)]}])
        self.assertEqual(self.bench.given("w"), [TaskKey(job, 0, 2)])
        self.bench.finish("w", TaskKey(job, 0, 2))
        self.assertEqual(self.bench.disk.jobs[job].state, "succeeded")


class ArrayTest(unittest.TestCase):
    def setUp(self) -> None:
        self.bench = Bench()

    def test_max_running(self) -> None:
        self.bench.join("w", slots=4)
        job = self.bench.submit(count=6, array="0-5", max_running=2)
        self.assertEqual(len(self.bench.given("w")), 2)
        self.assertEqual(self.bench.why(job), "at most 2 of its tasks run at a time (--max-running)")

    def test_what_comes_back_from_a_lost_worker_does_not_exceed_max_running(self) -> None:
        self.bench.join("w")
        job = self.bench.submit(count=2, array="0-1", max_running=1)
        self.bench.finish("w", self.bench.given("w")[0], code=1)
        (second,) = self.bench.given("w")
        self.bench.step(events.WorkerGone("w", False))
        self.bench.step(seconds=61)
        self.bench.step(events.RetryAsked([events.Target(job, None, None)], None))
        self.bench.join("v")
        self.assertEqual(self.bench.given("v"), [TaskKey(job, 0, 2)])
        self.bench.join("w", as_link="w2", holding=[[*second, "running", 1.0]])
        self.assertEqual(self.bench.mail["w2"].welcome["kill"], [second])
        self.assertEqual(self.bench.state(job, 1), "queued")

    def test_max_fails_cancels_the_rest(self) -> None:
        self.bench.join("w", slots=2)
        job = self.bench.submit(count=9, array="0-8", max_fails=1, timeout=900.0)
        self.bench.finish("w", TaskKey(job, 0, 1), code=1)
        self.assertEqual([key for key, _ in self.bench.mail["w"].kill], [TaskKey(job, 1, 1)])
        self.bench.finish("w", TaskKey(job, 1, 1), code=1)
        row = self.bench.disk.jobs[job]
        self.assertEqual((row.state, row.failed, row.cancelled), ("failed", 1, 8))

    def test_retries(self) -> None:
        self.bench.join("w")
        job = self.bench.submit(retries=1)
        self.bench.finish("w", TaskKey(job, 0, 1), code=1)
        self.assertEqual(self.bench.given("w"), [TaskKey(job, 0, 2)])
        self.bench.finish("w", TaskKey(job, 0, 2), code=1)
        self.assertEqual(self.bench.disk.jobs[job].state, "failed")


class DependencyTest(unittest.TestCase):
    def setUp(self) -> None:
        self.bench = Bench()
        self.bench.join("w", slots=8)

    def after(self, job: int, kind: str = "ok", pos: int | None = None, **changes: Any) -> int:
        return self.bench.submit(after=[{"job": job, "pos": pos, "kind": kind}], **changes)

    def test_after_success(self) -> None:
        first = self.bench.submit()
        second = self.after(first)
        self.assertEqual(self.bench.why(second), f"waits for job {first} to succeed")
        self.bench.finish("w", TaskKey(first, 0, 1))
        self.assertEqual(self.bench.given("w"), [TaskKey(second, 0, 1)])

    def test_what_can_never_run_is_cancelled_down_the_chain(self) -> None:
        first = self.bench.submit()
        second = self.after(first)
        third = self.after(second)
        anyway = self.after(first, "any")
        self.bench.finish("w", TaskKey(first, 0, 1), code=1)
        self.assertEqual(self.bench.disk.jobs[second].reason, "job 1 failed, and this waited for its success")
        self.assertEqual(self.bench.disk.jobs[third].reason, "job 2 was cancelled, and this waited for its success")
        self.assertEqual(self.bench.state(anyway), "running")

    def test_history_counts_too(self) -> None:
        first = self.bench.submit()
        self.bench.finish("w", TaskKey(first, 0, 1))
        self.bench.restart()
        self.assertEqual(self.bench.state(self.after(first)), "queued")
        self.bench.submit()
        self.assertEqual(self.bench.submit(after=[]), 4)

    def test_each_task_waits_for_its_own(self) -> None:
        first = self.bench.submit(count=3, array="0-2")
        second = self.after(first, "each", count=3, array="0-2")
        self.bench.finish("w", TaskKey(first, 1, 1))
        self.assertEqual(self.bench.given("w"), [TaskKey(second, 1, 1)])
        self.bench.finish("w", TaskKey(first, 0, 1), code=1)
        self.assertEqual([self.bench.state(second, pos) for pos in range(3)], ["cancelled", "running", "waiting"])
        self.bench.restart()
        self.assertEqual(self.bench.state(second, 2), "waiting")

    def test_a_task_of_an_array(self) -> None:
        first = self.bench.submit(count=3, array="0-2")
        second = self.after(first, "ok", pos=2)
        self.bench.finish("w", TaskKey(first, 2, 1))
        self.assertEqual(self.bench.given("w"), [TaskKey(second, 0, 1)])

    def test_unknown_jobs_and_unequal_arrays_are_refused(self) -> None:
        for dep, words in (
            ({"job": 99, "pos": None, "kind": "ok"}, "there is no job 99 to wait for"),
            ({"job": 1, "pos": None, "kind": "each"}, "--after-each 1: it has 3 tasks and this job 1; must be equal"),
        ):
            if dep["job"] == 1:
                self.bench.submit(count=3, array="0-2")
            job = spec(after=[dep])
            self.bench.step(events.JobSubmitted("x" + str(dep["job"]), job, json.dumps(job), "me"))
            self.assertEqual(self.bench.answers[0]["message"], words)

    def test_a_long_chain_falls_at_once(self) -> None:
        last = first = self.bench.submit()
        for _ in range(300):
            last = self.after(last)
        self.bench.finish("w", TaskKey(first, 0, 1), code=1)
        self.assertEqual(self.bench.state(last), "cancelled")
        self.assertEqual(self.bench.cluster.jobs, {})


class SchedulingTest(unittest.TestCase):
    def setUp(self) -> None:
        self.bench = Bench()

    def test_priority_then_submission(self) -> None:
        jobs = [self.bench.submit(priority=p, cpus=1, timeout=900.0, gpus=0) for p in (0, 5, 0)]
        self.bench.join("w")
        order = []
        for _ in jobs:
            key = next(iter(self.bench.cluster.workers["id-w"].live.values())).row
            order.append(key.job)
            self.bench.finish("w", TaskKey(key.job, 0, 1))
        self.assertEqual(order, [2, 1, 3])

    def test_many_jobs_of_one_do_not_stop_the_single_one_of_another(self) -> None:
        self.bench.join("w", slots=2)
        self.bench.submit(count=1000, array="0-999", user="ann")
        single = self.bench.submit(user="bob")
        self.bench.finish("w", TaskKey(1, 0, 1))
        self.assertEqual(self.bench.state(single), "running")

    def test_work_spreads_over_workers(self) -> None:
        for name in "abcd":
            self.bench.join(name, slots=2)
        self.bench.submit(count=4, array="0-3")
        self.assertEqual([len(self.bench.given(name)) for name in "abcd"], [1, 1, 1, 1])

    def test_what_failed_here_is_tried_elsewhere(self) -> None:
        self.bench.join("a", slots=9)
        job = self.bench.submit(retries=1)
        self.bench.join("b", slots=1)
        self.bench.finish("a", TaskKey(job, 0, 1), code=1)
        self.assertEqual(self.bench.given("b"), [TaskKey(job, 0, 2)])

    def test_a_big_task_is_not_starved_by_small_ones(self) -> None:
        self.bench.join("w", slots=2)
        self.bench.submit(count=100, array="0-99")
        big = self.bench.submit(cpus=2, user="bob")
        for _ in range(40):
            for live in list(self.bench.cluster.workers["id-w"].live.values()):
                if live.row.job != big and not live.ahead:
                    self.bench.finish("w", TaskKey(*live.row[:2], live.row.attempt), seconds=1)
            if self.bench.state(big) == "running":
                return
        self.fail("the big task never ran")

    def test_short_tasks_are_sent_ahead_and_asked_back_by_idle_workers(self) -> None:
        self.bench.join("a")
        job = self.bench.submit(count=40, array="0-39")
        for pos in range(12):
            self.bench.finish("a", TaskKey(job, pos, 1), finished_at=self.bench.now, started_at=self.bench.now - 0.01)
        held = len(self.bench.cluster.workers["id-a"].live)
        self.assertGreater(held, 2)
        for _ in range(26):
            live = next(live for live in self.bench.cluster.workers["id-a"].live.values() if not live.ahead)
            if not self.bench.cluster.jobs[job].queued:
                break
            self.bench.finish("a", TaskKey(job, live.row.pos, 1), finished_at=self.bench.now, started_at=self.bench.now)
        self.bench.join("b", slots=8)
        back = self.bench.mail["a"].recall
        self.assertTrue(back)
        self.bench.step(events.WorkerReported("a", [], [], back))
        self.assertEqual(sorted(key.pos for key in self.bench.given("b")), sorted(key.pos for key in back))

    def ahead(self, link: str) -> list[TaskKey]:
        """What was sent to the worker beyond its slots."""
        lives = self.bench.cluster.workers["id-" + link].live.values()
        return [TaskKey(live.row.job, live.row.pos, live.row.attempt) for live in lives if live.ahead]

    def quick(self, link: str, job: int, tasks: int) -> None:
        """The worker does so many tasks of an array in no time: it is known to be fast."""
        for pos in range(tasks):
            self.bench.finish(link, TaskKey(job, pos, 1), finished_at=self.bench.now, started_at=self.bench.now)

    def test_only_what_needs_nothing_but_cpus_is_sent_ahead(self) -> None:
        self.bench.join("a", resources={"licence": 8}, gpus=8)
        for wants in ({"memory": 1}, {"gpus": 1}, {"resources": {"licence": 1}}):
            job = self.bench.submit(count=20, array="0-19", **wants)
            self.quick("a", job, 19)
            self.assertEqual(self.ahead("a"), [])
            self.bench.finish("a", TaskKey(job, 19, 1))

    def test_an_idle_worker_that_is_of_no_use_stops_nobody(self) -> None:
        self.bench.join("other", slots=4)
        self.bench.join("a", labels=["big"])
        job = self.bench.submit(count=400, array="0-399", on=["big"])
        for pos in range(60):
            now = self.bench.now + 0.3
            self.bench.finish("a", TaskKey(job, pos, 1), seconds=0.3, finished_at=now, started_at=now - 0.02)
            self.assertFalse(self.bench.mail["a"].recall, "nobody else could run it")
            self.assertIsNone(self.bench.cluster.workers["id-a"].reserved_for)
        self.assertGreater(len(self.ahead("a")), 2)

    def test_idle_workers_ask_back_also_while_others_wait_in_vain(self) -> None:
        self.bench.join("a")
        job = self.bench.submit(count=17, array="0-16")
        self.bench.submit(on=["nowhere"])
        self.quick("a", job, 12)
        self.assertEqual(len(self.ahead("a")), 4)
        self.bench.join("b", slots=2)
        back = self.bench.mail["a"].recall
        self.assertEqual(len(back), 2, "as many as it has room for")
        self.bench.step()
        self.assertNotIn("a", self.bench.mail, "those that come already are not asked for twice")
        self.bench.step(events.WorkerReported("a", [], [], back))
        self.assertEqual(self.bench.given("b"), sorted(back), "none began: the numbers are free")
        self.assertEqual({self.bench.disk.tasks[key[:2]].crashes for key in back}, {0})

    def test_when_who_was_asked_is_away_another_is_asked(self) -> None:
        self.bench.join("a")
        self.bench.join("c")
        job = self.bench.submit(count=40, array="0-39")
        lives = self.bench.cluster.jobs[job].live
        while self.bench.cluster.jobs[job].queued:
            key = next(TaskKey(job, pos, 1) for pos, live in lives.items() if not live.ahead)
            link = lives[key.pos].worker.name
            self.bench.finish(link, key, finished_at=self.bench.now, started_at=self.bench.now)
        self.assertTrue(self.ahead("a") and self.ahead("c"))
        self.bench.join("b")
        (asked,) = [link for link in self.bench.mail if self.bench.mail[link].recall]
        self.bench.step(events.WorkerGone(asked, False))
        self.assertEqual([link for link in self.bench.mail if self.bench.mail[link].recall], ["c"])

    def test_what_waits_for_long_is_asked_back(self) -> None:
        self.bench.join("a")
        job = self.bench.submit(count=400, array="0-399")
        self.quick("a", job, 12)
        ahead = self.ahead("a")
        urgent = self.bench.submit(priority=9)
        self.bench.step(seconds=0.5)
        self.assertNotIn("a", self.bench.mail)
        self.bench.step(seconds=0.6)
        self.assertEqual(self.bench.mail["a"].recall, ahead)
        self.bench.step(events.WorkerReported("a", [], [], ahead))
        self.assertEqual(self.ahead("a"), [], "its tasks are not short any more")
        self.bench.finish("a", TaskKey(job, 12, 1), seconds=100)
        self.assertEqual(self.bench.state(urgent), "running")
        self.bench.step(seconds=5)
        self.assertIsNone(self.bench.cluster.placement._look_ahead_at, "no deadline while nothing is ahead")

    def test_a_worker_that_cannot_start_anything_is_paused(self) -> None:
        self.bench.join("w")
        job = self.bench.submit()
        for attempt in (1, 2, 3):
            self.bench.finish("w", TaskKey(job, 0, attempt), never_ran=True, exit_code=None, reason="no space left")
        row = self.bench.disk.tasks[job, 0]
        self.assertEqual((row.state, row.reason), ("failed", "could not be started 3 times: no space left"))
        again = self.bench.submit()
        self.assertEqual(self.bench.state(again), "queued")
        self.bench.step(seconds=30)
        self.assertEqual(self.bench.state(again), "running")

    def test_drain_and_resume(self) -> None:
        self.bench.join("w")
        self.bench.step(events.DrainAsked(["w"], True, "me"))
        job = self.bench.submit()
        self.assertEqual(self.bench.why(job), "every worker that could run it is drained")
        self.bench.step(events.DrainAsked(["w"], False, "me"))
        self.assertEqual(self.bench.state(job), "running")
