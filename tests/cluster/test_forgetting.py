"""Forgetting finished jobs while a manager serves: in pieces, to the end, also across a restart."""

from __future__ import annotations

import os
import shutil
import tempfile
from typing import Any
from unittest import mock

from src.core.saves import ForgetJob, Save, SaveJob, SaveTask, StoreOutput
from src.spool import Outputs
from src.store import Store
from tests.cluster.fakes import connect, start_manager, status, submit
from tests.shell.test_store import job_row, task_row
from tests.support.leaks import Case
from tests.support.waiting import wait_until

TASKS = 300


class TestForgetting(Case):
    def setUp(self) -> None:
        self.data = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.data)

    def fill(self, forgotten: bool) -> None:
        """A finished job with many tasks, half of them with output in files; forgotten, but no more than that."""
        store, outputs = Store(self.data), Outputs(self.data + "/output")
        store.open()
        saves: list[Save] = [SaveJob(job_row(1, count=TASKS, state="succeeded", finished_at=1.0))]
        for pos in range(TASKS):
            saves.append(SaveTask(task_row(1, pos, "succeeded")))
            if pos % 2:
                saves.append(StoreOutput(1, pos, b"x", b""))
            else:
                outputs.write(1, pos, 1, 1, 0, b"x")
        store.apply(saves)
        if forgotten:
            store.apply([ForgetJob(1)])
        outputs.close()
        store.close()

    def assert_nothing_left(self) -> None:
        self.assertEqual(os.listdir(self.data + "/output"), [])
        store = Store(self.data)
        store.open()
        self.addCleanup(store.close)
        self.assertEqual((store.tasks(1, 0, TASKS), store.half_forgotten(9)), ([], []))
        self.assertEqual([store.output(1, pos) for pos in range(TASKS)], [None] * TASKS)

    def test_a_large_job_goes_in_pieces(self) -> None:
        self.fill(forgotten=False)
        manager = start_manager(self, self.data)
        link, apply = connect(self, manager), manager.store.apply
        pieces: list[list[int]] = []

        def recorded(saves: list[Save], **how: Any) -> None:
            if "clear" in how:
                pieces.append(how["clear"])
            apply(saves, **how)

        manager.store.apply = recorded  # type: ignore[method-assign,assignment]
        with mock.patch("src.store.CLEAR_ROWS", 20), mock.patch("src.forgetting.FILES_A_PIECE", 20):
            self.assertEqual(link.request({"t": "prune", "older_than": 0}, timeout_s=60)[0]["count"], 1)
        self.assertGreater(len(pieces), TASKS // 20)
        self.assertEqual(status(link, submit(link))["state"], "queued")
        manager.stop()
        self.assert_nothing_left()

    def test_what_the_last_manager_began_is_ended(self) -> None:
        self.fill(forgotten=True)
        manager = start_manager(self, self.data)
        wait_until(lambda: not os.path.exists(self.data + "/output/1"), what="the output to go")
        link = connect(self, manager)
        self.assertEqual(link.request({"t": "prune", "older_than": 0}, timeout_s=60)[0]["count"], 0)
        manager.stop()
        self.assert_nothing_left()
