# Owns a server that answers as the contract says and remembers what it was asked: it shows what the SDK sends and how it
# takes each answer. Refuses to own behaviour. Invariant: a request nobody expected is answered 599, which no SDK takes.
from __future__ import annotations

import json
import ssl
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Optional
from urllib.parse import parse_qsl, urlsplit


@dataclass
class Asked:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Answer:
    status: int
    json: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    # Sent as it is, instead of `json`.
    raw: Optional[bytes] = None
    # True: the length is announced as longer than what is sent.
    cut: bool = False
    # True: nothing is sent until the server is closed.
    hang: bool = False
    # True: the body is sent in chunks of one byte.
    chunked: bool = False
    # True: it is sent before the request's body is read, and that body never is.
    early: bool = False


class QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """A client that gives up is what some tests are about."""


class ContractServer:
    def __init__(self, tls: Optional[ssl.SSLContext] = None) -> None:
        self._scheme = "https" if tls else "http"
        self.asked: list[Asked] = []
        self.connections = 0
        self.closing = threading.Event()
        self._answers: dict[str, list[Answer]] = {}
        self._http = QuietServer(("127.0.0.1", 0), self._handler())
        if tls:
            # Shaken hands in the connection's own thread.
            self._http.socket = tls.wrap_socket(
                self._http.socket, server_side=True, do_handshake_on_connect=False
            )
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self._thread.start()

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self._http.server_port}"

    @property
    def last(self) -> Asked:
        return self.asked[-1]

    def on(self, route: str, *answers: Answer) -> None:
        """Answers of one route in turn; the last one stays. Args: route: for example `POST /v2/sandboxes`."""
        self._answers[route] = list(answers)

    def is_early(self, route: str) -> bool:
        return any(answer.early for answer in self._answers.get(route, []))

    def answer_of(self, asked: Asked) -> Answer:
        self.asked.append(asked)
        queue = self._answers.get(f"{asked.method} {asked.path}", [Answer(599)])
        return queue.pop(0) if len(queue) > 1 else queue[0]

    def close(self) -> None:
        self.closing.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        contract = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # The body follows its head in a packet of its own.
            disable_nagle_algorithm = True

            def setup(self) -> None:
                super().setup()
                contract.connections += 1

            def _any(self) -> None:
                target = urlsplit(self.path)
                if contract.is_early(f"{self.command} {target.path}"):
                    self._send(contract.answer_of(Asked(self.command, target.path, {}, {}, b"")))
                    contract.closing.wait()
                    return
                asked = Asked(
                    self.command,
                    target.path,
                    dict(parse_qsl(target.query)),
                    {name.lower(): value for name, value in self.headers.items()},
                    self._body(),
                )
                self._send(contract.answer_of(asked))

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _any

            def _body(self) -> bytes:
                if self.headers.get("transfer-encoding") != "chunked":
                    return self.rfile.read(int(self.headers.get("content-length", 0)))
                body = b""
                while True:
                    size = int(self.rfile.readline(), 16)
                    body += self.rfile.read(size)
                    self.rfile.readline()
                    if size == 0:
                        return body

            def _send(self, answer: Answer) -> None:
                if answer.hang:
                    contract.closing.wait()
                    return
                body = answer.raw if answer.raw is not None else b""
                if answer.json is not None:
                    body = json.dumps(answer.json).encode()
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                if answer.chunked:
                    self.send_header("transfer-encoding", "chunked")
                    body = b"".join(b"1;x=y\r\n%c\r\n" % byte for byte in body) + b"0\r\nTrailer: x\r\n\r\n"
                elif answer.status != 204:
                    self.send_header("content-length", str(len(body) + (1000 if answer.cut else 0)))
                self.end_headers()
                self.wfile.write(body)
                if answer.cut:
                    self.close_connection = True

            def log_message(self, *_: object) -> None:
                pass

        return Handler
