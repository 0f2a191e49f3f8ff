# Owns the way to a Thaw server: JSON calls of the control plane, their deadlines and their failures.
# Refuses to own what a sandbox itself answers (link.py).
# Invariant: every call has a deadline; a failure is a `ThawError`.
from __future__ import annotations

import json
from typing import Any, Mapping, Optional
from urllib.parse import urlencode

from ..clock import Deadline
from ..errors import error_of_response
from ..settings import Settings
from .http import AsyncAnswer, AsyncHttpClient, Body


class AsyncConnection:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.http = AsyncHttpClient(settings)

    @property
    def credentials(self) -> dict[str, str]:
        return {"x-api-key": self.settings.api_key}

    def timeout_of(self, request_timeout: Optional[float]) -> float:
        return self.settings.request_timeout if request_timeout is None else request_timeout

    async def call(
        self,
        method: str,
        path: str,
        message: Any = None,
        *,
        query: Optional[Mapping[str, str]] = None,
        request_timeout: Optional[float] = None,
    ) -> Any:
        """The body of a success, from JSON."""
        value, _ = await self.call_with_headers(
            method, path, message, query=query, request_timeout=request_timeout
        )
        return value

    async def call_with_headers(
        self,
        method: str,
        path: str,
        message: Any = None,
        *,
        query: Optional[Mapping[str, str]] = None,
        request_timeout: Optional[float] = None,
    ) -> tuple[Any, dict[str, str]]:
        target = f"{path}?{urlencode(query)}" if query else path
        headers = self.credentials
        body = None
        if message is not None:
            headers["content-type"] = "application/json"
            body = json.dumps(message).encode()
        return await self.json(method, target, headers, body, request_timeout)

    async def json(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: Body,
        request_timeout: Optional[float],
    ) -> tuple[Any, dict[str, str]]:
        """The body of a success, from JSON, with its headers."""
        answer, deadline = await self.open(method, target, headers, body, request_timeout)
        text = await answer.read(deadline)
        return (json.loads(text) if text else None), answer.headers

    async def open(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: Body,
        request_timeout: Optional[float],
    ) -> tuple[AsyncAnswer, Deadline]:
        """A success whose body is still to be read."""
        answer, deadline = await self.request(method, target, headers, body, request_timeout)
        if 200 <= answer.status < 300:
            return answer, deadline
        text = await answer.read(deadline)
        raise error_of_response(answer.status, answer.headers, text.decode("utf-8", "replace"))

    async def request(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: Body,
        request_timeout: Optional[float],
    ) -> tuple[AsyncAnswer, Deadline]:
        """Any answer, whatever its status."""
        what = f"{method} {target.split('?')[0]}"
        deadline = Deadline(what, self.timeout_of(request_timeout))
        return await self.http.request(method, target, headers, body, deadline), deadline

    async def pages(
        self,
        path: str,
        query: Mapping[str, str],
        limit: Optional[int],
        request_timeout: Optional[float],
    ) -> list[Any]:
        """The rows of every page, at most `limit` of them."""
        rows: list[Any] = []
        asked = dict(query)
        while True:
            page, headers = await self.call_with_headers(
                "GET", path, query=asked, request_timeout=request_timeout
            )
            rows.extend(page)
            token = headers.get("x-next-token")
            if not token or (limit is not None and len(rows) >= limit):
                return rows if limit is None else rows[:limit]
            asked["nextToken"] = token
