# Made from ../aio/command_handle.py by make_sync.py: change that.
# Owns what a caller holds of a command: its output so far, its end, and the ways to reach it.
# Refuses to own the stream (process_stream.py). Invariant: `wait` ends once, the same way for all who wait.
from __future__ import annotations

import codecs
from typing import Any, Callable, Mapping, Optional, Union

from ..errors import CommandExitError
from ..models import CommandResult
from .io import Task, tell
from .link import Link
from .process_stream import ProcessStream, close_stdin, send_input, send_signal

# Receives output as it arrives; while it runs (or is awaited) further output is held back.
OutputListener = Callable[[str], Any]


class Output:
    """Collects both channels: a character that is cut by a chunk's border waits for its other half."""

    def __init__(self, on_stdout: Optional[OutputListener], on_stderr: Optional[OutputListener]) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")
        self._decoders = {"stdout": decoder("replace"), "stderr": decoder("replace")}
        self._listeners = {"stdout": on_stdout, "stderr": on_stderr}
        self._pieces: dict[str, list[str]] = {"stdout": [], "stderr": []}

    def text(self, name: str) -> str:
        pieces = self._pieces[name]
        # Joined in place: asking again and again does not join everything each time.
        pieces[:] = ["".join(pieces)]
        return pieces[0]

    def take(self, name: str, data: bytes) -> None:
        if name in self._decoders:
            self._pass(name, self._decoders[name].decode(data))

    def flush(self) -> None:
        for name, decoder in self._decoders.items():
            self._pass(name, decoder.decode(b"", True))

    def _pass(self, name: str, text: str) -> None:
        if text:
            self._pieces[name].append(text)
            tell(self._listeners[name], text)


class CommandHandle:
    """A command that runs in a sandbox, or ran. It outlives this handle."""

    def __init__(self, link: Link, stream: ProcessStream, output: Output) -> None:
        self._link = link
        self._stream = stream
        self._output = output
        self._exit_code: Optional[int] = None
        self._listening: Optional[Task[CommandResult]] = None

    @staticmethod
    def open(
        link: Link,
        method: str,
        message: Mapping[str, Any],
        *,
        user: Optional[str],
        timeout: float,
        request_timeout: Optional[float],
        on_stdout: Optional[OutputListener],
        on_stderr: Optional[OutputListener],
    ) -> CommandHandle:
        stream = ProcessStream.open(
            link, method, message, user=user, timeout=timeout, request_timeout=request_timeout
        )
        return CommandHandle(link, stream, Output(on_stdout, on_stderr))

    @property
    def pid(self) -> int:
        """Process id inside the sandbox."""
        return self._stream.pid

    @property
    def stdout(self) -> str:
        """What has been written so far, since this handle listens."""
        return self._output.text("stdout")

    @property
    def stderr(self) -> str:
        return self._output.text("stderr")

    @property
    def exit_code(self) -> Optional[int]:
        """None while it runs; -1 when a signal ended it."""
        return self._exit_code

    def wait(self) -> CommandResult:
        """Waits for the end of the command.

        Raises:
            CommandExitError: It ended with an exit code other than 0.
            DeadlineExceededError: It was ended by its `timeout`.
            NotFoundError: The sandbox ended or was paused meanwhile.
        """
        if self._listening is None:
            return self.listen()
        return self._listening.join()

    def kill(self, *, request_timeout: Optional[float] = None) -> bool:
        """Ends it with SIGKILL. Returns: False when it had ended before."""
        return send_signal(self._link, self.pid, "SIGKILL", None, request_timeout)

    def terminate(self, *, request_timeout: Optional[float] = None) -> bool:
        """Asks it to end with SIGTERM. Returns: False when it had ended before."""
        return send_signal(self._link, self.pid, "SIGTERM", None, request_timeout)

    def send_stdin(self, data: Union[str, bytes], *, request_timeout: Optional[float] = None) -> None:
        """Writes to its standard input; needs `stdin=True` at its start. Returns when the command's pipe has taken it."""
        send_input(self._link, self.pid, "stdin", data, None, request_timeout)

    def close_stdin(self, *, request_timeout: Optional[float] = None) -> None:
        """Ends its standard input."""
        close_stdin(self._link, self.pid, None, request_timeout)

    def disconnect(self) -> None:
        """Stops listening; the command goes on, see `commands.connect`. `wait` raises `ThawError` `disconnected`."""
        self._stream.disconnect()

    def listen(self) -> CommandResult:
        """Passes output on until the command ends; for whoever opened this handle."""
        exit_code, reason = self._stream.pump(self._output.take)
        self._output.flush()
        self._exit_code = exit_code
        if exit_code != 0:
            raise CommandExitError(exit_code, self.stdout, self.stderr, reason)
        return CommandResult(exit_code=0, stdout=self.stdout, stderr=self.stderr)

    def listen_beside(self) -> None:
        self._listening = Task(self.listen)
