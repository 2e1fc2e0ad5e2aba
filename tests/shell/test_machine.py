"""What a machine has, read from made-up cgroups and a made-up nvidia-smi."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from src import machine
from tests.support.leaks import Case


class TestCgroups(Case):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = Path(folder.name)

    def put(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def test_the_tightest_quota_on_the_way_to_the_root_counts(self) -> None:
        self.put("a/b/cpu.max", "300000 100000\n")
        self.put("a/cpu.max", "150000 100000\n")
        self.put("cpu.max", "max 100000\n")
        self.assertEqual(machine.cgroup_cpus("0::/a/b\n", self.root), 1.5)
        self.assertEqual(machine.cgroup_cpus("0::/elsewhere\n", self.root), None)

    def test_version_1(self) -> None:
        self.put("cpu,cpuacct/job/cpu.cfs_quota_us", "250000\n")
        self.put("cpu,cpuacct/job/cpu.cfs_period_us", "100000\n")
        self.put("memory/job/memory.limit_in_bytes", "1048576\n")
        membership = "4:memory:/job\n1:cpu,cpuacct:/job\n0::/\n"
        self.assertEqual(machine.cgroup_cpus(membership, self.root), 2.5)
        self.assertEqual(machine.cgroup_memory(membership, self.root), 1 << 20)
        self.put("cpu,cpuacct/job/cpu.cfs_quota_us", "-1\n")
        self.assertIsNone(machine.cgroup_cpus(membership, self.root))

    def test_a_container_sees_the_path_of_its_host(self) -> None:
        self.put("cpu.max", "200000 100000\n")
        self.put("memory.max", "4096\n")
        self.assertEqual(machine.cgroup_cpus("0::/../../docker/abc\n", self.root), 2.0)
        self.assertEqual(machine.cgroup_memory("0::/docker/abc\n", self.root), 4096)

    def test_nonsense_is_no_limit(self) -> None:
        self.put("cpu.max", "what\n")
        self.put("memory.max", "max\n")
        self.assertIsNone(machine.cgroup_cpus("0::/\nrubbish\n", self.root))
        self.assertIsNone(machine.cgroup_memory("", self.root))

    def test_this_machine(self) -> None:
        self.assertGreaterEqual(machine.cpus(), 1)
        self.assertGreater(machine.memory() or 1, 0)
        self.assertGreater(machine.free_disk(str(self.root)), 0)
        self.assertEqual(machine.free_disk(str(self.root / "missing")), 0)
        names = [label.partition("=")[0] for label in machine.labels()]
        self.assertEqual(names, ["os", "arch", "python", "host"])


class TestGpus(Case):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def smi(self, script: str) -> dict[str, str]:
        program = self.folder / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        return {"PATH": f"{self.folder}{os.pathsep}{os.environ['PATH']}"}

    def test_those_that_are_listed(self) -> None:
        environ = self.smi("echo 'GPU 0: A100 (UUID: GPU-aa)'; echo ' MIG 1g'; echo 'GPU 1: A100 (UUID: GPU-bb)'")
        self.assertEqual(machine.gpus(environ), ("0", "1"))
        self.assertEqual(machine.gpus(environ, 3), ("0", "1", "2"))
        self.assertEqual(machine.gpus({"PATH": str(self.folder / "no")}), ())
        self.assertEqual(machine.gpus(self.smi("exit 9")), ())

    def test_a_confined_worker_offers_its_own(self) -> None:
        self.assertEqual(machine.gpus({"CUDA_VISIBLE_DEVICES": "2, GPU-aa"}), ("2", "GPU-aa"))
        self.assertEqual(machine.gpus({"CUDA_VISIBLE_DEVICES": "2,5"}, 1), ("2",))
        self.assertEqual(machine.gpus({"CUDA_VISIBLE_DEVICES": ""}), ())
