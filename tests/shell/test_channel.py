"""Two channels, joined by hand: who gets in, who does not, and what each is told."""

from __future__ import annotations

import random
import ssl
import tempfile
import unittest
from typing import Any

from src.channel import Channel, ClientChannel, ServerChannel
from src.core.errors import KeyProblem, LinkError, MicroclusterError, ProtocolError
from src.core.framing import encode
from src.keys import ManagerKeys, PeerKey, server_context


def talk(server: Channel, client: Channel, turns: int = 8) -> list[Any]:
    """Carry bytes between the two until they are quiet; what the server received. Raises the client's error."""
    got: list[Any] = []
    failed: MicroclusterError | None = None
    for _ in range(turns):
        up = client.outgoing()
        if up and failed is None:
            try:
                got += server.receive(up)
            except MicroclusterError as error:
                failed = error
        down = server.outgoing()
        if down:
            client.receive(down)
    if failed is not None:
        client.receive(b"")
    return got


class ChannelTest(unittest.TestCase):
    keys: ManagerKeys
    other: ManagerKeys
    context: ssl.SSLContext

    @classmethod
    def setUpClass(cls) -> None:
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.keys = ManagerKeys.load_or_create(folder.name + "/home")
        cls.other = ManagerKeys.load_or_create(folder.name + "/other")
        cls.context = server_context(cls.keys)

    def server(self) -> ServerChannel:
        return ServerChannel(self.context, self.keys)

    def client(self, key: PeerKey | None, wanted: str = "client") -> ClientChannel:
        return ClientChannel(key, wanted, "host:5000")

    def test_the_right_key(self) -> None:
        for role, wanted in (("submit", "client"), ("read", "client"), ("admin", "client"), ("worker", "worker")):
            server, client = self.server(), self.client(self.keys.peer_key(role), wanted)
            client.send({"t": "first"}, b"with it")
            self.assertEqual(talk(server, client), [({"t": "first"}, b"with it")])
            self.assertEqual((server.peer.role, client.peer.role), (role, role))  # type: ignore[union-attr]

    def test_nothing_is_readable_on_the_wire(self) -> None:
        server, client = self.server(), self.client(self.keys.peer_key("submit"))
        talk(server, client)
        client.send({"t": "x"}, b"SECRET" * 100)
        self.assertNotIn(b"SECRET", client.outgoing())

    def test_wrong_keys_are_refused_and_told(self) -> None:
        good = self.keys.peer_key("submit")
        for key, wanted in (
            (good._replace(secret=b"x" * 32), "client"),
            (good._replace(kid="0" * 16), "client"),
            (self.keys.peer_key("worker"), "client"),
            (good, "worker"),
            (self.keys.peer_key("admin"), "worker"),
        ):
            with self.subTest(key=key, wanted=wanted), self.assertRaises(KeyProblem):
                talk(self.server(), self.client(key, wanted))

    def test_another_manager_is_noticed_before_anything_is_said(self) -> None:
        client = self.client(self.keys.peer_key("submit"))
        server = ServerChannel(server_context(self.other), self.other)
        with self.assertRaises(KeyProblem):
            talk(server, client)

    def test_a_worker_cannot_pose_as_the_manager(self) -> None:
        """It has the worker key, but not the certificate's key: the pin stops it."""
        forged = self.other._replace(pin=self.keys.pin, master=self.keys.master)
        with self.assertRaises(KeyProblem):
            talk(ServerChannel(server_context(self.other), forged), self.client(self.keys.peer_key("worker"), "worker"))

    def test_secure_and_insecure_tell_each_other(self) -> None:
        with self.assertRaisesRegex(KeyProblem, "uses keys"):
            talk(self.server(), self.client(None))
        with self.assertRaisesRegex(KeyProblem, "insecure"):
            talk(ServerChannel(None, None), self.client(self.keys.peer_key("submit")))
        server, client = ServerChannel(None, None), self.client(None)
        client.send({"t": "x"})
        self.assertEqual(talk(server, client), [({"t": "x"}, b"")])

    def test_other_protocols(self) -> None:
        for raw, words in (
            (b"HTTP/1.1 400 Bad Request\r\n", "speaks HTTP"),
            (b"SSH-2.0-OpenSSH_9.2\r\n", "speaks ssh"),
            (b"what?", "does not speak microcluster"),
        ):
            for key in (self.keys.peer_key("submit"), None):
                if key is None and raw == b"what?":
                    continue
                with self.subTest(raw=raw), self.assertRaisesRegex(ProtocolError, words):
                    self.client(key).receive(raw)

    def test_another_protocol_number_says_who_is_older(self) -> None:
        server = ServerChannel(None, None)
        with self.assertRaises(LinkError):
            server.receive(encode({"t": "hello", "mc": 99, "role": "client", "insecure": True}))
        client = self.client(None)
        with self.assertRaisesRegex(ProtocolError, "upgrade the manager"):
            client.receive(server.outgoing())

    def test_before_authentication_little_is_taken(self) -> None:
        for raw in (
            b"\x16" + b"x" * 50_000,
            encode({"t": "hello", "x": "y" * 2000}),
            b"\0\0\0\1\0\0\0\1{x",
            b"GET / HTTP/1.1\r\n",
        ):
            for server in (self.server(), ServerChannel(None, None)):
                with self.subTest(raw=raw[:20]), self.assertRaises(LinkError):
                    server.receive(raw)
                    server.receive(raw)
                    server.receive(b"")

    def test_mutated_bytes_end_the_connection_and_nothing_else(self) -> None:
        for seed in range(150):
            chance = random.Random(seed)
            server, client = self.server(), self.client(self.keys.peer_key("submit"))
            client.send({"t": "x"}, b"y")
            broken = False
            try:
                for _ in range(8):
                    up = bytearray(client.outgoing())
                    if up and chance.random() < 0.5:
                        up[chance.randrange(len(up))] ^= 1 << chance.randrange(8)
                        broken = True
                    if up:
                        server.receive(bytes(up))
                    down = server.outgoing()
                    if down:
                        client.receive(down)
            except MicroclusterError:
                self.assertTrue(broken, seed)

    def test_a_proof_is_good_once(self) -> None:
        """Recorded insecure-layer messages of one handshake do not fit another: the nonces differ."""
        first = self.server()
        second = self.server()
        client = self.client(self.keys.peer_key("submit"))
        hello = client.outgoing()
        first.receive(hello)
        second.receive(hello)
        client.receive(first.outgoing())
        with self.assertRaises(LinkError):
            second.receive(client.outgoing())
            second.receive(b"")
