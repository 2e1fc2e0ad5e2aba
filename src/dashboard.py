"""`client.py dashboard`: one web page on loopback, served from the client's machine over its own connection.

Nothing is added to the manager. Only who knows the address with its random token gets in: other users of the machine and
other web pages (Host and Origin are checked; no cookie) do not. All text is put into the page as text, never as HTML.
"""

from __future__ import annotations

import hmac
import json
import os
import secrets
import sys
import threading
import webbrowser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from .core.errors import LinkError, MicroclusterError, UsageError
from .core.syntax import parse_selector
from .link import Link

PAGE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "dashboard.html")
OUTPUT_TAIL = 64 * 1024  # bytes of a task's output that the page shows
BODY_MAX = 64 * 1024


def parse_listen(text: str) -> tuple[str, int]:
    """HOST:PORT; raises UsageError."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise UsageError(f"not HOST:PORT: {text!r} (for example 127.0.0.1:0)")
    return host.strip("[]"), int(port)


class Backend:
    """The page's data, through one link that is made again when it breaks. Any thread."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._lock = threading.Lock()  # guards the exchange of a broken link

    def ask(self, header: dict[str, Any], payload: bytes = b"") -> tuple[dict[str, Any], bytes]:
        """One request, once more over a new link when the old one is broken."""
        link = self._link
        try:
            return link.request(header, payload)
        except LinkError:
            with self._lock:
                if self._link is link:
                    self._link = Link(link.host, link.port, link.key)
            return self._link.request(header, payload)

    def overview(self) -> dict[str, Any]:
        info, _ = self.ask({"t": "info"})
        jobs, _ = self.ask({"t": "list", "last": 100})
        workers, _ = self.ask({"t": "workers"})
        return {"info": info, "jobs": jobs["jobs"], "workers": workers["workers"], "role": self._link.role}

    def job(self, text: str) -> dict[str, Any]:
        """A job or task in full, with the end of its output."""
        sel = selector(text)
        view = self.ask({"t": "status", "ids": [sel]})[0]["jobs"][0]
        found: dict[str, Any] = {"view": view, "output": "", "error": ""}
        if view.get("tasks") is None:
            found["output"], found["error"] = self._output(text, view)
        else:
            first = {**sel, "lo": None, "hi": None}
            found["failed"] = self.ask({"t": "files", "ids": [first]})[0]["tasks"][:500]
        return found

    def _output(self, text: str, view: dict[str, Any]) -> tuple[str, str]:
        job = int(str(view["id"]).split(".")[0])
        pos = self.position(job, view)
        starts = [max(0, (view.get(name) or 0) - OUTPUT_TAIL) for name in ("output_bytes", "error_bytes")]
        header = {
            "t": "read", "job": job, "lo": pos, "hi": pos, "pos": pos, "out": starts[0], "err": starts[1],
            "attempt": view.get("attempt") or 0, "wait": 0, "live": True,
        }  # fmt: skip
        answer, payload = self.ask(header)
        if not answer["tasks"]:
            return "", ""
        out = answer["tasks"][0]["out"][1]
        err = answer["tasks"][0]["err"][1]
        return payload[:out].decode("utf-8", "replace"), payload[out : out + err].decode("utf-8", "replace")

    def position(self, job: int, view: dict[str, Any]) -> int:
        """The position of a task that the page names by its index."""
        if "index" not in view:
            return 0
        tasks = self.ask({"t": "files", "ids": [{"job": job, "lo": view["index"], "hi": view["index"]}]})[0]["tasks"]
        return int(tasks[0][0]) if tasks else 0

    def act(self, verb: str, text: str) -> dict[str, Any]:
        if verb not in ("cancel", "retry"):
            raise UsageError(f"unknown action {verb}")
        return self.ask({"t": verb, "ids": [selector(text)]})[0]


def selector(text: str) -> dict[str, Any]:
    """A selector of the page as the manager takes it."""
    found = parse_selector(text)
    return {"job": found.job, "lo": found.lo, "hi": found.hi}


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    server_version = "microcluster"
    sys_version = ""

    def log_message(self, *args: Any) -> None:
        """Silence: the address holds the token."""

    def do_GET(self) -> None:
        path, query = self._checked()
        if path is None:
            return
        try:
            if path == "":
                with open(PAGE, "rb") as file:
                    self._answer(200, file.read(), "text/html; charset=utf-8")
            elif path == "overview":
                self._json(self.server.backend.overview())
            elif path == "job":
                self._json(self.server.backend.job(query.get("id", [""])[0]))
            else:
                self._answer(404, b"not here\n", "text/plain")
        except MicroclusterError as error:
            self._json({"problem": str(error)}, 502)

    def do_POST(self) -> None:
        path, _ = self._checked()
        if path is None:
            return
        try:
            length = int(self.headers.get("Content-Length") or "0")
            body = json.loads(self.rfile.read(min(length, BODY_MAX)) or b"{}")
            if self.headers.get("Content-Type") != "application/json" or path != "act":
                self._answer(400, b"not understood\n", "text/plain")
                return
            self._json(self.server.backend.act(str(body.get("verb")), str(body.get("id"))))
        except ValueError:
            self._answer(400, b"not understood\n", "text/plain")
        except MicroclusterError as error:
            self._json({"problem": str(error)}, 502)

    def _checked(self) -> tuple[str | None, dict[str, list[str]]]:
        """The path behind the token; None (and an answer) for whoever does not have it."""
        parts = urlsplit(self.path)
        pieces = parts.path.split("/", 2)
        host_fits = self.headers.get("Host") in self.server.hosts
        origin = self.headers.get("Origin")
        origin_fits = origin is None or urlsplit(origin).netloc in self.server.hosts
        token = pieces[1] if len(pieces) > 2 else ""
        if not (host_fits and origin_fits and hmac.compare_digest(token.encode(), self.server.token.encode())):
            self._answer(403, b"This page needs the whole address that `dashboard` printed.\n", "text/plain")
            return None, {}
        return pieces[2], parse_qs(parts.query)

    def _json(self, value: Any, status: int = 200) -> None:
        self._answer(status, json.dumps(value).encode(), "application/json")

    def _answer(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("X-Frame-Options", "DENY")
        self.send_header("Referrer-Policy", "no-referrer")
        policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
        self.send_header("Content-Security-Policy", policy)
        self.end_headers()
        self.wfile.write(body)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], backend: Backend) -> None:
        super().__init__(address, _Handler)
        self.backend = backend
        self.token = secrets.token_urlsafe(24)
        port = self.server_address[1]
        shown = f"[{address[0]}]" if ":" in address[0] else address[0]
        self.hosts = {f"{shown}:{port}", f"localhost:{port}", f"127.0.0.1:{port}"}
        self.url = f"http://{shown}:{port}/{self.token}/"


def start(link: Link, listen: str = "127.0.0.1:0") -> _Server:
    """The server, listening, not yet serving; raises UsageError when it cannot listen there."""
    host, port = parse_listen(listen)
    try:
        return _Server((host, port), Backend(link))
    except OSError as error:
        raise UsageError(f"cannot listen on {listen}: {error.strerror or error}") from None


def main(link: Link, listen: str = "127.0.0.1:0", open_browser: bool = False) -> int:
    """Serve until Ctrl-C; prints the address."""
    server = start(link, listen)
    sys.stdout.write(server.url + "\n")
    sys.stdout.flush()
    if open_browser:
        webbrowser.open(server.url)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()
    return 0
