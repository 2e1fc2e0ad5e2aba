"""`read`: the one way output leaves the manager.

The client pulls by offset, so nothing is ever buffered for it; a request that finds nothing new waits (long poll) for
output to grow, an attempt to start or end. Core thread.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from .core import events
from .core.jobs import RUNNING, TERMINAL, TaskRow
from .core.views import exit_facts

if TYPE_CHECKING:
    from .corethread import Request, Timer
    from .requests import Desk

ANSWER_MAX = 512 * 1024  # bytes of output in one answer
TASKS_MAX = 500  # tasks in one answer
HEADER_MAX = 120_000  # bytes of what is said about them, roughly; one reason more still fits into a frame


class _Poll:
    """A read that waits."""

    __slots__ = ("request", "timer")

    def __init__(self, request: Request) -> None:
        self.request = request
        self.timer: Timer | None = None


class _Answer:
    """What one answer carries so far."""

    def __init__(self) -> None:
        self.segments: list[dict[str, Any]] = []
        self.parts: list[bytes] = []
        self.room = ANSWER_MAX
        self.header_bytes = 0

    def full(self) -> bool:
        return self.room <= 0 or len(self.segments) >= TASKS_MAX or self.header_bytes >= HEADER_MAX

    def take(self, data: bytes) -> None:
        self.parts.append(data)
        self.room -= len(data)


class Reader:
    """Answers reads, and holds the ones that wait, by job and position."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._polls: dict[int, dict[int, dict[_Poll, None]]] = {}
        self._of: dict[Any, dict[_Poll, None]] = {}  # by connection
        self._grown: dict[tuple[int, int], None] = {}

    def take(self, request: Request) -> None:
        if self._try(request):
            return
        header = request.header
        if header["wait"] <= 0:
            self._nothing(request)
            return
        poll = _Poll(request)
        self._polls.setdefault(header["job"], {}).setdefault(header["pos"], {})[poll] = None
        self._of.setdefault(request.conn, {})[poll] = None
        poll.timer = self._desk.core.call_later(header["wait"], lambda: self._give_up(poll))

    def grew(self, tasks: Iterable[tuple[int, int]]) -> None:
        """Output arrived; looked at after this batch's commit."""
        for job, pos in tasks:
            if any(poll.request.header["live"] for poll in self._polls.get(job, {}).get(pos, ())):
                self._grown[job, pos] = None

    def wake(self, notes: list[events.Note]) -> None:
        """Tasks that started or ended, and what grew."""
        if not self._polls:
            return
        changed, self._grown = self._grown, {}
        for note in notes:
            waiting = self._polls.get(note.job)
            if waiting is None:
                continue
            if note.pos in waiting:
                changed[note.job, note.pos] = None
            elif note.pos is None and note.state in TERMINAL:
                changed.update(((note.job, pos), None) for pos in waiting)
        for job, pos in changed:
            self._look(job, pos)

    def look_again(self, job: int) -> None:
        """Many of its tasks may have ended without a note for each."""
        for pos in list(self._polls.get(job, ())):
            self._look(job, pos)

    def _look(self, job: int, pos: int) -> None:
        for poll in list(self._polls.get(job, {}).get(pos, ())):
            if self._try(poll.request):
                self._forget(poll)

    def gone(self, conn: Any) -> None:
        for poll in list(self._of.get(conn, ())):
            self._forget(poll)

    def _forget(self, poll: _Poll) -> None:
        header = poll.request.header
        places = self._polls.get(header["job"], {})
        polls = places.get(header["pos"], {})
        polls.pop(poll, None)
        if not polls:
            places.pop(header["pos"], None)
            if not places:
                self._polls.pop(header["job"], None)
        mine = self._of.get(poll.request.conn, {})
        mine.pop(poll, None)
        if not mine:
            self._of.pop(poll.request.conn, None)
        if poll.timer is not None:
            poll.timer.cancel()

    def _give_up(self, poll: _Poll) -> None:
        self._forget(poll)
        self._nothing(poll.request)

    def _nothing(self, request: Request) -> None:
        self._desk.answer(request, {"tasks": [], "next": request.header["pos"], "done": False})

    # -- one answer ----------------------------------------------------------------------------------------------------

    def _try(self, request: Request) -> bool:
        """Answer if there is anything to say."""
        header = request.header
        job, hi, pos = header["job"], header["hi"], header["pos"]
        had = (header["attempt"], header["out"], header["err"])
        desk = self._desk
        row = desk.store.job(job)
        if row is None:
            desk.fail(request, "no-such-job", f"there is no job {job} (see `list`)")
            return True
        hi = min(hi, row.count - 1)
        _, indices = desk.spec(job)
        answer = _Answer()
        rows = {task.pos: task for task in desk.store.tasks(job, pos, min(hi, pos + TASKS_MAX - 1))}
        while pos <= hi and not answer.full():
            task = rows.get(pos)
            state = task.state if task is not None else desk.cluster.state_of(job, pos)
            if state in TERMINAL:
                whole = self._ended(answer, job, pos, indices.at(pos), task, str(state), row.reason, had)
                if not whole:
                    break
                pos, had = pos + 1, (0, 0, 0)
                continue
            if state == RUNNING and header["live"] and task is not None:
                self._running(answer, task, indices.at(pos), had)
            break
        if not answer.segments and pos <= hi:
            return False
        found = {"tasks": answer.segments, "next": pos, "done": pos > hi}
        desk.answer(request, found, b"".join(answer.parts))
        return True

    def _ended(
        self, answer: _Answer, job: int, pos: int, index: int, task: TaskRow | None, state: str, why: str | None,
        had: tuple[int, int, int],
    ) -> bool:  # fmt: skip
        """True when all of the task is in the answer."""
        attempt = task.attempt if task is not None else 0
        out_at, err_at = had[1:] if had[0] == attempt else (0, 0)
        stored = self._desk.store.output(job, pos) if task is not None else (b"", b"")
        if stored is not None:
            out, err = stored[0][out_at : out_at + answer.room], b""
            err = stored[1][err_at : err_at + answer.room - len(out)]
            whole = out_at + len(out) >= len(stored[0]) and err_at + len(err) >= len(stored[1])
        else:
            outputs = self._desk.outputs
            out = outputs.read(job, pos, attempt, 1, out_at, answer.room)
            err = outputs.read(job, pos, attempt, 2, err_at, answer.room - len(out))
            sizes = [outputs.size(job, pos, attempt, stream) for stream in (1, 2)]
            whole = out_at + len(out) >= sizes[0] and err_at + len(err) >= sizes[1]
        self._segment(answer, pos, index, attempt, state, (out_at, out), (err_at, err))
        if whole:
            end = exit_facts(state, task, why if state == "cancelled" else None)
            answer.segments[-1]["end"] = end
            answer.header_bytes += 150 + 4 * len(end["reason"] or "")
        return whole

    def _running(self, answer: _Answer, task: TaskRow, index: int, had: tuple[int, int, int]) -> None:
        outputs = self._desk.outputs
        job, pos, attempt = task.job, task.pos, task.attempt
        out_at, err_at = had[1:] if had[0] == attempt else (0, 0)
        out = outputs.read(job, pos, attempt, 1, out_at, answer.room)
        err = outputs.read(job, pos, attempt, 2, err_at, answer.room - len(out))
        if out or err or (had[0] not in (0, attempt)):
            self._segment(answer, pos, index, attempt, RUNNING, (out_at, out), (err_at, err))

    @staticmethod
    def _segment(
        answer: _Answer, pos: int, index: int, attempt: int, state: str, out: tuple[int, bytes], err: tuple[int, bytes]
    ) -> None:
        answer.segments.append(
            {
                "pos": pos,
                "index": index,
                "attempt": attempt,
                "state": state,
                "out": [out[0], len(out[1])],
                "err": [err[0], len(err[1])],
                "end": None,
            }
        )
        answer.header_bytes += 150
        answer.take(out[1])
        answer.take(err[1])
