# Owns the listening to changes below one directory, from `start` to `stop`.
# Refuses to own which changes there are. Invariant: after `stop` returns no event is passed on any more.
from __future__ import annotations

from typing import Any, Callable, Optional

from ..errors import ThawError
from ..models import FilesystemEvent, event_of
from .io import Task, tell
from .link import AsyncEventStream, AsyncLink

# Called for each change.
EventListener = Callable[[FilesystemEvent], Any]


class AsyncWatchHandle:
    def __init__(self, stream: AsyncEventStream, on_event: EventListener) -> None:
        self._stream = stream
        self._on_event = on_event
        self._listening = Task(self._listen)

    @staticmethod
    async def open(
        link: AsyncLink,
        path: str,
        on_event: EventListener,
        *,
        recursive: bool,
        include_entry: bool,
        user: Optional[str],
        timeout: float,
        request_timeout: Optional[float],
    ) -> AsyncWatchHandle:
        message = {"path": path, "recursive": recursive, "includeEntry": include_entry}
        stream = await link.stream(
            "filesystem.Filesystem/WatchDir",
            message,
            user=user,
            timeout=timeout,
            request_timeout=request_timeout,
        )
        try:
            first = await stream.next()
            if first is None or first.get("start") is None:
                raise ThawError("the first event was not the start of the watch", code="internal")
        except BaseException:
            stream.finish()
            raise
        return AsyncWatchHandle(stream, on_event)

    async def wait(self) -> None:
        """Waits until the watching ends by itself.

        Raises:
            DeadlineExceededError: After its `timeout`.
            NotFoundError: The sandbox ended.
            Exception: What the listener raised.
        """
        await self._listening.join()

    async def stop(self) -> None:
        """Ends the watching. Raises nothing: `wait` says whether it had failed before."""
        self._stream.close()
        try:
            await self._listening.join()
        except Exception:
            # Told by `wait`.
            pass

    async def _listen(self) -> None:
        try:
            while True:
                message = await self._stream.next()
                if message is None:
                    return
                if message.get("filesystem") is not None:
                    await tell(self._on_event, event_of(message["filesystem"]))
        finally:
            self._stream.finish()
