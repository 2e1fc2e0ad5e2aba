"""The loop, its connections and a client's link, over real sockets: strangers, silence, slow peers, many at once."""

from __future__ import annotations

import gc
import socket
import ssl
import tempfile
import threading
import unittest
import weakref
from functools import partial
from typing import Any
from unittest import mock

from src import link, listen, net
from src.channel import ClientChannel, ServerChannel
from src.core.errors import KeyProblem, LinkError, ManagerGone, MicroclusterError, ProtocolError, Refused, Unreachable
from src.keys import ManagerKeys, server_context
from src.link import Link
from src.listen import Server
from src.loop import Loop
from src.net import Conn
from src.spool import FileRange
from tests.support.waiting import wait_until


class Echo:
    """Answers requests with what they ask for."""

    def __init__(self) -> None:
        self.conns: list[Conn] = []
        self.ended: list[Exception | None] = []
        self.file = FileRange("", 0, 0)

    def opened(self, conn: Conn) -> None:
        self.conns.append(conn)

    def received(self, conn: Conn, header: dict[str, Any], payload: bytes) -> None:
        kind = header["t"]
        if kind == "echo":
            conn.send({"t": "ok", "n": header["n"]}, payload)
        elif kind == "file":
            conn.send({"t": "ok", "n": header["n"]}, self.file)
        elif kind == "no":
            conn.send({"t": "error", "n": header["n"], "code": "no", "message": "no"})
        elif kind == "bye":
            conn.close("as asked")
        elif kind == "flood":
            for _ in range(12):
                conn.send({"t": "x"}, b"z" * (1 << 20))

    def closed(self, conn: Conn, error: Exception | None) -> None:
        self.ended.append(error)


class NetCase(unittest.TestCase):
    folder: str
    keys: ManagerKeys
    context: ssl.SSLContext

    @classmethod
    def setUpClass(cls) -> None:
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.folder = folder.name
        cls.keys = ManagerKeys.load_or_create(folder.name + "/home")
        cls.context = server_context(cls.keys)

    def setUp(self) -> None:
        self.loop, self.echo = Loop(), Echo()
        self.server = Server(self.loop, "127.0.0.1", 0, lambda: ServerChannel(self.context, self.keys), self.echo)
        self.port = self.server.address[1]
        self.thread = threading.Thread(target=self.loop.run)
        self.thread.start()
        self.addCleanup(self.end)

    def end(self) -> None:
        self.loop.stop()
        self.thread.join()
        self.server.close()
        for conn in list(self.server.conns):
            conn.abort()
        self.loop.close()

    def link(self) -> Link:
        link = Link("127.0.0.1", self.port, self.keys.peer_key("submit"))
        self.addCleanup(link.close)
        return link


class Brittle:
    """A socket that can write so many times."""

    def __init__(self, real: Any, writes: int) -> None:
        self.real, self.writes = real, writes

    def sendall(self, raw: bytes) -> None:
        self.writes -= 1
        if self.writes < 0:
            raise BrokenPipeError(32, "Broken pipe")
        self.real.sendall(raw)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


class LinkTest(NetCase):
    def test_a_manager_that_goes_anywhere_in_the_greeting_is_gone(self) -> None:
        dial = link._dial
        for writes in range(3):

            def brittle(*where: Any, writes: int = writes) -> Brittle:
                return Brittle(dial(*where), writes)

            with mock.patch("src.link._dial", brittle), self.assertRaisesRegex(ManagerGone, "Broken pipe"):
                self.link()

    def test_requests_and_answers(self) -> None:
        link = self.link()
        self.assertEqual(link.request({"t": "echo"}, b"abc")[1], b"abc")
        numbers = [link.post({"t": "echo"}, b"%d" % n) for n in range(50)]
        self.assertEqual([link.answer(n)[1] for n in reversed(numbers)], [b"%d" % n for n in reversed(range(50))])
        with self.assertRaises(Refused):
            link.request({"t": "no"})
        self.assertEqual(link.role, "submit")

    def test_many_threads_one_link(self) -> None:
        link, wrong = self.link(), []

        def ask(name: bytes) -> None:
            for n in range(30):
                answer = link.request({"t": "echo"}, name + b"%d" % n)[1]
                if answer != name + b"%d" % n:
                    wrong.append(answer)

        threads = [threading.Thread(target=ask, args=(b"%c" % letter,)) for letter in b"abcdef"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(wrong, [])

    def test_a_megabyte_each_way(self) -> None:
        link, data = self.link(), bytes(range(256)) * 4096
        for _ in range(5):
            self.assertEqual(link.request({"t": "echo"}, data)[1], data)

    def test_a_file_in_pieces(self) -> None:
        path = self.folder + "/file"
        with open(path, "wb") as file:
            file.write(b"0123456789" * 20_000)
        self.echo.file = FileRange(path, 10, 100_000)
        self.assertEqual(self.link().request({"t": "file"})[1], (b"0123456789" * 20_000)[10:100_010])

    def test_the_end_of_the_connection_is_told(self) -> None:
        link = self.link()
        with self.assertRaises(ManagerGone):
            link.request({"t": "bye"})
        with self.assertRaises(ManagerGone):
            link.request({"t": "echo"})

    def test_nobody_there(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        with self.assertRaisesRegex(Unreachable, "no manager at"):
            Link("127.0.0.1", port, None)

    def test_wrong_keys_and_modes(self) -> None:
        good = self.keys.peer_key("submit")
        for key in (good._replace(secret=b"x" * 32), None, self.keys.peer_key("worker")):
            with self.assertRaises(KeyProblem):
                Link("127.0.0.1", self.port, key)
        # A manager that proved itself may still refuse us: its word comes in place of the first answer.
        link = Link("127.0.0.1", self.port, self.keys.peer_key("worker")._replace(role="submit"))
        for _ in range(2):
            with self.assertRaisesRegex(MicroclusterError, "does not let anybody join as a client"):
                link.request({"t": "echo"})
        self.assertEqual(self.link().request({"t": "echo"}, b"still here")[1], b"still here")

    def test_requests_follow_the_greeting_at_once_in_order(self) -> None:
        link = self.link()
        sizes = (10, 200_000, 20, 15_000, 0)
        numbers = [link.post({"t": "echo"}, b"x" * size) for size in sizes]
        self.assertEqual([len(link.answer(number)[1]) for number in numbers], list(sizes))
        self.assertEqual(link.role, "submit")

    def test_other_servers(self) -> None:
        for greeting, words in ((b"SSH-2.0-x\r\n", "ssh"), (b"HTTP/1.1 400 x\r\n\r\n", "HTTP")):
            with socket.create_server(("127.0.0.1", 0)) as server:

                def serve(server: socket.socket = server, greeting: bytes = greeting) -> None:
                    conn = server.accept()[0]
                    conn.sendall(greeting)
                    conn.recv(1000)
                    conn.close()

                thread = threading.Thread(target=serve)
                thread.start()
                with self.assertRaisesRegex(ProtocolError, words):
                    Link("127.0.0.1", server.getsockname()[1], self.keys.peer_key("submit"))
                thread.join()


class StrangersTest(NetCase):
    def test_garbage_and_idlers_do_not_disturb(self) -> None:
        idle = [socket.create_connection(("127.0.0.1", self.port)) for _ in range(200)]
        for sock in idle:
            self.addCleanup(sock.close)
        for raw in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01" + b"\xff" * 600, b"\0\0\0\0\0\0\0\0", b"\xff" * 2000):
            with socket.create_connection(("127.0.0.1", self.port)) as sock:
                sock.settimeout(30)
                sock.sendall(raw)
                sock.shutdown(socket.SHUT_WR)
                while sock.recv(1000):
                    pass
        self.assertEqual(self.link().request({"t": "echo"}, b"fine")[1], b"fine")

    def stranger(self, tls: bool = False) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        if tls:
            sock = ssl._create_unverified_context().wrap_socket(sock)
        self.addCleanup(sock.close)
        return sock

    def assert_open(self, *socks: socket.socket) -> None:
        for sock in socks:
            sock.setblocking(False)
            with self.assertRaises((BlockingIOError, ssl.SSLWantReadError)):
                sock.recv(1)

    def pending(self) -> int:
        return len(self.server._pending)

    def test_the_oldest_idler_makes_room(self) -> None:
        with mock.patch.object(listen, "SILENT_MAX", 5):
            socks = [self.stranger() for _ in range(5)]
            wait_until(lambda: self.pending() == 5, 30, "all to be accepted")
            socks += [self.stranger() for _ in range(3)]
            self.assertEqual([sock.recv(1) for sock in socks[:3]], [b""] * 3)
            wait_until(lambda: self.pending() == 5, 30, "all to be accepted")
            self.assert_open(*socks[3:])

    @mock.patch.multiple(listen, SILENT_MAX=2, GREETING_MAX=2)
    def test_who_is_silent_longest_goes_first(self) -> None:
        pending, gone = listen.Pending(), []

        class FakeConn:
            on_heard: Any = None

            def abort(self, error: Exception) -> None:
                gone.append(self)
                pending.remove(self)  # type: ignore[arg-type]

        a, b, c, d, e = (FakeConn() for _ in range(5))
        self.assertFalse(pending.make_room())
        for conn in (a, b, c):
            pending.add(conn)  # type: ignore[arg-type]
        self.assertEqual(gone, [a])
        b.on_heard(b)
        c.on_heard(c)
        pending.add(d)  # type: ignore[arg-type]
        b.on_heard(b)
        self.assertEqual((gone, len(pending)), ([a], 3))
        d.on_heard(d)
        self.assertEqual(gone, [a, c])
        pending.add(e)  # type: ignore[arg-type]
        self.assertTrue(pending.make_room())
        self.assertEqual((gone, len(pending)), ([a, c, e], 2))

    def test_a_client_is_let_in_past_more_idlers_than_there_are_places(self) -> None:
        with mock.patch.multiple(listen, SILENT_MAX=10, GREETING_MAX=10):
            for number in range(30):
                self.stranger(tls=number % 2 == 0)
            link = self.link()
            for _ in range(30):
                self.stranger()
            self.assertEqual(link.request({"t": "echo"}, b"in")[1], b"in")

    def test_too_few_descriptors_make_room_too(self) -> None:
        with mock.patch.object(listen, "_fd_limit", return_value=0):
            first = self.stranger()
            wait_until(lambda: self.server._said, 30, "it to be turned away")
            self.assertIn(b"too many connections", first.recv(1000))
            with self.assertRaises(LinkError):
                self.link()
        idler = self.stranger()
        wait_until(lambda: self.pending() == 1, 30, "it to be accepted")
        with mock.patch.object(listen, "_fd_limit", return_value=0):
            self.assertEqual(self.link().request({"t": "echo"}, b"in")[1], b"in")
        self.assertEqual(idler.recv(1), b"")

    def test_nothing_is_kept_of_who_has_gone(self) -> None:
        """Not by a timer either, that would be due in ten seconds: thousands come in that time."""
        gone: list[weakref.ref[Any]] = []
        real = self.server._make

        def channel() -> Any:
            made = real()
            gone.append(weakref.ref(made))
            return made

        gc.disable()
        self.addCleanup(gc.enable)
        self.server._make = channel
        for tls, raw in ((False, b""), (True, b""), (False, b"GET /"), (False, b"\x16" * 99), (True, b"\xff" * 99)):
            sock = self.stranger(tls)
            sock.sendall(raw)
            sock.close()
        wait_until(lambda: len(gone) == 5 and not any(one() for one in gone), 30, "all to be freed")

    def test_tls_begins_with_the_first_byte(self) -> None:
        channel = ServerChannel(self.context, self.keys)
        self.assertIsNone(channel._tls)
        for raw in (b"\0\0\0\0", b"GET /"):
            with self.assertRaises(ProtocolError):
                ServerChannel(self.context, self.keys).receive(raw)
        self.assertEqual(channel.receive(b"\x16"), [])
        self.assertIsNotNone(channel._tls)

    def test_who_does_not_authenticate_is_cut_off(self) -> None:
        with mock.patch.object(net, "AUTH_S", 0.2):
            sock = socket.create_connection(("127.0.0.1", self.port))
            self.addCleanup(sock.close)
            sock.settimeout(30)
            self.assertEqual(sock.recv(1), b"")

    def test_a_silent_peer_is_given_up(self) -> None:
        with (
            mock.patch.object(net, "AUTH_S", 0.5),
            mock.patch.object(net, "SILENT_S", 0.5),
            mock.patch.object(net, "PING_AFTER_S", 0.6),
        ):
            self.link()
            wait_until(lambda: self.echo.ended, 30, "the silent peer's end")
        self.assertIn("silent", str(self.echo.ended[0]))

    def test_a_peer_that_does_not_read_is_given_up(self) -> None:
        link = self.link()
        link.post({"t": "flood"})
        link.post({"t": "flood"})
        wait_until(lambda: self.echo.ended, 30, "the end of who does not read")
        self.assertIn("does not read", str(self.echo.ended[0]))


class LoopTest(NetCase):
    def test_calls_from_other_threads_and_timers_come_in_order(self) -> None:
        seen: list[int] = []
        for n in range(100):
            self.loop.call_threadsafe(partial(seen.append, n))
        wait_until(lambda: len(seen) == 100, 30, "the calls")
        self.assertEqual(seen, list(range(100)))
        done = threading.Event()

        def plan() -> None:
            self.loop.call_later(0.02, done.set)
            self.loop.call_later(0.01, lambda: seen.append(-1)).cancel()

        self.loop.call_threadsafe(plan)
        self.assertTrue(done.wait(30))
        self.assertNotIn(-1, seen)

    def test_a_socket_that_arrives_too_late_is_closed(self) -> None:
        loop = Loop()
        early, late = socket.socketpair()
        loop.hand_over(early, lambda sock: None)
        loop.close()
        loop.hand_over(late, lambda sock: None)
        self.assertEqual((early.fileno(), late.fileno()), (-1, -1))

    def test_a_worker_connects_and_is_told_when_nobody_is_there(self) -> None:
        other = Echo()
        key = self.keys.peer_key("worker")
        failed: list[Exception] = []
        self.loop.call_threadsafe(
            lambda: net.connect(
                self.loop, "127.0.0.1", self.port, lambda: ClientChannel(key, "worker", "x"), other, failed.append
            )
        )
        wait_until(lambda: other.conns and self.echo.conns, 30, "the connection")
        self.assertEqual(self.echo.conns[0].peer.role, "worker")
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        self.loop.call_threadsafe(
            lambda: net.connect(
                self.loop, "127.0.0.1", port, lambda: ClientChannel(key, "worker", "x"), other, failed.append
            )
        )
        wait_until(lambda: failed, 30, "the failure")
