"""`client.py top`: workers and jobs, live, on the whole terminal. q ends it, up and down move, c cancels, r retries."""

from __future__ import annotations

import sys
import time
from typing import Any

from .core.errors import MicroclusterError, UsageError
from .core.syntax import hold_text
from .dashboard import Backend
from .link import Link
from .render import brief

REFRESH_S = 1.0


class View:
    """What is shown; knows nothing of the terminal."""

    def __init__(self) -> None:
        self.selected = 0
        self.message = ""
        self._last: tuple[float, int] | None = None
        self.rate = 0.0

    def lines(self, data: dict[str, Any], width: int, height: int, now: float) -> list[tuple[str, str]]:
        """(text, kind) of each line; kind: title, head, state of a job or worker, or selected."""
        info = data["info"]
        if self._last is not None and now > self._last[0]:
            self.rate = max(0.0, (info["finished_tasks"] - self._last[1]) / (now - self._last[0]))
        self._last = (now, info["finished_tasks"])
        tasks = ", ".join(f"{count} {state}" for state, count in info["tasks"].items())
        found = [
            (
                f"microcluster {info['version']}  {info['workers']} workers, {info['slots']} slots  {tasks}  {self.rate:.1f}/s",
                "title",
            ),
            ("", ""),
            (f"{'WORKER':20} {'STATE':9} SLOTS", "head"),
        ]
        room = max(2, (height - 7) // 3)
        for worker in data["workers"][:room]:
            used, total = worker["slots_used"], worker["slots"]
            bar = "#" * min(used, 40) + "." * max(0, min(total, 40) - used)
            found.append(
                (f"{hold_text(worker['name'])[:20]:20} {worker['state']:9} {used}/{total} {bar}", worker["state"])
            )
        if len(data["workers"]) > room:
            found.append((f"and {len(data['workers']) - room} more", ""))
        found += [("", ""), (f"{'ID':>8} {'STATE':10} {'USER':10} {'TOOK':>7} {'PROGRESS':14} NAME", "head")]
        jobs = data["jobs"]
        self.selected = max(0, min(self.selected, len(jobs) - 1))
        space = max(1, height - len(found) - 1)
        first = max(0, self.selected - space + 1)
        for n, job in enumerate(jobs[first : first + space], first):
            text = self._job(job)
            found.append((text, "selected" if n == self.selected else job["state"]))
        return [(text[: width - 1], kind) for text, kind in found[: height - 1]] + [
            (self.message[: width - 1], "title")
        ]

    @staticmethod
    def _job(job: dict[str, Any]) -> str:
        tasks = job.get("tasks")
        done = tasks and tasks["succeeded"] + tasks["failed"] + tasks["cancelled"]
        progress = f"{done}/{tasks['total']}" if tasks else (hold_text(str(job.get("reason") or ""))[:14])
        user = hold_text(str(job.get("user") or ""))[:10]
        return f"{job['id']:>8} {job['state']:10} {user:10} {brief(job.get('duration')):>7} {progress:14} {hold_text(job['name'])}"


def main(link: Link) -> int:
    """Until q or Ctrl-C."""
    try:
        import curses
    except ImportError:
        raise UsageError("this Python has no curses: use `dashboard`, or `list` and `workers`") from None
    if not sys.stdout.isatty():
        raise UsageError("top needs a terminal: use `list --json` and `workers --json` in programs")
    try:
        curses.wrapper(lambda screen: _show(screen, curses, Backend(link)))
    except KeyboardInterrupt:
        pass
    return 0


def _show(screen: Any, curses: Any, backend: Backend) -> None:
    curses.use_default_colors()
    curses.curs_set(0)
    colours = {"succeeded": 2, "failed": 1, "lost": 1, "running": 4, "busy": 4, "queued": 3, "waiting": 3, "idle": 2}
    for number in range(1, 5):
        curses.init_pair(number, number, -1)
    screen.timeout(int(REFRESH_S * 1000))
    view, data = View(), None
    while True:
        try:
            data = backend.overview()
        except MicroclusterError as error:
            view.message = hold_text(str(error))
        if data is not None:
            height, width = screen.getmaxyx()
            screen.erase()
            for y, (text, kind) in enumerate(view.lines(data, width, height, time.monotonic())):
                look = {"title": curses.A_BOLD, "head": curses.A_DIM, "selected": curses.A_REVERSE}.get(kind, 0)
                look |= curses.color_pair(colours.get(kind, 0))
                screen.addnstr(y, 0, text, max(1, width - 1), look)
            screen.refresh()
        if not _key(screen.getch(), curses, view, data, backend):
            return


def _key(key: int, curses: Any, view: View, data: dict[str, Any] | None, backend: Backend) -> bool:
    """False: end."""
    if key in (ord("q"), 27):
        return False
    view.selected += {curses.KEY_DOWN: 1, ord("j"): 1, curses.KEY_UP: -1, ord("k"): -1}.get(key, 0)
    verb = {ord("c"): "cancel", ord("r"): "retry"}.get(key)
    if verb and data and data["jobs"]:
        job = data["jobs"][max(0, min(view.selected, len(data["jobs"]) - 1))]["id"]
        try:
            backend.act(verb, job)
            view.message = f"{verb} {job}: done"
        except MicroclusterError as error:
            view.message = hold_text(str(error))
    return True
