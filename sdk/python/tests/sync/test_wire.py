# Made from ../aio/test_wire.py by make_sync.py: change that.
# Holds the SDK to its promises over the wire: the server that THAW_TEST_URL and THAW_TEST_API_KEY name, real commands, real
# files. `npm test` runs it against a server of its own.
from __future__ import annotations

import hashlib
import io
import os
import threading
import unittest
import uuid
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any
from unittest import TestCase

from thaw import (
    Functions,
    Sandbox,
    AuthenticationError,
    CommandExitError,
    DeadlineExceededError,
    FilesystemEvent,
    InvalidRequestError,
    NotFoundError,
    ThawError,
    UnreachableError,
)

from .support import all_of, eventually

SERVER = {"api_url": os.environ.get("THAW_TEST_URL"), "api_key": os.environ.get("THAW_TEST_API_KEY")}
HAS_VMS = os.environ.get("THAW_TEST_HYPERVISOR") != "process"
NO_SERVER = "THAW_TEST_URL and THAW_TEST_API_KEY name no server"


@unittest.skipUnless(all(SERVER.values()), NO_SERVER)
class Wire(TestCase):
    """One sandbox for each test: an event loop lives as long as a test."""

    def setUp(self) -> None:
        self.purpose = str(uuid.uuid4())
        envs = {"FROM_SANDBOX": "yes"}
        self.sbx = Sandbox.create(envs=envs, metadata={"purpose & co": self.purpose}, **SERVER)

    def tearDown(self) -> None:
        self.sbx.kill()

    def test_is_listed_told_about_and_found_by_another_client(self) -> None:
        listed = Sandbox.list(metadata={"purpose & co": self.purpose}, **SERVER)
        self.assertEqual([info.sandbox_id for info in listed], [self.sbx.sandbox_id])
        info = self.sbx.get_info()
        self.assertEqual((info.state, info.alias), ("running", "base"))
        self.assertTrue(info.memory_mb > 0 and info.cpu_count > 0)
        other = Sandbox.connect(self.sbx.sandbox_id, **SERVER)
        result = other.commands.run("echo $FROM_SANDBOX")
        self.assertEqual(result.stdout, "yes\n")
        other._connection.http.close()
        self.sbx.set_timeout(600)
        info = self.sbx.get_info()
        self.assertAlmostEqual((info.end_at - info.started_at).total_seconds(), 600, delta=60)

    def test_runs_until_it_is_killed(self) -> None:
        with Sandbox.create(**SERVER) as short:
            self.assertTrue(short.is_running())
            sleeping = short.commands.run("sleep 100", background=True)
            self.assertTrue(short.kill())
            self.assertFalse(short.is_running())
            with self.assertRaises(NotFoundError) as gone:
                sleeping.wait()
            self.assertEqual(gone.exception.code, "sandbox-not-found")
            self.assertFalse(short.kill())
            self.assertFalse(Sandbox.kill_by_id(short.sandbox_id, **SERVER))
            with self.assertRaises(NotFoundError):
                short.commands.run("true")
            with self.assertRaises(NotFoundError):
                Sandbox.connect(short.sandbox_id, **SERVER)

    def test_needs_a_template_that_exists_and_a_key_that_is_valid(self) -> None:
        with self.assertRaises(NotFoundError) as caught:
            Sandbox.create("no-such", **SERVER)
        self.assertEqual(caught.exception.code, "template-not-found")
        with self.assertRaises(AuthenticationError) as refused:
            Sandbox.list(api_url=SERVER["api_url"], api_key="e2b_" + "1" * 40)
        self.assertEqual(refused.exception.status, 401)
        self.assertIsNotNone(refused.exception.request_id)

    def test_gives_output_and_exit_code(self) -> None:
        result = self.sbx.commands.run("echo out; echo err >&2")
        self.assertEqual((result.exit_code, result.stdout, result.stderr), (0, "out\n", "err\n"))
        with self.assertRaises(CommandExitError) as caught:
            self.sbx.commands.run("echo half; echo why >&2; exit 3")
        error = caught.exception
        self.assertEqual((error.exit_code, error.stdout, error.stderr), (3, "half\n", "why\n"))
        self.assertIn("exit status 3: why", str(error))

    def test_passes_output_on_as_it_comes_whole_characters_only(self) -> None:
        pieces: list[str] = []
        # The two bytes of é are written a moment apart: neither may be shown alone.
        script = r"printf '\303'; sleep 0.2; printf '\251'; sleep 0.2; printf '\377'"
        result = self.sbx.commands.run(script, on_stdout=pieces.append)
        self.assertEqual(result.stdout, "é\ufffd")
        self.assertEqual("".join(pieces), result.stdout)
        self.assertGreaterEqual(len(pieces), 2)
        large = self.sbx.commands.run(r'head -c 3000000 /dev/zero | tr "\0" x; echo end')
        self.assertEqual(len(large.stdout), 3_000_004)

    def test_has_environment_directory_and_user_as_asked(self) -> None:
        self.sbx.files.make_dir("where")
        info = self.sbx.files.get_info("where")
        user = "root" if HAS_VMS else None
        script = "echo $FROM_SANDBOX $OWN; pwd; echo $USER"
        result = self.sbx.commands.run(script, envs={"OWN": "own"}, cwd=info.path, user=user)
        self.assertRegex(result.stdout, r"^yes own\n.*/where\n" + ("root\n$" if HAS_VMS else ""))
        with self.assertRaises(InvalidRequestError):
            self.sbx.commands.run("true", cwd="/no/such")
        with self.assertRaises(AuthenticationError):
            self.sbx.commands.run("true", user="no such")

    def test_is_killed_by_its_timeout(self) -> None:
        with self.assertRaisesRegex(DeadlineExceededError, "took longer than its timeout"):
            self.sbx.commands.run("sleep 60", timeout=0.3)
        # Told first, reaped then.
        while any("sleep 60" in process.args for process in self.sbx.commands.list()):
            pass

    def test_reads_what_it_is_given(self) -> None:
        text = "zeile\n" * 300_000
        result = self.sbx.commands.run("sha256sum", stdin=text)
        self.assertEqual(result.stdout.split(" ")[0], hashlib.sha256(text.encode()).hexdigest())
        result = self.sbx.commands.run("head -c 3", stdin=text.encode())
        self.assertEqual(result.stdout, "zei")
        self.sbx.commands.run("true", stdin="unread")
        # Without stdin there is an end at once.
        result = self.sbx.commands.run("cat")
        self.assertEqual(result.stdout, "")
        cat = self.sbx.commands.run("cat", background=True, stdin=True)
        cat.send_stdin("one\n")
        eventually("an echo", lambda: cat.stdout == "one\n")
        self.sbx.commands.send_stdin(cat.pid, b"two")
        cat.close_stdin()
        result = cat.wait()
        self.assertEqual(result.stdout, "one\ntwo")

    def test_runs_in_the_background(self) -> None:
        script = 'echo first; read line; echo "got $line"; sleep 100'
        handle = self.sbx.commands.run(script, background=True, stdin=True, tag="worker")
        listed = [process for process in self.sbx.commands.list() if process.pid == handle.pid]
        self.assertEqual((listed[0].tag, listed[0].args), ("worker", ["-l", "-c", script]))
        heard: list[str] = []
        by_tag = self.sbx.commands.connect("worker", on_stdout=heard.append)
        self.assertEqual(by_tag.pid, handle.pid)
        handle.send_stdin("hello\n")
        eventually("the answer", lambda: "got hello" in "".join(heard))
        handle.disconnect()
        with self.assertRaises(ThawError) as disconnected:
            handle.wait()
        self.assertEqual(disconnected.exception.code, "disconnected")
        self.assertTrue(self.sbx.commands.kill(by_tag.pid))
        for _ in range(2):
            with self.assertRaises(CommandExitError) as caught:
                by_tag.wait()
            self.assertEqual(caught.exception.exit_code, -1)
        self.assertEqual(by_tag.exit_code, -1)
        self.assertFalse(by_tag.kill())
        with self.assertRaises(NotFoundError):
            self.sbx.commands.connect(999_999)
        self.assertFalse(self.sbx.commands.kill("no such tag"))

    def test_can_be_asked_to_end(self) -> None:
        script = "trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 0.1; done"
        handle = self.sbx.commands.run(script, background=True)
        eventually("its start", lambda: handle.stdout == "up\n")
        self.assertTrue(handle.terminate())
        with self.assertRaises(CommandExitError) as caught:
            handle.wait()
        self.assertEqual((caught.exception.exit_code, handle.stdout), (5, "up\nbye\n"))

    def test_keeps_a_listeners_failure_from_hiding(self) -> None:
        def fail(_text: str) -> None:
            raise RuntimeError("mine")

        with self.assertRaisesRegex(RuntimeError, "mine"):
            self.sbx.commands.run("echo x", on_stdout=fail)
        handle = self.sbx.commands.run("echo x", on_stdout=fail, background=True)
        with self.assertRaisesRegex(RuntimeError, "mine"):
            handle.wait()

    def test_runs_many_commands_at_once(self) -> None:
        def call(index: int) -> Any:
            return lambda: self.sbx.commands.run(f"sleep 0.2; echo {index}")

        # A login shell takes an emulated CPU most of a second.
        count = 10 if HAS_VMS else 50
        results = all_of([call(index) for index in range(count)])
        self.assertEqual([int(result.stdout) for result in results], list(range(count)))

    def test_writes_and_reads_text_bytes_and_streams(self) -> None:
        files = self.sbx.files
        written = files.write("docs/ä.txt", "grüße")
        self.assertEqual(written.name, "ä.txt")
        self.assertTrue(written.path.startswith("/") and written.path.endswith("/docs/ä.txt"))
        self.assertEqual(files.read("docs/ä.txt"), "grüße")
        self.assertEqual(files.read(written.path), "grüße")
        content = os.urandom(5_000_000)
        for data in (content, io.BytesIO(content)):
            files.write("large", data)
            self.assertEqual(files.read("large", format="bytes"), content)
        digest = hashlib.sha256()
        for piece in files.read("large", format="stream"):
            digest.update(piece)
        self.assertEqual(digest.digest(), hashlib.sha256(content).digest())
        left = files.read("large", format="stream")
        left.close()
        files.write("empty", "")
        self.assertEqual(files.read("empty"), "")

    def test_knows_and_lists_entries(self) -> None:
        files = self.sbx.files
        files.write("tree/a/file", "12345")
        self.sbx.commands.run("chmod 640 tree/a/file; ln -s a/file tree/link; ln -s nowhere tree/dead")
        info = files.get_info("tree/a/file")
        self.assertEqual((info.type, info.size_bytes, info.mode), ("file", 5, 0o640))
        self.assertEqual(info.permissions, "-rw-r-----")
        listed = files.list("tree")
        self.assertEqual(
            [(entry.name, entry.type) for entry in listed],
            [("a", "directory"), ("dead", "symlink"), ("link", "file")],
        )
        self.assertTrue(str(listed[2].symlink_target).endswith("/tree/a/file"))
        deep = files.list("tree", depth=2)
        self.assertEqual([entry.name for entry in deep], ["a", "file", "dead", "link"])

    def test_makes_moves_and_removes(self) -> None:
        files = self.sbx.files
        self.assertTrue(files.make_dir("made/deep"))
        self.assertFalse(files.make_dir("made/deep"))
        files.write("made/one", "1")
        moved = files.rename("made/one", "made/new/two")
        self.assertEqual(moved.name, "two")
        self.assertFalse(files.exists("made/one"))
        self.assertTrue(files.exists("made/new/two"))
        files.remove("made")
        self.assertFalse(files.exists("made"))
        files.remove("made")

    def test_raises_typed_errors_for_files(self) -> None:
        files = self.sbx.files
        with self.assertRaises(NotFoundError):
            files.read("none")
        with self.assertRaises(NotFoundError):
            files.list("none")
        with self.assertRaises(NotFoundError):
            files.rename("none", "other")
        files.write("plain", "x")
        with self.assertRaises(InvalidRequestError):
            files.list("plain")
        with self.assertRaises(InvalidRequestError):
            files.read("/")
        with self.assertRaises(InvalidRequestError):
            files.write("/", "x")
        with self.assertRaises(InvalidRequestError):
            files.write("plain/below", "x")

    def test_watches(self) -> None:
        files = self.sbx.files
        files.make_dir("watched/below")
        events: list[FilesystemEvent] = []

        def saw(kind: str, name: str) -> Any:
            return lambda: any(event.type == kind and event.name == name for event in events)

        handle = files.watch_dir("watched", events.append, recursive=True, include_entry=True)
        files.write("watched/below/new", "123")
        eventually("create", saw("create", "below/new"))
        eventually(
            "the entry", lambda: any(event.entry is not None and event.entry.size_bytes == 3 for event in events)
        )
        self.sbx.commands.run("chmod 600 watched/below/new; mv watched/below/new watched/moved; rm watched/moved")
        eventually("chmod", saw("chmod", "below/new"))
        eventually("rename", saw("rename", "below/new"))
        eventually("remove", saw("remove", "moved"))
        handle.stop()
        handle.wait()
        seen = len(events)
        files.write("watched/after", "x")
        self.assertEqual(len(events), seen)
        with self.assertRaises(NotFoundError):
            files.watch_dir("none", events.append)

    def test_drives_a_terminal(self) -> None:
        shown = bytearray()
        pty = self.sbx.pty
        terminal = pty.create(cols=80, rows=24, on_data=shown.extend, envs={"PS1": "> "})
        terminal.send_input("stty size; echo $TERM\n")
        eventually("its size", lambda: b"24 80" in shown and b"xterm-256color" in shown)
        terminal.resize(101, 31)
        terminal.send_input("stty size\n")
        eventually("its new size", lambda: b"31 101" in shown)
        terminal.disconnect()
        again = pty.connect(terminal.pid, on_data=shown.extend)
        again.send_input("echo back $((6*7))\n")
        eventually("an answer", lambda: b"back 42" in shown)
        again.send_input("exit 7\n")
        self.assertEqual(again.wait(), 7)
        self.assertFalse(again.kill())

    def test_reaches_a_port(self) -> None:
        port = self.serve_inside()
        answer = self.sbx.fetch(port, "/path?q=1", method="POST", body="hello")
        self.assertEqual((answer.status, answer.text), (418, "POST /path?q=1 hello"))
        with self.assertRaises(UnreachableError) as closed:
            self.sbx.fetch(9)
        self.assertEqual(closed.exception.code, "guest-unreachable")

    def test_asks_for_functions_that_are_not_there(self) -> None:
        functions = Functions(**SERVER)
        self.addCleanup(functions._connection.http.close)
        self.assertIsInstance(functions.list(), list)
        with self.assertRaises(NotFoundError) as caught:
            functions.invoke("no-such-function")
        self.assertEqual(caught.exception.code, "function-not-found")
        self.assertFalse(functions.delete("no-such-function"))

    def serve_inside(self) -> int:
        """In a VM a program of the guest; else one of this process, which is on the same host."""
        if not HAS_VMS:
            server = HTTPServer(("127.0.0.1", 0), Teapot)
            thread = threading.Thread(target=server.serve_forever, args=(0.01,))
            thread.start()
            self.addCleanup(thread.join)
            self.addCleanup(server.server_close)
            self.addCleanup(server.shutdown)
            return server.server_port
        program = (
            "from http.server import *\n"
            "class Teapot(BaseHTTPRequestHandler):\n"
            "    def do_POST(self):\n"
            "        body = self.rfile.read(int(self.headers.get('content-length', 0)))\n"
            "        self.send_response(418); self.end_headers()\n"
            "        self.wfile.write(f'POST {self.path} '.encode() + body)\n"
            "server = HTTPServer(('0.0.0.0', 8123), Teapot); print('up', flush=True); server.serve_forever()\n"
        )
        self.sbx.files.write("server.py", program)
        handle = self.sbx.commands.run("python3 server.py", background=True)
        eventually("its start", lambda: handle.stdout == "up\n", 60)
        return 8123


class Teapot(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.send_response(418)
        self.end_headers()
        self.wfile.write(f"POST {self.path} ".encode() + body)

    def log_message(self, *_: object) -> None:
        pass
