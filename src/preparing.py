"""Makes jobs ready to start on this worker: content, interpreter, virtual environment, script in its place.

    prepare(key) → its job's: spec's content → sent files → interpreter → environment → laid out;  then its own lines
                 → say(Prepared(key, problem))

Each step is taken once per job, whatever the number of its tasks. All methods belong to the loop's thread; what blocks
runs in the errands.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, Optional

from . import jobenv
from .core.errors import MicroclusterError
from .core.jobs import TaskKey
from .core.live import Shape
from .core.orders import Prepared
from .core.scheduler import interpreter as choose
from .core.syntax import version_matches
from .environments import EnvironmentFailed, Environments, key_of, requirement_lines
from .errands import Errands
from .fetching import Fetches
from .interpreters import Interpreter, ask, own
from .staging import Plan, Stage

log = logging.getLogger(__name__)


class Job:
    """A job that has tasks here, or had some lately."""

    __slots__ = ("busy", "environment", "id", "plan", "python", "ready", "spec", "variables", "waiting")

    def __init__(self, job: int, spec: dict[str, Any]) -> None:
        self.id, self.spec = job, spec
        self.plan: Optional[Plan] = None
        self.ready = False
        self.busy = False  # on the way to be ready
        self.python: Optional[str] = None  # path of its interpreter; None: the worker's own
        self.environment: Optional[str] = None  # key of the virtual environment that it keeps in use
        self.variables: dict[str, str] = {}  # what all its tasks share
        self.waiting: list[TaskKey] = []


class Preparing:
    """`offered` are the interpreters by name, `inherited` what jobs get of the worker's own variables."""

    def __init__(
        self,
        stage: Stage,
        fetches: Fetches,
        offered: dict[str, Interpreter],
        environments: Environments,
        errands: Errands,
        inherited: dict[str, str],
        say: Callable[[Prepared], None],
    ) -> None:
        self.jobs: dict[int, Job] = {}
        self._stage, self._fetches, self._blobs = stage, fetches, stage.blobs
        self._offered, self._environments, self._errands = offered, environments, errands
        self._inherited, self._say = inherited, say
        self._versions = {name: each.version for name, each in offered.items()}
        self._versions[""] = own().version

    def learn(self, job: int, spec: dict[str, Any]) -> None:
        if job not in self.jobs:
            self.jobs[job] = Job(job, spec)

    def forget(self, job: int) -> None:
        found = self.jobs.pop(job, None)
        if found is not None:
            self._release(found)

    def _release(self, job: Job) -> None:
        if job.plan is not None:
            self._stage.release(job.plan)
            job.plan = None
        key, job.environment = job.environment, None
        if key is not None and not any(other.environment == key for other in self.jobs.values()):
            self._environments.release(key)

    def pinned(self) -> set[str]:
        """Content that must stay."""
        found: set[str] = set()
        for job in self.jobs.values():
            if job.plan is not None:
                found |= job.plan.pinned()
        return found

    def prepare(self, key: TaskKey) -> None:
        job = self.jobs[key.job]
        if job.ready:
            self._task(job, key)
            return
        job.waiting.append(key)
        if not job.busy:
            job.busy = True
            self._begin(job)

    # -- a job's steps -------------------------------------------------------------------------------------------------

    def _begin(self, job: Job) -> None:
        try:
            job.plan = Plan(job.id, job.spec)
        except (MicroclusterError, KeyError, TypeError, ValueError) as error:
            self._fail(job, f"this worker does not understand the job: {error}")
            return
        self._fetches.want(job.plan.blobs, lambda problem: self._on_content(job, problem))

    def _on_content(self, job: Job, problem: Optional[str]) -> None:
        if self._stopped(job, problem):
            return
        assert job.plan is not None
        try:
            files = job.plan.load(self._blobs)
        except (OSError, MicroclusterError, ValueError, TypeError) as error:
            self._fail(job, f"its files cannot be used: {getattr(error, 'strerror', None) or error}")
            return
        self._fetches.want(files, lambda problem: self._on_files(job, problem))

    def _on_files(self, job: Job, problem: Optional[str]) -> None:
        if self._stopped(job, problem):
            return
        wanted = job.spec.get("python")
        name = choose(Shape.of(job.spec), self._versions)
        if name is None:
            self._fail(job, f"no such interpreter: {wanted or job.spec.get('requires_python')}")
        elif name == "":
            self._on_interpreter(job, None)
        elif name in self._offered:
            self._on_interpreter(job, self._offered[name])
        else:  # a path
            self._errands.run(lambda: ask([name]).get(name), lambda found, error: self._on_asked(job, name, found))

    def _on_asked(self, job: Job, path: str, found: Optional[Interpreter]) -> None:
        if self._stopped(job, None):
            return
        needed = job.spec.get("requires_python")
        if found is None:
            self._fail(job, f"no such interpreter: {path}")
        elif needed and not version_matches(needed, found.version):
            self._fail(job, f"no such interpreter: {path} is {found.version}, and the script requires {needed}")
        else:
            self._on_interpreter(job, found)

    def _on_interpreter(self, job: Job, interpreter: Optional[Interpreter]) -> None:
        job.python = interpreter.path if interpreter is not None else None
        requirements = requirement_lines(job.spec.get("requirements") or "")
        if not requirements:
            self._lay_out(job)
            return
        base = interpreter or own()
        key = key_of(base, requirements)
        if self._environments.use(key):
            self._on_environment(job, key, None)
            return
        log.info("making an environment for job %d: %s", job.id, " ".join(requirements)[:200])
        self._errands.run(
            lambda: self._environments.build(base, requirements),
            lambda _, error: self._on_environment(job, key, error),
        )

    def _on_environment(self, job: Job, key: str, error: Optional[Exception]) -> None:
        if self._stopped(job, None):
            return
        if error is not None:
            self._fail(job, str(error), by_job=isinstance(error, EnvironmentFailed))
            return
        if not self._environments.use(key):
            self._fail(job, "its environment was removed at once: is there too little room?")
            return
        job.environment = key
        job.python = self._environments.python(key)
        self._lay_out(job)

    def _lay_out(self, job: Job) -> None:
        assert job.plan is not None
        try:
            self._stage.lay_out(job.plan)
        except OSError as error:
            self._fail(job, f"its script cannot be stored here: {error.strerror or error}")
            return
        job.variables = jobenv.of_job(self._inherited, job.spec, job.plan.env, job.id)
        if job.environment is not None:
            folder = str(self._environments.folder(job.environment))
            job.variables = jobenv.with_environment(job.variables, folder)
        for name in job.plan.blobs:
            self._blobs.touch(name)
        job.busy, job.ready = False, True
        waiting, job.waiting = job.waiting, []
        for key in waiting:
            self._task(job, key)

    def _stopped(self, job: Job, problem: Optional[str]) -> bool:
        """Whether the job cannot go on: it has a problem, or was forgotten."""
        if self.jobs.get(job.id) is not job:
            return True
        if problem is not None:
            self._fail(job, problem)
        return problem is not None

    def _fail(self, job: Job, problem: str, by_job: bool = False) -> None:
        """All tasks that wait hear of it; the next one tries again from the start."""
        self._release(job)
        job.busy = False
        waiting, job.waiting = job.waiting, []
        for key in waiting:
            self._say(Prepared(key, time.time(), problem, by_job))

    # -- a task's own --------------------------------------------------------------------------------------------------

    def _task(self, job: Job, key: TaskKey) -> None:
        chunk = job.plan.chunk_of(key.pos) if job.plan is not None else None
        if chunk is None or self._blobs.has(chunk):
            self._say(Prepared(key, time.time()))
        else:
            self._fetches.want([chunk], lambda problem: self._say(Prepared(key, time.time(), problem)))
