# Owns what differs between asyncio and threads: sockets with deadlines, work beside the caller's, calling listeners.
# Refuses to own any protocol. Written twice, here and in ../aio/io.py; everything else is written once.
# Invariant: every wait ends at its timeout; an aborted socket reads as ended.
from __future__ import annotations

import selectors
import socket
import ssl
import threading
import time
from typing import Any, Callable, Generic, Optional, TypeVar, cast

from ..errors import UnreachableError, connection_lost, deadline_exceeded
from ..tls import tls_context

T = TypeVar("T")
_READ_BYTES = 256 * 1024
_BOTH = selectors.EVENT_READ | selectors.EVENT_WRITE
# Needs no descriptor of its own, and takes descriptors of any number where the system can.
_Selector: Any = getattr(selectors, "PollSelector", selectors.SelectSelector)


class Socket:
    """One connection to a server, plain or TLS. `overdue` is what is said when a timeout passes."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._is_aborted = False
        self._received: Optional[bytes] = None

    @staticmethod
    def open(host: str, port: int, tls: bool, overdue: str, timeout: Optional[float]) -> Socket:
        try:
            connected = socket.create_connection((host, port), timeout)
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if tls:
                connected = tls_context().wrap_socket(connected, server_hostname=host)
        except TimeoutError:
            raise deadline_exceeded(overdue) from None
        except OSError as error:
            raise UnreachableError(
                f"nothing answers on {host}:{port} ({error})", code="unreachable", retryable=True
            ) from error
        return Socket(connected)

    def send(self, data: bytes, overdue: str, timeout: Optional[float]) -> None:
        try:
            self._socket.settimeout(timeout)
            self._socket.sendall(data)
        except TimeoutError:
            raise deadline_exceeded(overdue) from None
        except OSError as error:
            raise connection_lost(f"the connection broke: {error}") from error

    def send_piece(self, data: bytes, overdue: str, timeout: Optional[float]) -> bool:
        """One piece of many. Returns: False when the other side has something to say first, and it was not sent."""
        end = None if timeout is None else time.monotonic() + timeout
        rest = memoryview(data)
        self._socket.setblocking(False)
        try:
            while rest:
                readable, writable = self._ready(_BOTH, None if end is None else max(0, end - time.monotonic()))
                if not readable and not writable:
                    raise deadline_exceeded(overdue)
                if readable and self._has_answer():
                    return False
                if writable:
                    rest = rest[self._send_some(rest) :]
        except OSError as error:
            raise connection_lost(f"the connection broke: {error}") from error
        return True

    def _ready(self, events: int, timeout: Optional[float]) -> tuple[bool, bool]:
        """Returns: whether it can be read (or has ended) and written, as soon as one is the case."""
        with _Selector() as selector:
            selector.register(self._socket, events)
            ready = selector.select(timeout)
        mask = ready[0][1] if ready else 0
        return bool(mask & selectors.EVENT_READ), bool(mask & selectors.EVENT_WRITE)

    def _has_answer(self) -> bool:
        """What arrived may also be TLS's own."""
        try:
            self._received = self._socket.recv(_READ_BYTES)
        except (BlockingIOError, ssl.SSLWantReadError):
            return False
        return True

    def _send_some(self, data: memoryview) -> int:
        try:
            return self._socket.send(data)
        except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
            return 0

    def recv(self, overdue: str, timeout: Optional[float]) -> bytes:
        """Returns: b"" at the end of the connection."""
        if self._received is not None:
            received, self._received = self._received, None
            return received
        try:
            self._socket.settimeout(timeout)
            return self._socket.recv(_READ_BYTES)
        except TimeoutError:
            raise deadline_exceeded(overdue) from None
        except OSError as error:
            if self._is_aborted:
                return b""
            raise connection_lost(f"the connection broke: {error}") from error

    def is_idle(self) -> bool:
        """True when another request may be sent on it: still open and nothing unread."""
        if self._socket.fileno() < 0:
            return False
        readable, _ = self._ready(selectors.EVENT_READ, 0)
        return not readable

    def abort(self) -> None:
        """Ends it now, from any thread; whoever reads it gets the end of the connection and closes it."""
        self._is_aborted = True
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            # It had ended by itself.
            pass

    def close(self) -> None:
        self._socket.close()


class Task(Generic[T]):
    """Work that goes on beside the caller's."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._outcome: Optional[T] = None
        self._error: Optional[BaseException] = None
        # Nobody is kept from leaving by a command that goes on.
        self._thread = threading.Thread(target=self._run, name="thaw-listener", daemon=True)
        self._thread.start()

    def join(self) -> T:
        """Its result, or what it raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return cast(T, self._outcome)

    def _run(self) -> None:
        try:
            self._outcome = self._work()
        except Exception as error:
            self._error = error


def tell(listener: Optional[Callable[..., Any]], *args: Any) -> None:
    """Calls a listener."""
    if listener is not None:
        listener(*args)


sleep = time.sleep
