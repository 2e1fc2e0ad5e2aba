"""`fetch`: the files that tasks returned, into a folder. Names come from workers and are not trusted: nothing is ever
written outside the folder, through a link, or over a name that the list does not hold; content is checked by its hash.
"""

from __future__ import annotations

import hashlib
import os
import sys
from typing import Any

from .console import Progress, say
from .core.errors import Refused, UsageError
from .core.messages import check_manifest
from .core.syntax import from_wire, hold_text
from .follow import Connection
from .submission import PIECE


def fetch(connection: Connection, sel: dict[str, Any], into: str) -> int:
    """Download; prints the paths. The exit code."""
    progress, found, missing = Progress(), 0, 0
    view = connection.request({"t": "status", "ids": [sel]})[0]["jobs"][0]
    array = view.get("tasks") is not None or "." in view["id"]
    at: int | None = 0
    while at is not None:
        answer, _ = connection.request({"t": "files", "ids": [sel], "from": at})
        for _pos, index, manifest, state in answer["tasks"]:
            if manifest is None:
                missing += state not in ("succeeded", "failed", "cancelled")
                continue
            folder = os.path.join(into, f"{answer['id']}.{index}") if array else into
            found += _one(connection, manifest, folder, progress)
        at = answer["more"]
    progress.clear()
    if not found:
        if missing:
            raise Refused("it is not finished yet: its files come when a task ends", "unfinished")
        say("it returned no files (--return GLOB names them at submit)")
    return 0


def _one(connection: Connection, manifest: str, folder: str, progress: Progress) -> int:
    entries = check_manifest(_content(connection, manifest))
    os.makedirs(folder, exist_ok=True)
    root = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0)) if os.open in os.supports_dir_fd else -1
    total, done, count = sum(e[4] for e in entries if e[0] == "f"), 0, 0
    try:
        for entry in entries:
            path = from_wire(entry[1])
            _parents(root, folder, path)
            if entry[0] == "d":
                _folder(root, folder, path)
                continue
            if entry[0] == "l":
                _link(root, folder, path, from_wire(entry[2]))
            else:
                _file(
                    connection,
                    root,
                    folder,
                    entry,
                    lambda size, base=done: progress.bytes(base + size, total, "fetched"),
                )
                done += entry[4]
            count += 1
            progress.clear()
            shown = os.path.join(folder, path)
            sys.stdout.buffer.write(os.fsencode(hold_text(shown) if sys.stdout.isatty() else shown) + b"\n")
            sys.stdout.buffer.flush()
    finally:
        if root >= 0:
            os.close(root)
    return count


def _content(connection: Connection, name: str) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        answer, data = connection.request({"t": "get", "hash": name, "offset": size, "max": PIECE})
        parts.append(data)
        size += len(data)
        if size >= answer["size"] or not data:
            break
    text = b"".join(parts)
    if hashlib.sha256(text).hexdigest() != name:
        raise Refused("the manager sent a list of files that does not fit its hash", "blob")
    return text


class _Place:
    """The folder that a path lies in, opened link by link without following any, and the last part of the path."""

    def __init__(self, root: int, folder: str, path: str) -> None:
        self.parts = path.split("/")
        self.name = self.parts[-1]
        self.full = os.path.join(folder, *self.parts)
        self.fd = -1
        if root < 0:
            return
        self.fd = os.dup(root)
        for part in self.parts[:-1]:
            flags = os.O_RDONLY | os.O_DIRECTORY | getattr(os, "O_NOFOLLOW", 0)
            try:
                below = os.open(part, flags, dir_fd=self.fd)
            finally:
                os.close(self.fd)
            self.fd = below

    def __enter__(self) -> _Place:
        return self

    def __exit__(self, *_: object) -> None:
        if self.fd >= 0:
            os.close(self.fd)

    @property
    def where(self) -> dict[str, Any]:
        return {"dir_fd": self.fd} if self.fd >= 0 else {}

    @property
    def target(self) -> str:
        return self.name if self.fd >= 0 else self.full


def _parents(root: int, folder: str, path: str) -> None:
    parts = path.split("/")
    for n in range(1, len(parts)):
        _folder(root, folder, "/".join(parts[:n]))


def _folder(root: int, folder: str, path: str) -> None:
    with _Place(root, folder, path) as place:
        try:
            os.mkdir(place.target, 0o755, **place.where)
        except FileExistsError:
            if os.path.islink(place.full) or not os.path.isdir(place.full):
                raise UsageError(f"{place.full} is in the way: it is not a folder") from None


def _link(root: int, folder: str, path: str, target: str) -> None:
    with _Place(root, folder, path) as place:
        if os.path.islink(place.full):
            os.unlink(place.target, **place.where)
        try:
            os.symlink(target, place.target, **place.where)
        except FileExistsError:
            raise UsageError(f"{place.full} is in the way") from None


def _file(connection: Connection, root: int, folder: str, entry: list[Any], progress: Any) -> None:
    """Content into a file beside, checked, then given its name. A part that an earlier try left is gone on with."""
    _, wired, mode, name, size = entry
    with _Place(root, folder, from_wire(wired)) as place:
        part = f".{name[:16]}.part"
        part = part if place.fd >= 0 else os.path.join(os.path.dirname(place.full), part)
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        fd = os.open(part, flags, 0o600, **place.where)
        with os.fdopen(fd, "r+b") as file:
            found = hashlib.sha256()
            for piece in iter(lambda: file.read(1 << 20), b""):
                found.update(piece)
            at = file.tell()
            if at > size:
                found, at = hashlib.sha256(), 0
                file.truncate(0)
                file.seek(0)
            while at < size:
                _, data = connection.request({"t": "get", "hash": name, "offset": at, "max": PIECE})
                if not data:
                    raise Refused("the manager does not have all of a file", "blob")
                file.write(data)
                found.update(data)
                at += len(data)
                progress(at)
            if hasattr(os, "fchmod"):
                os.fchmod(file.fileno(), (mode & 0o777) | 0o600)
        if found.hexdigest() != name:
            os.unlink(part, **place.where)
            raise Refused(f"{place.full} did not arrive as it was sent: fetch again", "blob")
        if place.fd >= 0:
            os.replace(part, place.name, src_dir_fd=place.fd, dst_dir_fd=place.fd)
        else:
            os.replace(part, place.full)
