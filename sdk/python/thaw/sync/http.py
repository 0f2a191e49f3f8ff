# Made from ../aio/http.py by make_sync.py: change that.
# Owns requests to one server: connections that are used again, sending, and answers read piece by piece.
# Refuses to own what an answer means (connection.py). Invariant: a connection carries one request at a time, and goes back
# to the others only when its answer has been read to the end.
from __future__ import annotations

import time
import weakref
from typing import BinaryIO, Iterator, Mapping, Optional, Union

from ..clock import Deadline
from ..errors import UnreachableError, connection_lost
from ..http1 import ResponseParser, encode_head
from ..settings import Settings
from .io import Socket

# Text is encoded; a file is read from where it stands, piece by piece.
Body = Union[bytes, BinaryIO, None]

_MAX_IDLE_SOCKETS = 8
# Well below the time a server keeps them.
_IDLE_SECONDS = 45.0
_PIECE_BYTES = 64 * 1024


class Answer:
    """An answer whose body is still to be read. Names of `headers` are in lower case."""

    def __init__(self, client: HttpClient, socket: Socket, parser: ResponseParser, first: bytes) -> None:
        self._client = client
        self._socket = socket
        self._parser = parser
        self._first = first
        self.status: int = parser.status or 0
        self.headers: dict[str, str] = parser.headers
        self._settle()

    def piece(self, overdue: str, timeout: Optional[float]) -> bytes:
        """The next piece of the body, b"" at its end. Args: timeout: seconds this piece may take, None for ever."""
        while True:
            piece, self._first = self._first, b""
            if piece or self._parser.done:
                return piece
            try:
                self._first = self._parser.feed(self._socket.recv(overdue, timeout))
            except BaseException:
                self.close()
                raise
            self._settle()

    def read(self, deadline: Deadline) -> bytes:
        """All of the body."""
        pieces: list[bytes] = []
        while True:
            piece = self.piece(deadline.overdue, deadline.left())
            if not piece:
                return b"".join(pieces)
            pieces.append(piece)

    def abort(self) -> None:
        """Ends it now, from any thread."""
        if not self._parser.done:
            self._socket.abort()

    def close(self) -> None:
        """Ends it without reading on; nothing when it was read to its end."""
        if not self._parser.done:
            self._socket.close()

    def _settle(self) -> None:
        if self._parser.done:
            self._client.give_back(self._socket, self._parser.reusable)


class HttpClient:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._idle: list[tuple[float, Socket]] = []
        weakref.finalize(self, _close_all, self._idle)

    def request(
        self, method: str, target: str, headers: Mapping[str, str], body: Body, deadline: Deadline
    ) -> Answer:
        """Sends a request. Returns: the answer as soon as its head has come.

        Raises:
            UnreachableError, DeadlineExceededError.
        """
        socket = self._socket(deadline)
        try:
            broken = self._send(socket, method, target, headers, body, deadline)
            return self._answer(socket, method, deadline, broken)
        except BaseException:
            socket.close()
            raise

    def give_back(self, socket: Socket, is_reusable: bool) -> None:
        if is_reusable and len(self._idle) < _MAX_IDLE_SOCKETS:
            self._idle.append((time.monotonic(), socket))
        else:
            socket.close()

    def close(self) -> None:
        """Closes what is idle; what is in use goes on."""
        _close_all(self._idle)

    def _socket(self, deadline: Deadline) -> Socket:
        while True:
            since, socket = _pop(self._idle)
            if socket is None:
                break
            if time.monotonic() - since < _IDLE_SECONDS and socket.is_idle():
                return socket
            socket.close()
        settings = self._settings
        return Socket.open(
            settings.host, settings.port, settings.tls, deadline.overdue, deadline.left()
        )

    def _send(
        self,
        socket: Socket,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: Body,
        deadline: Deadline,
    ) -> Optional[UnreachableError]:
        """Returns: what kept it from being sent completely; there may be an answer nevertheless."""
        head = {"host": self._settings.authority, "accept-encoding": "identity", **headers}
        if isinstance(body, bytes):
            head["content-length"] = str(len(body))
        elif body is not None:
            head["transfer-encoding"] = "chunked"
        elif method not in ("GET", "HEAD"):
            head["content-length"] = "0"
        start = encode_head(method, self._settings.prefix + target, head)
        # A small body shares a packet with the head.
        first = body[:_PIECE_BYTES] if isinstance(body, bytes) else b""
        try:
            socket.send(start + first, deadline.overdue, deadline.left())
            for piece in _pieces(body):
                # Each has the deadline's time: all together may take longer.
                if not socket.send_piece(piece, deadline.overdue, deadline.timeout or None):
                    return connection_lost("the server answered before it had the whole request")
        except UnreachableError as error:
            return error
        return None

    def _answer(
        self, socket: Socket, method: str, deadline: Deadline, broken: Optional[UnreachableError]
    ) -> Answer:
        parser = ResponseParser(method)
        # What took long to send has as long again until it is answered.
        deadline = deadline.again()
        while True:
            try:
                first = parser.feed(socket.recv(deadline.overdue, deadline.left()))
            except UnreachableError as error:
                raise broken or error
            if parser.status is not None:
                parser.reusable = parser.reusable and broken is None
                return Answer(self, socket, parser, first)


def _pieces(body: Body) -> Iterator[bytes]:
    """What is sent after the first packet."""
    if isinstance(body, bytes):
        for at in range(_PIECE_BYTES, len(body), _PIECE_BYTES):
            yield body[at : at + _PIECE_BYTES]
    elif body is not None:
        while True:
            piece = body.read(_PIECE_BYTES)
            if not piece:
                break
            yield b"%x\r\n%b\r\n" % (len(piece), piece)
        yield b"0\r\n\r\n"


def _pop(idle: list[tuple[float, Socket]]) -> tuple[float, Optional[Socket]]:
    """Between a look at the list and taking from it, another thread may have taken the last."""
    try:
        return idle.pop()
    except IndexError:
        return 0.0, None


def _close_all(idle: list[tuple[float, Socket]]) -> None:
    while True:
        _, socket = _pop(idle)
        if socket is None:
            return
        socket.close()
