"""For Python programs: submit scripts, wait for them, read what they printed.

    from microcluster.api import Cluster            # in a checkout: from src.api import Cluster

    with Cluster("10.0.0.5", 5000) as cluster:
        job = cluster.submit("train.py", "--epochs", "3", retries=2)
        print(job.result().text)
        for result in cluster.map("resize.py", ["a.png", "b.png"]):
            print(result.index, result.exit_code)

Options are those of `client.py submit` with underscores (`max_running=4`, `send=["data"]`). Every method may be called
from any thread. Raises the errors of core.errors: Unreachable, ManagerGone, KeyProblem, Refused, UsageError.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from . import submission
from .core.errors import LinkError, UsageError
from .core.indexes import Indexes
from .core.syntax import parse_duration, parse_grid, parse_selector, parse_size, shown
from .follow import Connection, Follower, exit_code
from .keys import load_peer_key
from .link import Link
from .options import SUBMIT, Options, defaults


class Result:
    """How a task ended, and what it printed."""

    def __init__(self, job: int, index: int, end: dict[str, Any], stdout: bytes, stderr: bytes) -> None:
        self.job, self.index = job, index
        self.state: str = end["state"]
        self.reason: str | None = end["reason"]
        self.exit_code: int = exit_code(end)
        self.stdout, self.stderr = stdout, stderr

    @property
    def ok(self) -> bool:
        return self.state == "succeeded"

    @property
    def text(self) -> str:
        """stdout, decoded as UTF-8."""
        return self.stdout.decode("utf-8", "replace")

    def __repr__(self) -> str:
        return f"<Result of {self.job}.{self.index}: {self.state}, exit code {self.exit_code}>"


class Job:
    """A submitted job. `id` is what `client.py` takes."""

    def __init__(self, cluster: Cluster, job: int, count: int) -> None:
        self._cluster, self.id, self.count = cluster, job, count

    def __repr__(self) -> str:
        return f"<Job {self.id} of {self.count} tasks>"

    def status(self) -> dict[str, Any]:
        """As `status --json`."""
        found: dict[str, Any] = self._cluster._ask({"t": "status", "ids": [{"job": self.id}]})["jobs"][0]
        return found

    def wait(self, timeout: float | None = None) -> bool:
        """Until all its tasks are finished: True; False when `timeout` seconds passed first."""
        return self._cluster.wait([self], timeout)

    def results(self, timeout: float | None = None) -> Iterator[Result]:
        """The results of its tasks in index order, each as soon as it can be. TimeoutError past `timeout` seconds."""
        return self._cluster._results(self, timeout)

    def result(self, timeout: float | None = None) -> Result:
        """The result of its (first) task."""
        return next(self.results(timeout))

    def cancel(self) -> None:
        self._cluster._ask({"t": "cancel", "ids": [{"job": self.id}]})

    def retry(self) -> None:
        """Queue its failed and cancelled tasks again."""
        self._cluster._ask({"t": "retry", "ids": [{"job": self.id}]})

    def files(self) -> dict[int, str | None]:
        """The hash of the list of returned files of each finished task, by index."""
        answer = self._cluster._ask({"t": "files", "ids": [{"job": self.id}]})
        return {index: manifest for _, index, manifest, _ in answer["tasks"]}


class Cluster:
    """A manager. Connects at once; breaks of the connection are mended for `retry` seconds."""

    def __init__(
        self,
        host: str = "localhost",
        port: int = 5000,
        *,
        key_file: str | None = None,
        insecure: bool = False,
        connect_timeout: float = 0.0,
        retry: float = 300.0,
    ) -> None:
        key = None if insecure else load_peer_key("client", key_file)

        def make(timeout_s: float) -> Link:
            return Link(host, port, key, timeout_s)

        self._make = make
        self._retry = retry
        self._connection = Connection(make, make(connect_timeout), retry, lambda text: None)

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._connection.link.close()

    def _ask(self, header: dict[str, Any], payload: bytes = b"") -> dict[str, Any]:
        return self._connection.request(header, payload)[0]

    # -- jobs ----------------------------------------------------------------------------------------------------------

    def submit(self, script: str, *args: str, **options: Any) -> Job:
        """Queue a script; durable when this returns."""
        return self._hand_in(submission.build(options_of(options), script, list(args)))

    def map(self, script: str, items: Iterable[str], *args: str, **options: Any) -> Iterator[Result]:
        """Run the script once for each item, which becomes its last argument; the results in order."""
        text = io.BytesIO(b"".join(_line(item) for item in items))
        given = options_of({**options, "each_line": "-"})
        return self._hand_in(submission.build(given, script, list(args), stdin=text)).results()

    def _hand_in(self, sub: submission.Submission) -> Job:
        while True:
            link = self._connection.link
            try:
                answer = submission.deliver(link, sub)
                self._connection.answered()
                return Job(self, answer["id"], sub.spec["count"])
            except LinkError as error:
                self._connection.again(error, link)

    def job(self, job: int) -> Job:
        """A job that was submitted before."""
        view = self._ask({"t": "status", "ids": [{"job": job}]})["jobs"][0]
        return Job(self, job, view["count"])

    def jobs(self, last: int = 50, state: str | None = None, user: str | None = None) -> list[dict[str, Any]]:
        """As `list --json`."""
        found: list[dict[str, Any]] = self._ask({"t": "list", "last": last, "state": state, "user": user})["jobs"]
        return found

    def workers(self) -> list[dict[str, Any]]:
        """As `workers --json`."""
        found: list[dict[str, Any]] = self._ask({"t": "workers"})["workers"]
        return found

    def wait(self, jobs: Sequence[Job], timeout: float | None = None) -> bool:
        """Until all are finished: True; False when `timeout` seconds passed first."""
        if not jobs:
            return True
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            answer = self._ask({"t": "wait", "ids": [{"job": job.id} for job in jobs], "timeout": left})
            return bool(answer["done"])

    def as_completed(self, jobs: Iterable[Job], timeout: float | None = None) -> Iterator[Job]:
        """Each job when it is finished. TimeoutError past `timeout` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        waiting = list(jobs)
        while waiting:
            link = self._connection.link
            try:
                asked = {link.post({"t": "wait", "ids": [{"job": job.id}], "timeout": None}): job for job in waiting}
                for number in _as_answered(link, list(asked), deadline):
                    self._connection.answered()
                    waiting.remove(asked[number])
                    yield asked[number]
            except LinkError as error:
                self._connection.again(error, link)

    def _results(self, job: Job, timeout: float | None) -> Iterator[Result]:
        deadline = None if timeout is None else time.monotonic() + timeout
        out: list[bytes] = []
        err: list[bytes] = []
        link = self._make(self._retry)
        connection = Connection(self._make, link, self._retry, lambda text: None)
        try:
            follower = Follower(connection, job.id, 0, job.count - 1, False, True)
            if deadline is not None:
                follower.idle = lambda: _check(deadline)
            attempt = 0
            for segment, some_out, some_err in follower.pieces():
                if segment["attempt"] != attempt:  # what came before is of an attempt that was superseded
                    attempt, out, err = segment["attempt"], [], []
                out.append(some_out)
                err.append(some_err)
                if segment["end"] is not None:
                    yield Result(job.id, segment["index"], segment["end"], b"".join(out), b"".join(err))
                    out, err, attempt = [], [], 0
        finally:
            connection.link.close()

    # -- content -------------------------------------------------------------------------------------------------------

    def content(self, name: str) -> bytes:
        """Content by its hash."""
        parts: list[bytes] = []
        size = 0
        while True:
            header = {"t": "get", "hash": name, "offset": size, "max": submission.PIECE}
            answer, data = self._connection.request(header)
            parts.append(data)
            size += len(data)
            if size >= answer["size"] or not data:
                return b"".join(parts)


def _check(deadline: float) -> None:
    if time.monotonic() > deadline:
        raise TimeoutError("the job is not finished")


def _line(item: str) -> bytes:
    if not item or "\n" in item or "\0" in item or item.endswith("\r"):
        raise UsageError(f"not an item for map, which are lines of text: {shown(item)} (submit takes any argument)")
    return item.encode("utf-8", "surrogateescape") + b"\n"


def _as_answered(link: Link, numbers: list[int], deadline: float | None) -> Iterator[int]:
    """Each number when its answer has come. Raises TimeoutError past the deadline (monotonic), LinkError."""
    left = dict.fromkeys(numbers)
    while left:
        first = next(iter(left))
        for number in list(left):
            try:
                link.answer(number, 0.02 if number == first else 0.0)
            except TimeoutError:
                continue
            del left[number]
            yield number
        if deadline is not None and left and time.monotonic() > deadline:
            raise TimeoutError(f"{len(left)} jobs are not finished")


_PARSED = {
    "timeout": parse_duration, "grace": parse_duration, "memory": parse_size, "max_output": parse_size,
}  # fmt: skip


def options_of(given: dict[str, Any]) -> Options:
    """Options of `submit` by name, as the command line makes them. Raises UsageError for one that there is not."""
    values = defaults(SUBMIT)
    for name, value in given.items():
        name = "returns" if name == "return_" else name
        if name not in vars(values):
            raise UsageError(f"there is no option {name} (see client.py submit --help)")
        setattr(values, name, _converted(name, value))
    return values


def _converted(name: str, value: Any) -> Any:
    if name in _PARSED and isinstance(value, str):
        return _PARSED[name](value)
    if name in ("after", "after_any", "after_each"):
        items = value if isinstance(value, (list, tuple)) else [value]
        return [parse_selector(str(item.id if isinstance(item, Job) else item)) for item in items]
    if name == "grid":
        pairs = value.items() if isinstance(value, dict) else [parse_grid(text) for text in value]
        return [(key, [str(v) for v in values]) for key, values in pairs]
    if name == "env" and isinstance(value, dict):
        return [f"{key}={text}" for key, text in value.items()]
    if name == "resource" and isinstance(value, dict):
        return list(value.items())
    if name == "array" and not isinstance(value, str):
        return Indexes.parse(
            f"0-{len(value) - 1}" if isinstance(value, range) and value.start == 0 else ",".join(map(str, value))
        ).text
    return [value] if name in ("on", "send", "returns", "preload") and isinstance(value, str) else value
