# Made from ../aio/watch_handle.py by make_sync.py: change that.
# Owns the listening to changes below one directory, from `start` to `stop`.
# Refuses to own which changes there are. Invariant: after `stop` returns no event is passed on any more.
from __future__ import annotations

from typing import Any, Callable, Optional

from ..errors import ThawError
from ..models import FilesystemEvent, event_of
from .io import Task, tell
from .link import EventStream, Link

# Called for each change.
EventListener = Callable[[FilesystemEvent], Any]


class WatchHandle:
    def __init__(self, stream: EventStream, on_event: EventListener) -> None:
        self._stream = stream
        self._on_event = on_event
        self._listening = Task(self._listen)

    @staticmethod
    def open(
        link: Link,
        path: str,
        on_event: EventListener,
        *,
        recursive: bool,
        include_entry: bool,
        user: Optional[str],
        timeout: float,
        request_timeout: Optional[float],
    ) -> WatchHandle:
        message = {"path": path, "recursive": recursive, "includeEntry": include_entry}
        stream = link.stream(
            "filesystem.Filesystem/WatchDir",
            message,
            user=user,
            timeout=timeout,
            request_timeout=request_timeout,
        )
        try:
            first = stream.next()
            if first is None or first.get("start") is None:
                raise ThawError("the first event was not the start of the watch", code="internal")
        except BaseException:
            stream.finish()
            raise
        return WatchHandle(stream, on_event)

    def wait(self) -> None:
        """Waits until the watching ends by itself.

        Raises:
            DeadlineExceededError: After its `timeout`.
            NotFoundError: The sandbox ended.
            Exception: What the listener raised.
        """
        self._listening.join()

    def stop(self) -> None:
        """Ends the watching. Raises nothing: `wait` says whether it had failed before."""
        self._stream.close()
        try:
            self._listening.join()
        except Exception:
            # Told by `wait`.
            pass

    def _listen(self) -> None:
        try:
            while True:
                message = self._stream.next()
                if message is None:
                    return
                if message.get("filesystem") is not None:
                    tell(self._on_event, event_of(message["filesystem"]))
        finally:
            self._stream.finish()
