"""The output of attempts on its way from their pipes to the manager, by offset.

    pipe → memory (≤ WINDOW_BYTES that the manager has not confirmed) → report messages
              ╰→ a file below the data folder, while the manager is away

While connected, a stream whose window is full is not read: the script feels it. While disconnected, everything is kept
up to the job's --max-output; past that it is read, dropped and counted. What is left when the attempt ended rides with
its result if it is small. All methods belong to the loop's thread.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Optional

from .core.jobs import TaskKey
from .reports import Later, Reports

log = logging.getLogger(__name__)

READ_BYTES = 64 * 1024  # what a pipe holds
WINDOW_BYTES = 1 << 20
AT_ONCE_BYTES = 64 * 1024  # more than that does not wait for company
PIECE_BYTES = 256 * 1024
INLINE_BYTES = 64 * 1024  # of both streams together: rides with the result
SPILL_BYTES = 256 * 1024  # in memory while disconnected
READS_AT_END = 256  # a pipe holds far less; a stranger who got hold of its other end must not keep us here


class Stream:
    """One pipe. Offsets are those of the manager: everything before `size` was read, before `sent` was sent on the
    present connection, before `got` is in the manager's spool. `base`.. is in memory, `spilled`..`base` in the file."""

    __slots__ = (
        "base", "buffer", "dropped", "fd", "file", "got", "number", "path", "seen", "sent", "size", "spilled",
        "watched",
    )  # fmt: skip

    def __init__(self, number: int, fd: int) -> None:
        self.number, self.fd = number, fd
        self.size = self.sent = self.got = self.base = self.dropped = self.spilled = self.seen = 0
        self.buffer = bytearray()
        self.watched = False
        self.file: Optional[int] = None
        self.path: Optional[Path] = None

    def take(self, data: bytes, limit: int) -> None:
        """Keep what was read, as far as the limit (bytes of the whole stream) allows."""
        room = limit - self.size
        if len(data) > room:
            self.dropped += len(data) - max(room, 0)
            data = data[: max(room, 0)]
        self.buffer += data
        self.size += len(data)

    def read(self, offset: int, length: int) -> bytes:
        """Bytes that are held; fewer at the border between file and memory."""
        if offset < self.base:
            assert self.file is not None
            return os.pread(self.file, min(length, self.base - offset), offset - self.spilled)
        return bytes(self.buffer[offset - self.base : offset - self.base + length])

    def take_tail(self) -> bytes:
        """Everything that is not sent; it counts as sent."""
        data = b""
        while self.sent < self.size:
            piece = self.read(self.sent, INLINE_BYTES)
            self.sent += len(piece)
            data += piece
        return data

    def confirmed(self, size: int) -> None:
        """The manager has everything before `size`."""
        self.got = max(self.got, min(size, self.size))
        self.sent = max(self.sent, self.got)
        if self.got >= self.base:
            del self.buffer[: self.got - self.base]
            self.base = self.got
            self.drop_file()

    def resume(self, size: int) -> None:
        """A new connection: the manager has everything before `size`, and only that."""
        size = min(size, self.size)
        held = self.base if self.file is None else self.spilled
        lost = held - size
        if lost > 0:
            # It confirmed more than it has: its machine lost power. What follows moves up, and the gap is counted.
            self.size, self.base, self.spilled = self.size - lost, self.base - lost, self.spilled - lost
            self.dropped += lost
        self.got = self.sent = size
        self.confirmed(size)

    def spill(self, path: Path) -> None:
        """Move what is in memory to the file. A full disk drops it, counted."""
        try:
            if self.file is None:
                flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC
                self.file, self.path, self.spilled = os.open(path, flags, 0o600), path, self.base
            at = self.base - self.spilled
            with memoryview(self.buffer) as data:
                done = 0
                while done < len(data):
                    done += os.pwrite(self.file, data[done:], at + done)
            self.base += len(self.buffer)
        except OSError as error:
            log.warning("output cannot be kept while the manager is away: %s", error.strerror)
            self.dropped += len(self.buffer)
            self.size -= len(self.buffer)
        self.buffer = bytearray()

    def drop_file(self) -> None:
        if self.file is not None:
            os.close(self.file)
            self.file = None
            if self.path is not None:
                self.path.unlink()


class Output:
    """Both streams of one attempt."""

    __slots__ = ("closed", "dirty", "key", "limit", "on_sent", "streams", "write_fds")

    def __init__(self, key: TaskKey, limit: int) -> None:
        self.key, self.limit = key, limit
        out, out_w = os.pipe()
        try:
            err, err_w = os.pipe()
        except OSError:
            os.close(out)
            os.close(out_w)
            raise
        os.set_blocking(out, False)
        os.set_blocking(err, False)
        self.streams = (Stream(1, out), Stream(2, err))
        self.write_fds = (out_w, err_w)  # whoever starts the attempt closes them
        self.closed = False  # no process writes any more, and all was read
        self.dirty = False  # it waits for company, or for the network
        self.on_sent: Optional[Callable[[], None]] = None

    def unsent(self) -> int:
        out, err = self.streams
        return out.size - out.sent + err.size - err.sent


class Streams:
    """The outputs of all attempts of this worker."""

    def __init__(self, loop: Any, folder: Path, reports: Reports) -> None:
        self._loop, self._folder, self._reports = loop, folder, reports
        self._outputs: dict[TaskKey, Output] = {}
        self._connected = False
        self._young = Later(loop, self._grown)
        self._waiting = Later(loop, self._flush)
        self._blocked: dict[Output, None] = {}  # they have something to send, and the network is busy

    def open(self, key: TaskKey, limit: int) -> Output:
        """Pipes for a new attempt; `limit` (bytes) is for each stream. Raises OSError.

        They are not watched for a moment: most small tasks end before, and are read once at their end.
        """
        output = self._outputs[key] = Output(key, limit)
        self._young.add(output)
        self._reports.young(key)
        return output

    # -- reading -------------------------------------------------------------------------------------------------------

    def _grown(self, output: Output) -> None:
        if output.closed:
            return
        self._reports.grown(output.key)
        for stream in output.streams:
            self._watch(output, stream)
            if stream.watched:
                self._read(output, stream)  # it has waited long enough
        if output.unsent():
            self._flush(output)

    def _watch(self, output: Output, stream: Stream) -> None:
        if stream.fd >= 0 and not stream.watched and self._may_read(stream):
            stream.watched = True
            self._loop.add_reader(stream.fd, lambda: self._ready(output, stream))

    def _unwatch(self, stream: Stream) -> None:
        if stream.watched:
            stream.watched = False
            self._loop.remove_reader(stream.fd)

    def _may_read(self, stream: Stream) -> bool:
        return not self._connected or stream.size - stream.got < WINDOW_BYTES

    def _ready(self, output: Output, stream: Stream) -> None:
        # One turn of the loop may bring the end of an attempt and, after it, readiness of a pipe closed thereby.
        if stream.watched and self._read(output, stream):
            self._news(output, stream)

    def _read(self, output: Output, stream: Stream) -> bool:
        """Whether there was something; at its end the pipe is closed."""
        try:
            data = os.read(stream.fd, READ_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if data:
            stream.take(data, output.limit)
        else:
            self._unwatch(stream)
            os.close(stream.fd)
            stream.fd = -1
        return bool(data)

    def _news(self, output: Output, stream: Stream) -> None:
        if not self._connected:
            if len(stream.buffer) > SPILL_BYTES:
                stream.spill(self._folder / "{}.{}.{}.{}".format(*output.key, stream.number))
            return
        if not self._may_read(stream):
            self._unwatch(stream)
        if output.dirty:
            return
        output.dirty = True
        if stream.size - stream.sent >= AT_ONCE_BYTES:
            self._flush(output)
        else:
            self._waiting.add(output)

    def finish(self, key: TaskKey) -> int:
        """No process of the attempt is left: read the rest, and close. Gives how many bytes were dropped."""
        output = self._outputs.get(key)
        if output is None:
            return 0
        for stream in output.streams:
            for _ in range(READS_AT_END):
                if stream.fd < 0 or not self._read(output, stream):
                    break
            if stream.fd >= 0:  # somebody outside the attempt's processes holds the other end
                self._unwatch(stream)
                os.close(stream.fd)
                stream.fd = -1
        output.closed = True
        return output.streams[0].dropped + output.streams[1].dropped

    # -- sending -------------------------------------------------------------------------------------------------------

    def _flush(self, output: Output) -> None:
        """Send what there is, as far as window and network allow."""
        output.dirty = False
        if not self._connected or self._outputs.get(output.key) is not output:
            return
        for stream in output.streams:
            while stream.sent < stream.size and stream.sent - stream.got < WINDOW_BYTES:
                if output.closed and output.unsent() <= INLINE_BYTES:
                    break
                if self._reports.full():
                    output.dirty = True
                    self._blocked[output] = None
                    return
                data = stream.read(stream.sent, PIECE_BYTES)
                if not data:
                    self._tear(stream)
                    break
                self._reports.output(output.key, stream.number, stream.sent, data)
                stream.sent += len(data)
        if output.on_sent is not None and output.unsent() <= INLINE_BYTES:
            fn, output.on_sent = output.on_sent, None
            fn()

    @staticmethod
    def _tear(stream: Stream) -> None:
        """The file lost its end (a disk that lied): what is missing counts as dropped."""
        lost = stream.base - stream.sent
        stream.dropped += lost
        stream.size, stream.base = stream.size - lost, stream.base - lost

    def on_drained(self) -> None:
        """The network took everything that waited."""
        if self._blocked:
            blocked, self._blocked = self._blocked, {}
            for output in blocked:
                self._flush(output)

    def on_got(self, key: TaskKey, number: int, size: int) -> None:
        """The manager has so much of a stream in its spool."""
        output = self._outputs.get(key)
        if output is None or number not in (1, 2):
            return
        stream = output.streams[number - 1]
        stream.confirmed(size)
        if not stream.watched:
            self._watch(output, stream)
        if stream.sent < stream.size and not output.dirty:
            self._flush(output)

    def when_sent(self, key: TaskKey, fn: Callable[[], None]) -> None:
        """Call fn() once what is left of a finished attempt's output is small enough to ride with its result."""
        output = self._outputs.get(key)
        if output is None or (output.closed and output.unsent() <= INLINE_BYTES):
            fn()
            return
        output.on_sent = fn
        if not output.dirty:
            self._flush(output)

    def tails(self, key: TaskKey) -> tuple[int, bytes, int, bytes, int]:
        """Size and unsent rest of stdout, then of stderr (they count as sent), and how much was dropped of both."""
        output = self._outputs.get(key)
        if output is None:
            return 0, b"", 0, b"", 0
        out, err = output.streams
        return out.size, out.take_tail(), err.size, err.take_tail(), out.dropped + err.dropped

    # -- the connection ------------------------------------------------------------------------------------------------

    def on_welcome(self) -> None:
        self._connected = True

    def resume(self, key: TaskKey, out: int, err: int) -> None:
        """After a welcome: what the manager has of a kept attempt."""
        output = self._outputs.get(key)
        if output is None:
            return
        for stream, size in zip(output.streams, (out, err)):
            stream.resume(size)
            if not self._may_read(stream):
                self._unwatch(stream)
        self._flush(output)

    def on_disconnected(self) -> None:
        self._connected = False
        self._blocked.clear()
        for output in self._outputs.values():
            output.on_sent = None
            output.dirty = False
            for stream in output.streams:
                self._watch(output, stream)

    def send_again(self) -> None:
        """Called every few seconds: what the manager did not confirm since the last time (its disk was full) is sent
        once more."""
        for output in self._outputs.values() if self._connected else ():
            if output.closed and output.on_sent is None:
                continue  # its result was sent with it
            for stream in output.streams:
                if stream.got < stream.sent and stream.seen == stream.got:
                    stream.sent = stream.got
                stream.seen = stream.got
            if output.unsent() and not output.dirty:
                self._flush(output)

    def discard(self, key: TaskKey) -> None:
        """Forget an attempt's output; what is still written gets nowhere."""
        output = self._outputs.pop(key, None)
        if output is None:
            return
        self._blocked.pop(output, None)
        for stream in output.streams:
            if stream.fd >= 0:
                self._unwatch(stream)
                os.close(stream.fd)
                stream.fd = -1
            stream.drop_file()

    def close(self) -> None:
        for key in list(self._outputs):
            self.discard(key)
