"""Scripts must not be able to tell how they were started: each of the table's runs directly, cold and warm, and everything
that can be seen from outside is compared, byte by byte.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import tempfile
import threading
from typing import Optional

from tests.process.fidelity_run import Call, Lab, Seen, lay_out
from tests.process.fidelity_table import PROBES, Probe
from tests.support.leaks import MARK, Case
from tests.support.marks import linux_only, slow

AT_A_TIME = 2
SHOWN = 700  # bytes of each side of a difference


def usual_env() -> dict[str, str]:
    """Few variables, none that changes how Python works."""
    env = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": os.path.expanduser("~"), "LANG": "C.UTF-8"}
    return {**env, MARK: os.environ.get(MARK, "")}


def differences(lab: Lab, probe: Probe, folder: str) -> list[str]:
    """What is not as it should be with one probe; [] if nothing."""

    def call() -> Call:
        return lay_out(probe, folder, lab.env)

    wanted = lab.direct(call())
    found = []
    cold, _, why = lab.launched(call(), cold=True)
    found += [f"cold: {text}" for text in compare(wanted, cold)]
    warm, was_warm, why = lab.launched(call(), cold=False)
    found += [f"{'warm' if was_warm else 'cold by rule'}: {text}" for text in compare(wanted, warm)]
    if probe.cold != "?" and (was_warm if probe.cold else not was_warm):
        found.append("it ran warm" if was_warm else f"it ran cold: {why}")
    elif probe.cold != "?" and probe.cold not in (why or ""):
        found.append(f"it ran cold because {why}, not {probe.cold}")
    return [f"{probe.name}: {text}" for text in found]


def compare(wanted: Seen, seen: Seen) -> list[str]:
    return [
        f"{name} was {part(theirs, ours)} instead of {part(ours, theirs)}"
        for name, ours, theirs in zip(Seen._fields, wanted, seen)
        if ours != theirs
    ]


def part(value: object, other: object) -> str:
    """`value`, or the beginning of what differs from `other`."""
    if not isinstance(value, bytes) or not isinstance(other, bytes):
        return repr(value)
    both = zip(value, other)
    same = next((at for at, (one, two) in enumerate(both) if one != two), min(len(value), len(other)))
    return repr(value[max(0, same - 60) : same + SHOWN])


@linux_only
class TestFidelity(Case):
    def setUp(self) -> None:
        for number in (signal.SIGINT, signal.SIGQUIT):  # ignored when the tests run in a shell's background
            if threading.current_thread() is threading.main_thread() and signal.getsignal(number) == signal.SIG_IGN:
                self.addCleanup(signal.signal, number, signal.SIG_IGN)
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    def check(self, probes: list[Probe]) -> None:
        todo: queue.SimpleQueue[Optional[tuple[int, Probe]]] = queue.SimpleQueue()
        for item in enumerate(probes):
            if sys.version_info >= item[1].since:
                todo.put(item)
        found: list[str] = []

        def work(base: str) -> None:
            lab = Lab(sys.executable, usual_env())
            try:
                while (item := todo.get()) is not None:
                    found.extend(differences(lab, item[1], f"{base}/{item[0]}"))
            finally:
                lab.close()

        with tempfile.TemporaryDirectory() as base:
            threads = [threading.Thread(target=work, args=(os.path.realpath(base),)) for _ in range(AT_A_TIME)]
            for thread in threads:
                todo.put(None)
                thread.start()
            for thread in threads:
                thread.join()
        self.assertTrue(todo.empty(), "a runner failed")
        if found:
            self.fail(f"{len(found)} differences:\n" + "\n".join(found))

    def test_what_matters_most(self) -> None:
        self.check([probe for probe in PROBES if probe.quick])

    @slow
    def test_the_rest_of_the_table(self) -> None:
        self.check([probe for probe in PROBES if not probe.quick])
