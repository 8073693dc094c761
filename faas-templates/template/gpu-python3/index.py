"""Serves the function's handler to the watchdog, at the address that `upstream_url` names, on a thread for each request.

The port is open once `load` is done: until then the watchdog holds requests, and the container is not ready.
"""

import base64
import http.server
import json
import os
import signal
import socket
import sys
import threading
import traceback
import urllib.parse

from function import handler

DEFAULT_PORT = 5000
# Seconds that a connection of the watchdog may be idle.
IDLE = 300


class Event:
    """A request: `body` as bytes, `headers`, `method`, `path`, and `query` with the last value of each name."""

    def __init__(self, request, body):
        url = urllib.parse.urlsplit(request.path)
        self.body = body
        self.headers = request.headers
        self.method = request.command
        self.path = urllib.parse.unquote(url.path)
        self.query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))


class Context:
    """What stays the same: `hostname`, and `model`, which is what `load` returned."""

    def __init__(self, model):
        self.hostname = socket.gethostname()
        self.model = model


def answer(value):
    """Status, headers and body of what a handler returns: a dict with `statusCode`, `body` and `headers`, or a body alone."""
    status, headers = 200, {}
    if isinstance(value, dict) and ("statusCode" in value or "body" in value):
        status = int(value.get("statusCode", 200))
        headers = {str(name): str(text) for name, text in (value.get("headers") or {}).items()}
        value = value.get("body")
    if value is None:
        body, kind = b"", None
    elif isinstance(value, (bytes, bytearray, memoryview)):
        body, kind = bytes(value), "application/octet-stream"
    elif isinstance(value, str):
        body, kind = value.encode(), "text/plain; charset=utf-8"
    else:
        body, kind = json.dumps(value, default=encode).encode(), "application/json"
    if kind and not any(name.lower() == "content-type" for name in headers):
        headers["Content-Type"] = kind
    for name, text in headers.items():
        if "\r" in text or "\n" in text:
            raise ValueError(f"header {name} is {text!r}, allowed is a line")
    return status, headers, body


def encode(value):
    """What JSON has no form for: arrays and tensors as lists, bytes in base64."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, (bytes, bytearray)):
        return base64.b64encode(value).decode()
    raise TypeError(f"a handler returned {type(value).__name__}, allowed is what JSON has a form for")


class Requests(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = IDLE
    # Of handlers together with what they write.
    disable_nagle_algorithm = True
    context = None

    def handle_one_request(self):
        if self.server.waits(self.connection):
            super().handle_one_request()
        else:
            self.close_connection = True

    def parse_request(self):
        self.server.begins(self.connection)
        return super().parse_request()

    def finish(self):
        self.server.begins(self.connection)
        super().finish()

    def serve(self):
        try:
            body = self.read_body()
        except ValueError as error:
            self.close_connection = True
            return self.send(400, {}, f"{error}\n".encode())
        try:
            status, headers, content = answer(handler.handle(Event(self, body), self.context))
        except Exception:  # A handler may raise anything.
            traceback.print_exc()
            status, headers, content = 500, {}, b"the handler failed; its log says why\n"
        self.send(status, headers, content)

    do_DELETE = do_GET = do_HEAD = do_OPTIONS = do_PATCH = do_POST = do_PUT = serve

    def read_body(self):
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            return b"".join(iter(self.read_chunk, b""))
        length = self.headers.get("Content-Length", "0")
        if not length.isdecimal():
            raise ValueError(f"Content-Length is {length!r}, allowed is a number")
        return self.rfile.read(int(length))

    def read_chunk(self):
        size = self.rfile.readline(64).split(b";")[0].strip()
        try:
            length = int(size, 16)
        except ValueError:
            raise ValueError(f"a chunk's size is {size!r}, allowed is a hexadecimal number") from None
        chunk = self.rfile.read(length)
        # The line's end after a chunk; after the last one trailers too, up to an empty line.
        while self.rfile.readline(8192) not in (b"\r\n", b"\n", b"") and not length:
            pass
        return chunk

    def send(self, status, headers, body):
        self.send_response_only(status)
        for name, text in headers.items():
            self.send_header(name, text)
        if status not in (204, 304):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD" and status not in (204, 304):
            self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 1024
    # Requests that have begun are answered before the process ends.
    daemon_threads = False

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.lock = threading.Lock()
        self.waiting = set()
        self.ends = False

    def waits(self, connection):
        """Whether a connection may wait for its next request."""
        with self.lock:
            if not self.ends:
                self.waiting.add(connection)
            return not self.ends

    def begins(self, connection):
        """A connection has a request, or is at its end."""
        with self.lock:
            self.waiting.discard(connection)

    def end(self):
        """Closes connections that wait, and lets the others answer what they have."""
        self.shutdown()
        with self.lock:
            self.ends = True
            for connection in self.waiting:
                connection.shutdown(socket.SHUT_RD)


def port():
    url = os.environ.get("upstream_url", "")
    try:
        return urllib.parse.urlsplit(url).port or int(os.environ.get("PORT", DEFAULT_PORT))
    except ValueError:
        sys.exit(f"upstream_url is {url!r}, allowed is http://127.0.0.1:PORT")


def main():
    Requests.context = Context(handler.load() if hasattr(handler, "load") else None)
    server = Server(("127.0.0.1", port()), Requests)
    stop = threading.Thread(target=server.end)
    signal.signal(signal.SIGTERM, lambda *_: stop.start())
    signal.signal(signal.SIGINT, lambda *_: stop.start())
    server.serve_forever(poll_interval=0.1)
    server.server_close()


if __name__ == "__main__":
    main()
