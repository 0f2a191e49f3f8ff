# Holds the reading of HTTP/1.1 to whatever pieces its bytes come in.
import random
import unittest

from thaw.errors import ThawError, UnreachableError
from thaw.http1 import ResponseParser, encode_head

HEAD = b"HTTP/1.1 200 OK\r\nX-One: 1\r\n"


def read(raw: bytes, method: str = "GET", step: int = 1, ended: bool = False) -> tuple[ResponseParser, bytes]:
    parser = ResponseParser(method)
    body = b""
    for at in range(0, len(raw), step):
        body += parser.feed(raw[at : at + step])
    if ended:
        body += parser.feed(b"")
    return parser, body


class Http1(unittest.TestCase):
    def test_reads_each_framing_in_pieces_of_any_size(self) -> None:
        seed = random.randrange(1_000_000)
        numbers = random.Random(seed)
        for _ in range(200):
            body = numbers.randbytes(numbers.randrange(0, 400))
            step = numbers.randrange(1, 50)
            length = HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
            chunks = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
            at = 0
            while at < len(body):
                size = numbers.randrange(1, 100)
                piece = body[at : at + size]
                chunks += b"%x\r\n%b\r\n" % (len(piece), piece)
                at += size
            for raw, ended, reusable in (
                (length, False, True),
                (chunks + b"0\r\n\r\n", False, True),
                (HEAD + b"\r\n" + body, True, False),
            ):
                parser, got = read(raw, step=step, ended=ended)
                self.assertEqual(got, body, f"seed {seed}")
                self.assertTrue(parser.done, f"seed {seed}")
                self.assertEqual((parser.status, parser.headers["x-one"]), (200, "1"))
                self.assertEqual(parser.reusable, reusable)

    def test_knows_answers_without_a_body(self) -> None:
        self.assertTrue(read(b"HTTP/1.1 204 No Content\r\n\r\n")[0].done)
        self.assertTrue(read(HEAD + b"Content-Length: 9\r\n\r\n", method="HEAD")[0].done)
        parser, body = read(b"HTTP/1.1 100 Continue\r\n\r\n" + HEAD + b"Content-Length: 1\r\n\r\nx")
        self.assertEqual((parser.status, body), (200, b"x"))
        closing, _ = read(HEAD + b"Connection: close\r\nContent-Length: 0\r\n\r\n")
        self.assertEqual((closing.done, closing.reusable), (True, False))

    def test_refuses_what_is_cut_or_is_none(self) -> None:
        for raw in (b"", HEAD, HEAD + b"Content-Length: 2\r\n\r\nx", HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx"):
            with self.assertRaises(UnreachableError):
                read(raw, ended=True)
        for raw in (
            b"SSH-2.0-OpenSSH\r\n\r\n",
            b"HTTP/1.1 abc\r\n\r\n",
            HEAD + b"Content-Length: x\r\n\r\n",
            HEAD + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n",
            HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"1" * 3000,
            b"x" * 100_000,
        ):
            with self.assertRaises(ThawError) as caught:
                read(raw, step=1000)
            self.assertEqual(caught.exception.code, "internal")

    def test_sends_no_header_that_holds_another(self) -> None:
        with self.assertRaises(ThawError):
            encode_head("GET", "/", {"x": "1\r\ny: 2"})
