"""Carries out what the worker's brain wants done with attempts: start, stop, collect, discard.

Joins folders (staging), pipes (streams), variables (jobenv) and processes (launcher) of each attempt; decides nothing.
All methods belong to the loop's thread. The answers are events: Started, Exited, Collected.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any, Optional

from . import jobenv
from .core.jobs import TaskKey
from .core.orders import Collected, Event, Exited, Started
from .errands import Errands
from .launcher import AttemptPlan, ExitReport, Guards
from .preparing import Job, Preparing
from .staging import Stage
from .streams import Streams
from .uploads import Uploads


class _Run:
    """One attempt from its folder to its end."""

    __slots__ = ("folder", "gpus", "handle", "job", "key", "ran", "stopped", "temp")

    def __init__(self, key: TaskKey, job: Job, gpus: tuple[str, ...]) -> None:
        self.key, self.job, self.gpus = key, job, gpus
        self.folder = self.temp = ""
        self.handle: Any = None
        self.stopped = False  # before it was launched
        self.ran = False


class Attempts:
    """`name` is the worker's, as jobs are told it."""

    def __init__(
        self,
        guards: Guards,
        stage: Stage,
        streams: Streams,
        uploads: Uploads,
        preparing: Preparing,
        errands: Errands,
        say: Callable[[Event], None],
    ) -> None:
        self.name = ""
        self._guards, self._stage, self._streams = guards, stage, streams
        self._uploads, self._preparing, self._errands, self._say = uploads, preparing, errands, say
        self._runs: dict[TaskKey, _Run] = {}

    def start(self, key: TaskKey, gpus: tuple[str, ...]) -> None:
        job = self._preparing.jobs[key.job]
        plan = job.plan
        run = self._runs[key] = _Run(key, job, gpus)
        assert plan is not None
        try:
            self._stage.check_script(plan)
            run.folder, run.temp = self._stage.make(key)
            if plan.files and plan.large():
                self._errands.run(
                    lambda: self._stage.fill(plan, run.folder), lambda _, error: self._on_filled(run, error)
                )
                return
            if plan.files:
                self._stage.fill(plan, run.folder)
            self._launch(run)
        except OSError as error:
            self._never(run, error)

    def _on_filled(self, run: _Run, error: Optional[Exception]) -> None:
        if run.stopped:
            error = error or InterruptedError("ended before it started")
        if error is None:
            try:
                self._launch(run)
            except OSError as problem:
                error = problem
        if error is not None:
            self._never(run, error)

    def _launch(self, run: _Run) -> None:
        key, job = run.key, run.job
        plan, spec = job.plan, job.spec
        assert plan is not None
        try:
            argv = plan.argv(key.pos, self._stage.blobs)
        except IndexError:
            raise OSError("its line is not there") from None
        variables = jobenv.of_attempt(
            job.variables, spec, key.pos, key.attempt, worker=self.name, folder=run.folder, temp=run.temp, gpus=run.gpus
        )
        source = spec.get("stdin")
        stdin = os.open(self._stage.blobs.path(source) if source else os.devnull, os.O_RDONLY)
        try:
            stdout, stderr = self._streams.open(key, spec["max_output"]).write_fds
        except OSError:
            os.close(stdin)
            raise
        run.handle = self._guards.start(
            AttemptPlan(
                key, job.python, plan.script, argv, variables, run.folder, stdin, stdout, stderr, spec["cold"],
                tuple(spec["preload"]), spec["buffered"], spec["memory"],
            ),
            lambda _pid, warm, why_cold: self._say(
                Started(key, run.handle.started_at or time.time(), warm, why_cold)
            ),
            lambda report: self._on_exit(run, report),
        )  # fmt: skip

    def _never(self, run: _Run, error: Exception) -> None:
        reason = f"cannot start: {getattr(error, 'strerror', None) or error}"
        self._say(Exited(run.key, None, time.time(), None, None, None, None, reason, True))

    def _on_exit(self, run: _Run, report: ExitReport) -> None:
        run.handle = None
        run.ran = not report.never_ran
        began = report.started_at if run.ran else None
        self._say(
            Exited(
                run.key, began, report.finished_at, report.exit_code, report.signal, report.cpu_seconds,
                report.max_rss_bytes, report.reason, report.never_ran,
            )
        )  # fmt: skip

    def stop(self, key: TaskKey, grace: float, mute: bool) -> None:
        run = self._runs.get(key)
        if run is None:
            return
        if run.handle is None:
            run.stopped = True
        elif grace > 0:
            run.handle.stop(grace)
        else:
            run.handle.kill()
        if mute:
            self._streams.discard(key)

    def collect(self, key: TaskKey) -> None:
        run = self._runs[key]
        dropped = self._streams.finish(key)
        plan = run.job.plan
        if run.ran and plan is not None and plan.returns:
            self._uploads.collect(
                key, run.folder, plan.returns, lambda files, note: self._on_collected(run, files, note, dropped)
            )
        else:
            self._on_collected(run, None, None, dropped)

    def _on_collected(self, run: _Run, files: Optional[str], note: Optional[str], dropped: int) -> None:
        self._clear(run)
        self._say(Collected(run.key, files, note, dropped))

    def _clear(self, run: _Run) -> None:
        if run.folder:
            self._stage.clear(run.folder, run.temp)
            run.folder = ""

    def discard(self, key: TaskKey) -> None:
        self._streams.discard(key)
        run = self._runs.pop(key, None)
        if run is not None:
            self._uploads.discard(key)
            self._clear(run)
