"""Run warm and cold when an interpreter first waits warm: what both write has to be the same, byte for byte."""
# No `from __future__ import annotations`: a script like any other, and as small.

import atexit
import os
import sys
import traceback


def say(*things: object) -> None:
    sys.stdout.write("\n".join(map(str, things)) + "\n")


class Last:
    def __del__(self) -> None:
        say("finaliser", __name__, sys.is_finalizing())


def raising() -> None:
    raise ZeroDivisionError


def main() -> None:
    say(sys.argv, sys.path, sys.flags, getattr(sys, "orig_argv", None), sys.executable, sys.prefix)
    say(__name__, __file__, list(globals()), globals()["__loader__"].__class__, __spec__)
    if sys.argv[-1] != "ahead":  # modules were imported ahead, and may be seen
        say(list(sys.modules), list(sys.path_importer_cache), list(vars(sys)), sys.warnoptions)
        say([type(finder) for finder in [*sys.meta_path, *sys.path_hooks]])
    say(list(os.environ.items()), os.getcwd(), sorted(os.listdir("/proc/self/fd")))
    for name in ("stdin", "stdout", "stderr"):
        stream = getattr(sys, name)
        say(repr(stream), stream.line_buffering, stream.write_through, stream is getattr(sys, f"__{name}__"))
    with open("/proc/self/cmdline", "rb") as file:
        say(file.read())
    say(sys._getframe(1).f_back, sys.getrecursionlimit(), sys.getswitchinterval())
    traceback.print_stack()
    try:
        raising()
    except ZeroDivisionError:
        traceback.print_exc()
    atexit.register(lambda: say("atexit", list(globals())))


last = Last()
main()
sys.stdout.flush()
raising()
