"""The tests: python3 -m unittest, from the root of the repository."""

from __future__ import annotations

import signal

# A shell starts what it sends to the background with these ignored, and every child of ours would inherit that.
for _number, _default in (
    (signal.SIGINT, signal.default_int_handler),
    (getattr(signal, "SIGQUIT", signal.SIGINT), signal.SIG_DFL),
):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _default)
