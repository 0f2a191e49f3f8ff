# Owns what differs between asyncio and threads: sockets with deadlines, work beside the caller's, calling listeners.
# Refuses to own any protocol. Written twice, here and in ../sync/io.py; everything else is written once.
# Invariant: every wait ends at its timeout; an aborted socket reads as ended.
from __future__ import annotations

import asyncio
import inspect
from typing import Any, Awaitable, Callable, Generic, Optional, TypeVar, cast

from ..errors import UnreachableError, connection_lost, deadline_exceeded
from ..tls import tls_context

T = TypeVar("T")
_READ_BYTES = 256 * 1024


class Socket:
    """One connection to a server, plain or TLS. `overdue` is what is said when a timeout passes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._loop = asyncio.get_running_loop()
        self._receiving: Optional[asyncio.Task[bytes]] = None

    @staticmethod
    async def open(host: str, port: int, tls: bool, overdue: str, timeout: Optional[float]) -> Socket:
        try:
            opening = asyncio.open_connection(host, port, ssl=tls_context() if tls else None, limit=_READ_BYTES)
            reader, writer = await asyncio.wait_for(opening, timeout)
        except asyncio.TimeoutError:
            raise deadline_exceeded(overdue) from None
        except OSError as error:
            raise UnreachableError(
                f"nothing answers on {host}:{port} ({error})", code="unreachable", retryable=True
            ) from error
        return Socket(reader, writer)

    async def send(self, data: bytes, overdue: str, timeout: Optional[float]) -> None:
        try:
            self._writer.write(data)
            await asyncio.wait_for(self._writer.drain(), timeout)
        except asyncio.TimeoutError:
            raise deadline_exceeded(overdue) from None
        except OSError as error:
            raise connection_lost(f"the connection broke: {error}") from error

    async def send_piece(self, data: bytes, overdue: str, timeout: Optional[float]) -> bool:
        """One piece of many. Returns: False when the other side has something to say first, and it was not sent."""
        if self._receiving is None:
            self._receiving = asyncio.ensure_future(self._reader.read(_READ_BYTES))
        if self._receiving.done():
            return False
        self._writer.write(data)
        draining = asyncio.ensure_future(self._writer.drain())
        try:
            await asyncio.wait(
                {draining, self._receiving}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED
            )
            if not draining.done() and not self._receiving.done():
                raise deadline_exceeded(overdue)
            if draining.done() and not draining.cancelled() and draining.exception() is not None:
                raise connection_lost(f"the connection broke: {draining.exception()}")
            return draining.done()
        finally:
            draining.cancel()

    async def recv(self, overdue: str, timeout: Optional[float]) -> bytes:
        """Returns: b"" at the end of the connection."""
        receiving, self._receiving = self._receiving, None
        try:
            return await asyncio.wait_for(receiving or self._reader.read(_READ_BYTES), timeout)
        except asyncio.TimeoutError:
            raise deadline_exceeded(overdue) from None
        except OSError as error:
            raise connection_lost(f"the connection broke: {error}") from error

    def is_idle(self) -> bool:
        """True when another request may be sent on it: still open, nothing unread, and of this event loop."""
        same_loop = self._loop is asyncio.get_running_loop()
        return same_loop and not self._writer.is_closing() and not self._reader.at_eof()

    def abort(self) -> None:
        """Ends it now; whoever reads it gets the end of the connection."""
        if self._receiving is not None:
            self._receiving.cancel()
        try:
            self._writer.transport.abort()
        except RuntimeError:
            # Its event loop is closed, and the socket with it.
            pass

    close = abort


class Task(Generic[T]):
    """Work that goes on beside the caller's."""

    def __init__(self, work: Callable[[], Awaitable[T]]) -> None:
        self._task = asyncio.ensure_future(_guarded(work))

    async def join(self) -> T:
        """Its result, or what it raised."""
        # The task must outlive one of several who wait for it.
        outcome, error = await asyncio.shield(self._task)
        if error is not None:
            raise error
        return cast(T, outcome)


async def _guarded(work: Callable[[], Awaitable[Any]]) -> tuple[Any, Optional[Exception]]:
    """An error nobody waits for must not be reported as one that was forgotten."""
    try:
        return await work(), None
    except Exception as error:
        return None, error


async def tell(listener: Optional[Callable[..., Any]], *args: Any) -> None:
    """Calls a listener, and waits for it where it is a coroutine function."""
    if listener is None:
        return
    result = listener(*args)
    if inspect.isawaitable(result):
        await result


sleep = asyncio.sleep
