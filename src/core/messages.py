"""Which messages there are, who may send them, and what a job's description must look like. All checks of what comes in
are here; inside, values are trusted.
"""

from __future__ import annotations

import json
import re
from typing import Any

from .errors import UsageError
from .indexes import spec_indices
from .syntax import check_specifier, from_wire, grid_count, hold_text

COUNT_MAX = 10_000_000
TEXT_MAX = 1000
_HASH = re.compile(r"[0-9a-f]{64}")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=+:/@-]{0,199}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HEX32 = re.compile(r"[0-9a-f]{32}")


class BadMessage(UsageError):
    """The peer sent what is not allowed; one line, and a code for the answer."""

    code = "bad-message"


# kind → field → type; "?" may be absent or null. Types: int float str bool list dict any num, hash, hex32, key (a task key).
CLIENT: dict[str, dict[str, str]] = {
    "submit": {"request_id": "hex32", "spec": "dict?", "spec_blob": "hash?", "inline": "list?", "view": "bool?"},
    "have": {"hashes": "hashes"},
    "put": {"hash": "hash", "size": "int", "offset": "int", "last": "bool?"},
    "get": {"hash": "hash", "offset": "int", "max": "int"},
    "status": {"ids": "ids"},
    "list": {"state": "str?", "name": "str?", "user": "str?", "since": "num?", "last": "int?", "before": "int?"},
    "wait": {"ids": "ids", "timeout": "num?"},
    "read": {
        "job": "int", "lo": "int", "hi": "int", "pos": "int", "out": "int", "err": "int", "attempt": "int", "wait": "num",
        "live": "bool",
    },
    "cancel": {"ids": "ids?", "all": "bool?", "grace": "num?"},
    "retry": {"ids": "ids"},
    "workers": {},
    "drain": {"names": "strs"},
    "resume": {"names": "strs"},
    "prune": {"older_than": "num"},
    "metrics": {},
    "files": {"ids": "ids", "from": "int?"},
    "resolve": {"ids": "ids", "from": "int?"},
    "info": {},
}  # fmt: skip
WORKER: dict[str, dict[str, str]] = {
    "join": {
        "name": "name", "worker_id": "hex32", "boot": "hex32", "slots": "int", "cpus": "int", "memory": "int?",
        "gpus": "int", "labels": "strs", "resources": "dict", "pythons": "dict", "version": "str", "python": "str",
        "holding": "list",
    },
    "report": {"started": "list?", "output": "list?", "finished": "list?", "recalled": "list?"},
    "need": {"hashes": "hashes"},
    "put": {"hash": "hash", "size": "int", "offset": "int", "last": "bool?"},
    "state": {},
    "bye": {},
}  # fmt: skip
DIRECTIONS = {"CLIENT": CLIENT, "WORKER": WORKER}

_LOOKS = frozenset(("have", "get", "status", "list", "wait", "read", "workers", "metrics", "files", "info", "resolve"))
_WORK = frozenset(("submit", "put", "cancel", "retry"))
ALLOWED: dict[str, frozenset[str]] = {
    "worker": frozenset(WORKER),
    "read": _LOOKS,
    "submit": _LOOKS | _WORK,
    "admin": _LOOKS | _WORK | {"drain", "resume", "prune"},
}


def allowed(role: str, kind: str) -> bool:
    """Whether a key of this role may send this kind. What is not listed is not allowed."""
    return kind in ALLOWED.get(role, frozenset())


def _is_key(value: Any, more: int = 0) -> bool:
    return (
        type(value) is list
        and len(value) >= 3 + more
        and all(type(part) is int and 0 <= part < 1 << 53 for part in value[:3])
    )


def is_sel(value: Any) -> bool:
    """Whether this is a selector of jobs or tasks."""
    if type(value) is not dict or not (value.get("job") == "last" or _count(value.get("job"))):
        return False
    return all(value.get(name) is None or _count(value.get(name)) for name in ("lo", "hi", "to"))


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 53


def _number(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < 1 << 53


def _hash(value: Any) -> bool:
    return type(value) is str and _HASH.fullmatch(value) is not None


def _strings(value: Any, most: int = 1000) -> bool:
    return type(value) is list and len(value) <= most and all(type(v) is str and len(v) <= TEXT_MAX for v in value)


_TYPES: dict[str, Any] = {
    "int": _count,
    "num": _number,
    "str": lambda v: type(v) is str and len(v) <= TEXT_MAX,
    "bool": lambda v: type(v) is bool,
    "list": lambda v: type(v) is list,
    "dict": lambda v: type(v) is dict,
    "hash": _hash,
    "hex32": lambda v: type(v) is str and _HEX32.fullmatch(v) is not None,
    "name": lambda v: type(v) is str and _NAME.fullmatch(v) is not None,
    "strs": _strings,
    "hashes": lambda v: type(v) is list and 0 < len(v) <= 2000 and all(_hash(h) for h in v),
    "ids": lambda v: type(v) is list and 0 < len(v) <= 2000 and all(is_sel(s) for s in v),
}


def check(direction: str, header: dict[str, Any]) -> None:
    """Raises BadMessage unless the header is a known kind with its fields right. Unknown fields are ignored."""
    kind = header.get("t")
    fields = DIRECTIONS[direction].get(kind) if type(kind) is str else None
    if fields is None:
        raise BadMessage("unknown kind of message; is the other side newer?", "unknown")
    for name, kind_of in fields.items():
        value = header.get(name)
        if value is None and kind_of.endswith("?"):
            continue
        if not _TYPES[kind_of.rstrip("?")](value):
            raise BadMessage(f"{kind}: {name} is not as it must be")
    if direction == "CLIENT" and not _count(header.get("n")):
        raise BadMessage(f"{kind}: n is not a request number")
    if kind == "report":
        _check_report(header)
    elif kind == "join":
        _check_join(header)
    elif kind == "submit" and not all(
        type(item) is list and len(item) == 2 and _hash(item[0]) and _count(item[1])
        for item in header.get("inline") or ()
    ):
        raise BadMessage("submit: inline is not as it must be")


def _check_report(header: dict[str, Any]) -> None:
    for item in header.get("started") or ():
        if not (_is_key(item, 3) and _number(item[3]) and type(item[4]) is bool and type(item[5]) in (str, type(None))):
            raise BadMessage("report: started is not as it must be")
    for item in header.get("output") or ():
        if not (_is_key(item, 3) and item[3] in (1, 2) and _count(item[4]) and _count(item[5])):
            raise BadMessage("report: output is not as it must be")
    for item in header.get("recalled") or ():
        if not _is_key(item):
            raise BadMessage("report: recalled is not as it must be")
    for fin in header.get("finished") or ():
        _check_finished(fin)


def _check_finished(fin: Any) -> None:
    good = type(fin) is dict and _is_key(fin.get("task"))
    good = good and all(fin.get(name) is None or _count(fin[name]) for name in ("exit_code", "signal", "rss"))
    good = good and all(fin.get(name) is None or _number(fin[name]) for name in ("started_at", "cpu"))
    good = good and _number(fin.get("finished_at")) and _count(fin.get("dropped"))
    good = good and (fin.get("reason") is None or type(fin["reason"]) is str)
    good = good and (fin.get("files") is None or _hash(fin["files"]))
    good = good and all(type(fin.get(name)) is bool for name in ("timed_out", "never_ran", "cancelled"))
    for name in ("out", "err"):
        value = fin.get(name) if good else None
        good = (
            good and type(value) is list and len(value) == 2 and all(_count(n) for n in value) and value[1] <= value[0]
        )
    if not good:
        raise BadMessage("report: finished is not as it must be")
    for name in ("exit_code", "signal", "reason", "started_at", "cpu", "rss", "files"):
        fin.setdefault(name, None)
    if fin["reason"] is not None:
        fin["reason"] = hold_text(fin["reason"][:2000])


def _check_join(header: dict[str, Any]) -> None:
    if not 1 <= header["slots"] <= 100_000:
        raise BadMessage("join: slots must be 1 or more")
    header.setdefault("memory", None)
    if not all(type(k) is str and len(k) < 200 and _count(v) for k, v in header["resources"].items()):
        raise BadMessage("join: resources are not as they must be")
    if not all(type(k) is str and type(v) is str and len(k) + len(v) < 500 for k, v in header["pythons"].items()):
        raise BadMessage("join: pythons are not as they must be")
    for item in header["holding"]:
        if not (_is_key(item, 2) and type(item[3]) is str and (item[4] is None or _number(item[4]))):
            raise BadMessage("join: holding is not as it must be")


# -- job descriptions -----------------------------------------------------------------------------------------------------


def safe_relpath(text: str) -> bool:
    """A path that stays below the folder that it is taken to: relative, `/` only, no empty, `.` or `..` part, no NUL."""
    parts = text.split("/")
    return (
        bool(text)
        and "\0" not in text
        and len(parts) <= 64
        and all(part not in ("", ".", "..") and len(part.encode("utf-8", "surrogateescape")) <= 255 for part in parts)
    )


def _text(value: Any) -> bool:
    return type(value) is str and 0 < len(value) <= TEXT_MAX


def _wire(value: Any) -> bool:
    try:
        return "\0" not in from_wire(value)
    except UsageError:
        return False


def _relpath(value: Any) -> bool:
    return _wire(value) and safe_relpath(from_wire(value))


def _between(lo: float, hi: float) -> Any:
    return lambda v: type(v) in (int, float) and lo <= v <= hi


def _whole(lo: int, hi: int) -> Any:
    return lambda v: type(v) is int and lo <= v <= hi


def _or_none(test: Any) -> Any:
    return lambda v: v is None or test(v)


def _pairs(test: Any) -> Any:
    return lambda v: (
        type(v) is list and len(v) <= 100_000 and all(type(p) is list and len(p) == 2 and test(p) for p in v)
    )


def _grid(value: Any) -> bool:
    return bool(
        _pairs(lambda p: _text(p[0]) and type(p[1]) is list and p[1] and all(type(v) is str for v in p[1]))(value)
    )


def _dependency(value: Any) -> bool:
    return (
        type(value) is dict
        and _count(value.get("job"))
        and (value.get("pos") is None or _count(value["pos"]))
        and value.get("kind") in ("ok", "any", "each")
    )


_SPEC: dict[str, Any] = {
    "name": _text,
    "user": _text,
    "script": lambda v: type(v) is dict and _relpath(v.get("name")) and _hash(v.get("hash")),
    "modules": _pairs(lambda p: _relpath(p[0]) and _hash(p[1])),
    "args": _or_none(lambda v: type(v) is list and all(_wire(a) for a in v)),
    "args_blob": _or_none(_hash),
    "env": lambda v: v is None or (type(v) is dict and all(_variable(k) and _wire(x) for k, x in v.items())),
    "env_blob": _or_none(_hash),
    "stdin": _or_none(_hash),
    "send": _or_none(lambda v: type(v) is dict and _hash(v.get("manifest")) and _count(v.get("bytes"))),
    "returns": lambda v: _strings(v) and all(_safe_glob(g) for g in v),
    "count": _whole(1, COUNT_MAX),
    "array": _or_none(lambda v: type(v) is str and len(v) <= 100_000),
    "lines": _or_none(lambda v: type(v) is dict and _pairs(lambda p: _count(p[0]) and _hash(p[1]))(v.get("chunks"))),
    "grid": _or_none(_grid),
    "max_running": _or_none(_whole(1, COUNT_MAX)),
    "max_fails": _or_none(_whole(1, COUNT_MAX)),
    "priority": _whole(-1_000_000, 1_000_000),
    "retries": _whole(0, 1_000_000),
    "timeout": _or_none(_between(0.001, 1e9)),
    "grace": _between(0, 1e6),
    "cpus": _whole(1, 100_000),
    "gpus": _whole(0, 10_000),
    "memory": _or_none(_whole(1, 1 << 50)),
    "on": lambda v: _strings(v) and all(_WORD.fullmatch(label) for label in v),
    "resources": lambda v: type(v) is dict and all(_NAME.fullmatch(k) and _count(n) for k, n in v.items()),
    "python": _or_none(_text),
    "requires_python": _or_none(_text),
    "requirements": _or_none(lambda v: type(v) is str and len(v) <= 100_000),
    "if_lost": lambda v: v in ("rerun", "fail"),
    "max_output": _whole(0, 1 << 50),
    "buffered": lambda v: type(v) is bool,
    "cold": lambda v: type(v) is bool,
    "preload": lambda v: _strings(v, 100) and all(re.fullmatch(r"[\w.]+", name) for name in v),
    "after": lambda v: type(v) is list and len(v) <= 200_000 and all(_dependency(d) for d in v),
    "once": _or_none(_text),
}


def _variable(name: str) -> bool:
    return bool(name) and "=" not in name and "\0" not in name and len(name) <= TEXT_MAX


def _safe_glob(text: str) -> bool:
    return safe_relpath(text) or (text.startswith("./") and safe_relpath(text[2:]))


def check_spec(spec: Any) -> None:
    """Raises BadMessage unless this is a job description that the rest of the program may trust."""
    if type(spec) is not dict:
        raise BadMessage("the job's description is not there")
    for name, test in _SPEC.items():
        if name not in spec or not test(spec[name]):
            raise BadMessage(f"the job's {name} is not as it must be")
    if "/" in from_wire(spec["script"]["name"]):
        raise BadMessage("the script's name is not as it must be")
    try:
        if spec["requires_python"] is not None:
            check_specifier(spec["requires_python"])
        if spec["array"] is not None and len(spec_indices(spec)) != spec["count"]:
            raise BadMessage("the job's count does not fit its array")
    except UsageError as error:
        raise BadMessage(f"the job's description: {error}") from None
    if spec["grid"] is not None and grid_count(spec["grid"]) != spec["count"]:
        raise BadMessage("the job's count does not fit its grid")


def check_manifest(raw: bytes) -> list[list[Any]]:
    """The entries of a manifest of files (sent or returned); raises BadMessage unless every path in it is safe."""
    try:
        entries = json.loads(raw)
    except (ValueError, RecursionError):
        raise BadMessage("the list of files is not JSON") from None
    if type(entries) is not list:
        raise BadMessage("the list of files is not a list")
    seen: set[str] = set()
    for entry in entries:
        good = type(entry) is list and len(entry) >= 3 and _relpath(entry[1]) and entry[0] in ("d", "f", "l")
        if good and entry[0] == "f":
            good = len(entry) == 5 and _count(entry[2]) and _hash(entry[3]) and _count(entry[4])
        elif good and entry[0] == "d":
            good = _count(entry[2])
        elif good:
            good = _wire(entry[2]) and link_stays_inside(from_wire(entry[1]), from_wire(entry[2]))
        path = from_wire(entry[1]) if good else ""
        if not good or path in seen:
            raise BadMessage("the list of files holds an entry that is not allowed")
        seen.add(path)
    return entries


def link_stays_inside(path: str, target: str) -> bool:
    """Whether a link at `path` with this target points below the same root."""
    if target.startswith("/") or "\0" in target or not target:
        return False
    depth = path.count("/")
    for part in target.split("/"):
        if part == "..":
            depth -= 1
            if depth < 0:
                return False
        elif part not in ("", "."):
            depth += 1
    return True
