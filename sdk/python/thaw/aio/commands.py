# Owns commands of a sandbox: run, list, connect, signal, input. Each is `/bin/bash -l -c CMD`.
# Refuses to own terminals (pty.py). Invariant: a foreground run that fails to listen leaves the command to its timeout.
from __future__ import annotations

from typing import Any, List, Literal, Mapping, Optional, Union, overload

from ..errors import InvalidRequestError, NotFoundError
from ..models import CommandResult, ProcessInfo, process_of
from .command_handle import AsyncCommandHandle, OutputListener
from .io import Task
from .link import AsyncLink
from .process_stream import Which, close_stdin, program_of, selector_of, send_input, send_signal

DEFAULT_TIMEOUT = 60.0


class AsyncCommands:
    def __init__(self, link: AsyncLink) -> None:
        self._link = link

    @overload
    async def run(
        self,
        cmd: str,
        *,
        background: Literal[False] = False,
        timeout: Optional[float] = None,
        on_stdout: Optional[OutputListener] = None,
        on_stderr: Optional[OutputListener] = None,
        cwd: Optional[str] = None,
        user: Optional[str] = None,
        envs: Optional[Mapping[str, str]] = None,
        stdin: Union[str, bytes, bool] = False,
        tag: Optional[str] = None,
        request_timeout: Optional[float] = None,
    ) -> CommandResult: ...

    @overload
    async def run(
        self,
        cmd: str,
        *,
        background: Literal[True],
        timeout: Optional[float] = None,
        on_stdout: Optional[OutputListener] = None,
        on_stderr: Optional[OutputListener] = None,
        cwd: Optional[str] = None,
        user: Optional[str] = None,
        envs: Optional[Mapping[str, str]] = None,
        stdin: Union[str, bytes, bool] = False,
        tag: Optional[str] = None,
        request_timeout: Optional[float] = None,
    ) -> AsyncCommandHandle: ...

    async def run(
        self,
        cmd: str,
        *,
        background: bool = False,
        timeout: Optional[float] = None,
        on_stdout: Optional[OutputListener] = None,
        on_stderr: Optional[OutputListener] = None,
        cwd: Optional[str] = None,
        user: Optional[str] = None,
        envs: Optional[Mapping[str, str]] = None,
        stdin: Union[str, bytes, bool] = False,
        tag: Optional[str] = None,
        request_timeout: Optional[float] = None,
    ) -> Union[CommandResult, AsyncCommandHandle]:
        """Runs a command in bash.

        Args:
            background: True: return a handle as soon as the command has started.
            timeout: Seconds after which the command is killed; 0: never. Default: 60, in the background 0.
            on_stdout, on_stderr: Called with each piece of output as it arrives.
            cwd: Directory it runs in. Default: the user's home.
            user: Unix user that acts. Default: the sandbox's default user.
            envs: Environment, on top of the sandbox's.
            stdin: Text or bytes: its whole input. True: input stays open for `send_stdin`. Default: it has none.
            tag: A name by which `connect` and `kill` find it, besides its pid.
            request_timeout: Seconds until it must have started.

        Returns:
            Its result; with `background=True` a handle.

        Raises:
            CommandExitError: It ended with an exit code other than 0.
            DeadlineExceededError: It was killed after `timeout`.
            InvalidRequestError: `cwd` is no directory.
            AuthenticationError: There is no such user.
        """
        message: dict[str, Any] = {
            "process": program_of(["-l", "-c", cmd], envs, cwd),
            "stdin": stdin is not False,
        }
        if tag is not None:
            message["tag"] = tag
        if timeout is None:
            timeout = 0 if background else DEFAULT_TIMEOUT
        handle = await AsyncCommandHandle.open(
            self._link,
            "Start",
            message,
            user=user,
            timeout=timeout,
            request_timeout=request_timeout,
            on_stdout=on_stdout,
            on_stderr=on_stderr,
        )
        if background:
            handle.listen_beside()
            await self._feed(handle, stdin, request_timeout)
            return handle
        if isinstance(stdin, bool):
            return await handle.listen()
        # Beside the listening: a command may write before it has read everything.
        feeding = Task(lambda: self._feed(handle, stdin, request_timeout))
        result = await handle.listen()
        await feeding.join()
        return result

    async def list(self, *, request_timeout: Optional[float] = None) -> List[ProcessInfo]:
        """The commands and terminals that run."""
        answer = await self._link.unary("process.Process/List", {}, None, request_timeout)
        return [process_of(row) for row in answer.get("processes") or []]

    async def connect(
        self,
        which: Which,
        *,
        timeout: float = 0,
        on_stdout: Optional[OutputListener] = None,
        on_stderr: Optional[OutputListener] = None,
        request_timeout: Optional[float] = None,
    ) -> AsyncCommandHandle:
        """Listens to a command that runs, from now on: earlier output is not repeated.

        Args:
            which: Its pid, or the tag it was started with.
            timeout: Seconds to listen at most; 0: without limit.

        Raises:
            NotFoundError: There is none.
        """
        handle = await AsyncCommandHandle.open(
            self._link,
            "Connect",
            {"process": selector_of(which)},
            user=None,
            timeout=timeout,
            request_timeout=request_timeout,
            on_stdout=on_stdout,
            on_stderr=on_stderr,
        )
        handle.listen_beside()
        return handle

    async def kill(self, which: Which, *, request_timeout: Optional[float] = None) -> bool:
        """Ends a command with SIGKILL. Returns: False when there is none of that pid or tag."""
        return await send_signal(self._link, which, "SIGKILL", None, request_timeout)

    async def send_stdin(
        self, which: Which, data: Union[str, bytes], *, request_timeout: Optional[float] = None
    ) -> None:
        """Writes to the standard input of a command that was started with `stdin=True`."""
        await send_input(self._link, which, "stdin", data, None, request_timeout)

    async def close_stdin(self, which: Which, *, request_timeout: Optional[float] = None) -> None:
        """Ends that input."""
        await close_stdin(self._link, which, None, request_timeout)

    async def _feed(
        self, handle: AsyncCommandHandle, stdin: Union[str, bytes, bool], request_timeout: Optional[float]
    ) -> None:
        """A command that reads only a part of its input, or ends first, is no failure: a shell's pipe does the same."""
        if isinstance(stdin, bool):
            return
        try:
            await handle.send_stdin(stdin, request_timeout=request_timeout)
            await handle.close_stdin(request_timeout=request_timeout)
        except InvalidRequestError as error:
            if error.code != "failed-precondition":
                raise
        except NotFoundError as error:
            if error.code != "not-found":
                raise
