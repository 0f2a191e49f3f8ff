# Made from ../aio/test_tls.py by make_sync.py: change that.
# Holds the SDK over TLS: who is trusted, and that large bodies pass both ways and are refused early.
from __future__ import annotations

import os
import ssl
import subprocess
import tempfile
from pathlib import Path
from unittest import TestCase
from unittest.mock import patch

from thaw import Sandbox, InvalidRequestError, UnreachableError
from thaw.tls import tls_context

from ..contract_server import Answer, ContractServer

ID = "i" + "a" * 20
KEY = "e2b_" + "0" * 40


def make_certificate(directory: Path) -> tuple[Path, Path]:
    key, certificate = directory / "key.pem", directory / "certificate.pem"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    kind = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    argv = ["openssl", "req", *kind, *names, "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(argv, check=True, capture_output=True, timeout=60)
    return key, certificate


class Tls(TestCase):
    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        key, self.certificate = make_certificate(Path(directory.name))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, key)
        self.server = ContractServer(context)
        self.addCleanup(self.server.close)
        self.server.on("POST /v2/sandboxes", Answer(201, {"sandboxID": ID, "templateID": "base"}))
        self.options = {"api_url": self.server.url, "api_key": KEY}
        tls_context.cache_clear()
        self.addCleanup(tls_context.cache_clear)

    def test_refuses_a_server_that_nobody_vouches_for(self) -> None:
        with self.assertRaisesRegex(UnreachableError, "(?i)certificate"):
            Sandbox.create(**self.options)

    def test_sends_and_receives_large_bodies_and_hears_early_refusals(self) -> None:
        with patch.dict(os.environ, {"SSL_CERT_FILE": str(self.certificate)}):
            sandbox = Sandbox.create(**self.options)
        self.addCleanup(sandbox._connection.http.close)
        content = os.urandom(6_000_000)
        self.server.on("POST /files", Answer(200, [{"name": "x", "path": "/x"}]))
        sandbox.files.write("x", content)
        self.assertEqual(self.server.last.body, content)
        self.server.on("GET /files", Answer(200, raw=content))
        self.assertEqual(sandbox.files.read("x", format="bytes"), content)
        self.assertEqual(self.server.connections, 1)
        self.server.on("POST /files", Answer(413, {"code": 413, "message": "too large"}, early=True))
        with self.assertRaisesRegex(InvalidRequestError, "too large"):
            sandbox.files.write("x", content * 4, request_timeout=10)
