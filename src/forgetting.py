"""Forgetting finished jobs with their output (`prune`, `--keep`), and the content that no job needs any more.

In pieces between the core thread's batches: a million jobs must not make anybody wait. Core thread.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from .core.errors import DiskFull
from .core.saves import ForgetJob
from .spool import FRESH_S

if TYPE_CHECKING:
    from .corethread import Core

log = logging.getLogger(__name__)

JOBS_A_PIECE = 200
FILES_A_PIECE = 500
BLOBS_A_PIECE = 2000
PARTIAL_S = 86_400.0  # an upload that stood still for so long is given up
LOOK_S = 60.0  # how often --keep is looked at

Then = Callable[[int, "DiskFull | None"], None]


class Forgetter:
    """One such errand after the other."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._waiting: deque[tuple[float, Then]] = deque()
        self._work: Iterator[None] | None = None
        self._kept: set[str] | None = None  # while content is looked through: what must stay

    def keep(self, names: Iterable[str]) -> None:
        """Somebody needs this content from now on (a job that is being submitted)."""
        if self._kept is not None:
            self._kept.update(names)

    def watch(self, keep_s: float) -> None:
        """Forget what finished longer ago than this, now and again."""

        def done(count: int, problem: DiskFull | None) -> None:
            if count:
                log.info("forgot %d jobs (--keep)", count)
            self._core.call_later(LOOK_S, lambda: self.watch(keep_s))

        self.forget(time.time() - keep_s, done)

    def resume(self) -> None:
        """Go on with what a manager before this one did not come to the end of."""
        if self._core.store.half_forgotten(1):
            self.forget(0.0, lambda count, problem: None)

    def forget(self, before: float, then: Then) -> None:
        """Jobs that finished before this wall time; then(how many, what went wrong)."""
        self._waiting.append((before, then))
        if self._work is None:
            self._step()

    def _step(self) -> None:
        if self._work is None:
            self._work = self._errand(*self._waiting.popleft())
        try:
            next(self._work)
        except StopIteration:
            self._work = None
        if self._work is not None or self._waiting:
            self._core.call_later(0.0, self._step)

    def _errand(self, before: float, then: Then) -> Iterator[None]:
        count, problem, store = 0, None, self._core.store
        try:
            while True:
                half = store.half_forgotten(JOBS_A_PIECE)
                ids = store.finished_before(before, JOBS_A_PIECE - len(half))
                if not half and not ids:
                    break
                for job in half:  # while the store still knows of them: a crash leaves nothing that nobody looks for
                    while not self._core.outputs.remove_job(job, FILES_A_PIECE):
                        yield
                store.apply([ForgetJob(job) for job in ids], clear=half)
                count += len(ids)
                yield
        except DiskFull as error:
            problem = error
        then(count, problem)
        if count:
            yield from self._sweep()

    def _sweep(self) -> Iterator[None]:
        """Content that nothing stored names goes, unless it is fresh: its job may be about to be submitted."""
        self._kept = set()
        try:
            for n, name in enumerate(self._core.store.live_blobs()):
                self._kept.add(name)
                if n % BLOBS_A_PIECE == 0:
                    yield
            for folder in sorted(os.listdir(self._core.blobs.folder)):
                yield
                self._sweep_folder(folder)
        except OSError:
            return  # the next time
        finally:
            self._kept = None

    def _sweep_folder(self, folder: str) -> None:
        assert self._kept is not None
        blobs, partial = self._core.blobs, len(folder) != 2
        old = time.time() - (PARTIAL_S if partial else FRESH_S)
        with os.scandir(os.path.join(blobs.folder, folder)) as entries:
            stale = [entry.name for entry in entries if entry.stat().st_mtime < old]
        for name in stale:
            if partial:
                with contextlib.suppress(OSError):
                    os.unlink(os.path.join(blobs.folder, folder, name))
            elif folder + name not in self._kept:
                blobs.forget(folder + name)
