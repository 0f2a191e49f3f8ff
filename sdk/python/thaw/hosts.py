# Owns the host names of a sandbox's ports.
from __future__ import annotations

import re
from urllib.parse import urlsplit

_LOOPBACK = re.compile(r"^(localhost|127(\.[0-9]+){3}|::1)$")


def host_of(sandbox_id: str, port: int, server: str) -> str:
    """Args: server: a domain, or the server's own address."""
    parts = urlsplit(server if "://" in server else f"http://{server}")
    domain = parts.netloc
    # An address cannot have names below it; `localhost` resolves to this machine with all below it.
    if _LOOPBACK.match(parts.hostname or ""):
        domain = "localhost" if parts.port is None else f"localhost:{parts.port}"
    return f"{port}-{sandbox_id}.{domain}"
