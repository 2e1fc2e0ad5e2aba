"""Key files: made once, whole, private; refused when they are not."""

from __future__ import annotations

import os
import ssl
import stat
import subprocess
import sys
import tempfile
import unittest
from unittest import mock

from src.core.errors import KeyProblem
from src.keys import ManagerKeys, PeerKey, check_pin, client_context, client_tls, home, load_peer_key, read_key_file


class KeysTest(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.home = os.path.join(folder.name, "home")
        self.env = {"MICROCLUSTER_HOME": self.home}

    def make(self) -> ManagerKeys:
        return ManagerKeys.load_or_create(self.home)

    def test_made_once_private_and_the_same_again(self) -> None:
        keys = self.make()
        self.assertEqual(sorted(os.listdir(self.home)), ["cluster.key", "manager.key"])
        for name in os.listdir(self.home):
            self.assertEqual(stat.S_IMODE(os.stat(os.path.join(self.home, name)).st_mode), 0o600)
        self.assertEqual(self.make(), keys)
        with open(os.path.join(self.home, "cluster.key")) as file:
            self.assertEqual([line.split(".")[1] for line in file], ["worker", "submit"])

    def test_racing_first_starts_agree(self) -> None:
        code = f"from src.keys import ManagerKeys; print(ManagerKeys.load_or_create({self.home!r}).pin.hex())"
        root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        racers = [subprocess.Popen([sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE) for _ in range(4)]
        pins = {racer.communicate(timeout=60)[0] for racer in racers}
        self.assertEqual(len(pins), 1)
        self.assertEqual(sorted(os.listdir(self.home)), ["cluster.key", "manager.key"])

    def test_who_gets_which_key(self) -> None:
        keys = self.make()
        self.assertEqual(load_peer_key("worker", None, self.env).role, "worker")
        self.assertEqual(load_peer_key("client", None, self.env).role, "admin")
        shared = os.path.join(self.home, "cluster.key")
        self.assertEqual(load_peer_key("client", shared, self.env).role, "submit")
        read = {"MICROCLUSTER_KEY": keys.peer_key("read").text(), **self.env}
        self.assertEqual(load_peer_key("client", None, read).role, "read")
        with self.assertRaisesRegex(KeyProblem, "read key"):
            load_peer_key("worker", None, read)
        self.assertEqual(load_peer_key("client", None, {"MICROCLUSTER_KEY_FILE": shared}).role, "submit")

    def test_a_key_is_one_line(self) -> None:
        key = self.make().peer_key("worker")
        self.assertEqual(PeerKey.parse(key.text() + "\n", "here"), key)
        self.assertNotIn(key.secret.hex(), repr(key))
        for text in ("", "mc1.worker.x", "mc1.king.0.AAAA", "password", key.text()[:-9]):
            with self.assertRaisesRegex(KeyProblem, "here holds no key") as caught:
                PeerKey.parse(text, "here")
            self.assertNotIn(text or "?", str(caught.exception))

    def test_unsafe_files_are_refused(self) -> None:
        self.make()
        path = os.path.join(self.home, "cluster.key")
        os.chmod(path, 0o640)
        with self.assertRaisesRegex(KeyProblem, "chmod 600"):
            read_key_file(path)
        os.chmod(path, 0o600)
        link = os.path.join(self.home, "link.key")
        os.symlink(path, link)
        fifo = os.path.join(self.home, "fifo")
        os.mkfifo(fifo, 0o600)
        for bad in (link, fifo, self.home, os.path.join(self.home, "missing")):
            with self.subTest(bad=bad), self.assertRaises(KeyProblem):
                read_key_file(bad)

    def test_a_manager_key_is_not_for_others(self) -> None:
        self.make()
        with self.assertRaisesRegex(KeyProblem, "stays on the manager's machine"):
            load_peer_key("worker", os.path.join(self.home, "manager.key"), self.env)

    def test_damage_and_strangers_are_said(self) -> None:
        self.make()
        path = os.path.join(self.home, "manager.key")
        with open(path, "w") as file:
            file.write("mc1-master 00\n")
        with self.assertRaisesRegex(KeyProblem, "damaged"):
            self.make()
        os.unlink(path)
        with self.assertRaisesRegex(KeyProblem, "another manager"):
            self.make()

    def test_the_pin_check_fails_on_anything_else(self) -> None:
        with self.assertRaises(KeyProblem):
            check_pin(b"certificate", b"\0" * 32)
        with self.assertRaises(KeyProblem):
            check_pin(None, b"\0" * 32)

    def test_where_keys_are(self) -> None:
        self.assertEqual(home({"MICROCLUSTER_HOME": "/a"}), "/a")
        self.assertEqual(home({"XDG_CONFIG_HOME": "/c"}), "/c/microcluster")
        self.assertTrue(home({}).endswith("/.config/microcluster"))


class ClientContextTest(unittest.TestCase):
    def test_it_is_what_ssl_would_make(self) -> None:
        public = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        public.minimum_version = ssl.TLSVersion.TLSv1_3
        with mock.patch("_ssl._SSLContext", object):
            fallback = client_context()
        self.assertIsInstance(fallback, ssl.SSLContext)
        for context in (client_context(), fallback):
            for name in ("minimum_version", "maximum_version", "options", "verify_flags"):
                self.assertEqual(int(getattr(context, name)), int(getattr(public, name)), name)
            self.assertEqual(context.get_ciphers(), public.get_ciphers())
            self.assertEqual((context.verify_mode, context.check_hostname), (ssl.CERT_NONE, False))
            sealed = ssl.MemoryBIO()
            with self.assertRaises(ssl.SSLWantReadError):
                client_tls(context, ssl.MemoryBIO(), sealed).do_handshake()
            self.assertEqual(sealed.read()[:1], b"\x16")
