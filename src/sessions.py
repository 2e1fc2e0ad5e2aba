"""A worker's connection as the manager's net thread sees it: what the worker may report on, what is sent to it.

Output goes into the spool, by offset, and is confirmed at once; what became of tasks goes to the core. Decides nothing
about jobs. All in the net thread.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from .content import WANTED_MAX
from .core import events, messages
from .core.jobs import Finish, TaskKey

if TYPE_CHECKING:
    from .manager import Manager
    from .net import Conn

WORK_BYTES = 120_000  # of specs in one work message
WORK_ITEMS = 1500  # task keys in one work message; with both, it stays below the frame's 256 KiB
NO_ROOM_RETRY_S = 1.0
OUTPUT_DEFAULT = 1 << 30  # --max-output of most jobs

Assigned = dict[tuple[int, int, int], int]


class NoRoom(Exception):
    """Output could not be stored now: its report must wait."""


class WorkerSession:
    """See the module; one per connection."""

    __slots__ = (
        "_assigned", "_backlog", "_conn", "_doomed", "_limits", "_manager", "_orderly", "_wanted", "_welcomed",
    )  # fmt: skip

    def __init__(self, manager: Manager, conn: Conn) -> None:
        self._manager, self._conn = manager, conn
        # attempts that it may report on → bytes of output per stream that it may send; none of those to be killed
        self._assigned: Assigned = {}
        self._doomed: set[tuple[int, int, int]] = set()  # those of them that it was told to kill
        self._limits: dict[int, int] = {}  # jobs whose --max-output is not the default
        self._backlog: deque[tuple[dict[str, Any], bytes]] = deque()  # while there is no room for output
        self._wanted: deque[str] = deque()  # files to send
        self._orderly = False
        self._welcomed = False

    def closed(self) -> None:
        """The connection ended."""
        if self._welcomed:
            self._manager.core.post(events.WorkerGone(self._conn, self._orderly))

    # -- from the worker -----------------------------------------------------------------------------------------------

    def holds_back(self, header: dict[str, Any], payload: bytes) -> bool:
        """Whether the message must wait behind one that waits for room; then it does."""
        if not self._backlog:
            return False
        self._backlog.append((header, payload))
        self._conn.pause()
        return True

    def wait_for_room(self, header: dict[str, Any], payload: bytes, error: NoRoom) -> None:
        """This message could not be handled: again in a moment. Meanwhile the worker feels that we do not read."""
        self._manager.seldom.warning("cannot store output, its senders wait: %s", error)
        self._backlog.append((header, payload))
        self._conn.pause()
        self._manager.loop.call_later(NO_ROOM_RETRY_S, self._again)

    def _again(self) -> None:
        waiting, self._backlog = self._backlog, deque()
        while waiting and self._conn.is_open and not self._backlog:
            self._manager.handle(self._conn, *waiting.popleft())
        self._backlog.extend(waiting)
        if self._conn.is_open and not self._backlog:
            self._conn.resume()

    def take(self, kind: str, header: dict[str, Any], payload: bytes) -> None:
        """A checked message. Raises BadMessage, NoRoom."""
        manager, conn = self._manager, self._conn
        if kind == "join":
            if self._welcomed:
                raise messages.BadMessage("joined twice")
            self._welcomed = True
            holding = [item[:5] for item in header["holding"]]
            info = {**header, "holding": holding, "address": conn.address, "connected_at": time.time()}
            manager.post(conn, events.WorkerJoined(conn, info))
        elif not self._welcomed:
            raise messages.BadMessage(f"{kind} before join")
        elif kind == "report":
            self._report(header, payload)
        elif kind == "need":
            self._need(header["hashes"])
        elif kind == "put":
            manager.content.take(conn, header, payload, "put_ok")
        elif kind == "state":
            manager.post(conn, events.WorkerStated(conn, header))
        elif kind == "bye":
            self._orderly = True

    def _report(self, header: dict[str, Any], payload: bytes) -> None:
        """Only of what this worker was given. Done again from the start after NoRoom: then nothing was told to anybody,
        and output that is stored already is recognised."""
        assigned, conn = self._assigned, self._conn
        at, got = self._outputs(header.get("output") or (), payload)
        finished: list[Finish] = []
        for fin in header.get("finished") or ():
            middle = at + fin["out"][1]
            end = middle + fin["err"][1]
            if end > len(payload):
                raise messages.BadMessage("report: the payload is shorter than it says")
            key = tuple(fin["task"])
            if key in assigned:
                finished.append(self._finish(fin, assigned[key], payload[at:middle], payload[middle:end]))
            at = end
        if got:
            conn.send({"t": "work", "got": got})
            self._manager.core.grew([(one[0], one[1]) for one in got])
        started = [tuple(item[:6]) for item in header.get("started") or () if tuple(item[:3]) in assigned]
        recalled = [TaskKey(*key[:3]) for key in header.get("recalled") or () if tuple(key[:3]) in assigned]
        if started or finished or recalled:
            self._manager.post(conn, events.WorkerReported(conn, started, finished, recalled), len(payload))
        for key in recalled:
            assigned.pop(key, None)

    def _outputs(self, items: Iterable[Any], payload: bytes) -> tuple[int, list[list[int]]]:
        """Where the outputs end in the payload, and what is in the spool now, for `got`."""
        at, got = 0, []
        for job, pos, attempt, stream, offset, length in (item[:6] for item in items):
            data, at = payload[at : at + length], at + length
            if at > len(payload):
                raise messages.BadMessage("report: the payload is shorter than it says")
            limit = self._assigned.get((job, pos, attempt), 0)
            if limit:
                size = self._spool((job, pos, attempt), stream, offset, data, limit, last=False)
                got.append([job, pos, attempt, stream, size])
        return at, got

    def _spool(self, key: tuple[int, int, int], stream: int, offset: int, data: bytes, limit: int, last: bool) -> int:
        """The size of the stream now; what does not continue it is not taken (the worker hears, and sends again). The
        `last` bytes of a stream may use up the disk. For a task that is being killed, no room means no more output."""
        if offset + len(data) > limit:
            raise messages.BadMessage(f"report: output of {key[0]}.{key[1]} beyond its limit of {limit} bytes")
        outputs = self._manager.outputs
        try:
            if not last and not self._manager.content.output_fits(len(data)):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return outputs.write(*key, stream, offset, data)
        except ValueError:
            return outputs.size(*key, stream)
        except OSError as error:
            if key in self._doomed:
                return outputs.size(*key, stream)
            raise NoRoom(error.strerror or str(error)) from None

    def _finish(self, fin: dict[str, Any], limit: int, out: bytes, err: bytes) -> Finish:
        job, pos, attempt = fin["task"]
        kept: list[bytes | None] = [out, err]
        sizes, dropped = [fin["out"][0], fin["err"][0]], fin["dropped"]
        for n, (total, inline) in enumerate((fin["out"], fin["err"])):
            if inline < total and limit:
                data, kept[n] = kept[n] or b"", None
                sizes[n] = self._spool((job, pos, attempt), n + 1, total - inline, data, limit, last=True)
                dropped += total - sizes[n]
        return Finish(
            job, pos, attempt, fin["exit_code"], fin["signal"], fin["reason"], fin["started_at"], fin["finished_at"],
            fin["cpu"], fin["rss"], sizes[0], sizes[1], dropped, fin["files"], fin["timed_out"], fin["never_ran"],
            fin["cancelled"], kept[0], kept[1],
        )  # fmt: skip

    def _need(self, hashes: list[str]) -> None:
        if len(self._wanted) + len(hashes) > WANTED_MAX:
            raise messages.BadMessage("need: it asks for too much at once")
        self._wanted.extend(hashes)
        if self._conn.on_drained is None:
            self._manager.content.send_wanted(self._conn, self._wanted)

    # -- to the worker -------------------------------------------------------------------------------------------------

    def deliver(self, mail: events.WorkerMail) -> None:
        """What a committed batch has for this worker."""
        conn, assigned = self._conn, self._assigned
        if mail.close is not None:
            conn.send({"t": "error", "code": "replaced", "message": mail.close})
            conn.close(mail.close)
            return
        if mail.welcome is not None:
            self._welcome(mail.welcome)
        try:
            for work in self._works(mail):
                conn.send(work)
        except OSError as error:
            # Its tasks come back with it: it joins again, and says that they did not arrive.
            self._manager.seldom.warning("cannot store a job's description: %s", error.strerror)
            conn.abort()
        for key in mail.run:
            assigned[key] = self._limits.get(key[0], OUTPUT_DEFAULT)
        self._doomed.update(key for key, _ in mail.kill)
        for key in mail.ack:
            assigned.pop(key, None)
            self._doomed.discard(key)

    def _welcome(self, welcome: dict[str, Any]) -> None:
        limits, size = welcome.pop("limits"), self._manager.outputs.size
        keep = []
        for key in welcome["keep"]:
            self._assigned[key] = limits[key[0]]
            keep.append([*key, *(size(key[0], key[1], key[2], stream) for stream in (1, 2))])
        # What is to be killed may be finished: its report must still be acknowledged.
        self._assigned.update((key, 0) for key in welcome["kill"])
        lost_after = self._manager.settings.lost_after
        self._conn.send({**welcome, "t": "welcome", "lost_after": lost_after, "keep": keep})

    def _works(self, mail: events.WorkerMail) -> list[dict[str, Any]]:
        """The letter as few messages, each within a frame. Raises OSError."""
        found: list[dict[str, Any]] = []
        now: dict[str, Any] = {"t": "work"}
        size = 0
        for job, text in mail.jobs.items():
            value, length = self._spec(job, text)
            if size + length > WORK_BYTES and "jobs" in now:
                found.append(now)
                now, size = {"t": "work"}, 0
            now.setdefault("jobs", {})[str(job)] = value
            size += length
        lists: list[tuple[str, list[Any]]] = [
            ("ack", mail.ack),
            ("kill", [[*key, grace] for key, grace in mail.kill]),
            ("recall", mail.recall),
            ("run", mail.run),
        ]
        if mail.drain is not None:
            now["drain"] = mail.drain
        room = WORK_ITEMS
        for name, items in lists:
            while items:
                part, items = items[:room], items[room:]
                now[name] = part
                room -= len(part)
                if room == 0:
                    found.append(now)
                    now, room = {"t": "work"}, WORK_ITEMS
        if len(now) > 1:
            found.append(now)
        return found

    def _spec(self, job: int, text: str) -> tuple[dict[str, Any], int]:
        """A job's description for the worker, and its size as JSON in bytes; a large one as content that it fetches."""
        value = json.loads(text)
        if value["max_output"] != OUTPUT_DEFAULT:
            self._limits[job] = value["max_output"]
        raw = text.encode()
        if len(raw) <= WORK_BYTES:
            return value, len(raw)
        name = self._manager.blobs.put_bytes(raw)
        self._manager.blobs.touch(name)
        return {"spec_blob": name}, 100
