"""What a person asked for, as a job description and the content that goes with it. Reads files; sends nothing but by
`send`, at the end. Everything is read once, so that later edits change nothing."""

from __future__ import annotations

import os
import stat
import sys

from . import closure
from .core import jsontext
from .core.digest import sha256
from .core.errors import Refused, UsageError
from .core.records import TYPE_CHECKING, NamedTuple
from .core.syntax import MAX_TASKS, check_specifier, grid_count, shown, to_wire

if TYPE_CHECKING:
    from typing import Any

    from .link import Link

INLINE_MAX = 512 * 1024  # bytes of files that ride with the submission
PIECE = 512 * 1024
SPEC_MAX = 200 * 1024  # bytes of a description that ride in the message
LIST_MAX = 32 * 1024  # bytes of arguments or environment that stay in the description
CHUNK = 256 * 1024  # bytes of lines in one piece


class Source(NamedTuple):
    """Content that is in memory, or in a file (path) of this size."""

    data: bytes | None
    path: str | None
    size: int


class Submission:
    """A job description (`spec`) and the content by hash (`blobs`) that it needs."""

    def __init__(self) -> None:
        self.blobs: dict[str, Source] = {}
        self.spec: dict[str, Any] = {}
        self.request_id = os.urandom(16).hex()

    def add(self, data: bytes) -> str:
        name = sha256(data).hexdigest()
        self.blobs.setdefault(name, Source(data, None, len(data)))
        return name

    def add_file(self, path: str) -> tuple[str, int]:
        """Hash a file without holding it; (hash, size)."""
        found, size = sha256(), 0
        with open(path, "rb") as file:
            while True:
                piece = file.read(1 << 20)
                if not piece:
                    break
                found.update(piece)
                size += len(piece)
        self.blobs.setdefault(found.hexdigest(), Source(None, path, size))
        return found.hexdigest(), size


def build(options: Any, script: str, args: list[str], stdin: Any = None) -> Submission:
    """From the options of `submit` (attributes named as the long options). Raises UsageError."""
    readers = [
        what for what, given in (("SCRIPT", script), ("--each-line", options.each_line), ("--stdin", options.stdin))
        if given == "-"
    ]  # fmt: skip
    if len(readers) > 1:
        raise UsageError(f"{readers[0]} and {readers[1]} cannot both be - (standard input can be read once)")
    sub = Submission()
    name, source, path = _script(script)
    spec: dict[str, Any] = {
        "name": options.name or _plain(name),
        "user": options.user or _plain(_login()),
        "script": {"name": to_wire(name), "hash": sub.add(source)},
        "modules": [],
        "priority": options.priority,
        "retries": options.retries,
        "timeout": options.timeout,
        "grace": options.grace,
        "cpus": options.cpus,
        "gpus": options.gpus,
        "memory": options.memory,
        "on": options.on,
        "resources": dict(options.resource),
        "max_running": options.max_running,
        "max_fails": options.max_fails,
        "if_lost": options.if_lost,
        "max_output": options.max_output,
        "buffered": options.buffered,
        "cold": options.cold,
        "preload": options.preload,
        "once": options.once,
        "returns": options.returns,
        "after": _after(options),
        "stdin": _stdin(sub, options.stdin, stdin),
        "send": _send(sub, options.send) if options.send else None,
        "array": None,
        "lines": None,
        "grid": None,
        "count": 1,
    }
    if path is not None and not options.no_modules:
        try:
            for module in closure.modules_beside(path, source):
                found = sub.add_file(module.file)[0] if module.content is None else sub.add(module.content)
                spec["modules"].append([to_wire(module.path), found])
        except OSError as error:
            raise UsageError(f"cannot read {error.filename}, which the script imports: {error.strerror}") from None
    _tasks(sub, spec, options, stdin)
    _python(spec, options, source)
    _lists(sub, spec, args, _environment(options.env))
    sub.spec = spec
    return sub


def _script(script: str) -> tuple[str, bytes, str | None]:
    if script == "-":
        return "stdin.py", sys.stdin.buffer.read(), None
    if os.path.isdir(script):
        raise UsageError(f"{script} is a folder: give a script (a folder can be sent along with --send)")
    try:
        with open(script, "rb") as file:
            source = file.read()
    except FileNotFoundError:
        raise UsageError(f"no such script: {script}") from None
    except OSError as error:
        raise UsageError(f"cannot read {script}: {error.strerror}") from None
    return os.path.basename(script), source, os.path.abspath(script)


def _plain(text: str) -> str:
    """A name as it is shown: bytes that are not UTF-8 replaced."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")[:1000]


def _login() -> str:
    """The login name, found as getpass.getuser does (which takes long to import)."""
    for variable in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        if os.environ.get(variable):
            return os.environ[variable]
    try:
        import pwd

        return pwd.getpwuid(os.getuid()).pw_name
    except (ImportError, KeyError):
        return str(os.getuid()) if hasattr(os, "getuid") else "user"


def _after(options: Any) -> list[dict[str, Any]]:
    found = []
    for kind, selectors in (("ok", options.after), ("any", options.after_any), ("each", options.after_each)):
        for sel in selectors:
            if (
                sel.to is not None
                or (sel.lo is not None and not sel.one_task)
                or (kind == "each" and sel.lo is not None)
            ):
                raise UsageError(f"not one job or task to wait for: {sel.text} (use 7 or 7.3)")
            found.append({"job": sel.job, "index": sel.lo, "kind": kind})
    return found


def _stdin(sub: Submission, name: str | None, stdin: Any) -> str | None:
    if name is None:
        return None
    try:
        if name == "-":
            return sub.add((stdin or sys.stdin.buffer).read())
        return sub.add_file(name)[0]
    except OSError as error:
        raise UsageError(f"cannot read {name} (--stdin): {error.strerror}") from None


def _environment(pairs: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in pairs:
        name, equals, value = text.partition("=")
        if not name:
            raise UsageError(f"--env: not NAME=VALUE: {shown(text)}")
        if equals:
            found[name] = value
        elif name in os.environ:
            found[name] = os.environ[name]
    return found


def _lists(sub: Submission, spec: dict[str, Any], args: list[str], env: dict[str, str]) -> None:
    wired: dict[str, Any] = {"args": [to_wire(arg) for arg in args], "env": {k: to_wire(v) for k, v in env.items()}}
    for name, value in wired.items():
        text = jsontext.encode(value).encode()
        large = len(text) > LIST_MAX
        spec[name], spec[f"{name}_blob"] = (None, sub.add(text)) if large else (value, None)


def _python(spec: dict[str, Any], options: Any, source: bytes) -> None:
    spec["python"] = options.python
    spec["requires_python"] = spec["requirements"] = None
    if b"# /// script" in source:
        from . import pep723

        metadata = pep723.read(source)
        if metadata is not None:
            spec["requires_python"] = metadata.requires_python
            spec["requirements"] = "\n".join(sorted(metadata.dependencies)) or None
        if spec["requires_python"] is not None:
            check_specifier(spec["requires_python"])
    if options.requirements is not None:
        try:
            with open(options.requirements, encoding="utf-8") as file:
                lines = [line.strip() for line in file]
        except OSError as error:
            raise UsageError(f"cannot read {options.requirements} (--requirements): {error.strerror}") from None
        except UnicodeDecodeError:
            raise UsageError(f"{options.requirements} (--requirements) is not UTF-8 text") from None
        wanted = [line for line in lines if line and not line.startswith("#")]
        spec["requirements"] = "\n".join(sorted(wanted)) or None


# -- tasks ----------------------------------------------------------------------------------------------------------------


def _tasks(sub: Submission, spec: dict[str, Any], options: Any, stdin: Any) -> None:
    given = [
        flag
        for flag, value in (("--array", options.array), ("--each-line", options.each_line), ("--grid", options.grid))
        if value
    ]
    if len(given) > 1:
        raise UsageError(f"{given[0]} and {given[1]} cannot be combined: each says what the tasks are")
    if options.array:
        from .core.indexes import Indexes

        indexes = Indexes.parse(options.array)
        spec["array"], spec["count"] = indexes.text, len(indexes)
    elif options.each_line:
        spec["lines"], spec["count"] = _lines(sub, options.each_line, stdin)
    elif options.grid:
        names = [name for name, _ in options.grid]
        if len(set(names)) != len(names):
            raise UsageError("a --grid name stands twice")
        spec["grid"] = [[name, values] for name, values in options.grid]
        spec["count"] = grid_count(spec["grid"])
    if spec["count"] > MAX_TASKS:
        raise UsageError(f"{spec['count']:,} tasks are too many: at most {MAX_TASKS:,} in one job")


def _lines(sub: Submission, name: str, stdin: Any) -> tuple[dict[str, Any], int]:
    """The non-empty lines in pieces; a worker fetches only the piece that its task's line is in."""
    chunks: list[list[Any]] = []
    count, first, size = 0, 0, 0
    lines: list[bytes] = []
    try:
        file = (stdin or sys.stdin.buffer) if name == "-" else open(name, "rb")  # noqa: SIM115 - stdin stays open
        for line in file:
            line = line.rstrip(b"\r\n")
            if not line:
                continue
            if b"\0" in line:
                raise UsageError(f"line {count} of {name} (--each-line) holds a NUL, which no argument can")
            if count >= MAX_TASKS:
                raise UsageError(
                    f"{name} (--each-line) has more than {MAX_TASKS:,} lines: that many tasks are too many"
                )
            lines.append(line)
            count, size = count + 1, size + len(line) + 1
            if size >= CHUNK:
                chunks.append([first, sub.add(b"\n".join(lines))])
                lines, first, size = [], count, 0
        if file is not (stdin or sys.stdin.buffer):
            file.close()
    except OSError as error:
        raise UsageError(f"cannot read {name} (--each-line): {error.strerror}") from None
    if lines:
        chunks.append([first, sub.add(b"\n".join(lines))])
    if not count:
        raise UsageError(f"{name} (--each-line) has no line: there is nothing to run")
    return {"chunks": chunks}, count


# -- files ----------------------------------------------------------------------------------------------------------------


def _send(sub: Submission, paths: list[str]) -> dict[str, Any]:
    entries: list[list[Any]] = []
    total = [0, 0]
    names: set[str] = set()
    for path in paths:
        name = os.path.basename(os.path.abspath(path))
        if not name:
            raise UsageError(f"--send {path}: a root folder cannot be sent")
        if name in names:
            raise UsageError(f"--send: two things called {name}: each lands in the job's folder under its own name")
        names.add(name)
        try:
            _walk(sub, entries, os.path.abspath(path), name, os.path.realpath(path), total, frozenset())
        except FileNotFoundError as error:
            raise UsageError(f"no such file to send (--send): {error.filename}") from None
        except OSError as error:
            raise UsageError(f"cannot send {error.filename}: {error.strerror}") from None
    manifest = jsontext.encode(entries).encode()
    return {"manifest": sub.add(manifest), "files": total[0], "bytes": total[1]}


def _walk(
    sub: Submission, entries: list[list[Any]], path: str, name: str, root: str, total: list[int], above: frozenset[str]
) -> None:
    """One file, folder or link. Links that stay inside `root` are kept; others are followed."""
    info = os.lstat(path)
    if stat.S_ISLNK(info.st_mode) and "/" in name:
        from .core.messages import link_stays_inside

        target = os.readlink(path).replace(os.sep, "/")
        if os.path.realpath(path).startswith(root + os.sep) and link_stays_inside(name, target):
            entries.append(["l", to_wire(name), to_wire(target)])
            return
    info = os.stat(path)
    mode = stat.S_IMODE(info.st_mode) & 0o777
    if stat.S_ISDIR(info.st_mode):
        real = os.path.realpath(path)
        if real in above:
            raise UsageError(f"cannot send {path}: the link leads back to a folder above it")
        entries.append(["d", to_wire(name), mode])
        for child in sorted(os.listdir(path)):
            _walk(sub, entries, os.path.join(path, child), f"{name}/{child}", root, total, above | {real})
    elif stat.S_ISREG(info.st_mode):
        found, size = sub.add_file(path)
        entries.append(["f", to_wire(name), mode, found, size])
        total[0] += 1
        total[1] += size
    else:
        raise UsageError(f"cannot send {path}: sockets, pipes and devices cannot be sent")


# -- sending --------------------------------------------------------------------------------------------------------------


def deliver(link: Link, sub: Submission, view: bool = False, progress: Any = None) -> dict[str, Any]:
    """Hand in the job; the manager's answer. A repeat, also over another link, makes no second job. Raises Refused,
    ManagerGone."""
    header, payload = _message(sub)
    if view:
        header["view"] = True
    for _ in range(4):
        try:
            return link.request(header, payload)[0]
        except Refused as error:
            if error.code != "blobs":
                raise
            upload(link, sub, list(error.detail.get("missing") or sub.blobs), progress)  # type: ignore[call-overload]
            header, payload = {**header, "inline": []}, b""
    raise Refused("the manager does not keep the files that it was sent", "blobs")


def request_of(sub: Submission) -> dict[str, Any]:
    """The submission as a question: names the job that it became, or is refused for what it lacks."""
    return {**_message(sub)[0], "inline": []}


def _message(sub: Submission) -> tuple[dict[str, Any], bytes]:
    header: dict[str, Any] = {"t": "submit", "request_id": sub.request_id}
    text = jsontext.encode(sub.spec).encode()
    if len(text) > SPEC_MAX:
        header["spec_blob"] = sub.add(text)
    else:
        header["spec"] = sub.spec
    inline: list[list[Any]] = []
    parts: list[bytes] = []
    room = INLINE_MAX
    for name, source in sub.blobs.items():
        if source.data is not None and source.size <= room and len(inline) < 500:
            inline.append([name, source.size])
            parts.append(source.data)
            room -= source.size
    header["inline"] = inline
    return header, b"".join(parts)


def upload(link: Link, sub: Submission, missing: list[str], progress: Any = None) -> None:
    """Send content that the manager does not have, from where an earlier try ended."""
    names = [name for name in missing if name in sub.blobs]
    rest = [name for name in sub.blobs if name not in set(names)]
    for at in range(0, len(rest), 2000):
        part = rest[at : at + 2000]
        answer, _ = link.request({"t": "have", "hashes": part})
        names += [name for name in answer["missing"] if name in sub.blobs and name not in names]
    total, done = sum(sub.blobs[name].size for name in names), 0
    for name in names:
        source = sub.blobs[name]
        _upload_one(link, name, source, lambda sent, base=done: progress and progress(base + sent, total))
        done += source.size


def _upload_one(link: Link, name: str, source: Source, progress: Any) -> None:
    file = open(source.path, "rb") if source.path is not None else None  # noqa: SIM115 - closed below
    try:
        answer, _ = link.request({"t": "put", "hash": name, "size": source.size, "offset": 0})
        offset = answer["offset"]
        while not answer["done"]:
            if file is not None:
                file.seek(offset)
                piece = file.read(PIECE)
            else:
                assert source.data is not None
                piece = source.data[offset : offset + PIECE]
            if not piece and offset < source.size:
                raise UsageError(f"{source.path} became shorter while it was sent")
            header = {"t": "put", "hash": name, "size": source.size, "offset": offset}
            answer, _ = link.request(header, piece)
            offset = answer["offset"]
            progress(offset)
    finally:
        if file is not None:
            file.close()
