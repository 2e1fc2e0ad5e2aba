"""Seeded histories of the whole cluster. MICROCLUSTER_TEST_SEEDS=10000 runs more of them."""

from __future__ import annotations

import os
import unittest

from tests.support.marks import slow
from tests.support.sim import Simulation

SEEDS = int(os.environ.get("MICROCLUSTER_TEST_SEEDS", "300"))


def first_failure(rule: str, seeds: int = 60) -> int | None:
    """The first seed whose history goes wrong without the rule; None when none does."""
    for seed in range(seeds):
        try:
            Simulation(seed, frozenset([rule])).run()
        except (AssertionError, KeyError):
            return seed
    return None


class SimulationTest(unittest.TestCase):
    def test_no_history_breaks_a_promise(self) -> None:
        for seed in range(SEEDS):
            Simulation(seed).run()

    def test_the_same_seed_is_the_same_history(self) -> None:
        self.assertEqual(Simulation(7).run().story, Simulation(7).run().story)

    @slow
    def test_each_rule_is_needed(self) -> None:
        """Without it, one of the first sixty histories goes wrong."""
        for rule in ("fencing", "terminal", "idempotency", "ack", "reconcile"):
            with self.subTest(rule=rule):
                self.assertIsNotNone(first_failure(rule))
