"""Makes stdout flush at every line, as on a terminal, in an interpreter that is started cold; and leaves no trace.

Its folder stands first in PYTHONPATH; `site` imports it. It restores PYTHONPATH, takes itself out of everything that
names it, and lets the real sitecustomize, if there is one, take its place.
"""
# No `from __future__ import annotations`: that would put a module into sys.modules.

import os
import sys

here = os.path.dirname(__file__)
own = os.environ.get("PYTHONPATH", "")
if own.startswith(here):  # not in a sub-interpreter: there it has been restored, and stdout is not ours to change
    rest = own[len(here) :]  # nothing, a slash (it was set, but empty), or a colon and what it was
    if rest:
        os.environ["PYTHONPATH"] = rest[1:]
    else:
        del os.environ["PYTHONPATH"]
    out = sys.stdout
    if out is not None and not out.write_through:  # type: ignore[union-attr]  # with -u there is nothing to flush
        out.reconfigure(line_buffering=True)  # type: ignore[union-attr]
if here in sys.path:
    sys.path.remove(here)
for entry in (here, here + "/"):
    sys.path_importer_cache.pop(entry, None)
del sys.modules["sitecustomize"]
# Raises ImportError, as `site` expects it, where there is none.
import sitecustomize  # type: ignore[import-not-found]  # noqa: E402, F401
