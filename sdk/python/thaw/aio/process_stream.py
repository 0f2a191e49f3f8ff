# Owns one running process as its listener sees it: its events in order, its end, and the calls that reach it.
# Refuses to own what a caller collects (command_handle.py, pty.py).
# Invariant: a listener that takes long holds the process's output back; nothing is buffered without bound here.
from __future__ import annotations

import base64
from typing import Any, Awaitable, Callable, Mapping, Optional, Union

from ..errors import NotFoundError, ThawError
from .link import AsyncEventStream, AsyncLink

# How a process is named: its pid, or the tag it was started with.
Which = Union[int, str]

# Input is sent in pieces of at most so many bytes.
_INPUT_PIECE_BYTES = 1024 * 1024


def selector_of(which: Which) -> dict[str, Any]:
    return {"pid": which} if isinstance(which, int) else {"tag": which}


def program_of(args: list[str], envs: Optional[Mapping[str, str]], cwd: Optional[str]) -> dict[str, Any]:
    program: dict[str, Any] = {"cmd": "/bin/bash", "args": args, "envs": dict(envs or {})}
    if cwd is not None:
        program["cwd"] = cwd
    return program


class AsyncProcessStream:
    def __init__(self, stream: AsyncEventStream, pid: int) -> None:
        self._stream = stream
        self.pid = pid

    @staticmethod
    async def open(
        link: AsyncLink,
        method: str,
        message: Mapping[str, Any],
        *,
        user: Optional[str],
        timeout: float,
        request_timeout: Optional[float],
    ) -> AsyncProcessStream:
        """Args: method: `Start` or `Connect`."""
        stream = await link.stream(
            f"process.Process/{method}", message, user=user, timeout=timeout, request_timeout=request_timeout
        )
        try:
            first = await stream.next()
            start = _event_of(first).get("start")
            if start is None:
                raise ThawError("the first event was not the start of the process", code="internal")
        except BaseException:
            stream.finish()
            raise
        return AsyncProcessStream(stream, int(start["pid"]))

    async def pump(self, on_output: Callable[[str, bytes], Awaitable[None]]) -> tuple[int, Optional[str]]:
        """Passes output on until the process ends. Returns: its exit code, and why it failed in the agent's words."""
        try:
            while True:
                message = await self._stream.next()
                if message is None:
                    raise ThawError(
                        "this handle was disconnected before the process ended", code="disconnected"
                    )
                event = _event_of(message)
                for name, text in (event.get("data") or {}).items():
                    await on_output(name, base64.b64decode(text))
                if event.get("end") is not None:
                    return _end_of(event["end"])
        finally:
            self._stream.finish()

    def disconnect(self) -> None:
        self._stream.close()


def _event_of(message: Optional[Mapping[str, Any]]) -> Mapping[str, Any]:
    return (message or {}).get("event") or {}


def _end_of(end: Mapping[str, Any]) -> tuple[int, Optional[str]]:
    """A zero exit code may be left out on the wire."""
    exit_code = int(end.get("exitCode", 0))
    return exit_code, end.get("error") or (end.get("status") if exit_code != 0 else None)


async def send_signal(
    link: AsyncLink, which: Which, signal: str, user: Optional[str], request_timeout: Optional[float]
) -> bool:
    """Args: signal: `SIGKILL` or `SIGTERM`. Returns: False when there is no such process any more."""
    message = {"process": selector_of(which), "signal": f"SIGNAL_{signal}"}
    try:
        await link.unary("process.Process/SendSignal", message, user, request_timeout)
    except NotFoundError as error:
        if error.code == "not-found":
            return False
        raise
    return True


async def send_input(
    link: AsyncLink,
    which: Which,
    kind: str,
    data: Union[str, bytes],
    user: Optional[str],
    request_timeout: Optional[float],
) -> None:
    """Args: kind: `stdin` or `pty`."""
    content = data.encode() if isinstance(data, str) else data
    for at in range(0, len(content), _INPUT_PIECE_BYTES):
        piece = base64.b64encode(content[at : at + _INPUT_PIECE_BYTES]).decode()
        message = {"process": selector_of(which), "input": {kind: piece}}
        await link.unary("process.Process/SendInput", message, user, request_timeout)


async def close_stdin(
    link: AsyncLink, which: Which, user: Optional[str], request_timeout: Optional[float]
) -> None:
    message = {"process": selector_of(which)}
    await link.unary("process.Process/CloseStdin", message, user, request_timeout)
