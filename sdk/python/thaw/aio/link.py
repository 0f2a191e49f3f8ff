# Owns calls to the agent inside one sandbox: who calls, where it goes, unary calls and event streams.
# Refuses to own any method's messages (commands.py, files.py, pty.py).
# Invariant: a stream without its end frame is an error, never an end; a silent one is given up.
from __future__ import annotations

import base64
import json
import math
from collections import deque
from typing import Any, Mapping, Optional

from ..clock import Deadline
from ..errors import (
    NotFoundError,
    ThawError,
    UnreachableError,
    connection_lost,
    error_of_connect,
)
from ..frames import FrameDecoder, encode_frame
from .connection import AsyncConnection
from .http import AsyncAnswer, Body

AGENT_PORT = 49983
# Asked of the server; a stream from which nothing came for so many seconds is given up.
_KEEPALIVE_SECONDS = 30
_SILENCE_SECONDS = 120.0
_HEALTH_TIMEOUT = 5.0
# The server ends an overdue stream itself, in better words.
_GRACE_SECONDS = 10.0


class AsyncEventStream:
    """The messages of one stream. `close` ends the listening and nothing else."""

    def __init__(self, link: AsyncLink, answer: AsyncAnswer, method: str, first: Deadline, timeout: float) -> None:
        self._link = link
        self._answer = answer
        self._method = method
        # Until the first event the call's own deadline holds.
        self._waiting: Optional[Deadline] = first
        self._life = Deadline(method, timeout + _GRACE_SECONDS if timeout > 0 else 0)
        self._decoder = FrameDecoder()
        self._frames: deque[tuple[bool, dict[str, Any]]] = deque()
        self._is_closed = False

    async def next(self) -> Optional[dict[str, Any]]:
        """The next message; None when the stream has ended or was closed."""
        while not self._is_closed:
            if self._frames:
                is_end, message = self._frames.popleft()
                if not is_end:
                    return message
                self.finish()
                if message.get("error"):
                    raise error_of_connect(message["error"])
                return None
            try:
                await self._receive()
            except ThawError as error:
                if self._is_closed:
                    break
                self.finish()
                raise await self._link.explain(error)
        self._answer.close()
        return None

    def close(self) -> None:
        """From any thread: whoever waits for the next message gets None."""
        self._is_closed = True
        self._answer.abort()

    def finish(self) -> None:
        """By the one who reads it."""
        self._is_closed = True
        self._answer.close()

    async def _receive(self) -> None:
        piece = await self._answer.piece(self._overdue(), self._timeout())
        self._waiting = None
        if not piece:
            raise connection_lost(f"the stream of {self._method} ended early")
        self._frames.extend(self._decoder.push(piece))

    def _overdue(self) -> str:
        return self._waiting.overdue if self._waiting else f"nothing came from {self._method} any more"

    def _timeout(self) -> Optional[float]:
        if self._waiting is not None:
            return self._waiting.left()
        left = self._life.left()
        return _SILENCE_SECONDS if left is None else min(_SILENCE_SECONDS, left)


class AsyncLink:
    def __init__(
        self,
        connection: AsyncConnection,
        sandbox_id: str,
        access_token: Optional[str],
        traffic_access_token: Optional[str],
    ) -> None:
        self.connection = connection
        self.sandbox_id = sandbox_id
        self._access_token = access_token
        self._traffic_access_token = traffic_access_token

    def route_to(self, port: int) -> dict[str, str]:
        """Routing headers of a port of this sandbox."""
        headers = {"e2b-sandbox-id": self.sandbox_id, "e2b-sandbox-port": str(port)}
        if self._traffic_access_token is not None:
            headers["e2b-traffic-access-token"] = self._traffic_access_token
        return headers

    def headers(self, user: Optional[str]) -> dict[str, str]:
        headers = self.route_to(AGENT_PORT)
        if self._access_token is not None:
            headers["x-access-token"] = self._access_token
        if user is not None:
            name = base64.b64encode(f"{user}:".encode()).decode()
            headers["authorization"] = f"Basic {name}"
        return headers

    async def open(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: Body,
        user: Optional[str],
        request_timeout: Optional[float],
    ) -> tuple[AsyncAnswer, Deadline]:
        all_headers = {**self.headers(user), **headers}
        return await self.connection.open(method, target, all_headers, body, request_timeout)

    async def unary(
        self,
        method: str,
        message: Mapping[str, Any],
        user: Optional[str] = None,
        request_timeout: Optional[float] = None,
    ) -> Any:
        """Args: method: for example `process.Process/List`."""
        headers = {
            **self.headers(user),
            "content-type": "application/json",
            "connect-protocol-version": "1",
        }
        body = json.dumps(message).encode()
        value, _ = await self.connection.json("POST", f"/{method}", headers, body, request_timeout)
        return value

    async def stream(
        self,
        method: str,
        message: Mapping[str, Any],
        *,
        user: Optional[str] = None,
        timeout: float = 0,
        request_timeout: Optional[float] = None,
    ) -> AsyncEventStream:
        """Returns: the stream as soon as the server has accepted the call; its first event may still be to come."""
        headers = {
            "content-type": "application/connect+json",
            "connect-protocol-version": "1",
            "keepalive-ping-interval": str(_KEEPALIVE_SECONDS),
        }
        if timeout > 0:
            headers["connect-timeout-ms"] = str(math.ceil(timeout * 1000))
        body = encode_frame(message)
        answer, deadline = await self.open("POST", f"/{method}", headers, body, user, request_timeout)
        return AsyncEventStream(self, answer, method, deadline, timeout)

    async def is_running(self, request_timeout: Optional[float] = None) -> bool:
        headers = self.route_to(AGENT_PORT)
        answer, deadline = await self.connection.request("GET", "/health", headers, None, request_timeout)
        text = await answer.read(deadline)
        if 200 <= answer.status < 300:
            return True
        if answer.status == 502 and b"was not found" in text:
            return False
        raise UnreachableError(
            f"the sandbox's agent answered {answer.status}", code="guest-unreachable", status=answer.status
        )

    async def explain(self, error: ThawError) -> ThawError:
        """A broken connection mostly means that the sandbox ended: then that is what the caller is told."""
        if error.code != "connection-lost":
            return error
        try:
            is_running = await self.is_running(_HEALTH_TIMEOUT)
        except ThawError:
            return error
        if is_running:
            return error
        return NotFoundError("the sandbox ended or was paused during the call", code="sandbox-not-found")
