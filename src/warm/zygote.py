"""What makes an attempt start warm: an interpreter that stopped in its own start-up, whose forks go on with a script.

`python EMPTY.pyc` makes CPython's C code (3.9 and later) call SourcelessFileLoader("__main__", path) from
_bootstrap_external when start-up is complete, and then read the code to run from the file that it has open. `arm` puts
a function in the place of that class: it is the guard's loop. In a forked child it returns to the C code, which then
runs the script from that file, whose descriptor the child has replaced. No Python frame is below the script.

Loaded by path, by warm/hook/sitecustomize.py. It imports only C modules and defines no class: what it leaves in memory
must not be seen. Every doubt about a script is a reason to start it cold; `prepare` gives it.
"""

from __future__ import annotations

import _ctypes
import _signal  # type: ignore[import-not-found]  # noqa: F401  # so that all of ours are there before `arm` looks
import _socket  # noqa: F401
import gc
import marshal
import os
import resource  # noqa: F401
import select  # noqa: F401
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

SOURCE_MAX = 4 << 20
CACHED = 64  # compiled scripts
MODULES_EVERY_S = 2.0  # between two looks at the files of modules that are not the standard library's
PR_SET_MM = 35
PR_SET_MM_MAP = 14
CODE_HEADER = 16
# Scripts with these words may look at what only a new interpreter has right: the configuration that sub-interpreters
# start from, the C copy of the command line, every class in memory.
COLD_WORDS = (b"interpreters", b"InterpreterPool", b"run_in_subinterp", b"setproctitle", b"__subclasses__")
external: Any = sys.modules["_frozen_importlib_external"]
Namespace: Any = type(sys.implementation)


def arm(order: list[str], modules: list[str], importers: list[str]) -> None:
    """Have this interpreter become a guard instead of running its file. `order`: the socket, and what to import ahead.

    `modules` and `importers` are what it had loaded before us. Exceptions from an import end it: `site` prints them,
    and then there is nothing to run.
    """
    module = type(sys)("guard")
    module.__file__ = path = os.path.dirname(os.path.dirname(__file__)) + "/guard.py"
    external.SourceFileLoader("guard", path).exec_module(module)
    zygote: Any = Namespace(
        guard=module,
        control_fd=int(order[0]),
        real=external.SourcelessFileLoader,
        modules={*modules},
        importers={*importers},
        cache={},
        stale=False,
        prepare=lambda guard, request: prepare(zygote, request),
        become=lambda guard, request, fds, code: become(zygote, guard, request, fds, code),
    )
    forget_ours(zygote)
    for name in order[1:]:
        __import__(name)
    zygote.importers.update(sys.path_importer_cache)
    keep_whole([module for name, module in sys.modules.items() if name not in zygote.modules])
    zygote.modules.update(sys.modules)
    gc.collect()
    gc.freeze()  # else each child copies every page at its end, when the collector writes into all headers
    # A frozen __main__ would lose its finalisers at the end.
    old = sys.modules["__main__"]
    new = type(sys)("__main__")
    new.__dict__.clear()
    new.__dict__.update(old.__dict__)
    sys.modules["__main__"] = new
    zygote.keep = old
    external.SourcelessFileLoader = lambda name, path: wait(zygote, path)


def keep_whole(modules: list[Any]) -> None:
    """What these modules hold now is never freed: at its end each fork would take them apart, and copy every page to do
    so, which is a third of its CPU with numpy."""
    for module in modules:
        _ctypes.Py_INCREF([*getattr(module, "__dict__", {}).values()])


def wait(zygote: Any, path: str) -> Any:
    """Called by C in place of the loader. Returns only in forks, what C expects."""
    external.SourcelessFileLoader = zygote.real
    zygote.file = path
    zygote.file_fd = _descriptor(path)
    os.unlink(path)
    zygote.kinds = [_kind(fd) for fd in range(3)]
    zygote.title = _title_fields()
    zygote.stamp = stamp(stamp_paths())
    zygote.module_stamp = list(module_stamp())
    zygote.looked_at = time.monotonic()
    guard = zygote.guard.make(zygote.control_fd)
    guard.zygote = zygote
    zygote.guard.tell(guard, "ready", True, "")
    return zygote.guard.serve(guard)


def _descriptor(path: str) -> int:
    """Where C has `path` open."""
    wanted = os.stat(path)
    for name in os.listdir("/proc/self/fd"):
        try:
            found = os.fstat(int(name))
        except OSError:
            continue  # the descriptor of the listing
        if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
            return int(name)
    raise FileNotFoundError(path)


# --- before the fork ---


def prepare(zygote: Any, request: dict[str, Any]) -> tuple[Any, str | None]:
    """The code of the script, ready to run warm, or why it has to start cold."""
    if is_stale(zygote):
        return None, "its interpreter changed"
    if os.stat("/proc/self/task").st_nlink != 3:
        return None, "its interpreter has threads"
    path = request["script"]
    if not path.startswith(b"/"):
        path = request["cwd"] + b"/" + path  # as Python has it from 3.9 on: not normalised
    try:
        found = os.stat(path)
        if found.st_mode & 0o170000 != 0o100000:
            return None, "its script is not a regular file"
        if found.st_size > SOURCE_MAX:
            return None, "its script is big"
        with open(path, "rb", buffering=0) as file:
            source = file.read()
    except OSError:
        return None, "its script cannot be read"
    key = (path, source)
    ready = zygote.cache.pop(key, None)
    if ready is None:
        why = _unfit(path, source)
        code, why = (None, why) if why else compile_apart(path, source)
        ready = (code, why, path)
        if len(zygote.cache) >= CACHED:
            del zygote.cache[next(iter(zygote.cache))]
    zygote.cache[key] = ready
    return (ready, None) if ready[0] is not None else (None, ready[1])


def _unfit(path: bytes, source: bytes) -> str | None:
    """Why this script must not even be compiled here."""
    if path.endswith(b".pyc") or source.startswith(external.MAGIC_NUMBER[:2]) or b"PK\x05\x06" in source[-65558:]:
        return "its script is not Python source"
    for word in COLD_WORDS:
        if word in source:
            return f"it mentions {word.decode()}"
    return "it mentions gc" if _has_word(source, b"gc") else None


def _has_word(source: bytes, word: bytes) -> bool:
    at = source.find(word)
    while at >= 0:
        around = source[max(0, at - 1) : at] + source[at + len(word) : at + len(word) + 1]
        if not any(byte == 95 or bytes((byte,)).isalnum() for byte in around):
            return True
        at = source.find(word, at + 1)
    return False


def compile_apart(path: bytes, source: bytes) -> tuple[bytes | None, str | None]:
    """The code as a .pyc, or why not. From a fork that is thrown away: the compiler leaves traces, and can crash."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            answer = marshal.dumps(_compile(path, source))
            with open(writing, "wb") as file:
                file.write(answer)
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as file:
        data = file.read()
    os.waitpid(pid, 0)
    return marshal.loads(data) if data else (None, "it does not compile")


def _compile(path: bytes, source: bytes) -> tuple[bytes | None, str | None]:
    """In the fork. What the compiler says, or imports, must happen before the eyes of the script: then it is cold."""
    said: list[str] = []
    sys.stderr = Namespace(write=said.append, flush=lambda: None)
    loaded = [*sys.modules]
    try:
        code = compile(source, os.fsdecode(path), "exec", dont_inherit=True)
    except (SyntaxError, ValueError, OverflowError, MemoryError, RecursionError, Warning):
        return None, "it does not compile"
    if said:
        return None, "it compiles with a warning"
    if [*sys.modules] != loaded:
        return None, "compiling it imports a module"
    data = marshal.dumps(code)
    fixed = os.environ.get("PYTHONHASHSEED", "random") != "random"
    for ours, theirs in zip(_sets(code, fixed), _sets(marshal.loads(data), fixed)):
        if ours != theirs:
            return None, "it has a set whose order would change"
    return external.MAGIC_NUMBER + bytes(CODE_HEADER - 4) + data, None


def _sets(thing: Any, texts: bool) -> Iterator[list[Any]]:
    """The order of each constant set in a code object, also of those with nothing but text if `texts`."""
    if isinstance(thing, frozenset):
        if texts or not all(isinstance(item, (str, bytes)) for item in thing):
            yield list(thing)
    elif isinstance(thing, tuple):
        for item in thing:
            yield from _sets(item, texts)
    elif hasattr(thing, "co_consts"):
        yield from _sets(thing.co_consts, texts)


# --- is this interpreter still what a new one would be? ---


def is_stale(zygote: Any) -> bool:
    if not zygote.stale:
        zygote.stale = stamp(zygote.stamp) != zygote.stamp
        if time.monotonic() - zygote.looked_at > MODULES_EVERY_S:
            zygote.looked_at = time.monotonic()
            zygote.stale = zygote.stale or list(module_stamp()) != zygote.module_stamp
    return bool(zygote.stale)


def stamp(paths: Iterable[str]) -> dict[str, Any]:
    return {path: _state(path) for path in paths}


def stamp_paths() -> Iterator[str]:
    """What start-up reads: the interpreter, its settings, where it looks for modules to run, the time zone."""
    yield from (sys.executable, sys.prefix + "/pyvenv.cfg", "/etc/localtime")
    for path in sys.path[1:] if not getattr(sys.flags, "safe_path", False) else sys.path:
        if path.startswith((sys.base_prefix, sys.prefix)) or path.endswith("-packages"):
            yield path
            yield from pth_files(path)
        else:  # not the folder's own time: anybody may write into it all the time
            yield path + "/sitecustomize.py"
            yield path + "/usercustomize.py"
    user = getattr(sys.modules.get("site"), "USER_SITE", None)
    if user:
        yield user


def pth_files(path: str) -> list[str]:
    try:
        return [path + "/" + name for name in os.listdir(path) if name.endswith(".pth")]
    except OSError:
        return []


def module_stamp() -> Iterator[Any]:
    """The files of what start-up imported from elsewhere than the standard library."""
    standard = os.path.dirname(os.__file__) + "/"
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        custom = name in ("sitecustomize", "usercustomize")
        if isinstance(file, str) and (custom or not file.startswith(standard) or "-packages" in file):
            yield _state(file)


def _state(path: str) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size


# --- in the fork ---


def become(zygote: Any, guard: Any, request: dict[str, Any], fds: list[int], found: tuple[Any, ...]) -> Any:
    """Leave nothing of ours, and give the loader that C asked for. The descriptors 0 to 2 are the script's already."""
    code, _, path = found
    for fd in (*fds, guard.wake_r, guard.wake_w, guard.control.detach()):
        os.close(fd)
    fd = os.memfd_create("code")
    os.write(fd, code)
    os.lseek(fd, 0, 0)
    os.dup2(fd, zygote.file_fd, inheritable=False)
    os.close(fd)
    file = os.fsdecode(path)
    set_environment(zygote, request["env"])
    sys.argv[:] = [os.fsdecode(request["script"]), *map(os.fsdecode, request["args"])]
    if hasattr(sys, "orig_argv"):
        sys.orig_argv[:] = [os.fsdecode(request["python"]), *sys.argv]
    if not getattr(sys.flags, "safe_path", False):
        sys.path[0] = os.path.dirname(os.path.realpath(file))
    sys.path_importer_cache.pop(zygote.file, None)
    forget_ours(zygote)
    sys.path_importer_cache[file] = None
    sys.modules["__main__"].__file__ = file
    set_streams(zygote, bool(request["flush"]))
    set_title(zygote, request)
    main_thread = getattr(sys.modules.get("threading"), "_main_thread", None)
    if main_thread is not None and hasattr(main_thread, "_set_native_id"):
        main_thread._set_native_id()
    random = sys.modules.get("numpy.random")
    if random is not None:
        random.seed()  # else every fork draws the same numbers
    os.close(guard.failure)
    return external.SourceFileLoader("__main__", file)


def forget_ours(zygote: Any) -> None:
    """Take out of the tables of modules and importers what only our imports put there."""
    if len(sys.modules) != len(zygote.modules):
        for name in [*sys.modules]:
            if name not in zygote.modules:
                del sys.modules[name]
    if len(sys.path_importer_cache) != len(zygote.importers):
        for name in [*sys.path_importer_cache]:
            if name not in zygote.importers:
                del sys.path_importer_cache[name]


def set_environment(zygote: Any, env: list[tuple[bytes, bytes]]) -> None:
    """Exactly these variables, in this order, for os.environ and for C alike."""
    data = os.environ._data  # type: ignore[attr-defined]
    now = list(data.items())
    coerced = now[-1:] if now[-1:] and now[-1][0] == b"LC_CTYPE" and b"LC_CTYPE" not in dict(env) else []
    zone = data.get(b"TZ")
    same = 0
    while same < len(env) and same < len(now) and env[same] == now[same]:
        same += 1
    for name, _ in now[same:]:
        os.unsetenv(name)
        del data[name]
    for name, value in [*env[same:], *coerced]:  # Python itself appends LC_CTYPE in the C locale (PEP 538)
        os.putenv(name, value)
        data[name] = value
    if data.get(b"TZ") != zone:
        time.tzset()


def _kind(fd: int) -> tuple[int, int]:
    """Descriptors of the same kind make the same stream: a pipe or socket, or a device."""
    found = os.fstat(fd)
    kind = found.st_mode & 0o170000
    return (0, 0) if kind in (0o010000, 0o140000) else (kind, found.st_rdev)


def set_streams(zygote: Any, flush: bool) -> None:
    """sys.std* fit for what the descriptors are now."""
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        kind = _kind(fd)
        stream = getattr(sys, name)
        if stream is not None and (kind != zygote.kinds[fd] or kind[0] == 0o100000):
            stream = _stream(fd, name, stream)
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)
    if flush and sys.stdout is not None and not sys.stdout.write_through:  # type: ignore[union-attr]
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]


def _stream(fd: int, name: str, old: Any) -> Any:
    """As create_stdio of pylifecycle.c makes it."""
    mode = "r" if fd == 0 else "w"
    unbuffered = old.write_through and fd != 0
    raw: Any = open(fd, mode + "b", 0 if unbuffered else -1, closefd=False)  # noqa: SIM115
    (raw if unbuffered else raw.raw).name = f"<{name}>"
    tty = raw.isatty()
    made = type(old)(
        raw,
        encoding=old.encoding,
        errors=old.errors,
        newline="\n",
        line_buffering=not old.write_through and (tty or fd == 2),
        write_through=old.write_through,
    )
    made.mode = mode
    return made


# --- what ps and /proc/self/cmdline show ---


def _title_fields() -> Any:
    """What PR_SET_MM_MAP wants to have besides the command line; None where that does not work."""
    try:
        library = _ctypes.dlopen(None, 0)  # type: ignore[arg-type]
        calls = [_ctypes.dlsym(library, name) for name in ("prctl", "sbrk")]
        with open("/proc/self/stat", "rb", buffering=0) as file:
            fields = [int(word) for word in file.read().rpartition(b")")[2].split()[1:]]
    except (OSError, ValueError, IndexError):
        return None
    # Fields of proc(5) by number; the list begins with field 4.
    return calls, [fields[number - 4] for number in (26, 27, 45, 46, 47, 28)]


def set_title(zygote: Any, request: dict[str, Any]) -> None:
    """Show the script's own command line and first environment. Best effort: needs CONFIG_CHECKPOINT_RESTORE."""
    if zygote.title is None:
        return
    (prctl, sbrk), (start_code, end_code, start_data, end_data, start_brk, start_stack) = zygote.title
    words = b"".join(word + b"\0" for word in (request["python"], request["script"], *request["args"]))
    block = words + b"".join(name + b"=" + value + b"\0" for name, value in request["env"])
    _ctypes.Py_INCREF(block)  # the kernel points into it from now on
    at = id(block) + bytes.__basicsize__ - 1
    # The call gives the low half of an address that is above start_brk, by less than 4 GB.
    brk = start_brk + ((_ctypes.call_cdeclfunction(sbrk, (0,)) - start_brk) & 0xFFFFFFFF)
    numbers = [start_code, end_code, start_data, end_data, start_brk, brk, start_stack]
    numbers += [at, at + len(words), at + len(words), at + len(block), 0]
    fields = b"".join(number.to_bytes(8, sys.byteorder) for number in numbers) + bytes(4) + b"\xff\xff\xff\xff"
    _ctypes.call_cdeclfunction(prctl, (PR_SET_MM, PR_SET_MM_MAP, fields, len(fields), 0))
