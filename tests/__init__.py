"""The tests: python3 -m unittest, from the root of the repository."""

from __future__ import annotations

import signal

# A shell starts what it sends to the background with SIGINT ignored, and every child of ours would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
