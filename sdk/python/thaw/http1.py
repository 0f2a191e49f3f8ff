# Owns HTTP/1.1 as bytes: writing the head of a request, reading a response. No sockets, so that both kinds of client use it.
# Refuses to own connections (aio/http.py). Invariant: a body that ends before its announced end is an error.
from __future__ import annotations

import io
from http.client import HTTPException, parse_headers
from typing import Mapping, Optional

from .errors import ThawError, connection_lost

_MAX_HEAD_BYTES = 64 * 1024
_MAX_CHUNK_LINE_BYTES = 1024


def encode_head(method: str, target: str, headers: Mapping[str, str]) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    for line in lines:
        if "\r" in line or "\n" in line:
            raise ThawError("a header or path must not hold a line break", code="bad-request")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8")


class ResponseParser:
    """Takes bytes as they arrive and gives the body's pieces back.

    Attributes:
        status: None until the head has come.
        headers: With names in lower case.
        done: True when the body has ended.
        reusable: True when the connection may carry another request.
    """

    def __init__(self, method: str) -> None:
        self._method = method
        self._held = bytearray()
        self._left_bytes = 0
        self._framing = "head"
        self.status: Optional[int] = None
        self.headers: dict[str, str] = {}
        self.done = False
        self.reusable = False

    def feed(self, data: bytes) -> bytes:
        """Args: data: what was received; empty for the end of the connection."""
        if not data:
            return self._end()
        self._held += data
        if self._framing == "head" and not self._read_head():
            return b""
        return self._read_body()

    def _end(self) -> bytes:
        if self._framing != "until-close":
            raise connection_lost("the server closed the connection before its answer was complete")
        self.done = True
        return b""

    def _read_head(self) -> bool:
        """Returns: False while it is incomplete."""
        while True:
            end = self._held.find(b"\r\n\r\n")
            if end < 0:
                if len(self._held) > _MAX_HEAD_BYTES:
                    raise _malformed("a head without end")
                return False
            status_line, _, fields = bytes(self._held[: end + 4]).partition(b"\r\n")
            del self._held[: end + 4]
            parts = status_line.split(b" ", 2)
            if not parts[0].startswith(b"HTTP/1.") or len(parts) < 2 or not parts[1].isdigit():
                raise _malformed("no HTTP/1.1 status line")
            status = int(parts[1])
            # What is only on the way, as 100, is followed by the answer itself.
            if status >= 200:
                break
        try:
            message = parse_headers(io.BytesIO(fields))
        except HTTPException as error:
            raise _malformed(str(error)) from None
        self.headers = {name.lower(): value for name, value in message.items()}
        self.status = status
        self._choose_framing(parts[0], status)
        return True

    def _choose_framing(self, version: bytes, status: int) -> None:
        length = self.headers.get("content-length")
        keeps = self.headers.get("connection", "").lower() != "close" and version == b"HTTP/1.1"
        self.reusable = keeps
        if self._method == "HEAD" or status in (204, 304):
            self._framing = "length"
        elif "chunked" in self.headers.get("transfer-encoding", "").lower():
            self._framing = "chunk-size"
        elif length is not None:
            if not length.isdigit():
                raise _malformed("a content-length that is no number")
            self._framing, self._left_bytes = "length", int(length)
        else:
            self._framing, self.reusable = "until-close", False

    def _read_body(self) -> bytes:
        if self._framing == "until-close":
            return self._take(len(self._held))
        if self._framing == "length":
            piece = self._take(self._left_bytes)
            self.done = self._left_bytes == 0
            return piece
        return self._read_chunks()

    def _read_chunks(self) -> bytes:
        pieces = []
        while not self.done:
            if self._framing == "chunk":
                pieces.append(self._take(self._left_bytes))
                if self._left_bytes > 0:
                    break
                self._framing = "chunk-end"
            line = self._line()
            if line is None:
                break
            if self._framing == "chunk-end":
                self._framing = "chunk-size"
            elif self._framing == "trailers":
                self.done = line == b""
            else:
                self._left_bytes = _chunk_bytes(line)
                self._framing = "chunk" if self._left_bytes > 0 else "trailers"
        return b"".join(pieces)

    def _line(self) -> Optional[bytes]:
        end = self._held.find(b"\r\n")
        if end < 0:
            if len(self._held) > _MAX_CHUNK_LINE_BYTES:
                raise _malformed("a chunk without size")
            return None
        line = bytes(self._held[:end])
        del self._held[: end + 2]
        return line

    def _take(self, at_most_bytes: int) -> bytes:
        piece = bytes(self._held[:at_most_bytes])
        del self._held[: len(piece)]
        if self._framing != "until-close":
            self._left_bytes -= len(piece)
        return piece


def _chunk_bytes(line: bytes) -> int:
    try:
        return int(line.split(b";", 1)[0], 16)
    except ValueError:
        raise _malformed("a chunk without size") from None


def _malformed(what: str) -> ThawError:
    return ThawError(f"the server's answer is not HTTP: {what}", code="internal")
