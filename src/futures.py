"""Executor: what concurrent.futures.ProcessPoolExecutor does, on a cluster.

    with Executor("10.0.0.5", 5000) as pool:
        print(list(pool.map(work, range(100))))

The function goes by name: its module, which must lie beside the calling script or be installed on the workers, travels
as a script's modules do. Arguments and results are pickled between the caller's own processes; the manager never reads
them, but whoever can submit to the cluster or runs a worker could send other pickles: trust them as you trust your code.
As with ProcessPoolExecutor, a script that uses it needs `if __name__ == "__main__":`.
"""

from __future__ import annotations

import concurrent.futures
import copy
import hashlib
import io
import json
import os
import pickle
import sys
import threading
from collections.abc import Callable
from typing import Any

from . import closure, submission
from .api import Cluster, Job, options_of
from .core.errors import MicroclusterError
from .core.syntax import to_wire

_RUNNER = b"""\
import importlib, json, pickle, runpy, sys, traceback, types
with open("microcluster-call", "rb") as file:
    call = json.loads(file.readline())
    sys.argv[1:] = call["argv"]
    if call["main"]:
        module = types.ModuleType("__mp_main__")
        sys.modules["__main__"] = sys.modules["__mp_main__"] = module
        path = sys.path[0] + "/" + call["main"]
        module.__dict__.update(runpy.run_path(path, run_name="__mp_main__"))
    try:
        function, items = pickle.load(file)
        answer = [(True, function(*args, **kwargs)) for args, kwargs in items]
    except BaseException as error:
        error.__cause__ = None
        text = traceback.format_exc()
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            error = RuntimeError(f"{type(error).__name__}: {error}")
        answer = [(False, error, text)]
with open("microcluster-answer", "wb") as file:
    pickle.dump(answer, file)
"""


def _own_package() -> dict[str, bytes]:
    """This package, under the name that the calling script imports it by: it may not be installed on the workers."""
    name = __name__.partition(".")[0]
    root = os.path.dirname(os.path.abspath(__file__))
    found: dict[str, bytes] = {}
    for folder, below, files in os.walk(root):
        below[:] = [one for one in below if one != "__pycache__"]
        for file in files:
            if file.endswith(".py"):
                path = os.path.join(folder, file)
                with open(path, "rb") as source:
                    found["/".join([name, *os.path.relpath(path, root).split(os.sep)])] = source.read()
    return found


class RemoteTraceback(Exception):
    """The traceback of where it happened, as the cause of what is raised here."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'


class Executor(concurrent.futures.Executor):
    """`options`: those of `client.py submit` for every call (`cpus=2`, `retries=1`, `on="gpu"`)."""

    def __init__(self, host: str = "localhost", port: int = 5000, *, key_file: str | None = None, insecure: bool = False,
                 **options: Any) -> None:  # fmt: skip
        self._cluster = Cluster(host, port, key_file=key_file, insecure=insecure)
        self._options = options_of(options)
        self._lock = threading.Lock()  # guards _closed and _pending
        self._closed = False
        self._pending: dict[concurrent.futures.Future[Any], Job] = {}
        self._watcher: threading.Thread | None = None
        self._wake = threading.Condition(self._lock)
        self._script = self._modules()

    def _modules(self) -> tuple[str | None, list[Any], dict[str, bytes]]:
        """The calling script and what lies beside it, read once."""
        path = getattr(sys.modules["__main__"], "__file__", None)
        if not path or not os.path.exists(path):
            return None, [], {}
        with open(path, "rb") as file:
            source = file.read()
        name = os.path.basename(path)
        found = {}
        for module in closure.modules_beside(os.path.abspath(path), source):
            if module.content is None:
                with open(module.file, "rb") as file:
                    found[module.path] = file.read()
            else:
                found[module.path] = module.content
        found[name] = source
        found.update(_own_package())
        listed = [[to_wire(place), hashlib.sha256(content).hexdigest()] for place, content in sorted(found.items())]
        return name, listed, found

    # -- the interface of concurrent.futures --------------------------------------------------------------------------

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> concurrent.futures.Future[Any]:
        """Run fn(*args, **kwargs) on the cluster."""
        return self._submit(fn, [(args, kwargs)], single=True)

    def map(self, fn: Callable[..., Any], *iterables: Any, timeout: float | None = None, chunksize: int = 1) -> Any:
        """As Executor.map; `chunksize` items go into one task."""
        items: list[Any] = [(args, {}) for args in zip(*iterables)]
        futures = [self._submit(fn, items[at : at + chunksize], single=False) for at in range(0, len(items), chunksize)]

        def results() -> Any:
            try:
                for future in futures:
                    yield from future.result(timeout)
            finally:
                for future in futures:
                    future.cancel()

        return results()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """No more calls; `wait`: until all are done."""
        with self._lock:
            self._closed = True
            pending = list(self._pending)
            self._wake.notify_all()
        if cancel_futures:
            for future in pending:
                future.cancel()
        if wait:
            concurrent.futures.wait(pending)
            if self._watcher is not None:
                self._watcher.join()
            self._cluster.close()

    # -- inside --------------------------------------------------------------------------------------------------------

    def _submit(self, fn: Callable[..., Any], items: list[Any], single: bool) -> concurrent.futures.Future[Any]:
        future: concurrent.futures.Future[Any] = _Future(self)
        with self._lock:
            if self._closed:
                raise RuntimeError("cannot schedule new futures after shutdown")
        job = self._cluster._hand_in(self._submission(fn, items))
        future.microcluster = (job, single)  # type: ignore[attr-defined]
        with self._lock:
            self._pending[future] = job
            if self._watcher is None:
                self._watcher = threading.Thread(target=self._watch, name="microcluster-executor", daemon=True)
                self._watcher.start()
            self._wake.notify_all()
        return future

    def _submission(self, fn: Callable[..., Any], items: list[Any]) -> submission.Submission:
        name, modules, contents = self._script
        call = io.BytesIO()
        main = name if getattr(fn, "__module__", None) == "__main__" else None
        call.write(json.dumps({"main": main, "argv": sys.argv[1:]}).encode() + b"\n")
        pickle.dump((fn, items), call, protocol=4)
        options = copy.copy(self._options)
        options.name = options.name or getattr(fn, "__qualname__", "call")
        sub = submission.Submission()
        built = submission.build(options, os.devnull, [])
        sub.spec = built.spec
        sub.spec["script"] = {"name": "microcluster_call.py", "hash": sub.add(_RUNNER)}
        sub.spec["modules"] = modules
        for content in contents.values():
            sub.add(content)
        for digest, source in built.blobs.items():
            sub.blobs.setdefault(digest, source)
        entry = ["f", "microcluster-call", 0o600, sub.add(call.getvalue()), call.tell()]
        manifest = json.dumps([entry]).encode()
        sub.spec["send"] = {"manifest": sub.add(manifest), "files": 1, "bytes": call.tell()}
        sub.spec["returns"] = ["microcluster-answer"]
        return sub

    def _watch(self) -> None:
        while True:
            with self._lock:
                while not self._pending and not self._closed:
                    self._wake.wait()
                if not self._pending:
                    return
                pending = dict(self._pending)
            by_job = {job.id: future for future, job in pending.items()}
            try:
                first = next(iter(pending.values()))
                self._cluster.wait([first], 0.05 if len(pending) > 1 else 0.5)
                states = self._states(list(by_job))
            except MicroclusterError as error:
                for future in pending:
                    self._end(future, None, error)
                continue
            for job, state in states.items():
                if state in ("succeeded", "failed", "cancelled"):
                    self._finish(by_job[job], pending[by_job[job]])

    def _states(self, jobs: list[int]) -> dict[int, str]:
        found: dict[int, str] = {}
        for at in range(0, len(jobs), 500):
            ids = [{"job": job} for job in jobs[at : at + 500]]
            answer = self._cluster._ask({"t": "status", "ids": ids})
            found.update({int(view["id"]): view["state"] for view in answer["jobs"]})
        return found

    def _finish(self, future: concurrent.futures.Future[Any], job: Job) -> None:
        try:
            manifest = job.files().get(0)
            if manifest is None:
                result = job.result(30)
                text = result.stderr.decode("utf-8", "replace").strip().splitlines()
                why = result.reason or (text[-1] if text else f"exit code {result.exit_code}")
                raise RuntimeError(f"job {job.id} {result.state}: {why}")
            entries = json.loads(self._cluster.content(manifest))
            answer = pickle.loads(self._cluster.content(entries[0][3]))
        except Exception as error:
            self._end(future, None, error)
            return
        if answer and not answer[0][0]:
            raised = answer[0][1]
            raised.__cause__ = RemoteTraceback(answer[0][2])
            self._end(future, None, raised)
            return
        values = [value for _, value in answer]
        self._end(future, values[0] if future.microcluster[1] else values, None)  # type: ignore[attr-defined]

    def _end(self, future: concurrent.futures.Future[Any], value: Any, error: BaseException | None) -> None:
        with self._lock:
            self._pending.pop(future, None)
        if future.cancelled() or not future.set_running_or_notify_cancel():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(value)


class _Future(concurrent.futures.Future):  # type: ignore[type-arg]
    def __init__(self, executor: Executor) -> None:
        super().__init__()
        self._executor = executor

    def cancel(self) -> bool:
        """Also cancels its job."""
        done = super().cancel()
        if done:
            with self._executor._lock:
                job = self._executor._pending.pop(self, None)
            if job is not None:
                job.cancel()
        return done
