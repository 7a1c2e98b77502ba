"""Mode 'web': a server on this machine for the page on which pictures are dropped.

It takes the standard library alone, and works without any network.
"""

import contextlib
import ipaddress
import json
import os
import re
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingTCPServer

from utils.io.errors import UserError
from utils.io.logger import logger
from utils.modes.web.upload import MOST_MEGABYTES, about, detect_upload, options_of

MOST_BYTES = MOST_MEGABYTES * 2**20
# Pictures that are looked at together, uploads that may wait for that, and connections at a time, which include both.
AT_ONCE, MOST_WAITING, MOST_CONNECTIONS = 2, 16, 64
# Without a packet, and of a whole upload, which keeps its place among those that wait.
SECONDS_OF_SILENCE, SECONDS_OF_UPLOAD = 30, 60
FOLDER = Path(__file__).parent
PAGE_FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def serve(detector, settings):
    """Show the page until Ctrl-C. detector: a BaseDetector. settings: predict.py's constants.

    Raises ValueError where this address and port cannot be listened on.
    """
    with open_server(detector, settings) as server:
        host, port = server.server_address[:2]
        if not server.is_loopback:
            logger.warning(
                f"web_host is {settings.web_host!r}, so everybody in the network can use this page, at port {port} of "
                "this machine's address."
            )
        # All addresses together are none that a browser can open.
        host = "localhost" if ipaddress.ip_address(host).is_unspecified else settings.web_host
        logger.info(f"Open http://{f'[{host}]' if ':' in host else host}:{port} in a browser; Ctrl-C ends it.")
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
        logger.info("\nStopped by Ctrl-C.")


def open_server(detector, settings):
    """The PageServer of predict.py's constants, listening; raises as serve does."""
    try:
        return PageServer(detector, settings)
    except OSError as error:
        raise UserError(
            f"web_host is {settings.web_host!r} and web_port is {settings.web_port}, where this program cannot listen: "
            f"{error.strerror}. Expected an address of this machine and a port that no other program uses, such as "
            f"--web_port={settings.web_port + 1}."
        ) from error


class PageServer(ThreadingTCPServer):
    """Answers with the page, and for each picture with what was found; a thread for each connection."""

    daemon_threads, request_queue_size = True, MOST_CONNECTIONS
    # Windows would let two programs listen on one port.
    allow_reuse_address = os.name != "nt"

    def __init__(self, detector, settings):
        self.detector, self.settings = detector, settings
        self.working, self.waiting = threading.Semaphore(AT_ONCE), threading.Semaphore(MOST_WAITING)
        self.connections = threading.Semaphore(MOST_CONNECTIONS)
        self.address_family = socket.AF_INET6 if ":" in settings.web_host else socket.AF_INET
        super().__init__((settings.web_host, settings.web_port), PageHandler)
        self.is_loopback = _is_loopback(self.server_address[0])

    def process_request(self, request, client_address):
        if self.connections.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request, client_address):
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.connections.release()

    def handle_error(self, request, client_address):
        # A browser that was closed before its answer is no error.
        if not isinstance(sys.exception(), OSError):
            logger.exception("a request of mode 'web' failed:")


class PageHandler(BaseHTTPRequestHandler):
    """One request: GET of the page's files and of /about, POST of a picture to /detect."""

    # An answer's head and body are two packets, of which the second would wait for a receipt of the first.
    timeout, disable_nagle_algorithm = SECONDS_OF_SILENCE, True

    def do_GET(self):
        path = self.path.partition("?")[0]
        if self._is_foreign():
            self._refuse(403, "This page answers under its own address alone.")
        elif path == "/about":
            self._answer_json(200, about(self.server.detector, self.server.settings))
        elif path in PAGE_FILES:
            name, kind = PAGE_FILES[path]
            self._answer(200, (FOLDER / name).read_bytes(), kind)
        else:
            self._refuse(404, "There is no such page.")

    def do_POST(self):
        path, _, query = self.path.partition("?")
        if self._is_foreign() or path != "/detect":
            self._refuse(403, "Only this page itself may send pictures.")
        elif not 0 < self._length() <= MOST_BYTES:
            self._refuse(413, f"Expected a file of up to {MOST_MEGABYTES} MB; this one is empty or larger.")
        elif not self.server.waiting.acquire(blocking=False):
            self._refuse(503, f"{MOST_WAITING} pictures are waiting already; try again in a moment.")
        else:
            try:
                self._detect(b"".join(self._body()), query)
            finally:
                self.server.waiting.release()

    def _detect(self, content, query):
        try:
            if len(content) < self._length():
                raise UserError("Only a part of the picture arrived in time; try again.")
            with self.server.working:
                found = detect_upload(self.server.detector, self.server.settings, content, **options_of(query))
            self._answer_json(200, found)
        except UserError as error:
            self._answer_json(422, {"error": str(error)})
        except OSError:
            raise
        except Exception:
            logger.exception("a picture of mode 'web' failed:")
            self._answer_json(500, {"error": "The detector failed on this picture; the terminal says why."})

    def _body(self):
        """Yield what is sent, in pieces, up to the limit, until SECONDS_OF_UPLOAD are over."""
        left, end = min(self._length(), MOST_BYTES), time.monotonic() + SECONDS_OF_UPLOAD
        with contextlib.suppress(TimeoutError):
            while left > 0 and (seconds := end - time.monotonic()) > 0:
                self.connection.settimeout(min(seconds, SECONDS_OF_SILENCE))
                if not (part := self.rfile.read1(min(left, 2**16))):
                    break
                left -= len(part)
                yield part
        self.connection.settimeout(SECONDS_OF_SILENCE)

    def _length(self):
        text = self.headers.get("Content-Length", "")
        return int(text) if text.isdecimal() and len(text) < 16 else 0

    def _is_foreign(self):
        """Whether another website lets a visitor's browser ask: from there, or by a name of its own for this machine,
        under which its scripts would count as this page's."""
        host = self.headers.get("Host", "")
        name = re.sub(r":\d+$", "", host).strip("[]")
        is_renamed = self.server.is_loopback and name != "localhost" and not _is_loopback(name)
        return is_renamed or self.headers.get("Origin", f"http://{host}") != f"http://{host}"

    def _refuse(self, status, sentence):
        # What is on its way is read, up to the limit: a browser that still sends does not see the answer.
        for _ in self._body():
            pass
        self._answer_json(status, {"error": sentence})

    def _answer_json(self, status, content):
        self._answer(status, json.dumps(content).encode(), "application/json")

    def _answer(self, status, body, kind):
        self.send_response(status)
        for name, value in (HEADERS | {"Content-Type": kind, "Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Say nothing: what visitors look at is theirs."""


def _is_loopback(host):
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
