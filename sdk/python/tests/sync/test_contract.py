# Made from ../aio/test_contract.py by make_sync.py: change that.
# Holds the SDK to the wire: what each call sends, and what it makes of each answer.
from __future__ import annotations

import io
import json
import os
import struct
from datetime import datetime, timezone
from unittest import TestCase
from unittest.mock import patch

from thaw import (
    Functions,
    Sandbox,
    Snapshots,
    AuthenticationError,
    BuildError,
    CommandExitError,
    ConflictError,
    DeadlineExceededError,
    InvalidRequestError,
    NetworkOptions,
    NoCapacityError,
    NotFoundError,
    RateLimitError,
    SnapshotInfo,
    ThawError,
    UnreachableError,
)

from ..contract_server import Answer, ContractServer

ID = "i" + "a" * 20
KEY = "e2b_" + "0" * 40
CONNECTION = {
    "sandboxID": ID,
    "templateID": "base",
    "clientID": "thaw",
    "envdVersion": "0.6.4",
    "envdAccessToken": "token",
}


def frame(message: object, flag: int = 0) -> bytes:
    body = json.dumps(message).encode()
    return struct.pack(">BI", flag, len(body)) + body


START = frame({"event": {"start": {"pid": 7}}})
END = frame({}, 2)


class Contract(TestCase):
    def setUp(self) -> None:
        self.server = ContractServer()
        self.addCleanup(self.server.close)
        self.options = {"api_url": self.server.url, "api_key": KEY}

    def sandbox(self, **over: object) -> Sandbox:
        self.server.on("POST /v2/sandboxes", Answer(201, {**CONNECTION, **over}))
        sandbox = Sandbox.create(**self.options)
        self.addCleanup(sandbox._connection.http.close)
        return sandbox

    def test_creates_from_a_template_with_the_documented_defaults(self) -> None:
        self.sandbox()
        self.assertEqual(self.server.last.json, {"templateID": "base", "timeout": 300})
        self.assertEqual(self.server.last.headers["x-api-key"], KEY)

    def test_creates_from_a_snapshot_with_every_option(self) -> None:
        self.server.on("POST /v2/sandboxes", Answer(201, CONNECTION))
        Sandbox.create(
            snapshot_id="snap-1",
            timeout=1.5,
            metadata={"a": "b"},
            envs={"K": "V"},
            on_timeout="pause",
            auto_resume=True,
            allow_internet_access=False,
            network=NetworkOptions(deny_out=["10.0.0.0/8"]),
            **self.options,
        )
        self.assertEqual(
            self.server.last.json,
            {
                "templateID": "snap-1",
                "timeout": 2,
                "metadata": {"a": "b"},
                "envVars": {"K": "V"},
                "autoPause": True,
                "autoResume": {"enabled": True},
                "allow_internet_access": False,
                "network": {"denyOut": ["10.0.0.0/8"]},
            },
        )

    def test_takes_address_and_key_from_the_environment(self) -> None:
        self.server.on("GET /v2/sandboxes", Answer(200, []))
        with patch.dict(os.environ, {"THAW_API_URL": f"{self.server.url}/", "THAW_API_KEY": "from-environment"}):
            self.assertEqual(Sandbox.list(), [])
            self.assertEqual(self.server.last.headers["x-api-key"], "from-environment")
            del os.environ["THAW_API_KEY"]
            with self.assertRaises(AuthenticationError):
                Sandbox.list()
            os.environ["THAW_API_URL"] = "nowhere"
            with self.assertRaises(InvalidRequestError):
                Sandbox.list(api_key=KEY)

    def test_connects_and_resumes_by_the_same_call(self) -> None:
        self.server.on(f"POST /v2/sandboxes/{ID}/connect", Answer(200, CONNECTION))
        sandbox = Sandbox.connect(ID, timeout=10, **self.options)
        self.addCleanup(sandbox._connection.http.close)
        self.assertEqual(self.server.last.json, {"timeout": 10})
        sandbox.resume()
        self.assertEqual(self.server.last.json, {"timeout": 300})
        self.server.on(f"POST /sandboxes/{ID}/timeout", Answer(204))
        sandbox.set_timeout(60)
        self.assertEqual(self.server.last.json, {"timeout": 60})

    def test_lists_page_by_page_with_metadata_encoded_twice(self) -> None:
        def row(name: str) -> dict[str, object]:
            return {**CONNECTION, "sandboxID": name, "startedAt": "2026-01-02T03:04:05.123456789Z"}

        self.server.on(
            "GET /v2/sandboxes",
            Answer(200, [row("i1"), row("i2")], {"x-next-token": "more"}),
            Answer(200, [row("i3")]),
        )
        listed = Sandbox.list(metadata={"a b": "c&d"}, state=["running", "paused"], **self.options)
        self.assertEqual([info.sandbox_id for info in listed], ["i1", "i2", "i3"])
        self.assertEqual(listed[0].started_at, datetime(2026, 1, 2, 3, 4, 5, 123456, timezone.utc))
        self.assertEqual(
            self.server.last.query,
            {"metadata": "a%2520b=c%2526d", "state": "running,paused", "nextToken": "more"},
        )

    def test_stops_listing_at_the_limit(self) -> None:
        self.server.on("GET /v2/sandboxes", Answer(200, [CONNECTION, CONNECTION], {"x-next-token": "more"}))
        self.assertEqual(len(Sandbox.list(limit=3, **self.options)), 3)
        self.assertEqual(len(self.server.asked), 2)

    def test_takes_lists_inspects_and_deletes_snapshots(self) -> None:
        sandbox = self.sandbox()
        made = Answer(201, {"snapshotID": "snap-2", "names": ["n"]})
        self.server.on(f"POST /sandboxes/{ID}/snapshots", made)
        snapshot = sandbox.create_snapshot("n")
        self.assertEqual((snapshot.snapshot_id, snapshot.names), ("snap-2", ["n"]))
        self.assertEqual(self.server.last.json, {"name": "n"})
        self.server.on("GET /snapshots", Answer(200, [{"snapshotID": "snap-2"}]))
        self.assertEqual(sandbox.list_snapshots(), [SnapshotInfo("snap-2", [])])
        self.assertEqual(self.server.last.query, {"sandboxID": ID})
        snapshots = Snapshots(**self.options)
        self.addCleanup(snapshots._connection.http.close)
        details = {"snapshotId": "snap-2", "parent": "snap-1", "sizeBytes": 9, "pauseMs": {"total": 12}}
        self.server.on("GET /v1/snapshots/snap-2", Answer(200, details))
        got = snapshots.get("snap-2")
        self.assertEqual((got.parent, got.unique_bytes, got.pause_ms), ("snap-1", None, {"total": 12}))
        self.server.on("DELETE /templates/snap-2", Answer(204), Answer(404, {"code": 404, "message": "no"}))
        self.assertTrue(snapshots.delete("snap-2"))
        self.assertFalse(snapshots.delete("snap-2"))

    def test_pauses(self) -> None:
        sandbox = self.sandbox()
        self.server.on(
            f"POST /sandboxes/{ID}/pause",
            Answer(204),
            Answer(409, {"code": 409, "message": "paused"}),
            Answer(404, {"code": 404, "message": "gone"}),
        )
        self.assertTrue(sandbox.pause())
        self.assertFalse(sandbox.pause())
        with self.assertRaises(NotFoundError):
            sandbox.pause()

    def test_forks_all_or_none(self) -> None:
        sandbox = self.sandbox()
        fork = {"sandbox": {**CONNECTION, "sandboxID": "ifork"}}
        self.server.on(f"POST /sandboxes/{ID}/fork", Answer(201, [fork, fork]))
        forks = sandbox.fork(2, timeout=5)
        self.assertEqual([made.sandbox_id for made in forks], ["ifork", "ifork"])
        self.assertEqual(self.server.last.json, {"count": 2, "timeout": 5})
        failed = {"error": {"code": 503, "message": "no room"}}
        self.server.on(f"POST /sandboxes/{ID}/fork", Answer(201, [fork, failed]))
        self.server.on("DELETE /sandboxes/ifork", Answer(204))
        with self.assertRaises(NoCapacityError):
            sandbox.fork(2)
        self.assertEqual((self.server.last.method, self.server.last.path), ("DELETE", "/sandboxes/ifork"))

    def test_says_by_which_name_a_port_is_reached(self) -> None:
        port = self.server.url.rpartition(":")[2]
        self.assertEqual((self.sandbox()).get_host(3000), f"3000-{ID}.localhost:{port}")
        named = self.sandbox(domain="thaw.example:8443")
        self.assertEqual(named.get_host(80), f"80-{ID}.thaw.example:8443")

    def test_uses_a_connection_again(self) -> None:
        sandbox = self.sandbox()
        self.server.on(f"GET /sandboxes/{ID}", Answer(200, CONNECTION), Answer(200, CONNECTION, chunked=True))
        for _ in range(5):
            self.assertEqual((sandbox.get_info()).sandbox_id, ID)
        self.assertEqual(self.server.connections, 1)

    def test_sends_files_and_bytes_as_they_are(self) -> None:
        sandbox = self.sandbox()
        self.server.on("POST /files", Answer(200, [{"name": "x", "path": "/x"}]))
        content = os.urandom(300_000)
        for data in (content, io.BytesIO(content)):
            written = sandbox.files.write("a b/ü", data, metadata={"k": "v"}, user="root")
            self.assertEqual(written.path, "/x")
            self.assertEqual(self.server.last.body, content)
            self.assertEqual(self.server.last.query, {"path": "a b/ü"})
            self.assertEqual(self.server.last.headers["x-metadata-k"], "v")
            self.assertEqual(self.server.last.headers["authorization"], "Basic cm9vdDo=")

    def test_hears_a_refusal_while_it_sends(self) -> None:
        sandbox = self.sandbox()
        refusal = Answer(413, {"code": 413, "message": "too large"}, early=True)
        self.server.on("POST /files", refusal)
        content = b"x" * 20_000_000
        for data in (content, io.BytesIO(content)):
            with self.assertRaisesRegex(InvalidRequestError, "too large"):
                sandbox.files.write("large", data, request_timeout=10)

    def test_has_a_class_for_each_failure(self) -> None:
        headers = {"x-thaw-error": "no-capacity", "retry-after": "7", "x-request-id": "r1"}
        self.server.on("GET /v2/sandboxes", Answer(503, {"code": 503, "message": "full"}, headers))
        with self.assertRaises(NoCapacityError) as caught:
            Sandbox.list(**self.options)
        error = caught.exception
        self.assertEqual((error.code, error.status, error.retryable), ("no-capacity", 503, True))
        self.assertEqual((error.retry_after, error.request_id, str(error)), (7.0, "r1", "full"))
        for status, expected in ((429, RateLimitError), (401, AuthenticationError), (409, ConflictError)):
            self.server.on("GET /v2/sandboxes", Answer(status, {"code": status, "message": "m"}))
            with self.assertRaises(expected):
                Sandbox.list(**self.options)
        self.server.on("GET /v2/sandboxes", Answer(503, headers={"should-retry": "false"}))
        with self.assertRaises(ThawError) as refused:
            Sandbox.list(**self.options)
        self.assertFalse(refused.exception.retryable)

    def test_ends_a_wait_at_its_deadline(self) -> None:
        self.server.on("GET /v2/sandboxes", Answer(200, hang=True))
        with self.assertRaises(DeadlineExceededError) as caught:
            Sandbox.list(request_timeout=0.2, **self.options)
        self.assertIsInstance(caught.exception, TimeoutError)
        self.assertIn("GET /v2/sandboxes took longer than 0.2 s", str(caught.exception))

    def test_tells_a_broken_connection_from_a_server_that_is_not_there(self) -> None:
        self.server.on("GET /v2/sandboxes", Answer(200, raw=b"[{", cut=True))
        with self.assertRaises(UnreachableError) as lost:
            Sandbox.list(**self.options)
        self.assertEqual(lost.exception.code, "connection-lost")
        with self.assertRaises(UnreachableError) as nobody:
            Sandbox.list(api_url="http://127.0.0.1:9", api_key=KEY)
        self.assertEqual(nobody.exception.code, "unreachable")
        self.assertIsInstance(nobody.exception, ConnectionError)

    def test_refuses_streams_that_end_early_or_are_none(self) -> None:
        sandbox = self.sandbox()
        self.server.on("GET /health", Answer(204))
        self.server.on("POST /process.Process/Start", Answer(200, raw=START))
        with self.assertRaises(UnreachableError) as lost:
            sandbox.commands.run("x")
        self.assertEqual(lost.exception.code, "connection-lost")
        self.server.on("GET /health", Answer(502, {"code": 502, "message": "The sandbox was not found"}))
        with self.assertRaises(NotFoundError):
            sandbox.commands.run("x")
        for raw in (b"HTTP/1.1 what?", b"\0\0\0\0\1{", b"\0\0\0\0\2[]", END):
            self.server.on("POST /process.Process/Start", Answer(200, raw=raw))
            with self.assertRaises(ThawError):
                sandbox.commands.run("x")

    def test_reads_a_command_from_its_frames_however_they_are_cut(self) -> None:
        sandbox = self.sandbox()
        data = frame({"event": {"data": {"stdout": "w6k="}}})
        keepalive = frame({"event": {"keepalive": {}}})
        ended = frame({"event": {"end": {"exited": True, "status": "exit status 0"}}})
        raw = START + keepalive + data + ended + END
        self.server.on("POST /process.Process/Start", Answer(200, raw=raw, chunked=True))
        result = sandbox.commands.run("x", timeout=1.5, envs={"A": "B"}, cwd="/w")
        self.assertEqual((result.exit_code, result.stdout, result.stderr), (0, "é", ""))
        self.assertEqual(self.server.last.headers["connect-timeout-ms"], "1500")
        sent = json.loads(self.server.last.body[5:])
        process = {"cmd": "/bin/bash", "args": ["-l", "-c", "x"], "envs": {"A": "B"}, "cwd": "/w"}
        self.assertEqual(sent, {"process": process, "stdin": False})
        failed = frame({"event": {"end": {"exitCode": -1, "status": "signal: killed", "error": "signal: killed"}}})
        self.server.on("POST /process.Process/Start", Answer(200, raw=START + failed + END))
        with self.assertRaises(CommandExitError) as caught:
            sandbox.commands.run("x")
        self.assertEqual(caught.exception.exit_code, -1)
        self.assertIn("signal: killed", str(caught.exception))

    def test_deploys_and_waits_until_it_serves(self) -> None:
        functions = Functions(**self.options)
        self.addCleanup(functions._connection.http.close)
        record = {"name": "f", "version": 2, "state": "building", "snapshotId": None, "error": None}
        self.server.on("POST /v1/functions/f/versions", Answer(202, record))
        ready = {**record, "state": "ready", "snapshotId": "snap-1"}
        self.server.on("GET /v1/functions/f/versions/2", Answer(200, record), Answer(200, ready))
        version = functions.deploy(name="f", archive=b"tar")
        self.assertEqual((version.version, version.state, version.snapshot_id), (2, "ready", "snap-1"))
        failed = {**record, "state": "failed", "error": {"code": "build-failed", "detail": "npm said no"}}
        self.server.on("GET /v1/functions/f/versions/2", Answer(200, failed))
        with self.assertRaisesRegex(BuildError, "npm said no"):
            functions.deploy(name="f", archive=b"tar")
        with self.assertRaises(InvalidRequestError):
            functions.deploy(name="f")

    def test_makes_a_function_from_a_snapshot(self) -> None:
        functions = Functions(**self.options)
        self.addCleanup(functions._connection.http.close)
        ready = {"name": "f", "version": 1, "state": "ready", "snapshotId": "snap-2", "error": None}
        self.server.on("POST /v1/functions", Answer(201, ready))
        version = functions.from_snapshot(name="f", snapshot_id="snap-1", port=8000, warm={"min": 2, "max": 4})
        self.assertEqual((version.version, version.state, version.snapshot_id), (1, "ready", "snap-2"))
        asked = self.server.asked[-1]
        wanted = {"name": "f", "fromSnapshot": "snap-1", "port": 8000, "warm": {"min": 2, "max": 4}}
        self.assertEqual(asked.json, wanted)
        self.assertTrue(asked.headers["prefer"].startswith("wait="))
