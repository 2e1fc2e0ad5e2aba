"""Files that a job returns (--return GLOB): found when the task has ended, hashed, sent to the manager by hash.

    collect(key, folder, patterns) → gather (helper thread) → put .. put_ok, piece by piece → then(manifest hash, note)

A pattern cannot lead outside: folders that are links are never entered. What the manager has already is not sent; after
a cut, each file goes on where the manager says that it is. All but `gather` belongs to the loop's thread.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import stat
from collections import deque
from collections.abc import Callable, Iterator
from fnmatch import translate
from functools import lru_cache
from typing import Any, NamedTuple, Optional, Union

from .core.jobs import TaskKey
from .core.messages import link_stays_inside
from .core.syntax import to_wire
from .fetching import Helper
from .reports import Sender
from .spool import FileRange

log = logging.getLogger(__name__)

PIECE_BYTES = 256 * 1024
IN_FLIGHT = 16  # pieces of one file on their way
AT_A_TIME = 4  # files
SMALL_BYTES = PIECE_BYTES  # sent without asking first whether the manager has it
RETRY_S = 5.0  # after the manager said that it cannot store
TRIES = 10  # for a file that does not arrive as it was hashed: somebody still writes it, or cut it
NAMED = 3  # files that a note names
CHANGED = "not returned: files that changed while they were sent"

Then = Callable[[Optional[str], Optional[str]], None]


class Gathered(NamedTuple):
    """What is to be returned: entries as in a send manifest, where each content is, and a note on what is left out."""

    entries: list[list[Any]]
    sources: dict[str, tuple[str, int]]  # hash → path, size
    note: Optional[str]


def gather(folder: str, patterns: list[str]) -> Gathered:
    """Find and hash the files below `folder` that match. Thread: any. Never raises; what cannot be read is noted."""
    found: dict[str, list[Any]] = {}
    sources: dict[str, tuple[str, int]] = {}
    skipped: list[str] = []
    for pattern in patterns:
        for path in _matches(folder, "", [part for part in pattern.split("/") if part not in ("", ".")]):
            for inside in _whole(folder, path):
                if inside not in found:
                    _add(folder, inside, found, sources, skipped)
    for path in list(found):
        for end in (at for at, char in enumerate(path) if char == "/"):
            if path[:end] not in found:
                _add(folder, path[:end], found, sources, skipped)
    entries = [found[path] for path in sorted(found, key=lambda path: path.split("/"))]
    return Gathered(entries, sources, _note(skipped))


def _note(skipped: list[str]) -> Optional[str]:
    if not skipped:
        return None
    more = f" and {len(skipped) - NAMED} more" if len(skipped) > NAMED else ""
    return "not returned: " + ", ".join(skipped[:NAMED]) + more


def _add(
    folder: str, path: str, found: dict[str, list[Any]], sources: dict[str, tuple[str, int]], skipped: list[str]
) -> None:
    full = f"{folder}/{path}"
    shown = "".join(char if char.isprintable() else "?" for char in path)
    try:
        info = os.lstat(full)
        mode = stat.S_IMODE(info.st_mode) & 0o777
        if stat.S_ISDIR(info.st_mode):
            found[path] = ["d", to_wire(path), mode]
        elif stat.S_ISLNK(info.st_mode):
            target = os.readlink(full)
            if link_stays_inside(path, target):
                found[path] = ["l", to_wire(path), to_wire(target)]
            else:
                skipped.append(f"{shown} (a link that leads outside)")
        elif stat.S_ISREG(info.st_mode):
            if not mode & 0o400:
                os.chmod(full, mode | 0o400)  # it is ours, and about to be removed
            name, size = _hash(full)
            found[path] = ["f", to_wire(path), mode, name, size]
            sources[name] = (full, size)
        else:
            skipped.append(f"{shown} (a special file)")
    except OSError as error:
        skipped.append(f"{shown} ({error.strerror})")


def _hash(path: str) -> tuple[str, int]:
    digest, size = hashlib.sha256(), 0
    with open(os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0)), "rb", buffering=0) as file:
        for piece in iter(lambda: file.read(1 << 20), b""):
            digest.update(piece)
            size += len(piece)
    return digest.hexdigest(), size


@lru_cache(maxsize=256)
def _regex(part: str) -> re.Pattern[str]:
    return re.compile(translate(part))


def _entries(folder: str, path: str) -> list[os.DirEntry[str]]:
    """What is in the folder at `path` below `folder`, sorted; nothing when that cannot be told."""
    where = f"{folder}/{path}" if path else folder
    try:
        with os.scandir(where) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except PermissionError:
        try:
            os.chmod(where, 0o700)  # a job may have locked itself out; the folder is going to be removed anyway
            with os.scandir(where) as entries:
                return sorted(entries, key=lambda entry: entry.name)
        except OSError:
            return []
    except OSError:
        return []


def _matches(folder: str, base: str, parts: list[str]) -> Iterator[str]:
    """Relative paths that match the parts of a pattern below `base`; links to folders are not entered."""
    if not parts:
        if base:
            yield base
        return
    part, rest = parts[0], parts[1:]
    if part == "**":
        yield from _matches(folder, base, rest or ["*"])
        for entry in _entries(folder, base):
            if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
                yield from _matches(folder, f"{base}/{entry.name}" if base else entry.name, parts)
        return
    if part == "..":
        return
    for entry in _entries(folder, base):
        if entry.name != part:
            hidden = entry.name.startswith(".") and not part.startswith(".")
            if hidden or not _regex(part).match(entry.name):
                continue
        path = f"{base}/{entry.name}" if base else entry.name
        if not rest:
            yield path
        elif entry.is_dir(follow_symlinks=False):
            yield from _matches(folder, path, rest)


def _whole(folder: str, path: str) -> Iterator[str]:
    """A match; and, when it is a folder, everything in it."""
    yield path
    todo = [path] if stat.S_ISDIR(_mode(f"{folder}/{path}")) else []
    while todo:
        base = todo.pop()
        for entry in _entries(folder, base):
            inside = f"{base}/{entry.name}"
            yield inside
            if entry.is_dir(follow_symlinks=False):
                todo.append(inside)


def _mode(path: str) -> int:
    try:
        return os.lstat(path).st_mode
    except OSError:
        return 0


# -- sending ----------------------------------------------------------------------------------------------------------


class _Return:
    """What one attempt returns."""

    __slots__ = ("entries", "lost", "manifest", "note", "then", "waiting")

    def __init__(self, then: Then) -> None:
        self.then = then
        self.entries: list[list[Any]] = []
        self.note: Optional[str] = None
        self.manifest: Optional[str] = None  # its hash, once all files are with the manager
        self.waiting: set[str] = set()  # hashes that are not with the manager yet
        self.lost: set[str] = set()  # hashes that never arrive


class _Content:
    """One file, or the manifest, on its way."""

    __slots__ = ("asking", "flying", "name", "owners", "sent", "size", "stored", "tries")

    def __init__(self, name: str, size: int) -> None:
        self.name, self.size = name, size
        self.owners: dict[TaskKey, Union[str, bytes]] = {}  # who returns it, and the path or content there
        self.sent = self.stored = self.flying = self.tries = 0
        self.asking = False


class Uploads:
    """`helper(work, done)` runs work() elsewhere, then done(result, error) here."""

    def __init__(self, loop: Any, helper: Helper) -> None:
        self._loop, self._helper = loop, helper
        self._conn: Optional[Sender] = None
        self._returns: dict[TaskKey, _Return] = {}
        self._contents: dict[str, _Content] = {}
        self._queue: deque[str] = deque()
        self._active: dict[str, _Content] = {}
        self._timer: Any = None

    def collect(self, key: TaskKey, folder: str, patterns: list[str], then: Then) -> None:
        """Return what matches, then call then(manifest hash or None, note or None), unless discarded before."""
        own = self._returns[key] = _Return(then)

        def gathered(found: Any, error: Optional[Exception]) -> None:
            if self._returns.get(key) is not own:
                return
            if error is not None:
                found = Gathered([], {}, f"not returned: {error}")
            own.entries, own.note = found.entries, found.note
            for name, (path, size) in found.sources.items():
                self._add(key, name, size, path)
            self._advance(key)
            self._fill()

        self._helper(lambda: gather(folder, patterns), gathered)

    def discard(self, key: TaskKey) -> None:
        """The attempt's files are about to go."""
        own = self._returns.pop(key, None)
        for name in own.waiting if own is not None else ():
            del self._contents[name].owners[key]
            if not self._contents[name].owners:
                self._drop(name)
        self._fill()

    def _add(self, key: TaskKey, name: str, size: int, source: Union[str, bytes]) -> None:
        if name not in self._contents:
            self._contents[name] = _Content(name, size)
            self._queue.append(name)
        self._contents[name].owners[key] = source
        self._returns[key].waiting.add(name)

    def _drop(self, name: str) -> None:
        self._contents.pop(name, None)
        self._active.pop(name, None)

    def _advance(self, key: TaskKey) -> None:
        """Once all files are there: the manifest. Once that is there: done."""
        own = self._returns[key]
        if own.waiting:
            return
        entries = [entry for entry in own.entries if entry[0] != "f" or entry[3] not in own.lost]
        if own.manifest is None and entries:
            manifest = json.dumps(entries, separators=(",", ":")).encode()
            own.manifest = hashlib.sha256(manifest).hexdigest()
            self._add(key, own.manifest, len(manifest), manifest)
            return
        del self._returns[key]
        own.then(None if own.manifest in own.lost else own.manifest, own.note)

    # -- the connection ------------------------------------------------------------------------------------------------

    def on_welcome(self, conn: Sender) -> None:
        self._conn = conn
        self._restart()

    def on_disconnected(self) -> None:
        self._conn = None

    def _restart(self) -> None:
        self._timer = None
        active, self._active = list(self._active), {}
        self._queue.extendleft(reversed(active))
        self._fill()

    def _fill(self) -> None:
        """Begin with as many contents as may be on their way at once."""
        while self._conn is not None and self._timer is None and self._queue and len(self._active) < AT_A_TIME:
            content = self._contents.get(self._queue.popleft())
            if content is None or content.name in self._active:
                continue
            self._active[content.name] = content
            content.sent = content.stored = content.flying = 0
            content.asking = content.size > SMALL_BYTES
            if content.asking:
                self._put(content, 0, 0)  # where does it stand?
            else:
                self._push(content)

    def _push(self, content: _Content) -> None:
        while content.flying < IN_FLIGHT and (content.sent < content.size or not content.size):
            length = min(PIECE_BYTES, content.size - content.sent)
            self._put(content, content.sent, length)
            content.sent += length
            if not content.size:
                break

    def _put(self, content: _Content, offset: int, length: int) -> None:
        assert self._conn is not None
        content.flying += 1
        last = offset + length == content.size and not content.asking
        header = {"t": "put", "hash": content.name, "size": content.size, "offset": offset, "last": last}
        source = next(iter(content.owners.values()))
        if isinstance(source, bytes):
            self._conn.send(header, source[offset : offset + length])
        elif length:
            self._conn.send(header, FileRange(source, offset, length))
        else:
            self._conn.send(header, b"")

    def on_put_ok(self, name: str, stored: int, done: bool) -> None:
        """The manager has so much of it, or all."""
        content = self._active.get(name)
        if content is None:
            return
        content.flying = max(0, content.flying - 1)
        if done:
            self._arrived(content)
            return
        content.stored = stored
        if content.asking:
            content.asking = False
            content.sent = content.stored
        elif not content.flying and content.sent == content.size:
            content.sent = content.stored  # pieces were not taken: go on where it stands
            content.tries += 1
        if content.tries < TRIES:
            self._push(content)
        else:
            self._lose(content)
            self._fill()

    def _arrived(self, content: _Content) -> None:
        self._drop(content.name)
        for key in content.owners:
            self._returns[key].waiting.discard(content.name)
            self._advance(key)
        self._fill()

    def on_error(self, code: str) -> None:
        """The manager could not take a piece; it does not say of which file. All begin again after a pause: at once
        when a file did not fit its hash, after a while when its disk is full."""
        if code == "blob":
            for content in list(self._active.values()):
                content.tries += 1
                if content.tries >= TRIES:
                    self._lose(content)
        if self._timer is None:
            self._timer = self._loop.call_later(0.0 if code == "blob" else RETRY_S, self._restart)

    def _lose(self, content: _Content) -> None:
        self._drop(content.name)
        for key in content.owners:
            own = self._returns[key]
            own.waiting.discard(content.name)
            own.lost.add(content.name)
            own.note = f"{own.note}; {CHANGED}" if own.note and CHANGED not in own.note else CHANGED
            self._advance(key)
