"""Shows a live zoom over HTTP: a page, the frames as motion JPEG, what it does as JSON, and a way to steer it.

What is asked is bounded and checked before anything is done: the size of a request, how long it may take to arrive,
the number of connections, the Host header (a page on the web can make a browser send requests here by a name that
resolves to this machine: DNS rebinding) and, where something is changed, the Origin. No path names a file. Who
connects from elsewhere needs the token. A viewer that is slow or hangs gets fewer frames, or is cut off; nobody waits
for it.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import hmac
import http
import io
import ipaddress
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from typing import Any, Literal, cast
from urllib.parse import parse_qs, urlsplit

import msgspec

from .errors import OutzoomError, UserError
from .live import LiveZoom, checked_prompt

LOOPBACK = "127.0.0.1"
MAX_CONNECTIONS = 32
MAX_VIEWERS = 8  # connections that stream frames
MAX_HEAD_BYTES = 16 << 10
MAX_BODY_BYTES = 8 << 10
REQUEST_SECONDS = 10.0  # in which a request must have arrived
LINGER_SECONDS, LINGER_READS = 0.5, 8  # for what comes after a request that is refused
SEND_SECONDS = 10.0  # in which a viewer must have taken a frame
REPEAT_SECONDS = 5.0  # a frame that stays is sent again, which shows who has gone
SEND_BUFFER_FRAMES = 2  # what is in there is old when a slow viewer gets it
BOUNDARY = "frame"
PAGE = Path(__file__).with_name("live.html")


class Control(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """What a page may ask for; all that is given is done."""

    action: Literal["start", "stop"] | None = None
    prompt: str | None = None
    keyframe_every: int | None = None


def parse_address(text: str) -> tuple[str, int]:
    """Host and port of [HOST:]PORT, with an IPv6 host in brackets; port 0 is any that is free. Raises UserError."""
    found = re.fullmatch(r"(?:(?P<host>[^\s:\[\]/]+|\[[0-9a-fA-F:.%\w]+\]):)?(?P<port>[0-9]{1,5})", text)
    if found is None or int(found["port"]) > 65535:
        raise UserError(f"'{text}' is no [HOST:]PORT to listen on", hint=f"try --live 8000, or --live {LOOPBACK}:8000")
    return (found["host"] or LOOPBACK).strip("[]"), int(found["port"])


class LiveServer(ThreadingHTTPServer):
    """Listens from when it is made, and serves the live zoom it is given in `serving`.

    On an address that others can reach it asks for a token, which `url` holds.
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = MAX_CONNECTIONS
    allow_reuse_address = os.name != "nt"  # there it would let two servers share a port

    def __init__(self, host: str = LOOPBACK, port: int = 0) -> None:
        """Raises UserError for an address that isn't this machine's, or a port that is taken or not allowed."""
        self.address_family, address = _resolved(host, port)
        try:
            super().__init__(cast(Any, address), _Handler)
        except OSError as error:
            raise _cannot_listen(host, port, error) from error
        bound = ipaddress.ip_address(str(self.server_address[0]).partition("%")[0])
        self.token = "" if bound.is_loopback else secrets.token_urlsafe(16)
        self.names = {host.lower(), "localhost"} | (set() if bound.is_loopback else _own_names())
        self.bound, self.host = bound, host
        self.live: LiveZoom | None = None
        self.page, self.policy = _page()
        self.viewers = threading.BoundedSemaphore(MAX_VIEWERS)
        self._places = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self._arriving: dict[socket.socket, float] = {}  # until when their requests must have arrived
        self._arriving_lock = threading.Lock()

    def server_bind(self) -> None:
        """As the base class, but without looking up this machine's name, which takes long where nobody answers."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    @property
    def url(self) -> str:
        """Where the page is; of an address that means all of this machine's, with its name."""
        host = socket.gethostname() if self.bound.is_unspecified else self.host
        host = f"[{host}]" if ":" in host else host
        return f"http://{host}:{self.server_address[1]}/" + (f"?token={self.token}" if self.token else "")

    @contextmanager
    def serving(self, live: LiveZoom) -> Iterator[LiveServer]:
        """Answer requests in threads of its own, until the block ends."""
        self.live = live
        thread = threading.Thread(target=self.serve_forever, args=(0.25,), name="outzoom-server", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.live = None  # ends the streams
            self.shutdown()
            thread.join()
            self.server_close()

    def is_own_host(self, header: str | None) -> bool:
        """Whether a Host header names this machine in a way that no foreign name could: see DNS rebinding above."""
        try:
            name = urlsplit(f"//{header or ''}").hostname
        except ValueError:
            return False
        if name is None:
            return False
        try:
            address = ipaddress.ip_address(name.partition("%")[0])
        except ValueError:
            return name.lower() in self.names
        return address.is_loopback or not self.bound.is_loopback

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread, if there is a place."""
        if not self._places.acquire(blocking=False):
            with contextlib.suppress(OSError):
                request.settimeout(0)
                request.send(b"HTTP/1.0 503 Service Unavailable\r\nRetry-After: 5\r\nContent-Length: 0\r\n\r\n")
            self.shutdown_request(request)
            return
        with self._arriving_lock:
            self._arriving[request] = time.monotonic() + REQUEST_SECONDS
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread to be had
            self.arrived(request)
            self._places.release()
            raise

    def arrived(self, request: socket.socket) -> None:
        """Its request is here whole."""
        with self._arriving_lock:
            self._arriving.pop(request, None)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """What `process_request` starts."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.arrived(request)
            self._places.release()

    def service_actions(self) -> None:
        """Cut off who takes too long to ask; called a few times a second."""
        now = time.monotonic()
        with self._arriving_lock:
            for request, until in self._arriving.items():
                if now > until:
                    with contextlib.suppress(OSError):
                        request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that broke is no event; what else fails in a handler goes to the traceback on stderr."""
        import sys

        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _RefusedError(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: http.HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class _BoundedReader(io.RawIOBase):
    """The first `limit_bytes` of a stream, and then its end."""

    def __init__(self, stream: Any, limit_bytes: int) -> None:
        self._stream, self._left = stream, limit_bytes

    @property
    def is_used_up(self) -> bool:
        """Whether nothing more is read, though there may be more."""
        return self._left == 0

    def allow(self, more_bytes: int) -> None:
        """Read so many more."""
        self._left += more_bytes

    def close(self) -> None:
        """Close the stream too."""
        self._stream.close()
        super().close()

    def readline(self, size: int | None = -1) -> bytes:
        wanted = self._left if size is None or size < 0 else min(size, self._left)
        line: bytes = self._stream.readline(wanted) if wanted else b""
        self._left -= len(line)
        return line

    def read(self, size: int = -1) -> bytes:
        wanted = self._left if size < 0 else min(size, self._left)
        data: bytes = self._stream.read(wanted) if wanted else b""
        self._left -= len(data)
        return data


class _Handler(BaseHTTPRequestHandler):
    """One request, for HTTP/1.0 closes the connection after each."""

    server: LiveServer
    timeout = REQUEST_SECONDS
    disable_nagle_algorithm = True

    def setup(self) -> None:
        self._refused = False
        super().setup()
        self.rfile: Any = _BoundedReader(self.rfile, MAX_HEAD_BYTES)

    def do_GET(self) -> None:
        self._answer({"/": self._page, "/stream": self._stream, "/frame.jpg": self._still, "/status": self._status})

    def do_POST(self) -> None:
        self._answer({"/control": self._control})

    def version_string(self) -> str:
        """What answers; no versions, which tell an attacker what to try."""
        return "outzoom"

    def finish(self) -> None:
        """Close; first take what a client may still be sending, or it would lose the answer that refuses it."""
        super().finish()
        if self._refused:
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_WR)
                self.connection.settimeout(LINGER_SECONDS)
                for _ in range(LINGER_READS):
                    if not self.connection.recv(1 << 16):
                        break

    def log_message(self, *_: Any) -> None:
        """Say nothing: stdout and stderr are the command's."""

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """As JSON; also what the base class finds wrong with a request."""
        with contextlib.suppress(OSError):
            self.request_version = self.protocol_version  # with a status line, whatever was asked
            self._send(http.HTTPStatus(code), {"error": message or http.HTTPStatus(code).phrase})

    def _answer(self, routes: dict[str, Callable[[LiveZoom], None]]) -> None:
        try:
            self._check()
            path = self.path.partition("?")[0]
            if path not in routes:
                raise _RefusedError(http.HTTPStatus.NOT_FOUND, f"there is nothing to {self.command} here")
            if self.server.live is None:
                raise _RefusedError(http.HTTPStatus.SERVICE_UNAVAILABLE, "the zoom has ended")
            routes[path](self.server.live)
        except _RefusedError as refused:
            self._send(refused.status, {"error": str(refused)})
        except UserError as error:
            self._send(http.HTTPStatus.BAD_REQUEST, {"error": " ".join(filter(None, (str(error), error.hint)))})

    def _check(self) -> None:
        """Raises _RefusedError for a head that is too long or of another age, and for who may not ask."""
        old, self.request_version = self.request_version == "HTTP/0.9", self.protocol_version
        if self.rfile.is_used_up:
            raise _RefusedError(http.HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"at most {MAX_HEAD_BYTES} bytes")
        if old:
            raise _RefusedError(http.HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "ask in HTTP/1.0 or later")
        if not self.server.is_own_host(self.headers.get("Host")):
            raise _RefusedError(http.HTTPStatus.FORBIDDEN, "the Host header does not name this machine")
        if self.server.token:
            bearer = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            given = bearer or next(iter(parse_qs(self.path.partition("?")[2]).get("token", [])), "")
            if not hmac.compare_digest(given.encode(errors="replace"), self.server.token.encode()):
                raise _RefusedError(
                    http.HTTPStatus.UNAUTHORIZED, "open the address with the token that outzoom printed"
                )

    def _page(self, _: LiveZoom) -> None:
        self.server.arrived(self.connection)
        self._send_bytes(http.HTTPStatus.OK, "text/html; charset=utf-8", self.server.page, self.server.policy)

    def _still(self, live: LiveZoom) -> None:
        frame = live.latest.newer(0, REQUEST_SECONDS)
        if frame is None:
            raise _RefusedError(http.HTTPStatus.SERVICE_UNAVAILABLE, "there is no frame yet")
        self._send_bytes(http.HTTPStatus.OK, "image/jpeg", frame.jpeg())

    def _status(self, live: LiveZoom) -> None:
        self._send(http.HTTPStatus.OK, msgspec.to_builtins(live.status()))

    def _control(self, live: LiveZoom) -> None:
        origin = self.headers.get("Origin")
        if origin is not None and origin != f"http://{self.headers.get('Host')}":
            raise _RefusedError(http.HTTPStatus.FORBIDDEN, "another page may not steer this zoom")
        if self.headers.get_content_type() != "application/json":  # what a form can't send without being asked
            raise _RefusedError(http.HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "send application/json")
        control = self._body()
        if control.prompt is not None:
            checked_prompt(control.prompt)  # all or nothing
        if control.keyframe_every is not None:
            live.set_keyframe_every(control.keyframe_every)
        if control.prompt is not None:
            live.set_prompt(control.prompt)
        if control.action is not None:
            live.set_running(control.action == "start")
        self._status(live)

    def _body(self) -> Control:
        length = self.headers.get("Content-Length") or ""
        if not re.fullmatch(r"[0-9]{1,9}", length):
            raise _RefusedError(http.HTTPStatus.LENGTH_REQUIRED, "say how long the request is: Content-Length")
        if int(length) > MAX_BODY_BYTES:
            raise _RefusedError(http.HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"at most {MAX_BODY_BYTES} bytes")
        self.rfile.allow(int(length))
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            raise _RefusedError(http.HTTPStatus.BAD_REQUEST, "the request ended early")
        self.server.arrived(self.connection)
        try:
            return msgspec.json.decode(body, type=Control)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise _RefusedError(http.HTTPStatus.BAD_REQUEST, f"this is no request: {error}") from error

    def _stream(self, live: LiveZoom) -> None:
        """Frames as they come, the newest each time the viewer has taken the one before."""
        if not self.server.viewers.acquire(blocking=False):
            raise _RefusedError(http.HTTPStatus.SERVICE_UNAVAILABLE, f"{MAX_VIEWERS} are watching already")
        try:
            self.server.arrived(self.connection)
            self.connection.settimeout(SEND_SECONDS)
            self._head(http.HTTPStatus.OK, f"multipart/x-mixed-replace; boundary={BOUNDARY}")
            self.end_headers()
            self.wfile.write(f"--{BOUNDARY}\r\n".encode())
            number = 0
            while self.server.live is live and live.failure is None:
                frame = live.latest.newer(number, REPEAT_SECONDS) or live.latest.newer(0, 0)
                if frame is None:
                    continue
                jpeg = frame.jpeg()
                if not number:
                    buffer_bytes = SEND_BUFFER_FRAMES * len(jpeg)
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)
                head = f"Content-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\nX-Frame: {frame.number}\r\n\r\n"
                # with the boundary at once, for browsers show a part when it has ended
                self.wfile.write(head.encode() + jpeg + f"\r\n--{BOUNDARY}\r\n".encode())
                if frame.number != number:
                    live.latest.sent(frame)
                number = frame.number
        finally:
            self.server.viewers.release()

    def _send(self, status: http.HTTPStatus, content: object) -> None:
        self._refused = self._refused or status >= http.HTTPStatus.BAD_REQUEST
        self._send_bytes(status, "application/json", msgspec.json.encode(content))

    def _send_bytes(self, status: http.HTTPStatus, kind: str, data: bytes, policy: str = "default-src 'none'") -> None:
        self._head(status, kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Security-Policy", policy)
        self.end_headers()
        self.wfile.write(data)

    def _head(self, status: http.HTTPStatus, kind: str) -> None:
        self.send_response(status)
        for name, value in (
            ("Content-Type", kind),
            ("Cache-Control", "no-store"),
            ("Connection", "close"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
            ("Referrer-Policy", "no-referrer"),
            ("X-Content-Type-Options", "nosniff"),
        ):
            self.send_header(name, value)


def _page() -> tuple[bytes, str]:
    """The page, and the policy that lets a browser run its own script and style and nothing else."""
    page = PAGE.read_text("utf-8")

    def hashes(tag: str) -> str:
        found = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        return " ".join(
            f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in found
        )

    policy = (
        f"default-src 'none'; img-src 'self' data:; connect-src 'self'; script-src {hashes('script')}; "
        f"style-src {hashes('style')}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return page.encode(), policy


def _resolved(host: str, port: int) -> tuple[socket.AddressFamily, Any]:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"there is no address '{host}' to listen on: {error}", hint=f"try --live {LOOPBACK}:{port}"
        ) from error
    return family, address


def _cannot_listen(host: str, port: int, error: OSError) -> OutzoomError:
    if error.errno == errno.EADDRINUSE:
        return UserError(f"the port {port} of {host} is in use", hint="name another; --live 0 takes one that is free")
    if error.errno == errno.EACCES:
        return UserError(f"the port {port} may not be opened", hint="ports from 1024 on need no rights")
    if error.errno == errno.EADDRNOTAVAIL:
        return UserError(f"{host} is no address of this machine", hint=f"try --live {LOOPBACK}:{port}")
    return OutzoomError(f"can't listen on {host}, port {port}: {error.strerror or error}")


def _own_names() -> set[str]:
    name = socket.gethostname().lower()
    return {name, f"{name.partition('.')[0]}.local"}
