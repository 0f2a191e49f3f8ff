# Owns whom a client trusts over TLS: the system's certificates, or those of SSL_CERT_FILE and SSL_CERT_DIR.
from __future__ import annotations

import functools
import ssl


@functools.lru_cache(maxsize=None)
def tls_context() -> ssl.SSLContext:
    """Reading all certificates takes longer than most calls: it is done once."""
    return ssl.create_default_context()
