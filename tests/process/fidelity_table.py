"""What a script can see: one table of small scripts, each run directly, cold and warm by test_fidelity.py and compared byte
by byte. A script prints nothing that differs from run to run; addresses are masked.
"""

from __future__ import annotations

# fmt: off
import textwrap
from typing import NamedTuple, Union


class Probe(NamedTuple):
    name: str
    code: Union[str, bytes, None]  # None: there is no script file
    args: tuple[str, ...] = ()
    env: tuple[tuple[str, Union[str, None]], ...] = ()  # None: unset
    stdin: Union[bytes, None] = None  # None: /dev/null
    stdin_file: bool = False  # from a file instead of a pipe
    stdout: str = "pipe"  # or a path
    files: tuple[tuple[str, Union[str, bytes]], ...] = ()  # beside the script
    file: str = "script.py"
    script: str = "{folder}/{file}"  # how it is called; the working directory is {folder}/work
    links: tuple[tuple[str, str], ...] = ()  # name, target
    buffered: bool = False  # without the flush at every line
    cold: str = ""  # part of the reason why it must start cold
    since: tuple[int, int] = (3, 9)
    quick: bool = False


PROBES: list[Probe] = []


def p(name: str, code: Union[str, bytes, None], **kw: object) -> None:
    """Add a probe; env, files and links may be dicts."""
    for field in ("env", "files", "links"):
        if isinstance(kw.get(field), dict):
            kw[field] = tuple(kw[field].items())  # type: ignore[attr-defined]
    PROBES.append(Probe(name, textwrap.dedent(code) if isinstance(code, str) else code, **kw))  # type: ignore[arg-type]


# --- argv, path, flags, __main__ ---

p("argv", "import sys; print(sys.argv)", args=("a", "b c", "", "-x", "--", "ü", "\n", "'\""), quick=True)
p("argv undecodable", "import sys; print(ascii(sys.argv))", args=("\udcff\udc80", "ok"))
p("argv is a list of its own", "import sys; sys.argv.append(1); print(len(sys.argv), type(sys.argv))")
p("orig_argv", "import sys; print(getattr(sys, 'orig_argv', None))", args=("1",), quick=True)
p("many args", "import sys; print(len(sys.argv), sum(map(len, sys.argv)))", args=tuple(str(n) for n in range(9000)))
p("flags", "import sys; print(sys.flags, sys._xoptions, sys.warnoptions)", quick=True)
p("path", "import sys; print(sys.path)", quick=True)
p("path of a link", "import sys; print(sys.path[0], __file__)", script="{folder}/link.py", links={"link.py": "script.py"})
p(
    "path through linked folders",
    "import sys; print(sys.path[0], __file__, sys.argv)",
    script="{folder}/way/sub/script.py",
    files={"real/sub/script.py": "import sys; print(sys.path[0], __file__, sys.argv)"},
    links={"way": "real"},
)
p("relative", "import sys; print(sys.path[0], __file__, sys.argv)", script="../script.py")
p("relative with dots", "import sys; print(sys.path[0], __file__); 1/0", script="./.././work/../script.py")
p("double slash", "import sys; print(sys.path[0], __file__, sys.argv)", script="{folder}//./script.py")
p("odd name", "import sys; print(sys.argv, __file__); 1/0", file="a b 'ü\" $x;.py")
p("undecodable name", "import sys; print(ascii(sys.argv), ascii(__file__))", file="x\udcff.py")
p("no suffix", "import sys; print(sys.argv, __file__, __name__)", file="script")
p("other suffix", "print(__file__, __loader__.name)", file="script.txt")
p("main's names", "print(list(globals()))", quick=True)
p(
    "main's attributes",
    """
    import sys
    main = sys.modules["__main__"]
    print(main, main.__dict__ is globals(), __name__, __package__, __spec__, __doc__, __file__)
    print(type(__loader__), __loader__.name, __loader__.path, __builtins__, globals().get("__annotations__"))
    print(globals().get("__cached__", "none"), __loader__.get_source("__main__")[:10], __loader__.is_package("__main__"))
    """,
    quick=True,
)
p("docstring", '"""The doc."""\nprint(__doc__)')
p("annotations", "x: int = 1\nprint(__annotations__)")
p("modules", "import sys; print(list(sys.modules))", quick=True)
p("modules are whole", "import sys; print([(n, type(m).__name__, hasattr(m, '__spec__')) for n, m in sys.modules.items()])")
p("importer cache", "import sys; print(list(sys.path_importer_cache.items())[-2:], len(sys.path_importer_cache))")
p("finders", "import sys; print([type(x) for x in sys.meta_path + sys.path_hooks])")
p("names in sys", "import sys; print(sorted(vars(sys)), list(vars(sys)))", quick=True)
p("values in sys", "import sys; print(sys.executable, sys.prefix, sys.base_prefix, sys.exec_prefix, sys._base_executable)")
p("names in builtins", "import builtins; print(list(vars(builtins)))")
p("import __main__", "import __main__; print(__main__.__file__, __main__.x if hasattr(__main__, 'x') else 'no x'); x = 1")
p("limits of the interpreter", "import sys; print(sys.getrecursionlimit(), sys.getswitchinterval(), sys.getdlopenflags())")
p("hooks in sys", "import sys; print(sys.excepthook is sys.__excepthook__, sys.displayhook, sys.gettrace(), sys.getprofile())")
p("loaders", "import os, sys; print(type(os.__loader__), os.__spec__.origin == os.__file__, os.__cached__)")
p("importlib's classes", "import importlib.machinery as m; print(m.SourcelessFileLoader, m.SourceFileLoader, m.PathFinder)")
p("frozen bootstrap", "import sys; b = sys.modules['_frozen_importlib_external']; print(list(vars(b)))")
p("subclasses", "print(sorted({c.__name__ for c in object.__subclasses__()}))", cold="__subclasses__")
p("sub-interpreters", "x = 'interpreters'; print(x)", cold="interpreters")

# --- frames and tracebacks ---

p("no frame below", "import sys; print(sys._getframe().f_back, sys._getframe().f_code.co_name)", quick=True)
p("own code object", "import sys; c = sys._getframe().f_code; print(c.co_filename, c.co_flags, c.co_firstlineno, c.co_names)")
p("print_stack", "import traceback\ndef f(): traceback.print_stack()\nf()", quick=True)
p("uncaught", "def f():\n    return 1 / 0\n\nf()", quick=True)
p("uncaught after output", "print('before')\nraise ValueError('x\\ny')")
p("chained", "try:\n    1/0\nexcept ZeroDivisionError as e:\n    raise KeyError('k') from e")
p("in a handler", "try:\n    1/0\nexcept ZeroDivisionError:\n    {}['k']")
p("from None", "try:\n    1/0\nexcept ZeroDivisionError:\n    raise KeyError('k') from None")
p("group", "raise ExceptionGroup('g', [ValueError(1), ExceptionGroup('h', [TypeError(2)])])", since=(3, 11))
p("except star", "try:\n    raise ExceptionGroup('g', [ValueError(1)])\nexcept* ValueError:\n    1/0", since=(3, 11))
p("notes", "e = ValueError('v'); e.add_note('a note'); raise e", since=(3, 11))
p("recursion", "def f(n): return f(n + 1)\nf(0)")
p("recursion depth", "import sys\ndef f(n):\n    try: return f(n + 1)\n    except RecursionError: return n\nprint(f(0))")
p("suggestion", "value = 1\nprint(valeu)")
p("attribute suggestion", "import sys\nsys.argvv")
p("not beside", "import no_such_module")
p("from import", "from os import no_such_name")
p("assertion", "assert 1 == 2, 'message'")
p("long expression", "x = {'a': {'b': None}}\nprint(x['a']['b']['c']['d'], 'after', 1, 2, 3)")
p("several lines", "print(\n    1,\n    2 /\n    0,\n)")
p("unicode line", "ä = 1; ö = ä / 0  # é漢字", cold="imports")
p("unicode line, ascii names", "1/0; 'é漢字'  # é漢字")
p("tabs", "if 1:\n\tx = 1\n\t1/0")
p("class in main", "class Odd(Exception): pass\nraise Odd('x')")
p("exception without message", "raise KeyboardInterrupt")
p("error in repr", "class E(Exception):\n    def __str__(self): 1/0\nraise E")
p("excepthook", "import sys\nsys.excepthook = lambda *a: print('hook', a[0], a[2].tb_frame.f_back)\n1/0")
p("broken excepthook", "import sys\ndef hook(*a): raise TypeError\nsys.excepthook = hook\n1/0")
p("tracebacklimit", "import sys\nsys.tracebacklimit = 1\ndef f(): g()\ndef g(): 1/0\nf()")
p("tb_frames", "import sys\ntry: 1/0\nexcept Exception:\n    t = sys.exc_info()[2]; print(t.tb_lineno, t.tb_next, t.tb_frame.f_back)")
p("generator", "def g():\n    yield 1\n    1/0\nlist(g())")
p("exec'd code", "exec(compile('\\n\\n1/0', 'other.py', 'exec'))")
p("source gone", "import os; os.unlink(__file__)\n1/0")
p("source changed", "open(__file__, 'w').write('x\\n' * 9)\n1/0")
p("error beside", "import beside", files={"beside.py": "def f():\n    1/0\nf()\n"}, quick=True)
p("syntax error beside", "import beside", files={"beside.py": "x = (\n"})
p("format_exc", "import traceback\ntry: {}[1]\nexcept KeyError: print(traceback.format_exc())")
p("stack summary", "import traceback\nprint([(f.filename, f.lineno, f.name, f.line) for f in traceback.extract_stack()])")
p("inspect stack", "import inspect\ndef f(): return [(s.filename, s.lineno, s.function, s.code_context) for s in inspect.stack()]\nprint(f())")
p("faulthandler", "import faulthandler, sys; faulthandler.dump_traceback(sys.stderr); print(faulthandler.is_enabled())")
p("faulthandler in a crash", "import faulthandler, os\nfaulthandler.enable()\nos.kill(os.getpid(), 11)")
p("unraisable", "class A:\n    def __del__(self): 1/0\na = A()\ndel a\nprint('on')")

# --- source forms ---

p("syntax error", "print('never')\nx = = 1\n", cold="compile", quick=True)
p("indentation error", "if 1:\nx = 1\n", cold="compile")
p("unclosed", "print(\n", cold="compile")
p("null byte", b"print(1)\n\0\n", cold="compile")
p("empty", "")
p("comment", "# nothing")
p("no newline at the end", "print(1)")
p("carriage returns", b"print(1)\r\nprint(2)\r\n1/0\r\n")
p("old mac", b"print(1)\rprint(2)\r")
p("form feed", "x = 1\n\x0cprint(x)\n")
p("latin-1", "# -*- coding: latin-1 -*-\nprint(ascii('é'))\n1/0 # é".encode("latin-1"))
p("second line coding", "#!/usr/bin/python\n# vim: set fileencoding=cp1252 :\nprint(ascii('€'))".encode("cp1252"), cold="imports")
p("mark", b"\xef\xbb\xbfprint('bom')\n1/0")
p("mark and other coding", b"\xef\xbb\xbf# coding: latin-1\nprint(1)", cold="compile")
p("not utf-8", b"print('\xff')", cold="compile")
p("unknown coding", b"# coding: no-such\nprint(1)", cold="compile")
p("shebang", "#!/bin/false\nprint('ran')")
p("future", "from __future__ import annotations\nimport sys\nx: no.such = 1\nprint(__annotations__, '__future__' in sys.modules)")
p("named character", "import sys; print('unicodedata' in sys.modules, ascii('\\N{BULLET}'))", cold="imports")
p("invalid escape", "print('\\d')", cold="?")
p("comparison with a literal", "x = 1\nprint(x is 1)", cold="warning")
p("warning at compile, filtered", "x = 1\nprint(x is 1)", env={"PYTHONWARNINGS": "ignore"})
p("sets in constants", "print(3 in {1, 2, 3}, [x for x in {1, 2, 3}], 'a' in {'b', 'a'})")
p("order of a set", "for x in {8, 16, 0}: print(x)", cold="?")
p("identity of constants", "a = (1, 2); b = (1, 2)\ndef f(): return (1, 2)\nprint(a is b, f() is a, 'x y' is f.__name__)", cold="warning")
p("interning", "a = 'abc_d'; b = ''.join(['abc', '_d']); import sys; print(a is sys.intern(b))")
p("long source", "x = 0\n" + "x += 1\n" * 20000 + "print(x)")
p("big source", "x = '" + "y" * (4 << 20) + "'\nprint(len(x))", cold="big")
p("deep", "print(" + "(" * 80 + "1" + ")" * 80 + ")")
p("too deep", "print(" + "-" * 5000 + "1)", cold="?")
p("dunder debug", "print(__debug__)\nassert False")
p("optimised", "print(__debug__)\nassert False\nprint('on')", env={"PYTHONOPTIMIZE": "1"})
p("no docstrings", '"""doc"""\ndef f(): "doc"\nprint(__doc__, f.__doc__)', env={"PYTHONOPTIMIZE": "2"})
p("no such script", None, cold="cannot be read")
p("a folder", None, files={"script.py/__main__.py": "import sys; print(sys.argv, __file__, sys.path[0])"}, cold="not a regular")
p("compiled garbage", b"\xa7\r\r\n" + bytes(40), file="script.pyc", cold="not Python")
p("an archive", "ARCHIVE", cold="not Python")
p("python says it is big", "print('PK')")

# --- exits ---

for code in ("", "0", "1", "3", "255", "256", "-1", "None", "True", "'text'", "('a', 1)", "2.5", "10**30", "b'x'"):
    p(f"exit({code})", f"import sys; print('x'); sys.exit({code})", quick=code in ("3", "'text'"))
p("quit", "quit(4)")
p("SystemExit subclass", "class E(SystemExit): pass\nraise E(5)")
p("exit in a thread", "import threading, sys\nt = threading.Thread(target=sys.exit, args=(3,)); t.start(); t.join()")
p("_exit", "import os; print('lost', end=''); os._exit(9)", buffered=True)
p("exit in atexit", "import atexit, sys; atexit.register(sys.exit, 6)")
p("error in atexit", "import atexit; atexit.register(lambda: 1/0)")
p("exit while handling", "import sys\ntry: 1/0\nexcept ZeroDivisionError: sys.exit('bad')")
p("stdout that cannot be written", "print('x')", stdout="/dev/full", buffered=True, quick=True)
p("stdout that cannot be written, late", "print('x', end='')", stdout="/dev/full")
p("closed stdout", "import sys; print('x'); sys.stdout.close()")
p("closed descriptor", "import os; print('x', end=''); os.close(1)", buffered=True)
p("stdout is None", "import sys; sys.stdout = None; print('x')")
p("abort", "import os; os.abort()")

# --- signals ---

for name in ("SIGINT", "SIGTERM", "SIGSEGV", "SIGKILL", "SIGUSR1", "SIGHUP", "SIGQUIT", "SIGALRM"):
    p(f"killed by {name}", f"import os, signal\nprint(1)\nos.kill(os.getpid(), signal.{name})", buffered=True, quick=name == "SIGINT")
p("dispositions", "import signal; print([(s, signal.getsignal(s)) for s in sorted(signal.valid_signals())])", quick=True)
p("blocked and ignored", "print([l for l in open('/proc/self/status') if l.startswith(('Shd', 'SigP', 'SigB', 'SigI', 'SigC'))])", quick=True)
p("in a child", "import subprocess; subprocess.run(['grep', '^Sig[BIC]', '/proc/self/status'])")
p("in a child as it is", "import subprocess; subprocess.run(['grep', '^Sig[BIC]', '/proc/self/status'], restore_signals=False)")
p("wakeup descriptor", "import signal; print(signal.set_wakeup_fd(-1), signal.getitimer(0), signal.pthread_sigmask(0, ()))")
p("handler", "import os, signal\nsignal.signal(10, lambda s, f: print('got', s, f.f_back))\nos.kill(os.getpid(), 10)")
p("alarm", "import signal\nsignal.signal(14, lambda *a: 1/0)\nsignal.setitimer(0, 0.01)\nsignal.pause()")
p("interrupt in a function", "import os, signal\ndef f(): os.kill(os.getpid(), 2); input()\nf()")
p("interrupt handled", "import os\ntry:\n    os.kill(os.getpid(), 2); import time; time.sleep(9)\nexcept KeyboardInterrupt: print('caught')")
p("children of a child", "import signal, os\nif os.fork() == 0: os._exit(3)\nprint(os.WEXITSTATUS(os.wait()[1]), signal.getsignal(17))")
p("SIGCHLD", "import os, signal\nsignal.signal(17, lambda *a: print('child'))\nif os.fork() == 0: os._exit(0)\nos.waitpid(-1, 0)")
p("no other children", "import os\ntry: os.wait()\nexcept ChildProcessError as e: print(e)", quick=True)

# --- the end ---

p("atexit", "import atexit\nfor n in range(3): atexit.register(print, n)\nprint(atexit._ncallbacks())", quick=True)
p("names at exit", "import atexit; atexit.register(lambda: print(sorted(globals())))", quick=True)
p("finaliser of a global", "class A:\n    def __del__(self, p=print): p('del', __name__)\na = A()", quick=True)
p("finaliser in a cycle", "class A:\n    def __del__(self, p=print): p('del')\na = A(); a.a = a\ndel a")
p("finaliser in a module", "import beside", files={"beside.py": "class A:\n    def __del__(self, p=print): p('del')\na = A()\n"})
p("finaliser after an error", "class A:\n    def __del__(self, p=print): p('del')\ndef f():\n    a = A()\n    1/0\nf()")
p("weakref.finalize", "import weakref\nclass A: pass\na = A()\nweakref.finalize(a, print, 'finalised')")
p("generator left", "def g():\n    try: yield\n    finally: print('closed')\nx = g(); next(x)")
p("modules at the end", "import sys, json\nclass A:\n    def __del__(self, s=sys, p=print): p(s.is_finalizing(), json is None)\nsys.keep = A()")
p("open file", "f = open('out', 'w'); f.write('text'); print(open('out').read() == '')")
p("resource warning", "f = open(__file__)", env={"PYTHONWARNINGS": "always"})
p("unawaited", "async def f(): pass\nf()")
p("temporary files", "import tempfile, os; d = tempfile.TemporaryDirectory(); print(os.path.isdir(d.name)); d.cleanup()")
p("order at the end", """
    import atexit, sys, threading
    class A:
        def __init__(self, n): self.n = n
        def __del__(self, p=print): p("del", self.n)
    a, b, _c = A("a"), A("b"), A("_c")
    atexit.register(print, "atexit")
    threading.Thread(target=lambda: print("thread")).start()
    print("main")
    """)

# --- threads ---

p("main thread", """
    import os, threading
    t = threading.current_thread()
    print(t.name, t is threading.main_thread(), t.native_id == os.getpid(), threading.get_native_id() == os.getpid())
    print(t.ident == threading.get_ident(), threading.active_count(), t.daemon, threading.stack_size())
    """, quick=True)
p("thread ident in main", "import _thread, threading; print(_thread.get_ident() == threading.main_thread().ident)")
p("thread error", "import threading\nt = threading.Thread(target=lambda: 1/0, name='odd'); t.start(); t.join()")
p("daemon thread", "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start(); print('end')")
p("late thread", "import threading\nthreading.Thread(target=lambda: (threading.main_thread().join(), print('late'))).start(); print('end')")
p("executor", "from concurrent.futures import ThreadPoolExecutor as T\nwith T(4) as t: print(list(t.map(str, range(9))))")
p("threads of the process", "import os; print(os.listdir('/proc/self/task') == [str(os.getpid())])")
p("thread hook", "import threading\nthreading.excepthook = lambda a: print('hook', a.exc_type)\nthreading.Thread(target=lambda: 1/0).start()")

# --- processes ---

MP = """
    import multiprocessing as mp, sys
    def work(n):
        return n * n
    if __name__ == "__main__":
        with mp.get_context("%s").Pool(2) as pool:
            print(pool.map(work, range(5)))
    """
for method in ("fork", "spawn", "forkserver"):
    p(f"pool by {method}", MP % method)
p("process", "import multiprocessing as mp, sys\nif __name__ == '__main__':\n    q = mp.get_context('fork').Process(target=sys.exit, args=(3,)); q.start(); q.join(); print(q.exitcode, q.name)")
p("spawned main", """
    import multiprocessing as mp, sys
    print(__name__, sys.argv)
    def work(): print(__name__, sys.modules["__main__"].__name__, "in child")
    if __name__ == "__main__":
        c = mp.get_context("spawn").Process(target=work); c.start(); c.join(); print(c.exitcode)
    """)
p("remote error", """
    from concurrent.futures import ProcessPoolExecutor
    import multiprocessing as mp
    def work(n): return 1 / n
    if __name__ == "__main__":
        with ProcessPoolExecutor(1, mp_context=mp.get_context("fork")) as pool: pool.submit(work, 0).result()
    """)
p("manager", "import multiprocessing as mp\nif __name__ == '__main__':\n    with mp.get_context('fork').Manager() as m:\n        l = m.list([1]); l.append(2); print(list(l))")
p("shared memory", "from multiprocessing import shared_memory as s\nm = s.SharedMemory(create=True, size=9); m.buf[0] = 7; print(m.buf[0]); m.close(); m.unlink()")
p("multiprocessing's view", "import multiprocessing as mp; print(mp.current_process().name, mp.parent_process(), mp.active_children())")
p("queue", "import multiprocessing as mp\nc = mp.get_context('fork'); q = c.Queue()\np = c.Process(target=q.put, args=([1],)); p.start(); print(q.get()); p.join()")
p("fork", "import os, sys\nif os.fork() == 0: print('child'); sys.exit(4)\nprint(os.WEXITSTATUS(os.wait()[1]))", quick=True)
p("fork flushes twice", "import os\nprint('once', end='')\nif os.fork(): os.wait()", buffered=True)
p("subprocess", "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import sys; print(sys.argv, sys.path[1:], sys.flags)'])")
p("variables of a subprocess", "import subprocess; subprocess.run(['env'])", env={"A": "1"}, quick=True)
p("subprocess's python", "import subprocess, sys; subprocess.run([sys.executable, 'child.py'])", files={"work/child.py": "import sys, os; print(list(sys.modules), sys.stdout.line_buffering, os.environ.get('PYTHONPATH'))"})
p("descriptors of a subprocess", "import subprocess; subprocess.run(['ls', '/proc/self/fd'], close_fds=False)")
p("popen", "import os; f = os.popen('echo hi; exit 3'); print(f.read(), f.close())")
p("exec", "import os, sys; sys.stdout.flush(); os.execv(sys.executable, [sys.executable, '-c', 'import sys; print(sys.argv)', '1'])")
p("system", "import os; print(os.system('exit 5') >> 8)")
p("session", "import os; print(os.getsid(0) == os.getpid() == os.getpgrp(), os.getppid() > 1)", quick=True)
p("subreaper", "import ctypes; n = ctypes.c_int(); ctypes.CDLL(None).prctl(37, ctypes.byref(n), 0, 0, 0); print(n.value)")
p("dumpable", "import ctypes; print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))")

# --- asyncio ---

p("asyncio", "import asyncio\nasync def f(): await asyncio.sleep(.001); return 1\nprint(asyncio.run(f()))")
p("asyncio error", "import asyncio\nasync def f(): 1/0\nasyncio.run(f())")
p("asyncio subprocess", "import asyncio\nasync def f():\n    q = await asyncio.create_subprocess_exec('echo', 'hi'); print(await q.wait())\nasyncio.run(f())")
p("asyncio task lost", "import asyncio\nasync def g(): 1/0\nasync def f(): t = asyncio.create_task(g()); await asyncio.sleep(0.001)\nasyncio.run(f())")
p("asyncio signals", "import asyncio, os, signal\nasync def f():\n    e = asyncio.Event(); asyncio.get_running_loop().add_signal_handler(10, e.set)\n    os.kill(os.getpid(), 10); await e.wait(); print('got')\nasyncio.run(f())")
p("asyncio interrupt", "import asyncio, os\nasync def f(): os.kill(os.getpid(), 2); await asyncio.sleep(9)\nasyncio.run(f())")

# --- standard streams ---

STREAMS = """
    import io, os, sys
    for name in ("stdin", "stdout", "stderr"):
        s = getattr(sys, name)
        if s is None: print(name, None, file=sys.stderr); continue
        print(repr(s), s.mode, s.name, s.encoding, s.errors, s.newlines, s.line_buffering, s.write_through, file=sys.stderr)
        print(type(s.buffer), s.isatty(), s.fileno(), s is getattr(sys, "__%s__" % name), s.closed, file=sys.stderr)
        raw = getattr(s.buffer, "raw", s.buffer)
        print(raw, raw.closefd, raw.mode, raw.seekable(), s.seekable(), raw._blksize, file=sys.stderr)
        print(sorted(s.__dict__), s.readable(), s.writable(), s._CHUNK_SIZE, file=sys.stderr)
    """
p("streams", STREAMS, buffered=True, quick=True)
p("streams flushed by line", STREAMS.replace("s.line_buffering", "name == 'stdout' or s.line_buffering"))
p("streams, stdin a pipe", STREAMS, buffered=True, stdin=b"")
p("streams, stdin a file", STREAMS, buffered=True, stdin=b"abc\n", stdin_file=True)
p("streams, stdout a file", STREAMS, buffered=True, stdout="{folder}/out")
p("streams, stdout /dev/null", STREAMS, buffered=True, stdout="/dev/null")
p("streams unbuffered", STREAMS, env={"PYTHONUNBUFFERED": "1"})
p("streams unbuffered, files", STREAMS, env={"PYTHONUNBUFFERED": "1"}, stdin=b"", stdin_file=True, stdout="{folder}/out")
p("streams in latin-1", STREAMS, env={"PYTHONIOENCODING": "latin-1:replace"}, buffered=True)
p("streams in latin-1, a file", STREAMS, env={"PYTHONIOENCODING": "latin-1:replace"}, buffered=True, stdout="{folder}/out")
p("input", "print(input('? '), input())\ninput()", stdin=b"one\ntwo\n", quick=True)
p("input of nothing", "input()")
p("stdin lines", "import sys\nfor line in sys.stdin: print(repr(line))", stdin=b"a\r\nb\nc")
p("stdin bytes", "import sys; print(sys.stdin.buffer.peek(3)[:3], sys.stdin.buffer.read())", stdin=bytes(range(256)))
p("stdin file", "import sys; print(sys.stdin.tell(), sys.stdin.readline(), sys.stdin.seek(0), sys.stdin.read())", stdin=b"a\nb\n", stdin_file=True)
p("stdin undecodable", "import sys; print(ascii(sys.stdin.read()))", stdin=b"\xff\xfe")
p("stdin undecodable, C locale", "import sys; print(ascii(sys.stdin.read()))", stdin=b"\xff\xfe", env={"LC_ALL": "C"})
p("descriptor 0", "print(open(0).read())", stdin=b"text")
p("stdin from the script", "import os; print(os.read(0, 3))", stdin=b"abcdef")
p("much output", "import sys\nfor n in range(30000): print('line', n)\nsys.stderr.write('e' * 100000)")
p("one long line", "print('x' * 3_000_000)")
p("order of streams", "import sys, os\nprint('1'); os.write(1, b'2\\n'); sys.stdout.buffer.write(b'3\\n'); sys.stdout.flush(); print('4', file=sys.stderr)", buffered=True)
p("undecodable output", "print('\\udcff')")
p("unencodable output", "print('é')", env={"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"})
p("detach", "import sys; b = sys.stdout.detach(); b.write(b'raw\\n'); b.flush()")
p("reconfigure", "import sys; sys.stdout.reconfigure(encoding='utf-16', newline='\\r\\n'); print('x')")
p("reopened", "import sys, os; sys.stdout = os.fdopen(1, 'w'); print('x')")
p("blocking", "import os; print([os.get_blocking(n) for n in range(3)], [os.get_inheritable(n) for n in range(3)])", quick=True)
p("print to a closed pipe", "import os\nr, w = os.pipe(); os.close(r); os.dup2(w, 1); print('x' * 10, flush=True)")
p("print to a closed pipe at the end", "import os\nr, w = os.pipe(); os.close(r); os.dup2(w, 1); print('x', end='')")

# --- descriptors, process attributes ---

p("open descriptors", "import os; print(sorted(os.listdir('/proc/self/fd')))", quick=True)
p("next descriptor", "import os; print(os.open('/', 0), os.open('/', 0), os.pipe())")
p("descriptor kinds", "import os, stat; print([stat.S_IFMT(os.fstat(n).st_mode) for n in range(3)])")
p("command line", "print(open('/proc/self/cmdline', 'rb').read())", args=("a", "b c", ""), quick=True)
p("first environment", "import os; print(open('/proc/self/environ', 'rb').read())", buffered=True, env={"X": "1"})
p("name of the process", "import os; print(open('/proc/self/comm').read(), os.readlink('/proc/self/exe'), os.getcwd())")
p("ps", "import os, subprocess; subprocess.run(['ps', '-o', 'args=', '-p', str(os.getpid())])")
p("limits", "import resource; print([(n, resource.getrlimit(getattr(resource, n))) for n in dir(resource) if n.startswith('RLIM') and n != 'RLIM_INFINITY'])", quick=True)
p("umask and friends", "import os; print(os.umask(0), os.nice(0), os.getuid(), os.getgroups(), os.sched_getaffinity(0))")
p("status", "print([l for l in open('/proc/self/status') if l.startswith(('Name', 'Umask', 'State', 'Uid', 'Cap', 'Sec', 'NoNew', 'Threads'))])")
p("oom and co", "print([open('/proc/self/' + n).read() for n in ('oom_score_adj', 'coredump_filter', 'timerslack_ns', 'personality')])")
p("usage so far", "import os, resource as r, time; print(r.getrusage(r.RUSAGE_CHILDREN)[:3], time.process_time() < 2, os.times().children_user)")
p("scheduling", "import os; print(os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0), os.sched_getparam(0))")
p("working directory", "import os; print(os.getcwd(), os.listdir('.'))")
p("heap", "x = [bytearray(1 << 20) for _ in range(40)]; del x; y = b'a' * (50 << 20); print(len(y))")
p("stack", "def f(n): return n and f(n - 1)\nprint(f(900))")
p("locks", "import fcntl; f = open('lock', 'w'); fcntl.flock(f, fcntl.LOCK_EX); print('locked')")
p("cgroup", "print(open('/proc/self/cgroup').read())")

# --- variables ---

p("environ", "import os; print(list(os.environ.items()))", env={"ZZ": "1", "AA": "2=3", "EMPTY": ""}, quick=True)
p("environ undecodable", "import os; print(os.environb[b'BAD'])", env={"BAD": "\udcff"})
p("environ changed", "import os; os.environ['NEW'] = 'x'; del os.environ['PATH']; os.putenv('P', '1'); os.execve('/usr/bin/env', ['env'], os.environ)")
p("C's environ", "import ctypes; g = ctypes.CDLL(None).getenv; g.restype = ctypes.c_char_p; print(g(b'AA'), g(b'HOME'), g(b'NO'))", env={"AA": "2"})
p("no locale", "import os, sys, locale; print(list(os.environ.items())[-3:], sys.flags.utf8_mode, locale.getlocale())", env={"LANG": None, "LC_ALL": None, "LC_CTYPE": None}, quick=True)
p("LC_ALL=C", "import locale, sys; print(locale.setlocale(0), sys.getfilesystemencoding(), locale.getpreferredencoding(False))", env={"LC_ALL": "C"})
p("LANG=C.UTF-8", "import locale, sys; print(locale.setlocale(locale.LC_CTYPE), locale.getpreferredencoding())", env={"LANG": "C.UTF-8", "LC_ALL": None})
p("LANG=POSIX", "import locale, os, sys; print(locale.setlocale(0), sys.stdout.errors, os.environ.get('LC_CTYPE'))", env={"LANG": "POSIX"})
p("setlocale", "import locale; print(locale.setlocale(locale.LC_ALL, ''), locale.localeconv()['decimal_point'])")
for zone in ("Asia/Tokyo", "XYZ-5:30", ""):
    p(f"TZ={zone}", "import time, datetime; print(time.tzname, time.timezone, time.localtime(0)[:6], datetime.datetime.fromtimestamp(0))", env={"TZ": zone}, quick=zone.startswith("X"))
p("time zone", "import time; print(time.tzname, time.timezone, time.daylight, time.localtime(1e9)[:6])")
p("TZ changed", "import os, time; os.environ['TZ'] = 'XYZ3'; time.tzset(); print(time.tzname)", env={"TZ": "ABC1"})
p("hash seed 0", "print(list({'a', 'b', 'c', 'd', 'e'}), hash('x'))", env={"PYTHONHASHSEED": "0"}, quick=True)
p("hash seed 42", "print(list({'a', 'b', 'c', 'd', 'e'}), hash('x'), [x for x in 'abc' if x in {'a', 'b'}])", env={"PYTHONHASHSEED": "42"})
p("hash of numbers", "print(hash(1.5), hash(10**30), hash(None) == hash(None), hash((1, 2)))")
p("PYTHONPATH", "import sys, extra; print(sys.path, extra.__file__)", env={"PYTHONPATH": "{folder}/more"}, files={"more/extra.py": ""}, quick=True)
p("PYTHONPATH relative", "import sys; print(sys.path)", env={"PYTHONPATH": "more"}, cold="PYTHONPATH")
p("PYTHONPATH of two", "import os, sys; print(sys.path, os.environ['PYTHONPATH'])", env={"PYTHONPATH": "/a:/b/"})
p("PYTHONPATH empty", "import os, sys; print(sys.path, repr(os.environ['PYTHONPATH']))", env={"PYTHONPATH": ""})
p("sitecustomize", "import sys, sitecustomize as s; print(s.__file__, s.seen, list(sys.modules)[-6:])", env={"PYTHONPATH": "{folder}/more"}, files={"more/sitecustomize.py": "import sys; seen = sorted(set(sys.modules) & {'json', 'sitecustomize'})"}, quick=True)
p("sitecustomize fails", "print('on')", env={"PYTHONPATH": "{folder}/more"}, files={"more/sitecustomize.py": "1/0"}, cold="no warm start")
p("sitecustomize prints", "print('on')", env={"PYTHONPATH": "{folder}/more"}, files={"more/sitecustomize.py": "print('hello')"})
p("usercustomize", "import sys; print(sys.modules['usercustomize'].__file__)", env={"PYTHONPATH": "{folder}/more"}, files={"more/usercustomize.py": ""}, cold="?")
p("sitecustomize sets things", "import sys; print(sys.getrecursionlimit(), x)", env={"PYTHONPATH": "{folder}/more"}, files={"more/sitecustomize.py": "import sys, builtins; sys.setrecursionlimit(777); builtins.x = 5"})
p("beside is no sitecustomize", "import sys; print('sitecustomize' in sys.modules)", files={"sitecustomize.py": "print('wrong')"})
p("PYTHONWARNINGS", "import sys, warnings; print(sys.warnoptions, warnings.filters); warnings.warn('x')", env={"PYTHONWARNINGS": "error::UserWarning"})
p("PYTHONDEVMODE", "import sys, faulthandler; print(sys.flags, faulthandler.is_enabled()); open(__file__)", env={"PYTHONDEVMODE": "1"}, cold="?")
p("PYTHONTRACEMALLOC", "import tracemalloc as t; print(t.is_tracing(), t.get_traceback_limit())", env={"PYTHONTRACEMALLOC": "3"})
p("PYTHONFAULTHANDLER", "import os; os.kill(os.getpid(), 6)", env={"PYTHONFAULTHANDLER": "1"})
p("PYTHONMALLOC", "print('malloc')", env={"PYTHONMALLOC": "malloc"})
p("PYTHONMALLOC=debug", "print('debug')", env={"PYTHONMALLOC": "debug"})
p("PYTHONNOUSERSITE", "import site, sys; print(sys.flags.no_user_site, site.ENABLE_USER_SITE)", env={"PYTHONNOUSERSITE": "1"})
p("PYTHONDONTWRITEBYTECODE", "import beside, os; print(os.listdir(os.path.dirname(__file__)))", env={"PYTHONDONTWRITEBYTECODE": "1"}, files={"beside.py": ""})
p("PYTHONPYCACHEPREFIX", "import sys, beside; print(sys.pycache_prefix, beside.__cached__)", env={"PYTHONPYCACHEPREFIX": "{folder}/pyc"}, files={"beside.py": ""})
p("PYTHONSAFEPATH", "import sys; print(sys.path, sys.flags)", env={"PYTHONSAFEPATH": "1"})
p("PYTHONUTF8", "import sys, locale; print(sys.flags.utf8_mode, locale.getpreferredencoding(False))", env={"PYTHONUTF8": "1"})
p("PYTHONINTMAXSTRDIGITS", "import sys; print(getattr(sys, 'get_int_max_str_digits', int)())", env={"PYTHONINTMAXSTRDIGITS": "700"})
p("PYTHONWARNDEFAULTENCODING", "open(__file__).close()", env={"PYTHONWARNDEFAULTENCODING": "1"})
p("PYTHONNODEBUGRANGES", "x = 1 + 2 / 0 + 3", env={"PYTHONNODEBUGRANGES": "1"})
p("PYTHONASYNCIODEBUG", "import asyncio\nasync def f(): print(asyncio.get_running_loop().get_debug())\nasyncio.run(f())", env={"PYTHONASYNCIODEBUG": "1"})
p("PYTHONBREAKPOINT", "breakpoint(); print('on')", env={"PYTHONBREAKPOINT": "0"})
p("PYTHONINSPECT", "print('then')", env={"PYTHONINSPECT": "1"}, cold="PYTHONINSPECT")
p("PYTHONHOME", "import sys; print(sys.prefix)", env={"PYTHONHOME": "/nowhere"}, cold="PYTHONHOME", buffered=True)
p("HOME", "import os, site, sys; print(os.path.expanduser('~'), site.getusersitepackages(), sys.path)", env={"HOME": "{folder}"})
p("no HOME", "import os; print(os.path.expanduser('~') != '~', 'HOME' in os.environ)", env={"HOME": None})
p("COLUMNS", "import argparse, shutil; print(shutil.get_terminal_size()); argparse.ArgumentParser(description='word ' * 30).print_help()", env={"COLUMNS": "40"})
p("TMPDIR", "import tempfile; print(tempfile.gettempdir())", env={"TMPDIR": "{folder}/work"})

# --- warnings ---

p("warning", "import warnings\ndef f(): warnings.warn('careful', stacklevel=2)\nf()", quick=True)
p("warning below", "import warnings\nwarnings.warn('low', stacklevel=5)")
p("deprecation in main", "import warnings\nwarnings.warn('old', DeprecationWarning)")
p("deprecation beside", "import beside", files={"beside.py": "import warnings; warnings.warn('old', DeprecationWarning)"})
p("warning filters", "import warnings; print(warnings.filters, warnings.defaultaction, warnings.onceregistry)")
p("warning once", "import warnings\nfor _ in range(3): warnings.warn('once')\nprint(sorted(map(str, globals().get('__warningregistry__', {}))))")
p("warning as error", "import warnings; warnings.simplefilter('error'); warnings.warn('x')")
p("warning logged", "import logging, warnings; logging.captureWarnings(True); logging.basicConfig(format='%(name)s %(message)s'); warnings.warn('x')")
p("syntax warning of eval", "eval('1 is 1')")

# --- the standard library looks at main ---

p("pickle", "import pickle\nclass A:\n    x = 1\nprint(pickle.dumps(A(), 2), pickle.loads(pickle.dumps(A())).x)", quick=True)
p("getsource", "import inspect\ndef f():\n    return 1\nprint(inspect.getsource(f), inspect.getfile(f), inspect.getmodule(f))", quick=True)
p("linecache", "import linecache, sys; print(linecache.getline(__file__, 1), len(linecache.cache))")
p("doctest", "def f():\n    '''\n    >>> f()\n    2\n    '''\n    return 1\nimport doctest; print(doctest.testmod())")
p("unittest", "import unittest\nclass T(unittest.TestCase):\n    def test_a(self): self.assertEqual(1, 1)\nif __name__ == '__main__': unittest.main(verbosity=0, testRunner=unittest.TextTestRunner(stream=open('/dev/null', 'w'), warnings='ignore'))")
p("pdb", "import pdb\nx = 1\npdb.set_trace()\ny = 2\nprint(x + y)", stdin=b"w\np x\nn\nc\n")
p("breakpoint", "x = 1\nbreakpoint()\nprint(x)", stdin=b"up\nq\n")
p("cProfile", "import cProfile, pstats, io\nq = cProfile.Profile(); q.runcall(len, []); print(sorted(str(k[2]) for k in pstats.Stats(q).stats))")
p("settrace", "import sys\ndef t(f, e, a): print(e, f.f_lineno, f.f_code.co_name); return t\ndef g(): return 1\nsys.settrace(t); g(); sys.settrace(None)")
p("setprofile", "import sys\ndef g(): return 1\nl = []\nsys.setprofile(lambda f, e, a: l.append((e, f.f_code.co_name))); g(); sys.setprofile(None); print(l)")
p("dis", "import dis\ndef f(x): return x + 1\ndis.dis(f)")
p("runpy", "import runpy; print(sorted(runpy.run_path('../beside.py')))", files={"beside.py": "x = 1"})
p("beside", "import beside, sys; print(beside.__file__, beside.__cached__, beside.__name__, beside.x)", files={"beside.py": "x = 1"}, quick=True)
p("package beside", "import pack.inner; print(pack.inner.who, pack.__path__, pack.inner.__package__)", files={"pack/__init__.py": "", "pack/inner.py": "from . import __name__ as who"})
p("namespace package", "import space.inner; print(space.__path__, space.inner.x)", files={"space/inner.py": "x = 2"})
p("shadowing", "import random; print(random.mine)", files={"random.py": "mine = 1"})
p("shadowing what the hook used", "import select, resource, _ctypes; print(select.mine)", files={"select.py": "mine = 1"}, cold="?")
p("reload", "import beside, importlib; print(importlib.reload(beside).x)", files={"beside.py": "x = 1"})
p("circular", "import beside", files={"beside.py": "import __main__; print(sorted(vars(__main__)))"})
p("main imported by name", "import script; print(script.__name__, script is __import__('__main__'))", files={})
p("new file beside", "open(__file__[:-9] + 'fresh.py', 'w').write('x = 3')\nimport fresh; print(fresh.x)")
p("zip import", "import zipfile, sys\nwith zipfile.ZipFile('z.zip', 'w') as z: z.writestr('inz.py', 'x = 4')\nsys.path.insert(0, 'z.zip'); import inz; print(inz.x, inz.__file__)")
p("importlib find", "import importlib.util as u; print(u.find_spec('json').origin, u.find_spec('__main__') if 0 else 0)")
p("site", "import site; print(site.getsitepackages(), site.ENABLE_USER_SITE, site.PREFIXES)")
p("sysconfig", "import sysconfig; print(sysconfig.get_paths())")
p("platform", "import platform; print(platform.python_version(), platform.python_implementation(), platform.python_build())")
p("logging", "import logging; logging.warning('w'); logging.getLogger('x').error('e %s', 1)")
p("argparse", "import argparse; q = argparse.ArgumentParser(); q.add_argument('--n', type=int); print(q.prog); q.parse_args()", args=("--n", "x"))
p("code", "import code; code.interact('banner')", stdin=b"1 + 1\n__name__\n")
p("help", "help(len)")
p("copyright", "print(copyright, exit, quit, license)")
p("annotations resolved", "import typing\nclass A: x: 'int'\nprint(typing.get_type_hints(A))")
p("dataclass", "import dataclasses\n@dataclasses.dataclass\nclass A: x: int = 1\nprint(A())")
p("enum in main", "import enum\nclass E(enum.Enum): A = 1\nprint(repr(E.A), E.__module__, E.__qualname__)")
p("C modules we use", """
    import _socket, select, marshal, _ctypes, resource, _signal, time, posix
    print(_socket.__spec__.name, _socket.socket().family, select.poll, marshal.version, len(_ctypes.__dict__) > 20)
    """)
p("ctypes", "import ctypes; print(ctypes.CDLL(None).abs(-5), ctypes.sizeof(ctypes.c_long), ctypes.pythonapi.Py_IsInitialized())")
p("ctypes callback", "import ctypes; f = ctypes.CFUNCTYPE(int, int)(lambda n: n + 1); print(f(4))")
p("socket", "import socket; a, b = socket.socketpair(); a.send(b'x'); print(b.recv(9), a.fileno())")
p("selectors", "import selectors, os; s = selectors.DefaultSelector(); r, w = os.pipe(); s.register(r, 1); os.write(w, b'x'); print(len(s.select()))")
p("sqlite", "import sqlite3; print(sqlite3.connect(':memory:').execute('select 1+1').fetchall())")
p("gc", "import gc; print(gc.isenabled(), gc.get_threshold(), gc.get_freeze_count() >= 0, gc.callbacks, gc.get_debug())", cold="gc")
p("gc unmentioned", "m = __import__('g' + 'c'); print(m.isenabled(), m.get_threshold(), m.callbacks, m.garbage)")
p("sizes", "import sys; print(sys.getsizeof(0), sys.getsizeof([]), sys.getsizeof({}), sys.float_info[:3], sys.int_info[:2])")
p("small objects", "import sys; a = 256; b = 257; print(a is 256 + 0, sys.intern('a') is 'a'[:])", cold="warning")
p("decimal and float", "import decimal; print(decimal.getcontext(), 0.1 + 0.2, float('1e400'))")
p("contextvars", "import contextvars; print(list(contextvars.copy_context()))")
p("audit", "import sys; sys.addaudithook(lambda e, a: e == 'open' and print(e, a[0])); open('/dev/null')")
p("tracing of imports", "import builtins\nreal = builtins.__import__\ndef spy(n, *a): print(n); return real(n, *a)\nbuiltins.__import__ = spy\nimport json.tool" if 0 else "import builtins; print(builtins.__import__)")
p("random is seeded", "import random; random.seed(1); print(random.random(), random.sample(range(9), 3))")
p("secrets", "import secrets, uuid, random; print(len(secrets.token_hex(4)), uuid.uuid4().version, 0 <= random.random() < 1)")
