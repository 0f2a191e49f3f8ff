# Owns the envelopes of a Connect stream in its JSON form: flag byte, big-endian length, JSON.
# Refuses to own sockets and messages. Invariant: a frame above the limit is refused before its bytes are held.
from __future__ import annotations

import json
import struct
from typing import Any

from .errors import ThawError

_HEADER = struct.Struct(">BI")
_END_FLAG = 0x02
# Output comes in chunks far below this.
_MAX_FRAME_BYTES = 16 * 1024 * 1024


def encode_frame(message: Any) -> bytes:
    body = json.dumps(message).encode()
    return _HEADER.pack(0, len(body)) + body


class FrameDecoder:
    """Cuts bytes into frames as they arrive."""

    def __init__(self) -> None:
        self._held = bytearray()

    def push(self, chunk: bytes) -> list[tuple[bool, dict[str, Any]]]:
        """Returns: pairs of "is the last one of the stream" and message.

        Raises:
            ThawError: `internal` when the bytes are no such stream.
        """
        self._held += chunk
        frames = []
        start = 0
        while len(self._held) - start >= _HEADER.size:
            flag, size_bytes = _HEADER.unpack_from(self._held, start)
            if size_bytes > _MAX_FRAME_BYTES:
                raise _malformed(f"a frame of {size_bytes} bytes")
            ends_at = start + _HEADER.size + size_bytes
            if len(self._held) < ends_at:
                break
            frames.append((bool(flag & _END_FLAG), _parse(bytes(self._held[start + _HEADER.size : ends_at]))))
            start = ends_at
        del self._held[:start]
        return frames


def _parse(body: bytes) -> dict[str, Any]:
    try:
        message = json.loads(body)
    except ValueError:
        raise _malformed("a frame that is not JSON") from None
    if not isinstance(message, dict):
        raise _malformed("a frame that is no message")
    return message


def _malformed(what: str) -> ThawError:
    return ThawError(f"the stream holds {what}", code="internal")
