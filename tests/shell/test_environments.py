"""Making, sharing and evicting virtual environments; with made-up builders, and once with the real ones."""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
import zipfile
from pathlib import Path

from src import environments, interpreters
from src.environments import EnvironmentFailed, Environments, key_of, last_words, requirement_lines
from src.interpreters import Interpreter
from tests.support.leaks import Case
from tests.support.marks import linux_only, slow
from tests.support.waiting import wait_until

# `python -m venv FOLDER` that makes FOLDER/bin/python, which is a pip that fails when asked for "missing".
FAKE = """#!/bin/sh
echo "$@" >> {log}
mkdir -p "$3/bin"
cat > "$3/bin/python" <<'EOP'
#!/bin/sh
echo pip "$@" >> {log}
while [ -e {hold} ]; do :; done
for last; do :; done
if grep -q missing "$last"; then
    echo 'ERROR: Could not find a version that satisfies the requirement missing' >&2
    echo 'ERROR: No matching distribution found for missing' >&2
    exit 1
fi
EOP
chmod +x "$3/bin/python"
"""


class TestNames(Case):
    def test_requirements_are_a_sorted_set_without_comments(self) -> None:
        text = "numpy>=1\n\n# comment\n  attrs  # why\nnumpy>=1\n"
        self.assertEqual(requirement_lines(text), ["attrs", "numpy>=1"])

    def test_the_key_tells_interpreters_and_sets_apart(self) -> None:
        one, two = Interpreter("/a", "3.11.1"), Interpreter("/a", "3.12.0")
        keys = {key_of(one, ["x"]), key_of(one, ["x", "y"]), key_of(two, ["x"]), key_of(one, [])}
        self.assertEqual(len(keys), 4)
        self.assertEqual(key_of(one, ["x", "y"]), key_of(one, ["y", "x"]))

    def test_the_last_words_are_the_errors(self) -> None:
        said = b"Collecting x\nERROR: no matching distribution\nnotice: a new pip\n"
        self.assertEqual(last_words(said), "ERROR: no matching distribution")
        self.assertEqual(last_words(b"one\nlast\x1b[31m\n\n"), "last?[31m")
        self.assertEqual(last_words(b""), "the builder ended without a word")
        self.assertEqual(len(last_words(b"x" * 9999)), environments.WORDS)


class TestEnvironments(Case):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.log, self.hold = self.folder / "log", self.folder / "hold"
        fake = self.folder / "fakepython"
        fake.write_text(FAKE.format(log=self.log, hold=self.hold))
        fake.chmod(0o755)
        self.python = Interpreter(str(fake), "3.11.7")
        self.made = self.environments()

    def environments(self, **more: int) -> Environments:
        found = Environments(self.folder / "envs", {"PATH": "/bin:/usr/bin"}, **more)
        self.addCleanup(found.stop)
        return found

    def builds(self) -> int:
        return self.log.read_text().count("-m venv") if self.log.exists() else 0

    def test_made_once_then_used(self) -> None:
        key = key_of(self.python, ["attrs"])
        self.assertFalse(self.made.use(key))
        self.assertEqual(self.made.build(self.python, ["attrs"]), key)
        self.assertTrue(self.made.use(key))
        self.assertTrue(Path(self.made.python(key)).exists())
        self.made.build(self.python, ["attrs"])
        self.assertTrue(self.environments().use(key), "another worker finds it")
        self.assertEqual(self.builds(), 1)

    def test_a_failure_is_told_in_pips_words_and_leaves_nothing(self) -> None:
        for _ in range(2):  # the second time from memory
            with self.assertRaisesRegex(EnvironmentFailed, "No matching distribution found for missing"):
                self.made.build(self.python, ["missing"])
        self.assertEqual(self.builds(), 1)
        self.assertFalse(self.made.use(key_of(self.python, ["missing"])))
        left = [path.name for path in (self.folder / "envs").iterdir() if path.suffix != ".lock"]
        self.assertEqual(left, [])

    def test_no_such_builder(self) -> None:
        with self.assertRaisesRegex(EnvironmentFailed, "could not be made: No such file"):
            self.made.build(Interpreter(str(self.folder / "gone"), "3.11.0"), ["attrs"])

    def test_half_an_environment_is_made_again(self) -> None:
        key = key_of(self.python, ["attrs"])
        (self.folder / "envs" / key / "lib").mkdir(parents=True)
        self.assertFalse(self.made.use(key))
        self.made.build(self.python, ["attrs"])
        self.assertFalse((self.folder / "envs" / key / "lib").exists())

    @linux_only
    def test_two_workers_build_one(self) -> None:
        self.hold.touch()
        threads = [
            threading.Thread(target=made.build, args=(self.python, ["attrs"]))
            for made in (self.made, self.environments())
        ]
        for thread in threads:
            thread.start()
        wait_until(lambda: self.builds() == 1 and "pip" in self.log.read_text(), what="the first build to begin")
        self.hold.unlink()
        for thread in threads:
            thread.join()
        self.assertEqual(self.builds(), 1)

    def test_stop_ends_a_build(self) -> None:
        self.hold.touch()
        errors: list[str] = []

        def build() -> None:
            try:
                self.made.build(self.python, ["attrs"])
            except EnvironmentFailed as error:
                errors.append(str(error))

        thread = threading.Thread(target=build)
        thread.start()
        wait_until(lambda: self.log.exists() and "pip" in self.log.read_text(), what="the build to begin")
        self.made.stop()
        thread.join()
        self.assertEqual(len(errors), 1)

    @linux_only
    def test_the_least_recently_used_goes_first_but_never_one_in_use(self) -> None:
        made, other = self.environments(kept=2), self.environments()
        keys = []
        for age, name in enumerate("abc"):
            keys.append(other.build(self.python, [name]))
            os.utime(self.folder / "envs" / keys[-1] / environments.MARKER, (1000 + age, 1000 + age))
        self.assertTrue(other.use(keys[0]))
        os.utime(self.folder / "envs" / keys[0] / environments.MARKER, (1000, 1000))
        new = made.build(self.python, ["d"])
        self.assertEqual([made.use(key) for key in [*keys, new]], [True, False, False, True])
        other.release(keys[0])

    def test_evicted_by_size(self) -> None:
        made = self.environments(kept_bytes=1)
        one, two = made.build(self.python, ["a"]), made.build(self.python, ["b"])
        self.assertEqual((made.use(one), made.use(two)), (False, True))

    def test_uv_is_preferred(self) -> None:
        uv = self.folder / "uv"
        uv.write_text(f'#!/bin/sh\necho uv "$1" "$2" >> {self.log}\nfor last; do :; done\nmkdir -p "$last"\n')
        uv.chmod(0o755)
        made = Environments(self.folder / "envs", {"PATH": f"{self.folder}:/bin:/usr/bin"})
        with self.assertRaises(EnvironmentFailed):  # mkdir on the requirements file
            made.build(self.python, ["attrs"])
        self.assertEqual(self.log.read_text().split("\n")[:2], ["uv venv --quiet", "uv pip install"])

    @slow
    def test_the_real_thing(self) -> None:
        wheel = self.folder / "greeting-1.0-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("greeting.py", "WORD = 'hello'\n")
            archive.writestr("greeting-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: greeting\nVersion: 1.0\n")
            archive.writestr(
                "greeting-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            )
            archive.writestr("greeting-1.0.dist-info/RECORD", "")
        environ = {"PATH": "/bin:/usr/bin", "PIP_NO_INDEX": "1", "HOME": str(self.folder)}
        made = Environments(self.folder / "envs", environ)
        key = made.build(interpreters.own(), [str(wheel)])
        command = [made.python(key), "-c", "import greeting; print(greeting.WORD)"]
        self.assertEqual(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout, b"hello\n")
        with self.assertRaisesRegex(EnvironmentFailed, "No matching distribution found for nothing-of-this-name"):
            made.build(interpreters.own(), ["nothing-of-this-name"])
