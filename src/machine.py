"""What this machine has: CPUs this process may use, memory, GPUs, free disk; and the labels a worker gives itself.

Reads only. Called once at the start of a worker (free_disk: again and again). Linux knows most; elsewhere the portable
half of each answer is given.
"""

from __future__ import annotations

import math
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
MY_CGROUP = Path("/proc/self/cgroup")
NVIDIA_SMI_S = 15.0  # a driver that is stuck answers never


def cpus() -> int:
    """CPUs this process may use: its affinity, and no more than the quota of its cgroups (rounded up)."""
    found = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        found = len(os.sched_getaffinity(0)) or found
    quota = cgroup_cpus(_read(MY_CGROUP), CGROUPS)
    return max(1, min(found, math.ceil(quota)) if quota is not None else found)


def memory() -> int | None:
    """Bytes: the machine's memory, and no more than the limit of its cgroups; None when unknown."""
    try:
        found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
    limit = cgroup_memory(_read(MY_CGROUP), CGROUPS)
    return min(found, limit) if limit is not None else found


def cgroup_cpus(membership: str, root: Path) -> float | None:
    """The tightest CPU quota on the way from this process's cgroup to the root; None: no quota.

    `membership` is the text of /proc/self/cgroup, `root` where the cgroup file systems are.
    """
    quotas = []
    for folder in _folders(membership, root, "cpu"):
        try:
            if (folder / "cpu.max").exists():
                limit, period = (folder / "cpu.max").read_text().split()
            else:
                limit, period = (_read(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period"))
            if limit != "max" and int(limit) > 0:
                quotas.append(int(limit) / int(period))
        except (OSError, ValueError, ZeroDivisionError):
            continue
    return min(quotas) if quotas else None


def cgroup_memory(membership: str, root: Path) -> int | None:
    """As `cgroup_cpus`: the tightest memory limit in bytes."""
    limits = []
    for folder in _folders(membership, root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            text = _read(folder / name).strip()
            if text.isdigit():
                limits.append(int(text))
    return min(limits) if limits else None


def _folders(membership: str, root: Path, controller: str) -> Iterable[Path]:
    """Folders of the cgroups that bind this process, its own first: v2, and v1 with the controller."""
    for line in membership.splitlines():
        parts = line.split(":", 2)
        if len(parts) != 3:
            continue
        _, controllers, path = parts
        if controllers == "":
            mounts = [root, root / "unified"]
        elif controller in controllers.split(","):
            mounts = [root / controllers, root / controller]
        else:
            continue
        for mount in mounts:
            names = [name for name in path.split("/") if name not in ("", "..")]
            for end in range(len(names), -1, -1):  # in a container the path may be the host's: the root then counts
                yield mount.joinpath(*names[:end])


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""


def gpus(environ: Mapping[str, str], wanted: int | None = None) -> tuple[str, ...]:
    """Identities of the GPUs to offer, as CUDA_VISIBLE_DEVICES takes them: those that `nvidia-smi -L` lists, or
    `wanted` many. A worker that is confined by CUDA_VISIBLE_DEVICES itself offers no other ones."""
    confined = environ.get("CUDA_VISIBLE_DEVICES")
    if confined is not None:
        found = [part.strip() for part in confined.split(",") if part.strip() not in ("", "-1")]
    elif wanted is not None:
        found = []
    else:
        found = _listed_gpus(environ)
    if wanted is None:
        return tuple(found)
    return tuple(found[:wanted]) if len(found) >= wanted else tuple(str(n) for n in range(wanted))


def _listed_gpus(environ: Mapping[str, str]) -> list[str]:
    program = shutil.which("nvidia-smi", path=environ.get("PATH"))
    if program is None:
        return []
    try:
        done = subprocess.run(
            [program, "-L"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=NVIDIA_SMI_S,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return re.findall(r"^GPU (\d+):", done.stdout.decode("utf-8", "replace"), re.MULTILINE)


def host_name() -> str:
    """The short host name, made of characters that a worker's name may have."""
    name = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname().split(".")[0]).lstrip("._-")[:64]
    return name or "worker"


def labels() -> list[str]:
    """The labels that every worker has."""
    system = "macos" if sys.platform == "darwin" else "windows" if sys.platform == "win32" else sys.platform
    return [
        f"os={system}",
        f"arch={platform.machine()}",
        f"python={sys.version_info[0]}.{sys.version_info[1]}",
        f"host={host_name()}",
    ]


def free_disk(path: str) -> int:
    """Bytes that are free for us where `path` is; 0 when that cannot be told."""
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return 0
