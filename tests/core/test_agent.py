"""The worker's brain: exact commands for each event, invariants after each, and the real cluster's brain against it."""

from __future__ import annotations

import random
import unittest
from collections.abc import Callable
from typing import Any
from unittest import mock

from src.core import agent as agent_module
from src.core import events
from src.core.agent import Agent, Capacity
from src.core.jobs import Finish, TaskKey
from src.core.orders import (
    Collect,
    Collected,
    Command,
    Connected,
    Discard,
    Disconnected,
    Exited,
    Forget,
    Join,
    Learn,
    Leave,
    LeaveAsked,
    Prepare,
    Prepared,
    Reconnect,
    Resume,
    Start,
    Started,
    Stop,
    TellFinished,
    TellRecalled,
    TellStarted,
    TellState,
    Ticked,
    Welcomed,
    WorkCame,
)
from tests.support import sim
from tests.support.sim import Simulation, spec

WALL = 1_000_000.0


def key(pos: int, job: int = 7, attempt: int = 1) -> TaskKey:
    return TaskKey(job, pos, attempt)


class Driver:
    """An agent, its clock, and what it last wanted; every step is checked."""

    def __init__(self, slots: int = 2, **more: Any) -> None:
        capacity = Capacity(slots, more.pop("gpus", ()), more.pop("memory", 0), more.pop("resources", {}))
        self.now = 100.0
        self.agent = Agent(capacity, self.now, **more)

    def say(self, event: Any) -> list[Command]:
        commands = self.agent.handle(event, self.now)
        self.agent.check()
        return commands

    def connect(self, keep: list[Any] | None = None, kill: list[TaskKey] | None = None) -> list[Command]:
        return self.say(Connected()) + self.say(Welcomed(60.0, keep or [], kill or []))

    def work(self, *run: TaskKey, **more: Any) -> list[Command]:
        found: dict[str, Any] = {"jobs": {}, "kill": [], "ack": [], "recall": [], "drain": None}
        found.update(more)
        return self.say(WorkCame(run=list(run), at=WALL, **found))

    def give(self, *run: TaskKey, **changes: Any) -> list[Command]:
        """Work of jobs with such a spec, and all of it prepared at once."""
        known = {each.job: spec(**changes) for each in run}
        commands = self.work(*run, jobs=known)
        for command in list(commands):
            if isinstance(command, Prepare):
                commands += self.say(Prepared(command.key, WALL))
        return [command for command in commands if not isinstance(command, (Prepare, Learn))]

    def started(self, task: TaskKey) -> list[Command]:
        return self.say(Started(task, WALL, True, None))

    def exited(self, task: TaskKey, code: int | None = 0, **more: Any) -> list[Command]:
        found: dict[str, Any] = {"signal": None, "reason": None, "never_ran": False}
        found.update(more)
        began = None if found["never_ran"] else WALL
        return self.say(Exited(task, began, WALL + 1, code, cpu=0.5, rss=1000, **found))

    def finish(self, task: TaskKey, code: int | None = 0, **more: Any) -> list[Command]:
        commands = self.exited(task, code, **more)
        for command in list(commands):
            if isinstance(command, Collect):
                commands += self.say(Collected(command.key, None, None, 0))
        return commands

    def run(self, task: TaskKey, **changes: Any) -> None:
        self.give(task, **changes)
        self.started(task)


def kinds(commands: list[Command]) -> list[str]:
    return [type(command).__name__ for command in commands]


def starts(commands: list[Command]) -> list[TaskKey]:
    return [command.key for command in commands if isinstance(command, Start)]


class TestLife(unittest.TestCase):
    def test_one_task_from_work_to_acknowledgement(self) -> None:
        driver = Driver()
        self.assertEqual(driver.say(Connected()), [Join([])])
        self.assertEqual(driver.say(Welcomed(60.0, [], [])), [TellState()])
        known = spec(timeout=None)
        self.assertEqual(driver.work(key(0), jobs={7: known}), [Learn(7, known), Prepare(key(0))])
        self.assertEqual(driver.say(Prepared(key(0), WALL)), [Start(key(0), ())])
        self.assertEqual(driver.started(key(0)), [TellStarted(key(0), WALL, True, None)])
        self.assertEqual(driver.exited(key(0), 3), [Collect(key(0))])
        (told,) = driver.say(Collected(key(0), "f" * 64, None, 0))
        assert isinstance(told, TellFinished)
        self.assertEqual((told.end.exit_code, told.end.started_at, told.end.files), (3, WALL, "f" * 64))
        self.assertEqual(driver.work(ack=[key(0)]), [Discard(key(0))])
        self.assertEqual(driver.agent.attempts, {})

    def test_a_slot_is_free_when_the_processes_are_gone_not_when_the_files_are_sent(self) -> None:
        driver = Driver(slots=1)
        driver.connect()
        driver.give(key(0), key(1))
        driver.started(key(0))
        self.assertTrue(driver.agent.supplied())
        self.assertEqual(driver.exited(key(0)), [Collect(key(0)), Start(key(1), ())])
        self.assertFalse(driver.agent.supplied())

    def test_what_comes_twice_or_unasked_changes_nothing(self) -> None:
        driver = Driver()
        driver.connect()
        driver.run(key(0))
        self.assertEqual(driver.work(key(0), jobs={}), [])
        self.assertEqual(driver.started(key(0)), [])
        self.assertEqual(driver.say(Prepared(key(0), WALL)), [])
        self.assertEqual(driver.work(ack=[key(0)], recall=[key(0)]), [])
        self.assertEqual(driver.say(Collected(key(0), None, None, 0)), [])
        for event in (Prepared(key(9), WALL), Started(key(9), WALL, True, None), Collected(key(9), None, None, 0)):
            self.assertEqual(driver.say(event), [])
        self.assertEqual(driver.exited(key(9)), [])

    def test_notes_of_the_collection_follow_the_reason(self) -> None:
        driver = Driver()
        driver.connect()
        driver.run(key(0))
        driver.exited(key(0), None, signal=9, reason="out of memory")
        (told,) = driver.say(Collected(key(0), None, "1 special file was not returned", 5))
        assert isinstance(told, TellFinished)
        self.assertEqual(told.end.reason, "out of memory; 1 special file was not returned")
        self.assertEqual(told.end.dropped, 5)


class TestPlaces(unittest.TestCase):
    def test_in_order_as_far_as_it_fits(self) -> None:
        driver = Driver(slots=2)
        driver.connect()
        self.assertEqual(starts(driver.give(key(0), key(1), key(2), key(3))), [key(0), key(1)])
        driver.started(key(0))
        self.assertEqual(starts(driver.finish(key(0))), [key(2)])

    def test_a_large_task_keeps_its_place(self) -> None:
        driver = Driver(slots=4)
        driver.connect()
        driver.run(key(0, job=1), cpus=2)
        self.assertEqual(starts(driver.give(key(0, job=2), cpus=4)), [])
        self.assertEqual(starts(driver.give(key(0, job=3), key(1, job=3), cpus=1)), [], "it would wait for these")
        self.assertEqual(starts(driver.finish(key(0, job=1))), [key(0, job=2)])
        driver.started(key(0, job=2))
        self.assertEqual(starts(driver.finish(key(0, job=2))), [key(0, job=3), key(1, job=3)])

    def test_smaller_ones_go_beside_a_large_task_that_waits_for_something_else(self) -> None:
        driver = Driver(slots=4, gpus=("0",))
        driver.connect()
        driver.run(key(0, job=1), gpus=1)
        self.assertEqual(starts(driver.give(key(0, job=2), gpus=1)), [])
        self.assertEqual(starts(driver.give(key(0, job=3), key(1, job=3), key(2, job=3))), [key(0, 3), key(1, 3)])
        self.assertEqual(starts(driver.finish(key(0, job=1))), [key(0, job=2), key(2, job=3)])

    def test_gpus_have_identities(self) -> None:
        driver = Driver(slots=8, gpus=("0", "1", "GPU-abc"))
        driver.connect()
        self.assertEqual(driver.give(key(0, job=1), gpus=2), [Start(key(0, 1), ("0", "1"))])
        self.assertEqual(driver.give(key(0, job=2), gpus=1), [Start(key(0, 2), ("GPU-abc",))])
        driver.started(key(0, job=1))
        driver.finish(key(0, job=1))
        self.assertEqual(driver.give(key(0, job=3), gpus=1), [Start(key(0, 3), ("0",))])

    def test_memory_and_resources_are_counted(self) -> None:
        driver = Driver(slots=8, memory=1000, resources={"db": 2})
        driver.connect()
        self.assertEqual(starts(driver.give(key(0, job=1), memory=600)), [key(0, job=1)])
        self.assertEqual(starts(driver.give(key(0, job=2), memory=600)), [])
        self.assertEqual(starts(driver.give(key(0, job=3), resources={"db": 2})), [key(0, job=3)])
        self.assertEqual(starts(driver.give(key(0, job=4), resources={"db": 1})), [])

    def test_what_can_never_fit_goes_back(self) -> None:
        driver = Driver(slots=2)
        driver.connect()
        self.assertEqual(driver.give(key(0), cpus=3), [TellRecalled(key(0))])
        self.assertEqual(driver.give(key(0, job=8), resources={"db": 1}), [TellRecalled(key(0, job=8))])

    def test_others_pass_a_task_that_is_not_prepared(self) -> None:
        driver = Driver(slots=1)
        driver.connect()
        driver.work(key(0), jobs={7: spec()})
        self.assertEqual(starts(driver.give(key(0, job=8))), [key(0, job=8)])
        self.assertEqual(driver.say(Prepared(key(0), WALL)), [])
        self.assertEqual(starts(driver.finish(key(0, job=8))), [key(0)])


class TestFailures(unittest.TestCase):
    def test_what_the_job_is_to_blame_for_is_an_end(self) -> None:
        driver = Driver()
        driver.connect()
        driver.work(key(0), jobs={7: spec()})
        (told,) = driver.say(Prepared(key(0), WALL, "no such package: nmpy", by_job=True))
        assert isinstance(told, TellFinished)
        self.assertEqual((told.end.reason, told.end.never_ran), ("no such package: nmpy", False))
        self.assertIsNone(driver.agent.failing)

    def test_a_worker_says_that_it_fails_until_something_starts(self) -> None:
        driver = Driver()
        driver.connect()
        for pos in range(3):
            self.assertIsNone(driver.agent.failing)
            driver.give(key(pos))
            (_, told) = driver.finish(key(pos), None, reason="no space left on device", never_ran=True)
            assert isinstance(told, TellFinished)
            self.assertTrue(told.end.never_ran)
            self.assertIsNone(told.end.started_at)
        self.assertEqual(driver.agent.failing, "no space left on device")
        driver.run(key(5))
        self.assertIsNone(driver.agent.failing)

    def test_reasons_for_cold_starts_are_counted(self) -> None:
        driver = Driver(slots=3)
        driver.connect()
        driver.give(key(0), key(1), key(2))
        driver.say(Started(key(0), WALL, False, "uses gc"))
        driver.say(Started(key(1), WALL, False, "uses gc"))
        driver.say(Started(key(2), WALL, True, None))
        self.assertEqual((driver.agent.warm, driver.agent.cold_reasons), (1, {"uses gc": 2}))


class TestKill(unittest.TestCase):
    def test_a_running_one_is_stopped_and_reported_as_cancelled(self) -> None:
        driver = Driver()
        driver.connect()
        driver.run(key(0))
        self.assertEqual(driver.work(kill=[(key(0), 4.0)]), [Stop(key(0), 4.0)])
        told = driver.finish(key(0), None, signal=15)[-1]
        assert isinstance(told, TellFinished)
        self.assertTrue(told.end.cancelled)

    def test_a_waiting_one_ends_at_once(self) -> None:
        driver = Driver(slots=1)
        driver.connect()
        driver.give(key(0), key(1))
        (told,) = driver.work(kill=[(key(1), 4.0)])
        assert isinstance(told, TellFinished)
        self.assertTrue(told.end.cancelled and told.end.never_ran)
        self.assertEqual(told.end.finished_at, WALL)
        self.assertEqual(starts(driver.finish(key(0))), [])

    def test_an_unknown_one_is_answered(self) -> None:
        driver = Driver()
        driver.connect()
        (told,) = driver.work(kill=[(key(3), 4.0)])
        assert isinstance(told, TellFinished)
        self.assertTrue(told.end.cancelled)
        self.assertEqual(driver.agent.attempts, {}, "nobody may ever acknowledge it")

    def test_a_kill_and_the_acknowledgement_may_come_together(self) -> None:
        driver = Driver()
        driver.connect()
        driver.run(key(0))
        driver.finish(key(0))
        self.assertEqual(driver.work(kill=[(key(0), 1.0)], ack=[key(0)])[0], Discard(key(0)))
        self.assertEqual(driver.agent.attempts, {})

    def test_what_is_given_and_cancelled_in_one_breath_does_not_start(self) -> None:
        driver = Driver()
        driver.connect()
        commands = driver.work(key(0), jobs={7: spec()}, kill=[(key(0), 1.0)])
        self.assertEqual(kinds(commands), ["Learn", "Prepare", "TellFinished"])
        self.assertEqual(driver.say(Prepared(key(0), WALL)), [])

    def test_one_that_is_done_is_left(self) -> None:
        driver = Driver()
        driver.connect()
        driver.run(key(0))
        driver.finish(key(0))
        self.assertEqual(driver.work(kill=[(key(0), 4.0)]), [])

    def test_a_second_kill_may_be_harder(self) -> None:
        driver = Driver()
        driver.connect()
        driver.run(key(0))
        driver.work(kill=[(key(0), 10.0)])
        self.assertEqual(driver.work(kill=[(key(0), 0.0)]), [Stop(key(0), 0.0)])


class TestTimeout(unittest.TestCase):
    def test_counts_from_the_start_of_the_attempt(self) -> None:
        driver = Driver(slots=1)
        driver.connect()
        driver.give(key(0), timeout=60.0)
        driver.now += 30
        self.assertIsNone(driver.agent.next_deadline())
        driver.started(key(0))
        self.assertEqual(driver.agent.next_deadline(), driver.now + 60)
        driver.now += 59
        self.assertEqual(driver.say(Ticked()), [])
        driver.now += 1
        self.assertEqual(driver.say(Ticked()), [Stop(key(0), agent_module.TIMEOUT_GRACE_S)])
        told = driver.finish(key(0), None, signal=15)[-1]
        assert isinstance(told, TellFinished)
        self.assertEqual((told.end.reason, told.end.timed_out), ("timed out after 60 s", True))

    def test_an_attempt_that_ended_in_time_is_left_alone(self) -> None:
        driver = Driver()
        driver.connect()
        driver.run(key(0), timeout=0.5)
        driver.finish(key(0))
        driver.now += 1
        self.assertEqual(driver.say(Ticked()), [])
        driver.work(ack=[key(0)])
        self.assertIsNone(driver.agent.next_deadline())

    def test_a_cancelled_one_is_not_timed_out_as_well(self) -> None:
        driver = Driver()
        driver.connect()
        driver.run(key(0), timeout=1.5)
        driver.work(kill=[(key(0), 10.0)])
        driver.now += 2
        self.assertEqual(driver.say(Ticked()), [])
        told = driver.finish(key(0), 0)[-1]
        assert isinstance(told, TellFinished)
        self.assertFalse(told.end.timed_out)

    def test_old_deadlines_do_not_pile_up(self) -> None:
        driver = Driver(slots=1)
        driver.connect()
        for pos in range(500):
            driver.run(key(pos), timeout=3600.0)
            driver.finish(key(pos))
            driver.work(ack=[key(pos)])
        self.assertLess(len(driver.agent._timeouts), 200)


class TestReconnect(unittest.TestCase):
    def hold_everything(self) -> Driver:
        """done, running, queued; then the connection breaks."""
        driver = Driver(slots=1)
        driver.connect()
        driver.run(key(0))
        driver.finish(key(0), 5)
        driver.give(key(1), key(2))
        driver.started(key(1))
        driver.say(Disconnected())
        return driver

    def test_everything_is_told_and_done_is_told_again(self) -> None:
        driver = self.hold_everything()
        held = [(7, 0, 1, "done", WALL), (7, 1, 1, "running", WALL), (7, 2, 1, "queued", None)]
        self.assertEqual(driver.say(Connected()), [Join(held)])
        keep = [(key(0), 10, 0), (key(1), 20, 1), (key(2), 0, 0)]
        commands = driver.say(Welcomed(60.0, keep, []))
        self.assertEqual(kinds(commands), ["Resume", "TellFinished", "Resume", "Resume", "TellState"])
        self.assertEqual(commands[0], Resume(key(0), 10, 0))
        self.assertEqual(commands[2], Resume(key(1), 20, 1))

    def test_what_is_not_kept_ends_unreported(self) -> None:
        driver = self.hold_everything()
        driver.say(Connected())
        commands = driver.say(Welcomed(60.0, [], [key(0), key(1), key(2), key(9)]))
        self.assertEqual(commands, [Discard(key(0)), Stop(key(1), 0.0, True), Discard(key(2)), TellState()])
        self.assertEqual(driver.say(Connected()), [Join([])])
        self.assertEqual(driver.exited(key(1), None, signal=9), [Discard(key(1))])
        self.assertEqual(driver.agent.attempts, {})

    def test_work_goes_on_while_the_manager_is_away_and_is_told_later(self) -> None:
        driver = self.hold_everything()
        self.assertEqual(driver.exited(key(1)), [Collect(key(1)), Start(key(2), ())])
        self.assertEqual(driver.say(Collected(key(1), None, None, 0)), [])
        driver.say(Connected())
        self.assertEqual(driver.started(key(2)), [], "not welcomed yet")
        keep = [(key(pos), 0, 0) for pos in range(3)]
        commands = driver.say(Welcomed(60.0, keep, []))
        self.assertEqual(
            kinds(commands), ["Resume", "TellFinished", "Resume", "TellFinished", "Resume", "TellStarted", "TellState"]
        )

    def test_nothing_new_starts_once_others_may_have_it(self) -> None:
        driver = self.hold_everything()
        driver.now += 31
        self.assertEqual(driver.exited(key(1)), [Collect(key(1))])
        driver.say(Collected(key(1), None, None, 0))
        driver.say(Connected())
        commands = driver.say(Welcomed(60.0, [(key(2), 0, 0)], [key(0), key(1)]))
        self.assertEqual(starts(commands), [key(2)])

    def test_recall_gives_back_what_has_not_started(self) -> None:
        driver = Driver(slots=1)
        driver.connect()
        driver.give(key(0), key(1), key(2))
        self.assertEqual(
            driver.work(recall=[key(0), key(2), key(9)]), [Discard(key(2)), TellRecalled(key(2))], "0 has started"
        )

    def test_an_attempt_number_makes_another_attempt(self) -> None:
        driver = Driver(slots=1)
        driver.connect()
        driver.run(key(0))
        driver.say(Disconnected())
        driver.connect(kill=[key(0)])
        self.assertEqual(driver.give(key(0, attempt=2)), [])
        self.assertEqual(driver.exited(key(0), None, signal=9), [Discard(key(0)), Start(key(0, attempt=2), ())])


class TestSpecs(unittest.TestCase):
    def test_are_forgotten_when_unused_for_long_and_asked_for_again(self) -> None:
        driver = Driver(slots=1)
        commands = driver.connect()
        with mock.patch.object(agent_module, "JOBS_KEPT", 3):
            for job in range(1, 7):
                driver.run(key(0, job=job))
                driver.finish(key(0, job=job))
                commands += driver.work(ack=[key(0, job=job)])
        forgotten = [command for command in commands if isinstance(command, Forget)]
        self.assertEqual(forgotten, [Forget(1), Forget(2), Forget(3)])
        commands = driver.work(key(1, job=1))
        self.assertEqual(kinds(commands), ["TellRecalled", "Reconnect"])
        self.assertIsInstance(commands[1], Reconnect)

    def test_a_connection_starts_with_those_in_use(self) -> None:
        driver = Driver(slots=1)
        driver.connect()
        driver.run(key(0, job=1))
        driver.run(key(0, job=2))
        driver.finish(key(0, job=1))
        driver.work(ack=[key(0, job=1)])
        self.assertEqual(driver.say(Disconnected()), [Forget(1)])


class TestLeaving(unittest.TestCase):
    def test_the_first_signal_lets_running_ones_finish(self) -> None:
        driver = Driver(slots=1)
        driver.connect()
        driver.give(key(0), key(1))
        driver.started(key(0))
        commands = driver.say(LeaveAsked(kill=False))
        self.assertEqual(commands, [Discard(key(1)), TellRecalled(key(1)), TellState()])
        self.assertEqual(driver.give(key(2)), [TellRecalled(key(2))])
        driver.finish(key(0))
        self.assertEqual(driver.work(ack=[key(0)]), [Discard(key(0)), Leave()])

    def test_an_idle_worker_leaves_at_once(self) -> None:
        driver = Driver()
        driver.connect()
        self.assertEqual(driver.say(LeaveAsked(kill=False)), [TellState(), Leave()])
        self.assertEqual(Driver().say(LeaveAsked(kill=False)), [Leave()])

    def test_results_wait_for_the_manager(self) -> None:
        driver = Driver()
        driver.connect()
        driver.run(key(0))
        driver.say(Disconnected())
        self.assertEqual(driver.say(LeaveAsked(kill=False)), [])
        driver.finish(key(0))
        driver.connect(keep=[(key(0), 0, 0)])
        self.assertEqual(kinds(driver.work(ack=[key(0)])), ["Discard", "Leave"])

    def test_the_second_signal_kills_and_gives_back(self) -> None:
        driver = Driver(slots=2)
        driver.connect()
        driver.run(key(0))
        driver.run(key(1))
        driver.finish(key(1))
        driver.say(LeaveAsked(kill=False))
        self.assertEqual(driver.say(LeaveAsked(kill=True)), [Stop(key(0), 0.0, True)])
        self.assertEqual(driver.exited(key(0), None, signal=9), [Discard(key(0))])
        self.assertEqual(driver.work(ack=[key(1)]), [Discard(key(1)), Leave()])

    def test_killing_waits_neither_for_an_absent_manager_nor_for_ever(self) -> None:
        driver = Driver()
        driver.connect()
        driver.run(key(0))
        driver.run(key(1))
        driver.finish(key(1))
        driver.say(Disconnected())
        driver.say(LeaveAsked(kill=True))
        self.assertEqual(driver.exited(key(0), None, signal=9), [Discard(key(0)), Leave()])
        stuck = Driver()
        stuck.connect()
        stuck.run(key(0))
        stuck.say(LeaveAsked(kill=True))
        self.assertEqual(stuck.agent.next_deadline(), stuck.now + agent_module.LEAVE_S)
        stuck.now += agent_module.LEAVE_S
        self.assertEqual(stuck.say(Ticked()), [Leave()])
        self.assertEqual(stuck.exited(key(0), None, signal=9), [Discard(key(0))])

    def test_a_drain_has_a_limit_when_asked(self) -> None:
        driver = Driver(drain_timeout=30.0)
        driver.connect()
        driver.run(key(0))
        driver.say(LeaveAsked(kill=False))
        driver.now += 30
        self.assertEqual(driver.say(Ticked()), [Stop(key(0), 0.0, True)])

    def test_idle_exit_counts_from_the_last_task(self) -> None:
        driver = Driver(idle_exit=60.0)
        driver.connect()
        driver.now += 50
        driver.run(key(0))
        self.assertIsNone(driver.agent.next_deadline())
        driver.now += 50
        driver.finish(key(0))
        driver.work(ack=[key(0)])
        self.assertEqual(driver.agent.next_deadline(), driver.now + 60)
        driver.now += 59
        self.assertEqual(driver.say(Ticked()), [])
        driver.now += 1
        self.assertEqual(kinds(driver.say(Ticked())), ["TellState", "Leave"])

    def test_a_drain_by_a_person_gives_back_and_can_be_undone(self) -> None:
        driver = Driver(slots=1)
        driver.connect()
        driver.give(key(0), key(1))
        self.assertEqual(driver.work(drain=True), [Discard(key(1)), TellRecalled(key(1))])
        self.assertEqual(driver.give(key(2)), [TellRecalled(key(2))])
        driver.work(drain=False)
        driver.started(key(0))
        self.assertEqual(starts(driver.give(key(3)) + driver.finish(key(0))), [key(3)])


class AgentWorker(sim.ModelWorker):
    """The simulator's worker with the real brain in it."""

    def start(self) -> None:
        super().start()
        self.brains: dict[int, Agent] = {}

    @property
    def agent(self) -> Agent:
        """One per life; made when first asked for, when the simulation has settled how many slots there are."""
        if self.boots not in self.brains:
            self.brains = {self.boots: Agent(Capacity(self.slots, memory=1 << 30), self.sim.now)}
        return self.brains[self.boots]

    def do(self, event: Any) -> None:
        pending = [event]
        while pending:
            commands = self.agent.handle(pending.pop(0), self.sim.now)
            self.agent.check()
            for command in commands:
                pending += self.obey(command)

    def obey(self, command: Command) -> list[Any]:
        now, boots = self.sim.now, self.boots
        if isinstance(command, Join):
            self.send_join([list(each) for each in command.holding])
        elif isinstance(command, Prepare):
            return [Prepared(command.key, now)]
        elif isinstance(command, Start):
            self.sim.started(command.key, self)
            seconds = self.sim.random.choice((0.01, 0.05, 1.0, 30.0))
            self.sim.later(seconds, lambda: self.end(command.key, boots, None))
            return [Started(command.key, now, True, None)]
        elif isinstance(command, Stop):
            self.sim.later(0.01, lambda: self.end(command.key, boots, 15))
        elif isinstance(command, Collect):
            return [Collected(command.key, None, None, 0)]
        elif isinstance(command, TellFinished):
            end = command.end
            fin = Finish(
                *command.key, end.exit_code, end.signal, end.reason, end.started_at, end.finished_at, end.cpu, end.rss,
                3, 0, end.dropped, end.files, end.timed_out, end.never_ran, end.cancelled,
                ".".join(map(str, command.key)).encode(), b"",
            )  # fmt: skip
            self.report(finished=[fin])
        elif isinstance(command, TellRecalled):
            self.report(recalled=[command.key])
        elif isinstance(command, Reconnect) and self.link is not None:
            self.link.cut()
        return []

    def end(self, task: TaskKey, boots: int, signal: int | None) -> None:
        if self.up and boots == self.boots:
            code = None if signal else int(self.sim.random.random() < 0.15)
            self.do(Exited(task, None, self.sim.now, code, signal, 0.1, 1, None, False))

    def join(self) -> None:
        if self.up and not (self.link is not None and self.link.open):
            if self.link is not None:
                self.do(Disconnected())
            self.link = sim.Link(self.sim, self)
            self.do(Connected())

    def send_join(self, holding: list[Any]) -> None:
        info = {
            "name": self.name, "worker_id": self.id, "boot": f"{self.name}{self.boots}", "slots": self.slots, "cpus": 4,
            "memory": 1 << 30, "gpus": 0, "labels": self.labels, "resources": {}, "pythons": {}, "version": "0",
            "python": "3.11.7", "holding": holding,
        }  # fmt: skip
        assert self.link is not None
        self.link.to_manager(lambda link: events.WorkerJoined(link, info))

    def receive(self, mail: Any, specs: dict[int, dict[str, Any]]) -> None:
        if not self.up:
            return
        if mail.welcome is not None:
            keep = [(each, 0, 0) for each in mail.welcome["keep"]]
            self.do(Welcomed(60.0, keep, list(mail.welcome["kill"])))
        self.do(WorkCame(specs, mail.run, mail.kill, mail.ack, mail.recall, mail.drain, self.sim.now))


class TestAgainstTheCluster(unittest.TestCase):
    def test_histories_with_faults(self) -> None:
        """The laws that the simulator judges by hold with this brain, too."""
        with mock.patch.object(sim, "ModelWorker", AgentWorker):
            for seed in range(60):
                Simulation(seed).run()

    def test_random_events_never_break_the_books(self) -> None:
        for seed in range(30):
            self.scramble(random.Random(seed))

    def scramble(self, chance: random.Random) -> None:
        """Events in any order, sensible or not; the books are checked after each."""
        driver = Driver(slots=3, gpus=("0", "1"), memory=100, resources={"db": 1})
        for step in range(300):
            self.stir(driver, chance, key(chance.randrange(12), chance.randrange(3), 1 + chance.randrange(2)))
            driver.agent.next_deadline()
            self.assertLessEqual(len(driver.agent.attempts), step + 1)

    def stir(self, driver: Driver, chance: random.Random, task: TaskKey) -> None:
        needs = {"cpus": 1 + chance.randrange(3), "gpus": chance.randrange(3), "timeout": chance.choice((None, 3.0))}
        choices: list[Callable[[], object]] = [
            lambda: driver.work(task, jobs={task.job: spec(**needs)} if task.job not in driver.agent._jobs else {}),
            lambda: driver.say(Prepared(task, WALL, chance.choice((None, None, "broken")))),
            lambda: driver.started(task),
            lambda: driver.finish(task, never_ran=chance.random() < 0.2),
            lambda: driver.work(ack=[task]),
            lambda: driver.work(kill=[(task, 1.0)]),
            lambda: driver.work(recall=[task], drain=chance.choice((None, None, True, False))),
            lambda: driver.say(Disconnected()),
            lambda: driver.connect(keep=[(each, 0, 0) for each in list(driver.agent.attempts)[::2]], kill=[task]),
            lambda: driver.say(Ticked()),
        ]
        driver.now += chance.random()
        chance.choice(choices)()


if __name__ == "__main__":
    unittest.main()
