"""Content by hash and output by offset. What faults do to them: test_faults.py."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
import threading
import time
from unittest import mock

from src import faults
from src.spool import FRESH_S, Blobs, Outputs, create_private, hash_file
from tests.support.leaks import Case


class SpoolCase(Case):
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

    def test_an_upload_whose_sync_failed_must_come_again(self) -> None:
        """A second sync of the same file could say that all is well when it is not."""
        name = hashlib.sha256(b"abc").hexdigest()
        blobs = Blobs(self.folder)
        faults.arm("blob.sync:1:EIO")
        with self.assertRaises(OSError):
            blobs.upload(name, 3, 0, b"abc")
        self.assertEqual(blobs.upload(name, 3, 3, b""), (0, False))
        self.assertEqual(blobs.upload(name, 3, 0, b"abc"), (3, True))

    def test_an_upload_of_another_size_starts_anew(self) -> None:
        name = hashlib.sha256(b"abc").hexdigest()
        blobs = Blobs(self.folder)
        self.assertEqual(blobs.upload(name, 9, 0, b"garbage"), (7, False))
        self.assertEqual(blobs.upload(name, 3, 0, b"abcd"), (0, False))
        self.assertEqual(blobs.upload(name, 3, 0, b"abc"), (3, True))

    def test_a_sweep_leaves_what_is_needed_and_what_is_fresh(self) -> None:
        blobs = Blobs(self.folder)
        names = [blobs.put_bytes(bytes([n]) * 100) for n in range(3)]
        old = time.time() - FRESH_S - 100
        for name in names[:2]:
            os.utime(blobs.path(name), (old, old))
        self.assertEqual(blobs.sweep({names[0]}), 100)
        self.assertEqual([blobs.has(name) for name in names], [True, False, True])
        self.assertEqual((blobs.total_bytes(), blobs.forget(names[1])), (200, 0))

    def test_threads_may_store_the_same_content(self) -> None:
        blobs = Blobs(self.folder)
        threads = [
            threading.Thread(target=lambda: [blobs.put_bytes(bytes([n]) * 1000) for n in range(40)]) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual({hash_file(blobs.path(name)) == name for name, _, _ in blobs.entries()}, {True})
        self.assertEqual((len(blobs.entries()), os.listdir(self.folder + "/partial")), (40, []))

    def test_private_files(self) -> None:
        create_private(self.folder + "/f", b"content")
        create_private(self.folder + "/f")
        with open(self.folder + "/f", "rb") as file:
            self.assertEqual((file.read(), stat.S_IMODE(os.fstat(file.fileno()).st_mode)), (b"content", 0o600))
        with self.assertRaises(FileExistsError):
            create_private(self.folder + "/f", new=True)


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
        self.assertTrue(outputs.remove_job(1, 9))
        self.assertEqual(os.listdir(self.folder), ["2"])
        self.assertEqual(outputs.total_bytes(), 1)

    def test_a_job_with_many_files_is_removed_in_pieces(self) -> None:
        outputs = Outputs(self.folder)
        self.addCleanup(outputs.close)
        for pos in range(25):
            outputs.write(1, pos, 1, 1, 0, b"a")
        self.assertEqual([outputs.remove_job(1, 10) for _ in range(3)], [False, False, True])
        self.assertEqual(os.listdir(self.folder), [])
        self.assertTrue(outputs.remove_job(1, 10), "what is not there is removed")
        os.makedirs(f"{self.folder}/2/somebody's")
        self.assertTrue(outputs.remove_job(2, 10), "what cannot be removed is not tried for ever")

    def test_a_full_disk_takes_nothing_half(self) -> None:
        outputs = Outputs(self.folder)
        self.addCleanup(outputs.close)
        outputs.write(1, 0, 1, 1, 0, b"abc")
        faults.arm("output.write:1:ENOSPC")
        with self.assertRaises(OSError):
            outputs.write(1, 0, 1, 1, 3, b"def")
        self.assertEqual(outputs.write(1, 0, 1, 1, 3, b"def"), 6)

    def test_sync(self) -> None:
        outputs = Outputs(self.folder)
        self.addCleanup(outputs.close)
        outputs.sync(1, 0, 1, 1)
        self.assertEqual(os.listdir(self.folder), [])
        outputs.write(1, 0, 1, 1, 0, b"x")
        outputs.sync(1, 0, 1, 1)
        outputs.sync(1, 0, 1, 2)
        self.assertEqual(outputs.write(1, 0, 1, 1, 1, b"y"), 2)

    def test_a_sync_does_not_hold_up_who_writes(self) -> None:
        outputs = Outputs(self.folder)
        self.addCleanup(outputs.close)
        outputs.write(1, 0, 1, 1, 0, b"x")

        def meanwhile(fd: int) -> None:
            writer = threading.Thread(target=outputs.write, args=(1, 0, 1, 1, 1, b"y"))
            writer.start()
            writer.join(20)
            self.assertFalse(writer.is_alive())

        with mock.patch("src.spool.sync_file", meanwhile):
            outputs.sync(1, 0, 1, 1)
        self.assertEqual(outputs.read(1, 0, 1, 1, 0, 9), b"xy")

    def test_one_thread_reads_and_syncs_while_another_writes(self) -> None:
        outputs = Outputs(self.folder)
        self.addCleanup(outputs.close)
        text = bytes(range(256)) * 40

        def write() -> None:
            for pos in range(30):
                for at in range(0, len(text), 1024):
                    outputs.write(1, pos, 1, 1, at, text[at : at + 1024])

        thread = threading.Thread(target=write)
        thread.start()
        for pos in range(30):
            had = 0
            while had < len(text):
                piece = outputs.read(1, pos, 1, 1, had, 700)
                self.assertEqual(piece, text[had : had + len(piece)])
                had += len(piece)
                self.assertGreaterEqual(outputs.size(1, pos, 1, 1), had)
                outputs.sync(1, pos, 1, 1)
        thread.join()
