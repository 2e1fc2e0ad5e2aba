"""Turns an interpreter, late in its own start-up, into one that waits for scripts; and leaves no trace.

The launcher starts `python EMPTY.pyc` with this folder first in PYTHONPATH and MICROCLUSTER_GUARD set. `site` imports
this file, which undoes both, lets the real sitecustomize run, and arms zygote.py.
"""
# No `from __future__ import annotations`: that would put a module into sys.modules.

import os
import sys

here = os.path.dirname(__file__)
order = os.environ.pop("MICROCLUSTER_GUARD", None)  # "3 numpy torch": the socket, what to import ahead
if order is not None:  # else this is a sub-interpreter: only step aside
    rest = os.environ["PYTHONPATH"][len(here) :]  # nothing, a slash (it was set, but empty), or a colon and what it was
    if rest:
        os.environ["PYTHONPATH"] = rest[1:]
    else:
        del os.environ["PYTHONPATH"]
if here in sys.path:
    sys.path.remove(here)
for entry in (here, here + "/"):
    sys.path_importer_cache.pop(entry, None)
del sys.modules["sitecustomize"]
try:
    # Raises ImportError, as `site` expects it, where there is none.
    import sitecustomize  # type: ignore[import-not-found]  # noqa: F401
finally:
    if order is not None:
        before = [*sys.modules], [*sys.path_importer_cache]
        # Ours import this module; loading the real one would leave a class behind.
        stand_in = type(sys.implementation)(annotations=None)  # type: ignore[call-arg]
        sys.modules.setdefault("__future__", stand_in)  # type: ignore[arg-type]
        external = sys.modules["_frozen_importlib_external"]
        zygote = type(sys)("zygote")
        zygote.__file__ = os.path.dirname(here) + "/zygote.py"
        external.SourceFileLoader("zygote", zygote.__file__).exec_module(zygote)
        zygote.arm(order.split(), *before)
