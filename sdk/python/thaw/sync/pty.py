# Made from ../aio/pty.py by make_sync.py: change that.
# Owns terminals of a sandbox: an interactive login bash on a pseudo-terminal.
# Refuses to own commands without one (commands.py). Invariant: bytes pass through as they are, both ways.
from __future__ import annotations

from typing import Any, Callable, Mapping, Optional, Union

from .io import Task, tell
from .link import Link
from .process_stream import ProcessStream, program_of, send_input, send_signal

# Receives what the terminal shows.
DataListener = Callable[[bytes], Any]


class PtyHandle:
    """A terminal that runs in a sandbox. It outlives this handle."""

    def __init__(self, pty: Pty, stream: ProcessStream, on_data: DataListener) -> None:
        self._pty = pty
        self._stream = stream
        self._on_data = on_data
        self._listening = Task(self._listen)

    @property
    def pid(self) -> int:
        return self._stream.pid

    def wait(self) -> int:
        """Waits for the shell's end. Returns: its exit code, -1 when a signal ended it."""
        return self._listening.join()

    def send_input(self, data: Union[str, bytes], *, request_timeout: Optional[float] = None) -> None:
        """Types."""
        self._pty.send_input(self.pid, data, request_timeout=request_timeout)

    def resize(self, cols: int, rows: int, *, request_timeout: Optional[float] = None) -> None:
        self._pty.resize(self.pid, cols, rows, request_timeout=request_timeout)

    def kill(self, *, request_timeout: Optional[float] = None) -> bool:
        """Returns: False when it had ended before."""
        return self._pty.kill(self.pid, request_timeout=request_timeout)

    def disconnect(self) -> None:
        """Stops listening; the terminal goes on, see `pty.connect`."""
        self._stream.disconnect()

    def _listen(self) -> int:
        exit_code, _ = self._stream.pump(self._take)
        return exit_code

    def _take(self, _name: str, data: bytes) -> None:
        tell(self._on_data, data)


class Pty:
    def __init__(self, link: Link) -> None:
        self._link = link

    def create(
        self,
        *,
        cols: int,
        rows: int,
        on_data: DataListener,
        cwd: Optional[str] = None,
        user: Optional[str] = None,
        envs: Optional[Mapping[str, str]] = None,
        timeout: float = 0,
        request_timeout: Optional[float] = None,
    ) -> PtyHandle:
        """Opens a terminal.

        Args:
            on_data: Called with bytes as the terminal shows them.
            timeout: Seconds after which it is killed; 0: it lives as long as the sandbox.
        """
        all_envs = {"TERM": "xterm-256color", "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8", **(envs or {})}
        message = {
            "process": program_of(["-i", "-l"], all_envs, cwd),
            "pty": {"size": {"cols": cols, "rows": rows}},
        }
        return self._open("Start", message, on_data, user, timeout, request_timeout)

    def connect(
        self, pid: int, *, on_data: DataListener, timeout: float = 0, request_timeout: Optional[float] = None
    ) -> PtyHandle:
        """Listens to a terminal that runs. Raises: NotFoundError."""
        message = {"process": {"pid": pid}}
        return self._open("Connect", message, on_data, None, timeout, request_timeout)

    def send_input(
        self, pid: int, data: Union[str, bytes], *, request_timeout: Optional[float] = None
    ) -> None:
        send_input(self._link, pid, "pty", data, None, request_timeout)

    def resize(
        self, pid: int, cols: int, rows: int, *, request_timeout: Optional[float] = None
    ) -> None:
        message = {"process": {"pid": pid}, "pty": {"size": {"cols": cols, "rows": rows}}}
        self._link.unary("process.Process/Update", message, None, request_timeout)

    def kill(self, pid: int, *, request_timeout: Optional[float] = None) -> bool:
        """Returns: False when there is none of that pid."""
        return send_signal(self._link, pid, "SIGKILL", None, request_timeout)

    def _open(
        self,
        method: str,
        message: Mapping[str, Any],
        on_data: DataListener,
        user: Optional[str],
        timeout: float,
        request_timeout: Optional[float],
    ) -> PtyHandle:
        stream = ProcessStream.open(
            self._link, method, message, user=user, timeout=timeout, request_timeout=request_timeout
        )
        return PtyHandle(self, stream, on_data)
