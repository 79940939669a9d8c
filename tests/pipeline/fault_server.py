"""An HTTP server on loopback that gives a folder, or what another server gives, with faults.

`faults[NAME]` are the faults of the next requests for a file of this name, one each; what they do
is in `Handler`. `requests[NAME]` counts the requests, faulty ones too.
"""

import contextlib
import gzip
import html
import http.client
import socket
import struct
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

FAULTS = ("stall", "500", "503", "429", "truncate", "reset", "flip", "short")


class FaultServer(ThreadingHTTPServer):
    """Serves `root`: a folder, or (host, port) of a server to which requests are handed on."""

    daemon_threads = True

    def __init__(self, root: Path | tuple[str, int], **how: bool):
        super().__init__(("127.0.0.1", 0), Handler)
        self.root = root
        self.ranges, self.lists = how.get("ranges", True), how.get("lists", True)
        self.compresses = how.get("compresses", False)
        self.faults: dict[str, Iterator[str]] = defaultdict(lambda: iter(()))
        self.requests: Counter[str] = Counter()
        self.bytes = 0
        self.on_request = lambda name: None
        self.closing = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        """A client that went away is no error of the server's."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultServer

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        name = unquote(self.path.partition("?")[0]).rstrip("/").rpartition("/")[2]
        self.server.requests[name] += 1
        self.server.on_request(name)
        fault = next(self.server.faults[name], "")
        if fault.isdigit():
            return self.answer(int(fault), {}, b"no")
        if fault == "stall":
            self.server.closing.wait()
        if fault == "reset":
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        if fault in ("stall", "reset"):
            self.close_connection = True
            return None
        status, headers, body = self.content()
        if fault == "flip":
            body = body[:-700] + bytes([body[-700] ^ 1]) + body[-699:]
        if fault == "short":  # whole to HTTP, but not what was asked for
            body = body[:-100]
        self.answer(status, headers, body, sent=len(body) // 2 if fault == "truncate" else None)

    def content(self) -> tuple[int, dict[str, str], bytes]:
        if isinstance(self.server.root, tuple):
            return self.handed_on(self.server.root)
        path = self.server.root / unquote(self.path.partition("?")[0]).lstrip("/")
        if path.is_dir() and self.server.lists:
            names = "".join(f'<a href="{html.escape(p.name)}">x</a>' for p in path.iterdir())
            return 200, {"Content-Type": "text/html"}, names.encode()
        if not path.is_file():
            return 404, {}, b"nothing here"
        data, headers = path.read_bytes(), {}
        if self.server.compresses and "gzip" in self.headers["Accept-Encoding"]:
            data, headers = gzip.compress(data), {"Content-Encoding": "gzip"}
        if self.server.ranges and (wanted := self.headers["Range"]):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            part = data[int(first) : int(last) + 1]
            return 206, {"Content-Range": f"bytes {first}-{last}/{len(data)}", **headers}, part
        return 200, headers, data

    def handed_on(self, to: tuple[str, int]) -> tuple[int, dict[str, str], bytes]:
        with contextlib.closing(http.client.HTTPConnection(*to)) as connection:
            connection.request(self.command, self.path, headers=dict(self.headers))
            answer = connection.getresponse()
            body = answer.read()
        left_out = ("content-length", "transfer-encoding", "connection", "date", "server")
        kept = {k: v for k, v in answer.getheaders() if k.lower() not in left_out}
        return answer.status, kept, body

    def answer(self, status, headers, body, sent=None):
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.server.bytes += len(body)
        self.wfile.write(body[:sent])
        if sent is not None:
            self.wfile.flush()
            self.close_connection = True

    def log_message(self, *args):
        """Nothing is printed."""


@contextlib.contextmanager
def serving(root: Path | tuple[str, int], **options) -> Iterator[FaultServer]:
    """A running server, which is gone afterwards."""
    with FaultServer(root, **options) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.closing.set()
            server.shutdown()
            thread.join()
