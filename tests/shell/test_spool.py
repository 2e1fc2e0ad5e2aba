"""Content by hash and output by offset, with faults at every step."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import sys
import tempfile
import unittest

from src import faults
from src.spool import Blobs, Outputs, hash_file

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class SpoolCase(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.addCleanup(faults.disarm)
        self.folder = folder.name


class BlobsTest(SpoolCase):
    def test_put_has_path(self) -> None:
        blobs = Blobs(self.folder + "/blobs")
        name = blobs.put_bytes(b"content")
        self.assertEqual(name, hashlib.sha256(b"content").hexdigest())
        self.assertTrue(Blobs(self.folder + "/blobs").has(name))
        self.assertEqual(blobs.missing([name, "0" * 64]), ["0" * 64])
        self.assertEqual(stat.S_IMODE(os.stat(blobs.path(name)).st_mode), 0o600)
        self.assertEqual(stat.S_IMODE(os.stat(blobs.folder).st_mode), 0o700)

    def test_an_upload_goes_on_where_it_was(self) -> None:
        data = os.urandom(300_000)
        name = hashlib.sha256(data).hexdigest()
        blobs = Blobs(self.folder)
        self.assertEqual(blobs.upload(name, len(data), 0, data[:100_000]), (100_000, False))
        blobs = Blobs(self.folder)
        self.assertEqual(blobs.upload(name, len(data), 0, b""), (100_000, False))
        self.assertEqual(blobs.upload(name, len(data), 50_000, data[50_000:]), (100_000, False))
        self.assertEqual(blobs.upload(name, len(data), 100_000, data[100_000:]), (300_000, True))
        self.assertEqual(hash_file(blobs.path(name)), name)
        self.assertEqual(blobs.upload(name, len(data), 0, b""), (300_000, True))

    def test_content_that_does_not_fit_its_hash_is_refused(self) -> None:
        blobs = Blobs(self.folder)
        with self.assertRaises(ValueError):
            blobs.upload("0" * 64, 3, 0, b"abc")
        self.assertFalse(blobs.has("0" * 64))
        self.assertEqual(blobs.upload(hashlib.sha256(b"").hexdigest(), 0, 0, b""), (0, True))

    def test_a_failed_sync_of_an_upload_never_counts(self) -> None:
        data = b"x" * 1000
        name = hashlib.sha256(data).hexdigest()
        blobs = Blobs(self.folder)
        faults.arm("blob.sync:1:EIO")
        with self.assertRaises(OSError):
            blobs.upload(name, 1000, 0, data)
        faults.disarm()
        self.assertEqual(blobs.upload(name, 1000, 0, b""), (0, False), "it begins anew")
        self.assertEqual(blobs.upload(name, 1000, 0, data), (1000, True))

    def test_eviction_takes_the_least_recently_used(self) -> None:
        blobs = Blobs(self.folder, durable=False)
        names = [blobs.put_bytes(bytes([n]) * 1000) for n in range(5)]
        for n, name in enumerate(names):
            os.utime(blobs.path(name), (1000 + n, 1000 + n))
        blobs.touch(names[0])
        blobs.evict(3000, pinned={names[1]})
        self.assertEqual([blobs.has(name) for name in names], [True, True, False, False, True])

    def test_every_fault_leaves_it_whole(self) -> None:
        for place in ("blob.write", "blob.sync", "blob.rename"):
            for error in ("ENOSPC", "EIO"):
                blobs = Blobs(f"{self.folder}/{place}{error}")
                faults.arm(f"{place}:1:{error}")
                with self.assertRaises(OSError):
                    blobs.put_bytes(b"x" * 1000)
                faults.disarm()
                self.assertEqual(os.listdir(os.path.join(blobs.folder, "partial")), [])
                self.assertTrue(blobs.has(blobs.put_bytes(b"x" * 1000)))


class OutputsTest(SpoolCase):
    def test_bytes_at_their_offset(self) -> None:
        outputs = Outputs(self.folder)
        self.addCleanup(outputs.close)
        self.assertEqual(outputs.write(1, 0, 1, 1, 0, b"hello "), 6)
        self.assertEqual(outputs.write(1, 0, 1, 1, 6, b"world"), 11)
        self.assertEqual(outputs.write(1, 0, 1, 1, 3, b"lo world"), 11)
        self.assertEqual(outputs.write(1, 0, 1, 1, 6, b"world!"), 12)
        with self.assertRaises(ValueError):
            outputs.write(1, 0, 1, 1, 20, b"gap")
        self.assertEqual(outputs.read(1, 0, 1, 1, 0, 100), b"hello world!")
        self.assertEqual(outputs.read(1, 0, 1, 1, 6, 5), b"world")
        self.assertEqual((outputs.size(1, 0, 1, 1), outputs.size(1, 0, 1, 2), outputs.size(9, 9, 9, 1)), (12, 0, 0))
        self.assertIsNone(outputs.take_small(1, 0, 1, 1, 5))
        self.assertEqual(outputs.take_small(1, 0, 1, 1, 50), b"hello world!")

    def test_a_restart_finds_the_size(self) -> None:
        first = Outputs(self.folder)
        first.write(1, 0, 1, 1, 0, b"x" * 1000)
        first.close()
        again = Outputs(self.folder)
        self.addCleanup(again.close)
        self.assertEqual(again.size(1, 0, 1, 1), 1000)
        self.assertEqual(again.write(1, 0, 1, 1, 1000, b"y"), 1001)

    def test_more_files_than_descriptors(self) -> None:
        outputs = Outputs(self.folder)
        self.addCleanup(outputs.close)
        for turn in range(2):
            for pos in range(400):
                outputs.write(1, pos, 1, 1, turn, b"z")
        self.assertEqual({outputs.size(1, pos, 1, 1) for pos in range(400)}, {2})

    def test_removal(self) -> None:
        outputs = Outputs(self.folder)
        self.addCleanup(outputs.close)
        outputs.write(1, 0, 1, 1, 0, b"a")
        outputs.write(1, 0, 2, 1, 0, b"b")
        outputs.write(2, 0, 1, 2, 0, b"c")
        outputs.remove(1, 0, 1)
        self.assertEqual((outputs.size(1, 0, 1, 1), outputs.size(1, 0, 2, 1)), (0, 1))
        outputs.remove_job(1)
        self.assertEqual(os.listdir(self.folder), ["2"])
        self.assertEqual(outputs.total_bytes(), 1)

    def test_a_full_disk_takes_nothing_half(self) -> None:
        outputs = Outputs(self.folder)
        self.addCleanup(outputs.close)
        outputs.write(1, 0, 1, 1, 0, b"abc")
        faults.arm("output.write:1:ENOSPC")
        with self.assertRaises(OSError):
            outputs.write(1, 0, 1, 1, 3, b"def")
        self.assertEqual(outputs.write(1, 0, 1, 1, 3, b"def"), 6)


class DeathTest(SpoolCase):
    def test_a_death_at_any_step_leaves_a_blob_whole_or_not_there(self) -> None:
        code = (
            "import sys; from src.spool import Blobs; b = Blobs(sys.argv[1]); b.put_bytes(b'x' * 100000);"
            " b.put_bytes(b'y' * 100000)"
        )
        for nth in range(1, 8):
            folder = f"{self.folder}/{nth}"
            environ = {**os.environ, "MICROCLUSTER_FAULTS": f"any:{nth}:die"}
            done = subprocess.run([sys.executable, "-c", code, folder], cwd=ROOT, env=environ, timeout=60)
            blobs = Blobs(folder)
            for content in (b"x" * 100_000, b"y" * 100_000):
                name = hashlib.sha256(content).hexdigest()
                self.assertTrue(not blobs.has(name) or hash_file(blobs.path(name)) == name)
            if done.returncode == 0:
                return
            self.assertEqual(done.returncode, 99)
        self.fail("it never came to its end")
