"""A few seconds of chaos.py: everything is killed, frozen and cut, and nothing is lost."""

from __future__ import annotations

from tests.benchmarks.chaos import Chaos
from tests.support.leaks import Case
from tests.support.marks import linux_only, slow

SECONDS = 6.0


@slow
@linux_only
class TestChaos(Case):
    def test_nothing_is_lost_or_done_twice(self) -> None:
        chaos = Chaos(seed=7, workers=2, submitters=2)
        problems = chaos.run(SECONDS)
        self.assertEqual(problems, [], f"after {dict(chaos.faults)}\n{chaos.manager.logs()}")
        self.assertGreater(sum(chaos.faults.values()), 2)
