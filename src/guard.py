"""The process above each attempt. It runs one at a time, and when it reports the end, nothing of the attempt's process
tree is alive. It decides nothing about jobs: limits of time and what an exit means are the worker's.

    worker --run+fds, stop, kill--> guard --ready, started, exit--> worker     marshalled tuples, SOCK_SEQPACKET
                                      `-- fork --> the attempt: python SCRIPT ARGS, cold by execve, or warm (zygote.py)

Runs as a plain script (every attempt cold), or inside an interpreter that stopped in its own start-up (warm/hook). In
the latter no trace of this file may stay in the forked script: it imports only C modules and defines no class. It ends
when its socket closes: the worker's death ends the attempt. One thread. Linux only.
"""

from __future__ import annotations

import _posixsubprocess
import _signal  # type: ignore[import-not-found]
import _socket
import marshal
import os
import select
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from . import proctree

WIRE = 2  # version of marshal that every Python reads
MESSAGE_MAX = 32 * 1024  # larger requests come in a memfd, as a fourth descriptor
NOTICE_S = 0.02  # an attempt that ends sooner is reported once, with its end
MEMORY_EVERY_S = 0.2
MEMORY_CLOSE_S = 0.05  # between looks once over half of the limit
STUCK_S = 30.0  # for processes that even SIGKILL does not end (a dead disk): then they are left to the worker
FAILED = 127  # exit status of a child that did not become the script; it says why in guard.failure
NEVER = float("inf")
PYTHON_IGNORES = (_signal.SIGPIPE, _signal.SIGXFSZ)  # in itself; a new process has to get them as they were
Namespace: Any = type(sys.implementation)


def load(path: str, name: str) -> Any:
    """A module from its file, cached as usual, that enters neither sys.modules nor sys.path."""
    module = type(sys)(name)
    module.__file__ = path
    external = sys.modules["_frozen_importlib_external"]
    external.SourceFileLoader(name, path).exec_module(module)
    return module


if not TYPE_CHECKING:
    HERE = os.path.dirname(os.path.abspath(__file__))
    proctree = load(HERE + "/proctree.py", "proctree")


def make(control_fd: int) -> Any:
    """Turn this process into a guard: subreaper, with nothing that the worker was started with."""
    for number in _signal.valid_signals() - {*PYTHON_IGNORES}:
        if _signal.getsignal(number) == _signal.SIG_IGN:
            _signal.signal(number, _signal.default_int_handler if number == _signal.SIGINT else _signal.SIG_DFL)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
    os.set_inheritable(control_fd, False)
    wake_r, wake_w = os.pipe()
    os.set_blocking(wake_r, False)
    os.set_blocking(wake_w, False)
    _signal.signal(_signal.SIGCHLD, _on_child)  # the handler does nothing; the byte in the pipe ends a poll
    _signal.set_wakeup_fd(wake_w, warn_on_full_buffer=False)
    guard = Namespace(
        pid=os.getpid(),
        control=_socket.socket(fileno=control_fd),
        wake_r=wake_r,
        wake_w=wake_w,
        failure=os.memfd_create("failure"),
        reaper=proctree.become_subreaper(),
        poll=select.poll(),
        zygote=None,
        stuck=False,
        checking=False,  # the attempt is our own
    )
    guard.poll.register(control_fd, select.POLLIN)
    guard.poll.register(wake_r, select.POLLIN)
    return guard


def _on_child(_number: int, _frame: object) -> None:
    pass


def tell(guard: Any, *message: Any) -> None:
    """Send to the worker; when it is gone, end everything here."""
    try:
        guard.control.send(marshal.dumps(message, WIRE))
    except OSError:
        leave(guard)


def leave(guard: Any) -> None:
    """The worker is gone: end the tree and this process."""
    end_tree(guard, Namespace(pid=0, status=None, cpu=0.0, rss=0))
    os._exit(0)


def receive(guard: Any) -> tuple[tuple[Any, ...], list[int]]:
    """The next message and the descriptors that came with it."""
    try:
        data, rights, _, _ = guard.control.recvmsg(MESSAGE_MAX + 64, 64, _socket.MSG_CMSG_CLOEXEC)
    except OSError:
        data = b""
    if not data:
        leave(guard)
    fds = [int.from_bytes(part[i : i + 4], sys.byteorder) for _, _, part in rights for i in range(0, len(part), 4)]
    if len(fds) == 4:
        with open(fds.pop(), "rb") as file:
            file.seek(0)
            data = file.read()
    return marshal.loads(data), fds


def serve(guard: Any) -> Any:
    """Run attempts for ever. Returns only in a forked child that shall run its script warm: what it needs for that."""
    while True:
        message, fds = receive(guard)
        if message[0] == "run":
            warm, *end = run(guard, message[1], fds)
            if warm is not None:
                return warm
            tell(guard, "exit", *end)
            if guard.stuck:
                os._exit(1)  # a new guard must not find these processes among its own
        elif message[0] == "check":
            warm, *answer = check(guard, message[1])
            if warm is not None:
                return warm
            tell(guard, "checked", *answer)
        # stop and kill come here only when they crossed the exit of what they meant


def check(guard: Any, request: dict[str, Any]) -> tuple[Any, ...]:
    """Run a script warm and cold: (None, same, what was different), or in a warm child (what it needs,)."""
    seen: list[Any] = []
    guard.checking = True
    for cold in ("", "to compare"):
        reading, writing = os.pipe()
        fds = [os.open(os.devnull, os.O_RDONLY), writing, os.dup(writing)]
        child, *told = run(guard, {**request, "cold": cold}, fds)
        if child is not None:
            os.close(reading)
            return (child,)
        notice, end = told
        with open(reading, "rb") as file:
            seen.append((file.read(), end[0], end[4]))
        if not cold and not notice[2]:
            return None, False, notice[3]
    guard.checking = False
    if seen[0] == seen[1]:
        return None, True, ""
    warm, cold = seen[0][0], seen[1][0]
    at = next((at for at, (one, other) in enumerate(zip(warm, cold)) if one != other), min(len(warm), len(cold)))
    return None, False, f"{warm[at : at + 80]!r} and {cold[at : at + 80]!r}"


def run(guard: Any, request: dict[str, Any], fds: list[int]) -> tuple[Any, ...]:
    """One attempt, from fork to the end of its last process: (None, how it started, how it ended).

    In a child that is to run its script warm, (what it needs,).
    """
    code, why = None, request["cold"]
    if not why:
        code, why = guard.zygote.prepare(guard, request)
    job = Namespace(pid=0, status=None, cpu=0.0, rss=0, limit=request["memory"], kill_at=NEVER, stopping=False)
    job.over_limit = False
    job.started = time.time()
    job.notice = ("started", 0, code is not None, why, job.started)
    failure = None
    try:
        job.pid = os.fork() if code is not None or not request["swept"] else spawn(request, fds)
    except ValueError as error:
        failure = str(error)
    except OSError as error:
        failure = f"cannot start a process: {error.strerror}"
    if job.pid == 0 and failure is None:
        return (become(guard, request, fds, code),)
    for fd in fds:
        os.close(fd)
    job.notice = ("started", job.pid, *job.notice[2:])
    if failure is None:
        guard.stuck = watch(guard, job) and not end_tree(guard, job)
        if job.status == FAILED << 8:
            failure = os.pread(guard.failure, 4096, 0).decode("utf-8", "replace") or None
            os.ftruncate(guard.failure, 0)
    stale = guard.zygote is not None and guard.zygote.stale
    return None, job.notice, (job.status, job.cpu, job.rss, job.over_limit, failure, time.time(), stale)


def spawn(request: dict[str, Any], fds: list[int]) -> int:
    """Start the script cold as subprocess.Popen does, which need not copy this process; 0 in a fork, if that cannot be.

    The kernel does not end it with this process: for workers that sweep what a killed guard leaves behind. Raises
    ValueError: why it is not to be.
    """
    python = request["python"]
    env = [name + b"=" + value for name, value in environment(request).items()]
    reading, writing = os.pipe()
    descriptors = (fds[0], -1, -1, fds[1], -1, fds[2], reading, writing)
    newer = sys.version_info >= (3, 11)
    try:
        pid = _posixsubprocess.fork_exec(
            *([python, request["script"], *request["args"]], (python,), False, (writing,), request["cwd"], env),
            *(
                *descriptors,
                True,
                True,
                *((-1,) if newer else ()),
                None,
                None,
                None,
                -1,
                None,
                *((True,) if newer else ()),
            ),
        )
    except TypeError:  # a later Python calls it differently
        return os.fork()
    finally:
        os.close(writing)
        with open(reading, "rb", 0) as file:
            said = file.read()  # nothing, once it is executed; else NAME:ERRNO:WHERE
    if not said:
        return int(pid)
    os.waitpid(pid, 0)
    _, number, where = said.split(b":", 2)
    error = OSError(int(number, 16), os.strerror(int(number, 16)))
    raise ValueError(unable(error, "enter" if where.startswith(b"noexec") else python))


def unable(error: OSError, step: str | bytes) -> str:
    """Why a script cannot be started, for people. `step`: "enter" its folder, or the interpreter that was executed."""
    if step == "enter":
        return f"cannot enter its working directory: {error.strerror}"
    if isinstance(error, FileNotFoundError):
        return f"no such interpreter: {os.fsdecode(step)}"
    return f"cannot run the interpreter {os.fsdecode(step)}: {error.strerror}"


def become(guard: Any, request: dict[str, Any], fds: list[int], code: Any) -> Any:
    """In the fork: become the script. Returns if it is to run warm."""
    step: str | bytes = "enter"
    try:
        os.setsid()
        proctree.die_with(guard.pid)
        _signal.set_wakeup_fd(-1)
        _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
        for target, fd in enumerate(fds):
            os.dup2(fd, target)
        os.chdir(request["cwd"])
        step = python = request["python"]
        if code is not None:
            try:
                return guard.zygote.become(guard, request, fds, code)
            except (OSError, ValueError, TypeError, LookupError, AttributeError):
                pass  # a new interpreter is always right
        for number in PYTHON_IGNORES:
            _signal.signal(number, _signal.SIG_DFL)  # exec would keep that
        os.execve(python, [python, request["script"], *request["args"]], environment(request))
    except OSError as error:
        os.pwrite(guard.failure, unable(error, step).encode("utf-8", "replace"), 0)
    os._exit(FAILED)


def environment(request: dict[str, Any]) -> dict[bytes, bytes]:
    """The attempt's variables, with warm/flush in front of PYTHONPATH, which takes itself out again."""
    env = dict(request["env"])
    flush = request["flush"]
    if flush:
        own = env.get(b"PYTHONPATH")
        env[b"PYTHONPATH"] = flush if own is None else flush + b":" + own if own else flush + b"/"
    return env


def watch(guard: Any, job: Any) -> bool:
    """Until the attempt ended by itself, or has to be ended: stopped and its grace over, killed, or too big.

    Gives whether anything is left of it.
    """
    notice_at = time.monotonic() + NOTICE_S
    look_at = NEVER if job.limit is None else 0.0
    while True:
        left = proctree.reap(lambda *ended: account(job, *ended))
        now = time.monotonic()
        if now >= job.kill_at or not left or (job.status is not None and not job.stopping):
            return left
        if now >= notice_at:
            if not guard.checking:
                tell(guard, *job.notice)
            notice_at = NEVER
        if now >= look_at:
            used = proctree.memory(proctree.descendants(), job.limit)
            if used > job.limit:
                job.over_limit = True
                return True
            look_at = now + (MEMORY_EVERY_S if used < job.limit / 2 else MEMORY_CLOSE_S)
        due = min(notice_at, look_at, job.kill_at)
        for fd, _ in guard.poll.poll(None if due == NEVER else max(0.0, due - now) * 1000 + 1):
            if fd == guard.wake_r:
                os.read(fd, 4096)
            else:
                command(guard, job)


def command(guard: Any, job: Any) -> None:
    """What the worker says while an attempt runs."""
    message, _ = receive(guard)
    now = time.monotonic()
    if message[0] == "kill":
        job.kill_at = now
    elif message[0] == "stop":
        job.kill_at = min(job.kill_at, now + message[1])
        if not job.stopping:
            job.stopping = True
            terminate(job.pid)


def terminate(leader: int) -> None:
    """SIGTERM, once, to every process below this one; SIGCONT, so that a stopped one hears it."""
    others = [pid for pid in proctree.descendants() if _group(pid) != leader]
    for number in (_signal.SIGTERM, _signal.SIGCONT):
        try:
            os.killpg(leader, number)  # at once, so that none is missed that forks now
        except (ProcessLookupError, PermissionError):
            pass
        proctree.send(others, number)


def _group(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return -1


def account(job: Any, pid: int, status: int, usage: Any) -> None:
    """Add what an ended process used; note the end of the attempt's main process."""
    job.cpu += usage.ru_utime + usage.ru_stime
    job.rss = max(job.rss, usage.ru_maxrss * 1024)
    if pid == job.pid:
        job.status = status


def end_tree(guard: Any, job: Any) -> bool:
    """SIGKILL whatever is below this process until nothing is left. False: something cannot be ended."""
    deadline = time.monotonic() + STUCK_S
    wake = None
    while proctree.reap(lambda *ended: account(job, *ended)):
        if wake is None:
            wake = select.poll()
            wake.register(guard.wake_r, select.POLLIN)
        proctree.kill_descendants()
        if wake.poll(20):
            os.read(guard.wake_r, 4096)
        if time.monotonic() > deadline:
            return False
    if not guard.reaper and job.pid:
        proctree.send([-job.pid], _signal.SIGKILL)
    return True


def main() -> None:
    guard = make(int(sys.argv[1]))
    tell(guard, "ready", False, "")
    serve(guard)


if __name__ == "__main__":
    main()
