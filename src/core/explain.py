"""Why a task does not run yet, in plain words."""

from __future__ import annotations

from collections.abc import Iterable

from .live import Job, Shape, Worker
from .scheduler import capable, interpreter, needs
from .syntax import format_size


def why_none_can(shape: Shape, workers: Iterable[Worker]) -> str | None:
    """What this shape needs that no connected worker has, or None when one could run it if it were free."""
    present = [worker for worker in workers if worker.link is not None]
    if not present:
        return f"needs label {shape.on[0]}, and no worker is connected" if shape.on else "no worker is connected"
    if any(capable(shape, worker) for worker in present):
        return None
    for label in shape.on:
        if not any(label in worker.labels for worker in present):
            return f"needs label {label}, which no worker has"
    if shape.python is not None and not any(shape.python in worker.pythons for worker in present):
        return f"needs Python {shape.python}, which no worker offers"
    if not any(interpreter(shape, worker.pythons) is not None for worker in present):
        return f"needs Python {shape.requires_python}, which no worker offers"
    for name, n in needs(shape):
        most = max(worker.total.get(name, 0) for worker in present)
        if most < n:
            return f"needs {_amount(name, n)}; the most that a worker has is {_amount(name, most)}"
    return "no single worker has all that it needs"


def _amount(name: str, n: int) -> str:
    if name == "memory":
        return f"{format_size(n)} of memory"
    word = name[2:] if name.startswith("r:") else {"cpus": "CPU", "gpus": "GPU"}[name]
    plural = "s" if n != 1 and not name.startswith("r:") else ""
    return f"{n} {word}{plural}"


def why_queued(job: Job, workers: Iterable[Worker], now: float) -> str:
    """Why a queued task of the job does not run."""
    every = list(workers)
    never = why_none_can(job.shape, every)
    if never is not None:
        return never
    if job.max_running is not None and len(job.live) >= job.max_running:
        return f"at most {job.max_running} of its tasks run at a time (--max-running)"
    able = [worker for worker in every if worker.link is not None and capable(job.shape, worker)]
    if all(worker.drained or worker.draining for worker in able):
        return "every worker that could run it is drained"
    if all(worker.paused_until > now or worker.drained or worker.draining for worker in able):
        return "the workers that could run it cannot start scripts at present (see `workers`)"
    return "every worker that could run it is busy"


def why_waiting(others: list[int], kinds: set[str]) -> str:
    """Why a waiting task waits."""
    if not others:
        return "waits for other jobs"
    shown = ", ".join(str(job) for job in others[:5]) + (f" and {len(others) - 5} more" if len(others) > 5 else "")
    end = "to finish" if kinds == {"any"} else "to succeed"
    return f"waits for job {shown} {end}"
