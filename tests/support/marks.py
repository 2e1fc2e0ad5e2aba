"""Decorators that say when a test runs. Used on test methods and on whole classes."""

from __future__ import annotations

import os
import sys
import unittest

QUICK = os.environ.get("MICROCLUSTER_TEST_QUICK", "") not in ("", "0")
LONG = os.environ.get("MICROCLUSTER_TEST_LONG", "") not in ("", "0")

#: Not needed once more on every Python version: skipped with MICROCLUSTER_TEST_QUICK=1.
slow = unittest.skipIf(QUICK, "slow, and MICROCLUSTER_TEST_QUICK is set")

#: Takes minutes: runs only with MICROCLUSTER_TEST_LONG=1.
long_test = unittest.skipUnless(LONG, "long: set MICROCLUSTER_TEST_LONG=1 to run it")

linux_only = unittest.skipUnless(sys.platform.startswith("linux"), "needs Linux")
