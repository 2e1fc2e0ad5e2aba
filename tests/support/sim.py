"""A whole cluster in one thread, driven by one seed: the manager's real brain, model workers, a network that delays,
loses what is under way when a link breaks, and notices late; either side dies between deciding, committing and sending.

    history = Simulation(seed).run()      raises AssertionError with the seed and the task's story

`rules` names the rules that are switched off, to prove that each is needed: fencing, terminal, idempotency, ack, reconcile.
"""

from __future__ import annotations

import heapq
import json
import random
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from src.core import events
from src.core.cluster import Cluster
from src.core.jobs import CANCELLED, FAILED, RUNNING, SUCCEEDED, TERMINAL, Finish, JobRow, TaskKey, TaskRow
from src.core.saves import ForgetJob, SaveJob, SaveTask, SaveWorker, UpdateJob


def spec(**changes: Any) -> dict[str, Any]:
    """A job spec with everything at its default."""
    found: dict[str, Any] = {
        "name": "x.py", "user": "ann", "script": {"name": "x.py", "hash": "0" * 64}, "modules": [], "args": [],
        "args_blob": None, "env": {}, "env_blob": None, "stdin": None, "send": None, "returns": [], "count": 1,
        "array": None, "lines": None, "grid": None, "max_running": None, "max_fails": None, "priority": 0, "retries": 0,
        "timeout": None, "grace": 10.0, "cpus": 1, "gpus": 0, "memory": None, "on": [], "resources": {}, "python": None,
        "requires_python": None, "requirements": None, "if_lost": "rerun", "max_output": 1 << 30, "buffered": False,
        "cold": False, "preload": [], "after": [], "once": None,
    }  # fmt: skip
    found.update(changes)
    return found


def describe(event: Any) -> str:
    """One line of the story."""
    if isinstance(event, events.WorkerReported):
        done = [f"{fin.job}.{fin.pos} attempt {fin.attempt} exit {fin.exit_code}" for fin in event.finished]
        return f"{event.link.worker.name}: finished {done} gave back {event.recalled}"
    if isinstance(event, events.WorkerJoined):
        return f"{event.info['name']} holding {event.info['holding']}"
    if isinstance(event, events.JobSubmitted):
        return f"request {event.request_id[-4:]} of {event.spec['count']} after {event.spec['after']}"
    if isinstance(event, events.WorkerGone):
        return f"{event.link.worker.name} in good order: {event.orderly}"
    return str(event)[:150]


class Disk(events.History):
    """What survives the manager: rows by key, changed by whole batches only."""

    def __init__(self) -> None:
        self.jobs: dict[int, JobRow] = {}
        self.tasks: dict[tuple[int, int], TaskRow] = {}
        self.workers: dict[str, tuple[str, str, bool]] = {}
        self.requests: dict[str, int] = {}
        self.next_id = 1

    def apply(self, saves: Iterable[Any]) -> None:
        for save in saves:
            if isinstance(save, SaveJob):
                self.jobs[save.row.id] = save.row
                self.requests[save.row.request_id] = save.row.id
                self.next_id = max(self.next_id, save.row.id + 1)
            elif isinstance(save, UpdateJob):
                self.jobs[save.id] = self.jobs[save.id]._replace(**save.fields)
            elif isinstance(save, SaveTask):
                self.tasks[save.row.job, save.row.pos] = save.row
            elif isinstance(save, SaveWorker):
                self.workers[save.worker_id] = (save.worker_id, save.name, save.drained)
            elif isinstance(save, ForgetJob):
                del self.jobs[save.id]

    def load(self) -> events.Loaded:
        jobs = [row for row in self.jobs.values() if row.state not in TERMINAL]
        ids = {row.id for row in jobs}
        tasks = [row for row in self.tasks.values() if row.job in ids and row.state not in TERMINAL]
        return events.Loaded(self.next_id, jobs, tasks, list(self.workers.values()))

    def job(self, job: int) -> JobRow | None:
        return self.jobs.get(job)

    def task(self, job: int, pos: int) -> TaskRow | None:
        return self.tasks.get((job, pos))

    def positions(self, job: int, states: Iterable[str], lo: int, hi: int) -> list[int]:
        wanted = set(states)
        return sorted(p for (j, p), row in self.tasks.items() if j == job and lo <= p <= hi and row.state in wanted)

    def by_request(self, request_id: str) -> int | None:
        return self.requests.get(request_id)

    def by_once(self, once: str) -> int | None:
        return next((row.id for row in self.jobs.values() if row.once == once), None)


class Settings:
    lost_after = 60.0
    crash_limit = 3


class ModelWorker:
    """What the protocol asks of a worker, and no more: it runs in order what fits, keeps results until acknowledged."""

    def __init__(self, sim: Simulation, name: str, slots: int, labels: list[str]) -> None:
        self.sim, self.name, self.slots, self.labels = sim, name, slots, labels
        self.id = name * 8
        self.boots = 0
        self.link: Link | None = None
        self.start()

    def start(self) -> None:
        self.boots += 1
        self.held: dict[TaskKey, str] = {}  # queued, running, done
        self.specs: dict[int, dict[str, Any]] = {}
        self.results: dict[TaskKey, Finish] = {}
        self.cancelling: set[TaskKey] = set()
        self.up = True

    def restart(self) -> None:
        if not self.up:
            self.start()
            self.join()

    def die(self) -> None:
        self.up = False
        if self.link is not None:
            self.link.cut()
        self.held, self.results = {}, {}

    def join(self) -> None:
        if not self.up or (self.link is not None and self.link.open):
            return
        self.link = Link(self.sim, self)
        holding = [[*key, state, None] for key, state in self.held.items()]
        info = {
            "name": self.name, "worker_id": self.id, "boot": f"{self.name}{self.boots}", "slots": self.slots, "cpus": 4,
            "memory": 1 << 30, "gpus": 0, "labels": self.labels, "resources": {}, "pythons": {}, "version": "0",
            "python": "3.11.7", "holding": holding,
        }  # fmt: skip
        self.link.to_manager(lambda link: events.WorkerJoined(link, info))
        for fin in list(self.results.values()):
            self.report(finished=[fin])

    def report(self, finished: list[Finish] | None = None, recalled: list[TaskKey] | None = None) -> None:
        if self.link is not None:
            done, back = finished or [], recalled or []
            self.link.to_manager(lambda link: events.WorkerReported(link, [], done, back))

    def receive(self, mail: Any, specs: dict[int, dict[str, Any]]) -> None:
        if not self.up:
            return
        self.specs.update(specs)
        if mail.welcome is not None:
            for key in mail.welcome["kill"]:
                self.held.pop(key, None)
                self.results.pop(key, None)
        for key in mail.run:
            if key not in self.held:
                self.held[key] = "queued"
        for key, _ in mail.kill:
            if self.held.get(key) in ("queued", "running"):
                self.cancelling.add(key)
                self.finish(key, self.boots)
        for key in mail.ack:
            self.held.pop(key, None)
            self.results.pop(key, None)
        for key in mail.recall:
            if self.held.get(key) == "queued":
                del self.held[key]
                self.report(recalled=[key])
        self.work()

    def work(self) -> None:
        used = sum(self.specs[key.job]["cpus"] for key, state in self.held.items() if state == "running")
        for key, state in list(self.held.items()):
            if state != "queued":
                continue
            cpus = self.specs[key.job]["cpus"]
            if used + cpus > self.slots:
                break
            used += cpus
            self.held[key] = "running"
            self.sim.started(key, self)
            boots = self.boots
            self.sim.later(self.sim.random.choice((0.01, 0.05, 1.0, 30.0)), partial(self.finish, key, boots))

    def finish(self, key: TaskKey, boots: int) -> None:
        if not self.up or boots != self.boots or self.held.get(key) not in ("running", "queued"):
            return
        self.held[key] = "done"
        cancelled = key in self.cancelling
        code = 1 if self.sim.random.random() < 0.15 else 0
        now = self.sim.now
        fin = Finish(
            *key, None if cancelled else code, 15 if cancelled else None, None, now, now, 0.1, 1, 3, 0, 0, None, False,
            False, cancelled, f"{key.job}.{key.pos}.{key.attempt}".encode(), b"",
        )  # fmt: skip
        self.results[key] = fin
        self.report(finished=[fin])
        self.work()


class Link:
    """One connection: in order each way; what is under way when it is cut is lost; the manager notices later."""

    def __init__(self, sim: Simulation, worker: ModelWorker) -> None:
        self.sim, self.worker = sim, worker
        self.open = True
        self.manager_life = sim.life
        self.last = [0.0, 0.0]

    def _when(self, way: int) -> float:
        self.last[way] = max(self.last[way], self.sim.now + self.sim.random.choice((0.0, 0.001, 0.05, 2.0)))
        return self.last[way] - self.sim.now

    def to_manager(self, make: Callable[[Link], Any]) -> None:
        if self.open:
            self.sim.later(self._when(0), lambda: self._arrive(make))

    def _arrive(self, make: Callable[[Link], Any]) -> None:
        if self.open:
            self.sim.post(make(self), self.manager_life)

    def to_worker(self, mail: Any, specs: dict[int, dict[str, Any]]) -> None:
        if self.open:
            self.sim.later(self._when(1), lambda: self.worker.receive(mail, specs) if self.open else None)

    def cut(self, orderly: bool = False) -> None:
        if self.open:
            self.open = False
            delay = 0.0 if orderly else self.sim.random.choice((0.0, 1.0, 20.0))
            self.sim.later(delay, lambda: self.sim.post(events.WorkerGone(self, orderly), self.manager_life))
            self.sim.later(self.sim.random.choice((0.1, 3.0, 90.0)), self.worker.join)


class Simulation:
    """See the module."""

    def __init__(self, seed: int, rules: frozenset[str] = frozenset(), faults: int = 25, jobs: int = 12) -> None:
        self.seed, self.rules, self.faults = seed, rules, faults
        self.random = random.Random(seed)
        self.now = 0.0
        self.life = 0  # of the manager; what was meant for an earlier one is lost
        self._queue: list[tuple[float, int, Callable[[], Any]]] = []
        self._serial = 0
        self.disk = Disk()
        self.story: list[str] = []
        self.accepted: dict[str, int] = {}  # request → id that was told to a client
        self.runs: dict[tuple[int, int], list[TaskKey]] = {}
        self.excused: dict[tuple[int, int], int] = {}  # runs more than one that a lost worker or a retry explains
        self.ends: dict[tuple[int, int], TaskRow] = {}
        self.output: dict[tuple[int, int], bytes] = {}
        self.retries: set[int] = set()  # jobs that a person had run again
        self.boot_manager()
        self.workers = [
            ModelWorker(self, name, self.random.choice((1, 2, 4)), ["big"] if name == "a" else []) for name in "abc"
        ]
        self.workers[0].slots = 4
        for worker in self.workers:
            self.later(self.random.random(), worker.join)
        for n in range(jobs):
            self.later(self.random.random() * 60, partial(self.submit, f"{n:032x}"))
        for _ in range(faults):
            self.later(self.random.random() * 120, self.fault)

    # -- time ----------------------------------------------------------------------------------------------------------

    def later(self, seconds: float, action: Callable[[], Any]) -> None:
        self._serial += 1
        heapq.heappush(self._queue, (self.now + seconds, self._serial, action))

    def run(self) -> Simulation:
        try:
            for _ in range(200_000):
                if not self._queue:
                    break
                self.now, _, action = heapq.heappop(self._queue)
                action()
                if self.now > 4_000 and all(job.state in TERMINAL for job in self.disk.jobs.values()):
                    break
                assert self.now < 20_000, "jobs do not end"
            self.judge()
        except AssertionError as error:
            told = "\n".join(self.story[-60:])
            raise AssertionError(f"seed {self.seed}, rules off {sorted(self.rules)}: {error!r}\n{told}") from error
        return self

    # -- the manager ---------------------------------------------------------------------------------------------------

    def boot_manager(self) -> None:
        self.life += 1
        self.cluster = Cluster(self.disk, Settings())
        self.cluster.load(self.disk.load(), self.now, self.now)
        self.inbox: list[Any] = []
        self.turn_due = False
        self.tick(self.life)

    def tick(self, life: int) -> None:
        """Deadlines; looked at once a second, as long as there is anything to wait for."""
        if life == self.life:
            self.post(events.Tick(), life)
            self.later(5.0, lambda: self.tick(life))

    def post(self, event: Any, life: int) -> None:
        if life == self.life:
            self.inbox.append(event)
            if not self.turn_due:
                self.turn_due = True
                self.later(0.0, lambda: self.turn(life))

    def turn(self, life: int) -> None:
        if life != self.life:
            return
        self.turn_due = False
        batch, self.inbox = self.inbox, []
        late: list[SaveTask] = []
        for event in batch:
            if not isinstance(event, events.Tick):
                self.story.append(f"{self.now:9.3f} {type(event).__name__} {describe(event)}")
            if isinstance(event, events.WorkerReported) and "fencing" in self.rules:
                event = self.unfence(event)
            if isinstance(event, events.WorkerJoined) and "reconcile" in self.rules:
                event.info["holding"] = self.all_held(event.info)
            if isinstance(event, events.WorkerReported) and "terminal" in self.rules:
                late += self.second_ends(event)
            self.cluster.handle(event, self.now, self.now)
            self.cluster.check()
        effects = self.cluster.take_effects(self.now, self.now)
        effects.saves.extend(late)
        self.cluster.check()
        if "ack" in self.rules:
            self.send(effects)
        if self.dies("before commit"):
            return
        self.watch(effects.saves)
        self.disk.apply(effects.saves)
        if self.dies("after commit"):
            return
        if "ack" not in self.rules:
            self.send(effects)

    def dies(self, where: str) -> bool:
        if self.now < 120 and self.random.random() < 0.03:
            self.story.append(f"{self.now:9.3f} the manager dies {where}")
            self.boot_manager()
            for worker in self.workers:
                if worker.link is not None:
                    worker.link.cut()
            return True
        return False

    def send(self, effects: events.Effects) -> None:
        for link, mail in effects.mail.items():
            if mail.close is not None:
                link.cut()
                continue
            link.to_worker(mail, {job: json.loads(text) for job, text in mail.jobs.items()})
        for request, answer in effects.replies:
            if isinstance(request, str) and "id" in answer and self.random.random() < 0.8:  # else the answer is lost
                known = self.accepted.setdefault(request, answer["id"])
                assert known == answer["id"], f"request {request[-4:]} is job {known} and job {answer['id']}"
            elif isinstance(request, str):
                self.later(1.0, partial(self.submit, request))

    # -- rules, switched off --------------------------------------------------------------------------------------------

    def unfence(self, event: events.WorkerReported) -> events.WorkerReported:
        def newest(fin: Finish) -> Finish:
            live = self.cluster.live_task(fin.job, fin.pos)
            return fin._replace(attempt=live.row.attempt) if live is not None else fin

        worker = self.cluster.by_link.get(event.link)
        for fin in event.finished:
            live = self.cluster.live_task(fin.job, fin.pos)
            if live is not None and worker is not None and live.worker is not worker:
                return events.WorkerReported(live.worker.link, event.started, [newest(f) for f in event.finished], [])
        return event._replace(finished=[newest(fin) for fin in event.finished])

    def second_ends(self, event: events.WorkerReported) -> list[SaveTask]:
        """What would be stored of reports about tasks that have ended."""
        rows = [(self.disk.task(fin.job, fin.pos), fin) for fin in event.finished]
        return [
            SaveTask(row._replace(attempt=fin.attempt, exit_code=fin.exit_code))
            for row, fin in rows
            if row is not None and row.state in TERMINAL
        ]

    def all_held(self, info: dict[str, Any]) -> list[Any]:
        known = self.cluster.workers.get(info["worker_id"])
        given = [[*at, live.row.attempt, "running", None] for at, live in known.live.items()] if known else []
        return given + [item for item in info["holding"] if item[:2] not in [one[:2] for one in given]]

    # -- clients and faults ----------------------------------------------------------------------------------------------

    def submit(self, request: str) -> None:
        chance = random.Random(f"{self.seed} {request}")  # the same request is the same job, whenever it is repeated
        if "idempotency" in self.rules:
            self.disk.requests.clear()
            self.cluster._fresh_requests.clear()
        job = spec(
            count=chance.choice((1, 1, 3, 8)), user=chance.choice(("ann", "bob")), priority=chance.choice((0, 0, 5))
        )
        job["retries"] = chance.choice((0, 0, 2))
        job["cpus"] = chance.choice((1, 1, 1, 3))
        job["on"] = ["big"] if job["cpus"] == 3 or chance.random() < 0.1 else []
        job["max_running"] = chance.choice((None, None, 1, 2))
        job["max_fails"] = chance.choice((None, None, None, 1))
        job["timeout"] = chance.choice((None, 60.0))
        before = int(request, 16)
        if before and chance.random() < 0.4:
            other = self.accepted.get(f"{chance.randrange(before):032x}")
            row = self.disk.jobs.get(other) if other is not None else None
            if row is not None:
                kind = chance.choice(("ok", "any", "each"))
                if kind == "each":
                    job["count"] = row.count
                job["after"] = [{"job": row.id, "pos": None, "kind": kind}]
        event = events.JobSubmitted(request, job, json.dumps(job), request)
        if self.random.random() < 0.2:
            self.later(0.5, lambda: self.submit(request))  # the client believes that it was lost
        self.post(event, self.life)
        life = self.life
        self.later(30.0, lambda: self.submit(request) if life != self.life and request not in self.accepted else None)

    def fault(self) -> None:
        worker = self.random.choice(self.workers)
        kind = self.random.choice(("cut", "cut", "kill", "manager", "cancel", "retry", "leave"))
        self.story.append(f"{self.now:9.3f} fault: {kind} {worker.name}")
        if kind == "cut" and worker.link is not None:
            worker.link.cut()
        elif kind == "kill" and worker.up:
            worker.die()
            for key in [key for runs in self.runs.values() for key in runs[-1:]]:
                self.excused[key[:2]] = self.excused.get(key[:2], 0) + 1
            self.later(self.random.choice((0.5, 10.0, 200.0)), worker.restart)
        elif kind == "manager":
            self.boot_manager()
            for other in self.workers:
                if other.link is not None:
                    other.link.cut()
        elif kind == "leave" and worker.link is not None and worker.up:
            worker.link.cut(orderly=True)
            worker.held, worker.results = {}, {}
            worker.boots += 1
        elif kind in ("cancel", "retry") and self.accepted:
            job = self.random.choice(sorted(self.accepted.values()))
            target = [events.Target(job, None, None)]
            if kind == "retry":
                self.retries.add(job)
            self.post(
                events.CancelAsked(target, None, None) if kind == "cancel" else events.RetryAsked(target, None),
                self.life,
            )

    # -- judgement -------------------------------------------------------------------------------------------------------

    def started(self, key: TaskKey, worker: ModelWorker) -> None:
        self.story.append(f"{self.now:9.3f} {worker.name} starts {key.job}.{key.pos} attempt {key.attempt}")
        self.runs.setdefault((key.job, key.pos), []).append(key)
        row = self.disk.tasks.get((key.job, key.pos))
        assert row is not None and row.attempt >= key.attempt, f"{key} started before it was on disk"
        job = self.disk.jobs[key.job]
        for dep in json.loads(job.spec)["after"]:
            other = self.disk.jobs[dep["job"]]
            if dep["kind"] == "each":
                task = self.disk.tasks.get((dep["job"], key.pos))
                met = task is not None and task.state == SUCCEEDED
                assert met or self.retried(key.job, dep["job"]), f"{key} started before {task}"
            elif not self.retried(key.job, dep["job"]):
                wanted = (SUCCEEDED,) if dep["kind"] == "ok" else tuple(TERMINAL)
                assert other.state in wanted, f"{key} started while job {other.id} is {other.state}"

    def retried(self, *jobs: int) -> bool:
        """A person's retry runs a task whatever became of what it waited for."""
        return not self.retries.isdisjoint(jobs)

    def watch(self, saves: list[Any]) -> None:
        for save in saves:
            if isinstance(save, SaveTask):
                old, new = self.ends.get(save.row[:2]), save.row
                ended = old is not None and new.state in TERMINAL
                assert not ended, f"second end of {new[:2]}: {old} and {new}"
                if new.state in TERMINAL:
                    self.ends[new[:2]] = new
                elif old is not None:
                    assert new.state != RUNNING, f"{new[:2]} runs after its end"
                    del self.ends[new[:2]]  # a person's retry
            elif type(save).__name__ == "KeepOutput" and save.out is not None:
                self.output[save.job, save.pos] = save.out

    def judge(self) -> None:
        for request, job in self.accepted.items():
            row = self.disk.jobs.get(job)
            assert row is not None and row.request_id == request, (
                f"job {job}, request {request[-4:]}, was accepted: lost"
            )
        assert len({row.request_id for row in self.disk.jobs.values()}) == len(self.disk.jobs), "a request is two jobs"
        for row in self.disk.jobs.values():
            assert row.state in TERMINAL, f"job {row.id} is {row.state} at the end"
            total = row.succeeded + row.failed + row.cancelled
            assert (total, row.waiting, row.queued, row.running) == (row.count, 0, 0, 0), row
            for pos in range(row.count):
                task = self.disk.tasks.get((row.id, pos))
                assert task is None or task.state in TERMINAL, task
                told = self.output.get((row.id, pos))
                if task is not None and task.state in (SUCCEEDED, FAILED) and task.exit_code is not None:
                    assert told == f"{row.id}.{pos}.{task.attempt}".encode(), f"{task} has the output of {told!r}"
        states = {FAILED, CANCELLED, SUCCEEDED}
        assert {row.state for row in self.disk.jobs.values()} <= states


__all__ = ["Disk", "Simulation", "spec"]
