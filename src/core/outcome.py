"""What an attempt's end means for its task: final, again by --retries, or again because its worker failed it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .jobs import CANCELLED, FAILED, SUCCEEDED, Finish, TaskRow, signal_name
from .live import Live
from .saves import KeepOutput

if TYPE_CHECKING:
    from .cluster import Cluster

LOST = "worker lost"
PAUSE_MAX_S = 60.0  # a worker whose starts fail pauses 1, 2, 4 .. s, up to this
PAUSE_AFTER = 3  # failed starts in a row


def finish(cluster: Cluster, live: Live, fin: Finish, now: float, wall: float) -> None:
    """The worker of a running task says that the attempt ended."""
    job, worker = live.job, live.worker
    if fin.started_at is not None:
        live.started_at = fin.started_at
        seconds = max(0.0, fin.finished_at - fin.started_at)
        worker.mean_s += (seconds - worker.mean_s) * 0.25
        if job.started_at is None:
            job.started_at = fin.started_at
    if fin.never_ran and not live.cancelling:
        _never_ran(cluster, live, fin, now, wall)
        return
    row = _row(live, fin)
    state, happening = _verdict(live, fin)
    if state == FAILED and row.retries < job.retries:
        reason = row.reason or f"exit code {fin.exit_code}"
        cluster.requeue(live, "failed, again", reason, now, wall, retries=row.retries + 1)
        return
    cluster.saves.append(KeepOutput(fin.job, fin.pos, fin.attempt, fin.out, fin.err))
    cluster.end(live, row, state, happening, now)


def _verdict(live: Live, fin: Finish) -> tuple[str, str]:
    if live.cancelling or fin.cancelled:
        return CANCELLED, "cancelled"
    if fin.exit_code == 0 and fin.reason is None:
        return SUCCEEDED, "succeeded"
    if fin.exit_code == 0 and not fin.timed_out:
        return SUCCEEDED, "succeeded"  # a remark, not a failure
    return FAILED, "failed"


def _row(live: Live, fin: Finish) -> TaskRow:
    reason = fin.reason
    if reason is None and fin.signal is not None:
        reason = f"killed by {signal_name(fin.signal)}"
    if fin.dropped_bytes and not reason:
        reason = "output limit"
    if live.cancelling or fin.cancelled:
        reason = None
    return live.row._replace(
        started_at=live.started_at,
        finished_at=fin.finished_at,
        exit_code=fin.exit_code,
        signal=fin.signal,
        reason=reason,
        cpu_seconds=fin.cpu_seconds,
        max_rss_bytes=fin.max_rss_bytes,
        output_bytes=fin.output_bytes,
        error_bytes=fin.error_bytes,
        dropped_bytes=fin.dropped_bytes,
        timed_out=int(fin.timed_out),
        files=fin.files,
    )


def _never_ran(cluster: Cluster, live: Live, fin: Finish, now: float, wall: float) -> None:
    """The worker could not start it: not the script's fault. Elsewhere, or here after a pause; not for ever."""
    worker, row = live.worker, live.row
    worker.failures += 1
    if worker.failures >= PAUSE_AFTER:
        worker.paused_until = now + min(PAUSE_MAX_S, 2.0 ** (worker.failures - PAUSE_AFTER))
        cluster.log.append(f"worker {worker.name} pauses: {worker.failures} starts failed in a row: {fin.reason}")
    crashes = row.crashes + 1
    if crashes >= cluster.settings.crash_limit:
        why = f"could not be started {crashes} times: {fin.reason}"
        cluster.end(live, row._replace(crashes=crashes, reason=why, finished_at=wall), FAILED, "failed", now)
    else:
        cluster.requeue(live, "lost", f"could not be started: {fin.reason}", now, wall, crashes=crashes)


def lose(cluster: Cluster, live: Live, now: float, wall: float) -> None:
    """The worker of a running task is lost, or came back without it."""
    row = live.row._replace(crashes=live.row.crashes + 1)
    if live.cancelling:
        cluster.end(live, row._replace(reason=None, finished_at=wall), CANCELLED, "cancelled", now)
    elif live.job.if_lost == "fail":
        cluster.end(live, row._replace(reason=LOST, finished_at=wall), FAILED, "failed", now)
    elif row.crashes >= cluster.settings.crash_limit:
        times = "once" if row.crashes == 1 else f"{row.crashes} times"
        cluster.end(live, row._replace(reason=f"{LOST} {times}", finished_at=wall), FAILED, "failed", now)
    else:
        cluster.requeue(live, "lost", LOST, now, wall, crashes=row.crashes)
