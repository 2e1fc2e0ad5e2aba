"""The environment variables of a job: the worker's own without anything secret, the job's, and what we tell it.

Pure functions on dicts; in layers, so that what is the same for all tasks of a job is computed once. Called by the
worker's shell; nothing here reads os.environ by itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from .core.indexes import spec_indices
from .core.syntax import from_wire, grid_at, grid_variable

# What must not reach a job: our keys, and what is by its name somebody's secret. Who needs one passes it with --env.
SECRET = re.compile(
    r"^MICROCLUSTER_(KEY|HOME$|MANAGER$)|^SSH_AUTH_SOCK$|(^|_)(SECRET|SECRETS|TOKEN|PASSWORD|PASSWD|CREDENTIALS?"
    r"|API_?KEY|ACCESS_KEY|SECRET_KEY|PRIVATE_KEY)(_|$)",
    re.IGNORECASE,
)
STALE = ("PWD", "OLDPWD", "_", "SHLVL")  # of the shell that started the worker
THREADS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)


def of_worker(environ: Mapping[str, str]) -> dict[str, str]:
    """What jobs may inherit of the worker's environment."""
    return {name: value for name, value in environ.items() if not SECRET.search(name) and name not in STALE}


def of_job(inherited: Mapping[str, str], spec: dict[str, Any], own: Mapping[str, Any], job: int) -> dict[str, str]:
    """What all tasks of a job share. `own` are the variables that its submitter set, as wire strings."""
    found = dict(inherited)
    cpus = str(spec["cpus"])
    for name in THREADS:
        found[name] = cpus
    found.update((name, from_wire(value)) for name, value in own.items())
    found["MICROCLUSTER_JOB_ID"] = str(job)
    found["MICROCLUSTER_TASK_COUNT"] = str(spec["count"])
    found["MICROCLUSTER_CPUS"] = cpus
    return found


def of_attempt(
    shared: Mapping[str, str],
    spec: dict[str, Any],
    pos: int,
    attempt: int,
    *,
    worker: str,
    folder: str,
    temp: str,
    gpus: Iterable[str] = (),
) -> dict[str, str]:
    """The complete environment of one attempt, on top of `of_job`; `folder` is its working directory."""
    found = dict(shared)
    found["MICROCLUSTER_TASK_INDEX"] = str(spec_indices(spec).at(pos))
    found["MICROCLUSTER_ATTEMPT"] = str(attempt)
    found["MICROCLUSTER_WORKER"] = worker
    found["TMPDIR"] = temp
    found["PWD"] = folder
    devices = ",".join(gpus)
    if devices:
        found["CUDA_VISIBLE_DEVICES"] = devices
        found.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # so that the numbers mean what nvidia-smi says
    if spec.get("grid"):
        found.update((grid_variable(name), value) for name, value in grid_at(spec["grid"], pos))
    return found


def with_environment(shared: Mapping[str, str], folder: str) -> dict[str, str]:
    """As if the virtual environment in `folder` was activated: its programs come first."""
    found = dict(shared)
    found["VIRTUAL_ENV"] = folder
    found["PATH"] = f"{folder}/bin:{found['PATH']}" if found.get("PATH") else f"{folder}/bin"
    found.pop("PYTHONHOME", None)
    return found
