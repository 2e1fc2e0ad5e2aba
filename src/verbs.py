"""What each verb of client.py does. Prints results on stdout, remarks on stderr; the exit codes of the contract."""

from __future__ import annotations

import os
import sys
import time

from .cli import EXIT_INTERRUPTED, EXIT_UNFINISHED, Call
from .console import Broken, Progress, say
from .core.errors import LinkError, Refused, UsageError
from .core.records import TYPE_CHECKING
from .core.syntax import hold_text, parse_selector
from .follow import Connection, Follower, Printer, exit_code
from .link import Link

if TYPE_CHECKING:
    from typing import Any

TERMINAL = ("succeeded", "failed", "cancelled")
PROGRESS_MAX = 20  # ids whose progress is asked for while waiting


def run(call: Call) -> int:
    """Do it; the exit code."""
    if call.verb == "completion":
        from . import completion

        return completion.main(call.words)
    return ACTIONS[call.verb](call)


def _key(call: Call) -> Any:
    if call.options.insecure or os.environ.get("MICROCLUSTER_INSECURE", "") not in ("", "0"):
        return None
    from .keys import load_peer_key

    return load_peer_key("client", call.options.key_file)


def _connect(call: Call) -> Connection:
    key, given = _key(call), call.options.connect_timeout

    def make(timeout_s: float) -> Link:
        return Link(call.host, call.port, key, timeout_s)

    return Connection(make, make(given or 0.0), 300.0 if given is None else given, say)


def _ids(call: Call) -> list[dict[str, Any]]:
    return [parse_selector(word).wire() for word in call.words]


def _ask(call: Call, header: dict[str, Any]) -> dict[str, Any]:
    connection = _connect(call)
    try:
        return connection.request(header)[0]
    finally:
        connection.link.close()


def _print_json(value: Any) -> None:
    import json

    plain = (sys.stdout.encoding or "ascii").lower().replace("-", "") != "utf8"
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=plain) + "\n")


# -- submit and run -------------------------------------------------------------------------------------------------------


def _submit(call: Call) -> int:
    connection, answer, _ = _hand_in(call)
    try:
        if call.options.json:
            view = (
                answer.get("job") or connection.request({"t": "status", "ids": [{"job": answer["id"]}]})[0]["jobs"][0]
            )
            _print_json(view)
        else:
            sys.stdout.write(f"{answer['id']}\n")
        return 0
    finally:
        connection.link.close()


def _hand_in(call: Call) -> tuple[Connection, dict[str, Any], int]:
    """The connection, the manager's answer, and how many tasks the job has."""
    from . import submission

    sub = submission.build(call.options, call.words[0], call.rest)
    connection = _connect(call)
    progress = Progress()
    while True:
        link = connection.link
        try:
            answer = submission.deliver(link, sub, bool(call.options.json), progress.bytes)
            connection.answered()
            break
        except LinkError as error:
            connection.again(error, link)
        except KeyboardInterrupt:
            if call.verb == "run":
                _cancel_run(call, submission.request_of(sub))
            raise
        finally:
            progress.clear()
    if answer.get("warning"):
        say(f"job {answer['id']} waits: {answer['warning']}")
    return connection, answer, sub.spec["count"]


def _run(call: Call) -> int:
    connection, answer, count = _hand_in(call)
    job = answer["id"]
    try:
        if call.options.once is None:
            targets = [[job, 0, count - 1, count]]
        else:  # the job may be an earlier one, of another size
            targets = _resolve(connection, [{"job": job}])
        return _show(connection, targets, live=None, wait=True, as_json=call.options.json)
    except (KeyboardInterrupt, Broken) as why:
        # Ctrl-C, or nobody reads the output any more: what ends `python3 x.py` ends the job.
        connection.link.close()
        _cancel_run(call, {"t": "cancel", "ids": [{"job": job}]})
        if isinstance(why, Broken):
            raise
        return EXIT_INTERRUPTED
    finally:
        connection.link.close()


def _cancel_run(call: Call, request: dict[str, Any]) -> None:
    """Over a connection of its own: the other may have been interrupted anywhere. `request` may be a repeated
    submission, for a job whose id did not arrive: one that the manager knows, or can know, it names and is cancelled."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        link = _connect(call).link
        answer = link.request(request, timeout_s=10)[0]
        if request["t"] == "submit":
            request = {"t": "cancel", "ids": [{"job": answer["id"]}]}
            answer = link.request(request, timeout_s=10)[0]
        link.close()
        if answer["cancelled"]:
            say(f"job {request['ids'][0]['job']} is being cancelled")
    except Refused:
        pass  # it never became a job, or is finished and forgotten
    except (LinkError, TimeoutError):
        say("the job could not be cancelled: the manager cannot be reached")


# -- result ---------------------------------------------------------------------------------------------------------------


def _result(call: Call) -> int:
    connection = _connect(call)
    try:
        found = _resolve(connection, _ids(call))
        wait = call.options.wait or call.options.follow
        live = True if call.options.follow else (False if call.options.wait else None)
        return _show(connection, found, live, wait, call.options.json)
    finally:
        connection.link.close()


def _resolve(connection: Connection, ids: list[dict[str, Any]]) -> list[list[int]]:
    """What selectors name: job, first and last position, tasks of the job."""
    found: list[list[int]] = []
    at: int | None = 0
    while at is not None:
        answer = connection.request({"t": "resolve", "ids": ids, "from": at})[0]
        found += answer["targets"]
        at = answer.get("more")
    return found


def _show(connection: Connection, targets: list[list[int]], live: bool | None, wait: bool, as_json: bool) -> int:
    """Print the output of tasks in order. targets: job, first and last position, tasks of the job. live None: a single
    task's alone."""
    progress = Progress()
    printer = _Collector() if as_json else Printer(progress.clear)
    unfinished = 0
    total = 0
    try:
        for job, first, last, count in targets:
            total += last - first + 1
            printer.job = job
            follower = Follower(connection, job, first, last, count == 1 if live is None else live, wait)
            if progress.live and not as_json and count > 1:
                follower.idle = lambda job=job: _progress(connection.link, progress, [{"job": job}])
            if wait:
                follower.run(printer)
            else:
                unfinished += _finished_only(connection, follower, printer)
    finally:
        progress.clear()
    if as_json:
        assert isinstance(printer, _Collector)
        _print_results(connection, printer, total)
    if unfinished:
        job, _, _, count = targets[0]
        which = f"job {job}" if count == 1 else f"the task of job {job}"
        say(f"job {job} is not finished: {unfinished} of {total} tasks are missing (--wait or --follow)" if total > 1
            else f"{which} is not finished yet (--wait waits, --follow shows what there is)")  # fmt: skip
        return EXIT_UNFINISHED
    if total == 1 and printer.end is not None:
        _tell_end(printer.end)
        return exit_code(printer.end)
    return 1 if printer.failed else 0


def _tell_end(end: dict[str, Any]) -> None:
    """The reason of an end that the script itself did not explain."""
    reason = end.get("reason")
    if reason and end["state"] != "succeeded" and not reason.startswith("killed by"):
        say(reason)
    elif end["state"] == "cancelled":
        say("the job was cancelled")


def _finished_only(connection: Connection, follower: Follower, printer: Any) -> int:
    """Print what is finished; how many tasks are not."""
    if follower.run(printer):
        return 0
    at = follower.pos
    first, last = follower.lo, follower.hi
    done = follower.pos - first
    while at is not None and at <= last:
        answer, _ = connection.request({"t": "files", "ids": [{"job": follower.job}], "from": at})
        for pos, _, _, state in answer["tasks"]:
            if state in TERMINAL and follower.pos <= pos <= last:
                single = Follower(connection, follower.job, pos, pos, False, False)
                if single.run(printer):
                    done += 1
        at = answer["more"]
    return int(last - first + 1 - done)


def _progress(link: Link, progress: Progress, ids: list[dict[str, Any]]) -> None:
    """What is waited for, on a terminal; nothing over a single job that runs: the line is its own."""
    if not progress.due() or len(ids) > PROGRESS_MAX:
        return
    views = link.request({"t": "status", "ids": ids})[0]["jobs"]
    counts = dict.fromkeys(("total", "waiting", "queued", "running", *TERMINAL), 0)
    for view in views:
        for name, count in (view.get("tasks") or {"total": 1, view["state"]: 1}).items():
            counts[name] = counts.get(name, 0) + count
    if counts["total"] > 1:
        progress.tasks(counts)
    elif views and counts["waiting"] + counts["queued"]:
        why = views[0].get("waiting_reason")
        progress.say(f"{views[0]['state']}{': ' + hold_text(why) if why else ''}")
    else:
        progress.clear()


class _Collector:
    """Pieces of output kept as text, for --json."""

    def __init__(self) -> None:
        self.job = 0
        self.end: dict[str, Any] | None = None
        self.failed = 0
        self.pieces: dict[tuple[int, int], tuple[list[bytes], list[bytes]]] = {}
        self._attempts: dict[tuple[int, int], int] = {}
        self.indexes: dict[tuple[int, int], int] = {}

    def __call__(self, segment: dict[str, Any], out: bytes, err: bytes) -> None:
        key = (self.job, segment["pos"])
        if self._attempts.get(key) != segment["attempt"]:
            self._attempts[key] = segment["attempt"]
            self.pieces[key] = ([], [])
        self.indexes[key] = segment["index"]
        self.pieces[key][0].append(out)
        self.pieces[key][1].append(err)
        if segment["end"] is not None:
            self.end = segment["end"]
            self.failed += segment["end"]["state"] != "succeeded"


def _print_results(connection: Connection, found: _Collector, total: int) -> None:
    views = []
    for (job, pos), (out, err) in found.pieces.items():
        index = found.indexes[job, pos]
        view = connection.request({"t": "status", "ids": [{"job": job, "lo": index, "hi": index}]})[0]["jobs"][0]
        view["output"] = b"".join(out).decode("utf-8", "replace")
        view["error"] = b"".join(err).decode("utf-8", "replace")
        views.append(view)
    _print_json(views[0] if total == 1 and views else views)


# -- looking --------------------------------------------------------------------------------------------------------------


def _status(call: Call) -> int:
    from . import render

    answer = _ask(call, {"t": "status", "ids": _ids(call)})
    views = answer["jobs"]
    if call.options.json:
        _print_json(views)
    else:
        sys.stdout.write("\n".join(render.fields(view, sys.stdout) for view in views))
        if answer.get("more"):
            say(f"{answer['more']} more are not shown")
    return 0


def _list(call: Call) -> int:
    from . import render

    options = call.options
    connection = _connect(call)
    header = {"t": "list", "state": options.state, "name": options.name, "user": options.user, "since": options.since}
    left = None if options.all else options.last
    views: list[dict[str, Any]] = []
    before = None
    while True:
        answer, _ = connection.request({**header, "last": left, "before": before})
        views += answer["jobs"]
        before = int(answer["more"]) if answer["more"] else None
        if left is not None:
            left -= len(answer["jobs"])
        if before is None or left == 0:
            break
    connection.link.close()
    if options.json:
        _print_json(views)
    elif views:
        sys.stdout.write(render.jobs(views, sys.stdout))
    else:
        say("no jobs")
    return 0


def _workers(call: Call) -> int:
    from . import render

    views = _ask(call, {"t": "workers"})["workers"]
    if call.options.json:
        _print_json(views)
    elif views:
        sys.stdout.write(render.workers(views, sys.stdout))
        if sys.stdout.isatty():
            sys.stdout.write(render.starts(views))
    else:
        say("no workers")
    return 0


def _wait(call: Call) -> int:
    connection, progress = _connect(call), Progress()
    deadline = None if call.options.timeout is None else time.monotonic() + call.options.timeout
    try:
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            link = connection.link
            try:
                answer = _wait_once(connection, _ids(call), left, progress)
                break
            except LinkError as error:
                connection.again(error, link)
    finally:
        progress.clear()
        connection.link.close()
    if not answer["done"]:
        return EXIT_UNFINISHED
    if answer["total"] == 1 and answer["results"]:
        return exit_code(answer["results"][0])
    return 1 if answer["failed"] else 0


def _wait_once(connection: Connection, ids: list[dict[str, Any]], left: float | None, progress: Any) -> dict[str, Any]:
    link = connection.link
    number = link.post({"t": "wait", "ids": ids, "timeout": left})
    while True:
        try:
            answer = link.answer(number, 0.5 if progress.live else None)[0]
            connection.answered()
            return answer
        except TimeoutError:
            _progress(link, progress, ids)


# -- acting ---------------------------------------------------------------------------------------------------------------


def _cancel(call: Call) -> int:
    if not call.words and not call.options.all:
        raise UsageError("an ID is missing (or --all for every job that is not finished)")
    header: dict[str, Any] = {"t": "cancel", "grace": call.options.grace}
    header.update({"all": True} if call.options.all else {"ids": _ids(call)})
    return _print_lines(_ask(call, header)["cancelled"], "nothing to cancel: it is finished already")


def _retry(call: Call) -> int:
    return _print_lines(_ask(call, {"t": "retry", "ids": _ids(call)})["queued"], "nothing to retry: no task failed")


def _print_lines(texts: list[str], none: str) -> int:
    for text in texts:
        sys.stdout.write(f"{text}\n")
    if not texts:
        say(none)
    return 0


def _drain(call: Call) -> int:
    _ask(call, {"t": call.verb, "names": call.words})
    return 0


def _prune(call: Call) -> int:
    if call.options.older_than is None:
        raise UsageError("--older-than DURATION is missing (for example --older-than 30d)")
    sys.stdout.write(f"{_ask(call, {'t': 'prune', 'older_than': call.options.older_than})['count']}\n")
    return 0


def _metrics(call: Call) -> int:
    sys.stdout.write(_ask(call, {"t": "metrics"})["text"])
    return 0


def _fetch(call: Call) -> int:
    from . import downloads

    connection = _connect(call)
    try:
        return downloads.fetch(connection, _ids(call)[0], call.options.into)
    finally:
        connection.link.close()


def _dashboard(call: Call) -> int:
    from . import dashboard

    return dashboard.main(_connect(call).link, call.options.listen, call.options.open)


def _top(call: Call) -> int:
    from . import top

    return top.main(_connect(call).link)


ACTIONS = {
    "submit": _submit, "run": _run, "result": _result, "status": _status, "list": _list, "wait": _wait,
    "cancel": _cancel, "retry": _retry, "fetch": _fetch, "workers": _workers, "drain": _drain, "resume": _drain,
    "prune": _prune, "metrics": _metrics, "dashboard": _dashboard, "top": _top,
}  # fmt: skip
