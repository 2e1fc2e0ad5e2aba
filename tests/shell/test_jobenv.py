"""What variables a job gets."""

from __future__ import annotations

import unittest

from src import jobenv
from tests.support.sim import spec


def of_attempt(**changes: object) -> dict[str, str]:
    """The environment of attempt 2 at position 1 of job 7 with these changes of the spec."""
    found = spec(**{"count": 2, **changes})
    shared = jobenv.of_job({"PATH": "/bin", "OMP_NUM_THREADS": "64"}, found, found["env"], 7)
    return jobenv.of_attempt(shared, found, 1, 2, worker="w1", folder="/work", temp="/temp")


class TestInherited(unittest.TestCase):
    def test_nothing_secret_is_handed_on(self) -> None:
        secret = [
            "MICROCLUSTER_KEY", "MICROCLUSTER_KEY_FILE", "MICROCLUSTER_HOME", "SSH_AUTH_SOCK", "GITHUB_TOKEN",
            "AWS_SECRET_ACCESS_KEY",
            "DB_PASSWORD", "API_KEY", "OPENAI_API_KEY", "token", "GOOGLE_APPLICATION_CREDENTIALS",
        ]  # fmt: skip
        plain = ["PATH", "HOME", "LANG", "TOKENIZERS_PARALLELISM", "MAX_TOKENS", "KEYBOARD"]
        found = jobenv.of_worker(dict.fromkeys(secret + plain, "x"))
        self.assertEqual(sorted(found), sorted(plain))

    def test_nothing_of_the_shell_that_started_the_worker(self) -> None:
        self.assertEqual(jobenv.of_worker({"PWD": "/x", "OLDPWD": "/y", "_": "z", "SHLVL": "1", "A": "b"}), {"A": "b"})


class TestJob(unittest.TestCase):
    def test_what_we_tell_it(self) -> None:
        found = of_attempt(count=3, cpus=4)
        told = {name: value for name, value in found.items() if name.startswith("MICROCLUSTER_")}
        expected = {
            "MICROCLUSTER_JOB_ID": "7", "MICROCLUSTER_TASK_INDEX": "1", "MICROCLUSTER_TASK_COUNT": "3",
            "MICROCLUSTER_ATTEMPT": "2", "MICROCLUSTER_WORKER": "w1", "MICROCLUSTER_CPUS": "4",
        }  # fmt: skip
        self.assertEqual(told, expected)
        self.assertEqual((found["TMPDIR"], found["PWD"], found["PATH"]), ("/temp", "/work", "/bin"))

    def test_the_index_is_the_arrays(self) -> None:
        self.assertEqual(of_attempt(array="5,9,20-30:5", count=5)["MICROCLUSTER_TASK_INDEX"], "9")

    def test_threads_are_as_many_as_cpus_unless_the_submitter_says_otherwise(self) -> None:
        found = of_attempt(cpus=4, env={"MKL_NUM_THREADS": "2"})
        self.assertEqual((found["OMP_NUM_THREADS"], found["MKL_NUM_THREADS"]), ("4", "2"))

    def test_variables_of_the_submitter_may_hold_any_bytes(self) -> None:
        found = of_attempt(env={"A": {"b64": "/w=="}, "PATH": "/mine"})
        self.assertEqual((found["A"], found["PATH"]), ("\udcff", "/mine"))

    def test_gpus_are_named_only_to_who_asked(self) -> None:
        shared = jobenv.of_job({}, spec(), {}, 7)
        found = jobenv.of_attempt(shared, spec(), 0, 1, worker="w", folder="/", temp="/", gpus=("0", "GPU-aa"))
        self.assertEqual((found["CUDA_VISIBLE_DEVICES"], found["CUDA_DEVICE_ORDER"]), ("0,GPU-aa", "PCI_BUS_ID"))
        self.assertNotIn("CUDA_VISIBLE_DEVICES", of_attempt())

    def test_a_grid_sets_its_names(self) -> None:
        found = of_attempt(grid=[["lr", ["0.1", "0.2"]], ["batch-size", ["8", "16"]]], count=4)
        self.assertEqual((found["MICROCLUSTER_LR"], found["MICROCLUSTER_BATCH_SIZE"]), ("0.1", "16"))

    def test_a_virtual_environment_comes_first(self) -> None:
        found = jobenv.with_environment({"PATH": "/bin", "PYTHONHOME": "/x"}, "/env")
        self.assertEqual(found, {"PATH": "/env/bin:/bin", "VIRTUAL_ENV": "/env"})
        self.assertEqual(jobenv.with_environment({}, "/env")["PATH"], "/env/bin")
