"""The web page's server: who gets in, what it answers; and the lines of `top`."""

from __future__ import annotations

import http.client
import json
import threading
import unittest
from typing import Any, cast

from src import dashboard
from src.core.errors import Refused, UsageError
from src.link import Link
from src.top import View

JOB = {
    "id": "7", "state": "running", "name": "<b>train.py</b>", "user": "ann", "duration": None, "reason": None, "tasks": None,
    "attempt": 1, "output_bytes": 5, "error_bytes": 4,
}  # fmt: skip
INFO = {"version": "0.1.0", "workers": 1, "slots": 2, "finished_tasks": 9, "tasks": {"running": 1}, "secure": True}
WORKER = {"name": "lab-1", "state": "busy", "slots": 2, "slots_used": 1, "address": "x"}


class FakeLink:
    role = "submit"
    host, port, key = "localhost", 1, None

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    def request(self, header: dict[str, Any], payload: bytes = b"") -> tuple[dict[str, Any], bytes]:
        self.asked.append(header)
        if header["t"] == "read":
            return {"tasks": [{"out": [0, 5], "err": [0, 4]}]}, b"hello" + b"oops"
        if header["t"] == "status" and header["ids"][0]["job"] == 99:
            raise Refused("there is no job 99", "no-such-job")
        answers: dict[str, dict[str, Any]] = {
            "info": INFO, "list": {"jobs": [JOB]}, "workers": {"workers": [WORKER]}, "status": {"jobs": [JOB]},
            "cancel": {"cancelled": ["7"]},
        }  # fmt: skip
        return answers[header["t"]], b""


class DashboardTest(unittest.TestCase):
    def setUp(self) -> None:
        self.link = FakeLink()
        self.server = dashboard.start(cast(Link, self.link))
        thread = threading.Thread(target=self.server.serve_forever)
        thread.start()
        self.addCleanup(self.server.server_close)
        self.addCleanup(thread.join)
        self.addCleanup(self.server.shutdown)
        self.host = f"127.0.0.1:{self.server.server_address[1]}"

    def ask(self, path: str, body: Any = None, **headers: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection(self.host, timeout=30)
        data = None if body is None else json.dumps(body).encode()
        connection.request("GET" if body is None else "POST", path, data, headers)
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return answer.status, text

    def test_the_page_and_its_data(self) -> None:
        base = f"/{self.server.token}/"
        status, page = self.ask(base)
        self.assertEqual(status, 200)
        self.assertNotRegex(page, r"(src|href)=.?https?:")
        overview = json.loads(self.ask(base + "overview")[1])
        self.assertEqual(
            (overview["jobs"][0]["id"], overview["workers"][0]["name"], overview["role"]), ("7", "lab-1", "submit")
        )
        job = json.loads(self.ask(base + "job?id=7")[1])
        self.assertEqual((job["output"], job["error"]), ("hello", "oops"))

    def test_nobody_without_the_whole_address(self) -> None:
        for path, headers in (
            ("/", {}), ("/overview", {}), ("/wrong/overview", {}),
            (f"/{self.server.token}/overview", {"Host": "evil.example"}),
            (f"/{self.server.token}/overview", {"Origin": "http://evil.example"}),
        ):  # fmt: skip
            with self.subTest(path=path, headers=headers):
                self.assertEqual(self.ask(path, **headers)[0], 403)
        self.assertEqual(self.link.asked, [])

    def test_cancel_and_what_goes_wrong(self) -> None:
        base, kind = f"/{self.server.token}/", {"Content-Type": "application/json"}
        self.assertEqual(self.ask(base + "act", {"verb": "cancel", "id": "7"}, **kind), (200, '{"cancelled": ["7"]}'))
        self.assertEqual(self.ask(base + "act", {"verb": "prune", "id": "7"}, **kind)[0], 502)
        self.assertEqual(self.ask(base + "act", {"verb": "cancel", "id": "7"})[0], 400)
        status, text = self.ask(base + "job?id=99")
        self.assertEqual((status, json.loads(text)["problem"]), (502, "there is no job 99"))
        self.assertEqual(self.ask(base + "nothing")[0], 404)

    def test_where_it_listens(self) -> None:
        self.assertEqual(dashboard.parse_listen("[::1]:80"), ("::1", 80))
        for text in ("80", "host:", "host:70000"):
            with self.assertRaises(UsageError):
                dashboard.parse_listen(text)


class TopTest(unittest.TestCase):
    def test_lines_fit_and_show_what_there_is(self) -> None:
        view = View()
        evil = {**JOB, "name": "evil\x1b[2J" * 20, "tasks": {"total": 9, "succeeded": 4, "failed": 1, "cancelled": 0}}
        data = {"info": INFO, "jobs": [JOB, evil], "workers": [WORKER] * 30}
        lines = view.lines(data, 80, 24, 1.0)
        self.assertLessEqual(len(lines), 24)
        self.assertLessEqual(max(len(text) for text, _ in lines), 79)
        text = "\n".join(line for line, _ in lines)
        self.assertNotIn("\x1b", text)
        self.assertIn("5/9", text)
        self.assertIn("more", text)
        view.lines({**data, "info": {**INFO, "finished_tasks": 29}}, 80, 24, 3.0)
        self.assertEqual(view.rate, 10.0)
