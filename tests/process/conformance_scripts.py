"""One table of small scripts: each must do the same under `client.py run` as under `python3`.

`options` go to `client.py run`; `files` lie beside the script; `slow` rows run on one Python version only. What a script
prints must not depend on where it lies, when it runs, or its process id.
"""

from __future__ import annotations

from typing import NamedTuple, Union


class Script(NamedTuple):
    name: str
    source: Union[str, bytes]
    args: tuple[Union[str, bytes], ...] = ()
    stdin: bytes = b""
    files: tuple[tuple[str, str], ...] = ()
    options: tuple[str, ...] = ()
    file_name: str = "script.py"
    slow: bool = False


EXITS = [
    Script("exit_0", "import sys; sys.exit(0)"),
    Script("exit_1", "import sys; sys.exit(1)"),
    Script("exit_3", "print('before'); raise SystemExit(3)"),
    Script("exit_255", "import sys; sys.exit(255)"),
    Script("exit_256_is_0", "import sys; sys.exit(256)"),
    Script("exit_minus_1", "import sys; sys.exit(-1)"),
    Script("exit_none", "import sys; sys.exit(None)"),
    Script("exit_true", "import sys; sys.exit(True)"),
    Script("exit_message", "import sys; sys.exit('no more disk')"),
    Script("exit_object", "import sys; sys.exit(('a', 1))"),
    Script("os_exit_skips_atexit", "import atexit, os; atexit.register(print, 'never'); os._exit(7)"),
    Script("uncaught", "def f(x):\n    return 1 / x\n\nf(0)\n"),
    Script("uncaught_chained", "try:\n    {}['a']\nexcept KeyError as e:\n    raise ValueError('wrong key') from e\n"),
    Script("uncaught_while_handling", "try:\n    {}['a']\nexcept KeyError:\n    undefined_name\n"),
    Script("uncaught_group", "raise ExceptionGroup('two', [ValueError(1), TypeError('b')])"),
    Script("uncaught_with_notes", "e = ValueError('v')\ne.add_note('a note')\nraise e\n"),
    Script("uncaught_recursion", "def f():\n    f()\nf()\n"),
    Script("uncaught_in_exec", "exec('raise RuntimeError(1)')"),
    Script("uncaught_missing_module", "import no_such_module_at_all"),
    Script("uncaught_own_class", "class Mine(Exception):\n    pass\n\nraise Mine('here')\n"),
    Script("excepthook", "import sys\nsys.excepthook = lambda *a: print('hook', a[0].__name__)\n1 / 0\n"),
    Script("keyboard_interrupt", "print('x'); raise KeyboardInterrupt"),
    Script("generator_traceback", "def g():\n    yield 1\n    raise OSError(2, 'gone')\n\nlist(g())\n"),
    Script("assertion", "assert 1 == 2, 'one is not two'"),
]

SIGNALS = [
    Script(f"signal_{name}", f"import os, signal\nprint('on', flush=True)\nos.kill(os.getpid(), signal.{name})\n")
    for name in ("SIGTERM", "SIGKILL", "SIGSEGV", "SIGABRT", "SIGUSR1", "SIGHUP", "SIGINT", "SIGALRM", "SIGPIPE")
] + [
    Script(
        "signal_handler",
        "import os, signal\nsignal.signal(signal.SIGTERM, lambda n, f: print('got', n))\nos.kill(os.getpid(), 15)\nprint('on')\n",
    ),
    Script("signal_settings", "import signal\nfor n in range(1, 32):\n    print(n, signal.getsignal(n))\n"),
    Script("signal_mask", "import signal\nprint(signal.pthread_sigmask(signal.SIG_BLOCK, []))\n"),
    Script(
        "alarm",
        "import signal, time\nsignal.alarm(1)\ntry:\n    time.sleep(60)\nfinally:\n    print('never reached')\n",
    ),
    Script("abort_with_faulthandler", "import faulthandler, os\nfaulthandler.enable()\nos.abort()\n"),
]

OUTPUT = [
    Script("nothing", ""),
    Script("only_a_comment", "# nothing to do"),
    Script("half_a_line", "print('half', end='')"),
    Script("half_a_line_on_stderr", "import sys; sys.stderr.write('half')"),
    Script("binary", "import sys; sys.stdout.buffer.write(bytes(range(256)) * 40)"),
    Script("binary_on_stderr", "import sys; sys.stderr.buffer.write(bytes(range(256)) * 40)"),
    Script("carriage_returns", "print('a\\r\\nb\\rc', end='\\r\\n')"),
    Script("escape_sequences", "print('\\x1b[31mred\\x1b[0m\\x07')"),
    Script("unicode_output", "print('žluťoučký kůň ❤ 🐎')"),
    Script("surrogate_output", "print('\\udcff')"),
    Script(
        "megabytes_20",
        "import sys\nline = b'0123456789abcde\\n' * 4096\nfor _ in range(320):\n    sys.stdout.buffer.write(line)\n",
        slow=True,
    ),
    Script("one_long_line", "import sys; sys.stdout.write('x' * 3_000_000)"),
    Script("many_short_lines", "for i in range(20000):\n    print(i)\n"),
    Script("both_streams", "import sys\nfor i in range(2000):\n    print(i)\n    print(-i, file=sys.stderr)\n"),
    Script(
        "order_when_buffered",
        "import os\nprint('a')\nos.write(1, b'b\\n')\nprint('c')\n",
        options=("--buffered",),
    ),
    Script(
        "stream_settings_when_buffered",
        "import sys\nfor s in (sys.stdin, sys.stdout, sys.stderr):\n"
        "    print(s.name, s.mode, s.encoding, s.errors, s.newlines, s.line_buffering, s.write_through, s.fileno())\n",
        options=("--buffered",),
    ),
    Script(
        "stream_settings",
        "import sys\nfor s in (sys.stdin, sys.stdout, sys.stderr):\n"
        "    print(s.name, s.mode, s.encoding, s.errors, s.newlines, s.fileno(), s.isatty(), type(s.buffer).__name__)\n",
    ),
    Script("closed_stdout", "import sys\nprint('a')\nsys.stdout.close()\nsys.stderr.write('b\\n')\n"),
    Script(
        "stdout_descriptor_closed",
        "import os, sys\nprint('a', flush=True)\nos.close(1)\nprint('b')\n",
        options=("--buffered",),
    ),
    Script("stdout_replaced", "import io, sys\nsys.stdout = io.StringIO()\nprint('swallowed')\n"),
    Script("stdout_reopened", "import os\nwith os.fdopen(1, 'w', closefd=False) as f:\n    f.write('direct\\n')\n"),
    Script("reconfigured", "import sys\nsys.stdout.reconfigure(encoding='utf-16')\nprint('wide')\n"),
    Script("print_to_stderr_and_fail", "import sys\nprint('warn', file=sys.stderr)\nsys.exit('bye')\n"),
]

INPUT = [
    Script("stdin_empty", "import sys; print(repr(sys.stdin.read()))"),
    Script("stdin_read", "import sys; print(sys.stdin.read().upper())", stdin=b"some text\nand more"),
    Script("stdin_input", "print(input('name? ')); print(input())", stdin=b"Alice\nBob\n"),
    Script("stdin_input_end", "input()\ninput()\n", stdin=b"one\n"),
    Script(
        "stdin_binary",
        "import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())",
        stdin=bytes(range(256)) * 20000,
    ),
    Script("stdin_lines", "import sys\nfor line in sys.stdin:\n    print(len(line))\n", stdin=b"a\nbb\r\nccc"),
    Script("stdin_not_read", "print('not interested')", stdin=b"x" * 300000),
    Script("stdin_not_utf8", "import sys; print(ascii(sys.stdin.read()))", stdin=b"caf\xe9\n"),
    Script("fileinput", "import fileinput\nfor line in fileinput.input():\n    print(line.strip())\n", stdin=b"1\n2\n"),
]

SOURCES = [
    Script("latin_1", "# -*- coding: latin-1 -*-\nprint('caf\xe9', len('\xe9'))\n".encode("latin-1")),
    Script("utf_8_names", "größe = 3\nprint(größe, '日本語')\n"),
    Script("byte_order_mark", b"\xef\xbb\xbfprint('after the mark')\n"),
    Script("windows_lines", b"print('a')\r\nif True:\r\n    print('b')\r\n1 / 0\r\n"),
    Script("no_newline_at_end", "print('end')"),
    Script("form_feed", "print(1)\n\x0c\nprint(2)\n"),
    Script("not_utf_8", b"print('caf\xe9')\n"),
    Script("unknown_coding", "# coding: klingon\nprint(1)\n"),
    Script("null_byte", b"print(1)\x00\n"),
    Script("syntax_error", "print('a')\nprint('b'\n"),
    Script("syntax_error_word", "if True\n    pass\n"),
    Script("syntax_error_unicode", "x = 'ž' +\n"),
    Script("indentation_error", "def f():\nreturn 1\n"),
    Script("tab_error", "if True:\n        a = 1\n\tb = 2\n"),
    Script("unterminated_string", "x = 'abc\n"),
    Script("return_outside", "return 5\n"),
    Script("late_syntax_error", "print('seen')\nexec('1 +')\n"),
    Script("syntax_warning", "x = 1\nprint(x is 1)\n"),
    Script("invalid_escape", "print('\\d')\n"),
    Script("future_import", "from __future__ import annotations\ndef f(x: no_such): pass\nprint(f.__annotations__)\n"),
    Script("future_misplaced", "x = 1\nfrom __future__ import annotations\n"),
    Script("big_source", "total = 0\n" + "total += 1\n" * 20000 + "print(total)\n"),
    Script("line_numbers", "\n\n\n\nraise ValueError('line 5')\n"),
    Script("file_without_extension", "print('no extension')", file_name="tool"),
    Script("file_with_spaces", "import os, sys; print(os.path.basename(sys.argv[0]))", file_name="a b 'c'.py"),
    Script("file_with_unicode", "import os; print(os.path.basename(__file__))", file_name="skript-ž.py"),
    Script("file_named_as_module", "import json; print(json.dumps([1]))", file_name="decimal.py"),
]

IDENTITY = [
    Script(
        "main_module",
        "import os\nprint(__name__, os.path.basename(__file__), __package__, __spec__, __doc__, __builtins__, sorted(globals()))\n"
        "print(type(__loader__).__name__)\n",
    ),
    Script("docstring", "'what it does'\nprint(__doc__)\n"),
    Script(
        "arguments", "import sys; print(sys.argv[1:])", args=("a", "", "b c", "--help", "-c", "*", "$HOME", "'\"\\")
    ),
    Script("arguments_with_newlines", "import sys; print(sys.argv[1:])", args=("a\nb", "\t", "\x1b[0m")),
    Script(
        "arguments_not_utf8",
        "import os, sys; print([os.fsencode(a) for a in sys.argv[1:]])",
        args=(b"caf\xe9", b"\xff"),
    ),
    Script("arguments_unicode", "import sys; print(sys.argv[1:])", args=("žluťoučký", "🐎")),
    Script("argument_long", "import sys; print(len(sys.argv[1]))", args=("x" * 100_000,)),
    Script("arguments_many", "import sys; print(len(sys.argv), sys.argv[-1])", args=tuple(map(str, range(3000)))),
    Script(
        "argparse_help", "import argparse\nargparse.ArgumentParser(description='d').parse_args()\n", args=("--help",)
    ),
    Script("argparse_error", "import argparse\nargparse.ArgumentParser().parse_args()\n", args=("--nope",)),
    Script("path_entry", "import os, sys; print(sys.path[0] == os.path.dirname(os.path.abspath(__file__)))"),
    Script("path_rest", "import sys; print(sys.path[1:])"),
    Script("modules", "import sys; print(sorted(sys.modules))"),
    Script("flags", "import sys; print(sys.flags, sys.warnoptions, sys._xoptions, sys.dont_write_bytecode)"),
    Script("executable", "import sys; print(sys.executable, sys.prefix, sys.base_prefix, sys.version)"),
    Script("orig_argv", "import sys; print(sys.orig_argv[2:])", args=("x",)),
    Script("frames", "import inspect, sys; print(len(inspect.stack()), sys._getframe().f_back)"),
    Script("locals_and_globals", "print(locals() is globals(), vars() is globals())"),
    Script(
        "threads",
        "import threading; print([t.name for t in threading.enumerate()], threading.main_thread().ident == threading.get_ident())",
    ),
    Script("garbage_settings", "import gc; print(gc.get_threshold(), gc.isenabled(), gc.get_debug(), gc.callbacks)"),
    Script(
        "limits", "import resource as r\nprint([r.getrlimit(getattr(r, n)) for n in dir(r) if n.startswith('RLIMIT')])"
    ),
    Script("umask", "import os; old = os.umask(0); print(oct(old))"),
    Script("empty_working_directory", "import os; print(os.listdir('.'))"),
    Script("descriptors", "import os; print(sorted(os.listdir('/proc/self/fd')))"),
    Script(
        "locale",
        "import locale, sys; print(locale.getpreferredencoding(), sys.getfilesystemencoding(), locale.setlocale(0))",
    ),
    Script("time_zone", "import time; print(time.tzname, time.localtime(0))"),
    Script("recursion_limit", "import sys; print(sys.getrecursionlimit(), sys.getswitchinterval())"),
    Script(
        "trace_and_profile", "import sys; print(sys.gettrace(), sys.getprofile(), sys.excepthook is sys.__excepthook__)"
    ),
    Script(
        "import_hooks",
        "import sys; print([getattr(x, '__name__', type(x)) for x in sys.meta_path], len(sys.path_hooks))",
    ),
    Script("command_line", "print(open('/proc/self/cmdline').read().split(chr(0))[2:])", args=("one", "two")),
    Script("process_name", "print(open('/proc/self/comm').read())"),
    Script(
        "dumpable",
        "import os; print(os.stat('/proc/self/fd').st_uid == os.getuid(), len(open('/proc/self/environ').read()) > 0)",
    ),
    Script(
        "random_differs", "import random, uuid; print(len({random.random() for _ in range(9)}), uuid.uuid4().version)"
    ),
    Script(
        "hash_seed",
        "import sys\nprint(sys.flags.hash_randomization, hash('abc'))\n",
        options=("--env", "PYTHONHASHSEED=7"),
    ),
    Script("python_unbuffered", "import sys; print(sys.stdout.write_through)", options=("--env", "PYTHONUNBUFFERED=1")),
    Script("python_optimize", "assert False; print(__debug__)", options=("--env", "PYTHONOPTIMIZE=1")),
    Script("python_warnings", "import sys; print(sys.warnoptions)", options=("--env", "PYTHONWARNINGS=error")),
    Script("python_dev_mode", "import sys; print(sys.flags.dev_mode)", options=("--env", "PYTHONDEVMODE=1")),
    Script("python_utf8", "import sys; print(sys.stdout.encoding)", options=("--env", "PYTHONIOENCODING=latin-1")),
]

BEHAVIOUR = [
    Script("atexit_order", "import atexit\nfor i in range(3):\n    atexit.register(print, i)\nprint('body')\n"),
    Script("atexit_after_failure", "import atexit\natexit.register(print, 'cleaned')\n1 / 0\n"),
    Script("atexit_failing", "import atexit\natexit.register(lambda: 1 / 0)\n"),
    Script("finaliser", "class A:\n    def __del__(self):\n        print('deleted')\n\na = A()\nprint('end')\n"),
    Script(
        "finaliser_cycle", "class A:\n    def __del__(self):\n        print('deleted')\n\na = A()\na.me = a\ndel a\n"
    ),
    Script("unraisable", "class A:\n    def __del__(self):\n        1 / 0\n\nA()\nprint('on')\n"),
    Script("warning", "import warnings\nwarnings.warn('old')\nwarnings.warn('older', DeprecationWarning)\n"),
    Script(
        "warning_deprecated_call",
        "def f():\n    import warnings\n    warnings.warn('no', DeprecationWarning, 2)\nf()\n",
    ),
    Script("resource_warning", "open('/dev/null')\nprint('unclosed')\n", options=("--env", "PYTHONWARNINGS=default")),
    Script("logging", "import logging\nlogging.warning('careful')\nlogging.getLogger('x').error('worse')\n"),
    Script(
        "thread",
        "import threading\nt = threading.Thread(target=print, args=('in',))\nt.start()\nt.join()\nprint('out')\n",
    ),
    Script("thread_not_joined", "import threading\nthreading.Thread(target=print, args=('in',)).start()\n"),
    Script(
        "thread_daemon",
        "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\nprint(1)\n",
    ),
    Script(
        "thread_failing",
        "import threading\nt = threading.Thread(target=lambda: 1 / 0, name='T')\nt.start()\nt.join()\n",
    ),
    Script(
        "thread_pool",
        "from concurrent.futures import ThreadPoolExecutor as E\nprint(list(E(3).map(abs, [-1, 2, -3])))\n",
    ),
    Script(
        "asyncio_run",
        "import asyncio\nasync def f():\n    await asyncio.sleep(0)\n    print('async')\nasyncio.run(f())\n",
    ),
    Script("asyncio_failing", "import asyncio\nasync def f():\n    raise ValueError('async')\nasyncio.run(f())\n"),
    Script(
        "asyncio_subprocess",
        "import asyncio, sys\nasync def f():\n"
        "    p = await asyncio.create_subprocess_exec(sys.executable, '-c', 'print(5)', stdout=-1)\n"
        "    print(await p.communicate(), p.returncode)\nasyncio.run(f())\n",
    ),
    Script("asyncio_never_awaited", "async def f():\n    pass\nf()\n"),
    Script(
        "subprocess_output", "import subprocess\nprint(subprocess.run(['echo', 'hi'], capture_output=True).stdout)\n"
    ),
    Script(
        "subprocess_inherits",
        "import subprocess\nsubprocess.run('echo out; echo err >&2; exit 4', shell=True)\nprint(1)\n",
    ),
    Script(
        "subprocess_python",
        "import subprocess, sys\nsubprocess.run([sys.executable, '-c', 'import sys; print(sys.argv)', 'a'])\n",
    ),
    Script("subprocess_reads_stdin", "import subprocess\nsubprocess.run(['cat'])\n", stdin=b"through\n"),
    Script("os_system", "import os\nprint(os.system('exit 3') >> 8)\n"),
    Script(
        "os_fork", "import os, sys\npid = os.fork()\nif not pid:\n    os._exit(9)\nprint(os.waitpid(pid, 0)[1] >> 8)\n"
    ),
    Script("os_exec", "import os, sys\nos.execv(sys.executable, [sys.executable, '-c', 'print(\"new\")'])\n"),
    Script(
        "child_status",
        "import os\ntry:\n    os.waitpid(-1, os.WNOHANG)\nexcept ChildProcessError:\n    print('no child')\n",
    ),
    Script("pickle_main", "import pickle\nclass A:\n    pass\nprint(type(pickle.loads(pickle.dumps(A()))) is A)\n"),
    Script(
        "dataclass_and_enum",
        "import dataclasses, enum\n@dataclasses.dataclass\nclass D:\n    x: int\nprint(D(1), enum.Enum('E', 'a').a)\n",
    ),
    Script("inspect_source", "import inspect\ndef f():\n    return 1\nprint(inspect.getsource(f))\n"),
    Script("linecache", "import linecache; print(linecache.getline(__file__, 1))\n"),
    Script("import_main", "import __main__; print(__main__.x if hasattr(__main__, 'x') else 'not yet'); x = 1\n"),
    Script(
        "runpy_self",
        "import runpy, sys\nif __name__ == '__main__':\n    print(runpy.run_path(__file__, run_name='again')['__name__'])\n",
    ),
    Script(
        "unittest_main",
        "import unittest\nclass T(unittest.TestCase):\n    def test(self): pass\nunittest.main(verbosity=0, exit=False)\nprint('ran')\n",
    ),
    Script("doctest", "'''\n>>> 1 + 1\n3\n'''\nimport doctest, sys\nsys.exit(doctest.testmod().failed)\n"),
    Script("traceback_module", "import traceback\ndef f():\n    traceback.print_stack()\nf()\n"),
    Script("temporary_file", "import os, tempfile\nwith tempfile.TemporaryFile() as f:\n    print(f.write(b'abc'))\n"),
    Script("sqlite", "import sqlite3\nprint(sqlite3.connect(':memory:').execute('select 6 * 7').fetchone())\n"),
    Script("file_in_working_directory", "open('x', 'w').write('abc')\nprint(open('x').read())\n"),
    Script("sleep_and_clock", "import time\na = time.monotonic()\ntime.sleep(0.01)\nprint(time.monotonic() > a)\n"),
    Script("ctypes", "import ctypes; print(ctypes.CDLL(None).abs(-3))\n"),
    Script(
        "setrecursion_deep",
        "import sys\nsys.setrecursionlimit(5000)\ndef f(n):\n    return n and f(n - 1)\nprint(f(3000))\n",
    ),
    Script("faulthandler_dump", "import faulthandler\nfaulthandler.dump_traceback(all_threads=False)\n"),
    Script(
        "settrace",
        "import sys\nlines = []\ndef t(f, e, a):\n    lines.append(e)\n    return t\ndef g():\n    return 1\nsys.settrace(t)\ng()\nsys.settrace(None)\nprint(lines)\n",
    ),
    Script(
        "interactive_hooks",
        "import sys; print(hasattr(sys, 'ps1'), sys.displayhook is sys.__displayhook__, hasattr(sys, 'last_type'))\n",
    ),
    Script("site_builtins", "print(exit, copyright is not None, 'quit' in dir(__builtins__))\n"),
    Script("quit", "print('a')\nquit(4)\n"),
]

_SQUARES = """
import {imports}
import sys

def square(x):
    return x * x

if __name__ == "__main__":
    {body}
"""


def _multiprocessing(name: str, method: str, body: str, slow: bool = True) -> Script:
    source = _SQUARES.format(imports="multiprocessing as mp", body=f"mp.set_start_method({method!r})\n    {body}")
    return Script(f"multiprocessing_{name}_{method}", source, slow=slow)


PROCESSES = [
    _multiprocessing(name, method, body)
    for method in ("fork", "spawn", "forkserver")
    for name, body in (
        ("pool", "with mp.Pool(2) as pool:\n        print(pool.map(square, range(5)))"),
        ("exit", "p = mp.Process(target=sys.exit, args=(5,))\n    p.start()\n    p.join()\n    print(p.exitcode)"),
        (
            "queue",
            "q = mp.Queue()\n    p = mp.Process(target=q.put, args=([1],))\n    p.start()\n    print(q.get())\n    p.join()",
        ),
        (
            "failing",
            "p = mp.Process(target=square, args=('a',), name='P')\n    p.start()\n    p.join()\n    print(p.exitcode)",
        ),
    )
] + [
    Script(
        "process_pool",
        _SQUARES.format(
            imports="concurrent.futures as cf",
            body="with cf.ProcessPoolExecutor(2) as pool:\n        print(list(pool.map(square, range(4))))",
        ),
        slow=True,
    ),
    Script(
        "multiprocessing_without_guard",
        "import multiprocessing as mp\nprint(mp.current_process().name, mp.parent_process())\n",
    ),
    Script(
        "shared_memory",
        "from multiprocessing import shared_memory as s\nm = s.SharedMemory(create=True, size=9)\nprint(m.size >= 9)\nm.close()\nm.unlink()\n",
        slow=True,
    ),
    Script(
        "multiprocessing_manager",
        _SQUARES.format(
            imports="multiprocessing as mp", body="with mp.Manager() as m:\n        print(list(m.list([1, 2])))"
        ),
        slow=True,
    ),
]

BESIDE = [
    Script("module", "import beside; print(beside.VALUE)", files=(("beside.py", "VALUE = 42\n"),)),
    Script(
        "module_main_only", "import beside", files=(("beside.py", "print(__name__, __file__.endswith('beside.py'))\n"),)
    ),
    Script(
        "package",
        "from pack.inner import deep\nprint(deep.WHERE)\n",
        files=(
            ("pack/__init__.py", "from . import side\n"),
            ("pack/side.py", "print('side')\n"),
            ("pack/inner/__init__.py", ""),
            ("pack/inner/deep.py", "from ..side import __name__ as n\nWHERE = __name__, n\n"),
        ),
    ),
    Script("namespace_package", "import space.one; print(space.one.X)", files=(("space/one.py", "X = 1\n"),)),
    Script(
        "conditional_import",
        "try:\n    import absent\nexcept ImportError:\n    import present\n",
        files=(("present.py", "print('here')\n"),),
    ),
    Script(
        "import_in_function",
        "def f():\n    import late\n    return late.X\nprint(f())\n",
        files=(("late.py", "X = 3\n"),),
    ),
    Script("module_that_fails", "import broken\n", files=(("broken.py", "\n\n1 / 0\n"),)),
    Script("module_with_syntax_error", "import broken\n", files=(("broken.py", "def\n"),)),
    Script(
        "module_chain",
        "import a\n",
        files=(("a.py", "import b\n"), ("b.py", "import c\nprint(c.X)\n"), ("c.py", "X = 'end'\n")),
    ),
    Script(
        "module_shadows_stdlib", "import colorsys; print(colorsys.MINE)\n", files=(("colorsys.py", "MINE = True\n"),)
    ),
    Script(
        "multiprocessing_with_module",
        "import multiprocessing as mp\nimport beside\nif __name__ == '__main__':\n    mp.set_start_method('spawn')\n"
        "    with mp.Pool(1) as pool:\n        print(pool.map(beside.twice, [1, 2]))\n",
        files=(("beside.py", "def twice(x):\n    return 2 * x\n"),),
        slow=True,
    ),
]

SCRIPTS = EXITS + SIGNALS + OUTPUT + INPUT + SOURCES + IDENTITY + BEHAVIOUR + PROCESSES + BESIDE
