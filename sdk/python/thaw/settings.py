# Owns where and as whom a client talks: explicit options, else the environment, else defaults.
# Invariant: the key goes into a header and into no message.
from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Optional
from urllib.parse import urlsplit

from .errors import AuthenticationError, InvalidRequestError

DEFAULT_API_URL = "http://127.0.0.1:8080"
DEFAULT_REQUEST_TIMEOUT = 60.0


@dataclass(frozen=True)
class Settings:
    """A server's address, the key, and how many seconds a call may take unless it says otherwise."""

    api_url: str
    api_key: str = field(repr=False)
    request_timeout: float
    host: str
    port: int
    tls: bool
    # Of the address, before every path.
    prefix: str

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"


def resolve_settings(
    api_url: Optional[str] = None,
    api_key: Optional[str] = None,
    request_timeout: Optional[float] = None,
) -> Settings:
    """Raises: AuthenticationError without a key, InvalidRequestError for an address that is none."""
    url = (api_url or os.environ.get("THAW_API_URL") or DEFAULT_API_URL).rstrip("/")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        parts, host, port = urlsplit(""), None, None
    if parts.scheme not in ("http", "https") or not host:
        raise InvalidRequestError(f"api_url: expected http://HOST:PORT, got {url}", code="bad-request")
    key = api_key or os.environ.get("THAW_API_KEY")
    if not key:
        raise AuthenticationError("no API key: set THAW_API_KEY or give api_key", code="unauthenticated")
    tls = parts.scheme == "https"
    return Settings(
        api_url=url,
        api_key=key,
        request_timeout=DEFAULT_REQUEST_TIMEOUT if request_timeout is None else request_timeout,
        host=host,
        port=port or (443 if tls else 80),
        tls=tls,
        prefix=parts.path,
    )
