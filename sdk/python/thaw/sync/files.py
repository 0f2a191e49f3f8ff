# Made from ../aio/files.py by make_sync.py: change that.
# Owns the files of a sandbox: contents over /files, everything else over filesystem.Filesystem.
# Refuses to own paths: relative ones start in the user's home, `~` is expanded, both in the sandbox.
# Invariant: contents are streamed where the caller streams; a transfer is given up when nothing moves any more.
from __future__ import annotations

from typing import Any, BinaryIO, List, Literal, Mapping, Optional, Union, overload
from urllib.parse import quote

from ..errors import ConflictError, NotFoundError, overdue
from ..models import EntryInfo, WrittenFile, entry_of
from .http import Answer
from .link import Link
from .watch_handle import WatchHandle, EventListener


class FileReader:
    """A file's bytes, piece by piece. Leave the loop early: call `close`."""

    def __init__(self, answer: Answer, what: str, timeout: float) -> None:
        self._answer = answer
        self._overdue = overdue(what, timeout)
        self._timeout = timeout or None

    def __iter__(self) -> FileReader:
        return self

    def __next__(self) -> bytes:
        piece = self._answer.piece(self._overdue, self._timeout)
        if not piece:
            raise StopIteration
        return piece

    def close(self) -> None:
        self._answer.close()


class Files:
    def __init__(self, link: Link) -> None:
        self._link = link

    @overload
    def read(
        self,
        path: str,
        *,
        format: Literal["text"] = "text",
        user: Optional[str] = None,
        request_timeout: Optional[float] = None,
    ) -> str: ...

    @overload
    def read(
        self,
        path: str,
        *,
        format: Literal["bytes"],
        user: Optional[str] = None,
        request_timeout: Optional[float] = None,
    ) -> bytes: ...

    @overload
    def read(
        self,
        path: str,
        *,
        format: Literal["stream"],
        user: Optional[str] = None,
        request_timeout: Optional[float] = None,
    ) -> FileReader: ...

    def read(
        self,
        path: str,
        *,
        format: str = "text",
        user: Optional[str] = None,
        request_timeout: Optional[float] = None,
    ) -> Union[str, bytes, FileReader]:
        """Reads a file.

        Args:
            format: `text` (bytes that are no UTF-8 appear as U+FFFD), `bytes`, or `stream`, which is not held in memory.
            request_timeout: Seconds for each piece, not for all of them.

        Raises:
            NotFoundError: There is none.
            InvalidRequestError: It is a directory.
        """
        target = f"/files?path={quote(path, safe='')}"
        answer, _ = self._link.open("GET", target, {}, None, user, request_timeout)
        timeout = self._link.connection.timeout_of(request_timeout)
        reader = FileReader(answer, f"reading {path}", timeout)
        if format == "stream":
            return reader
        pieces = []
        for piece in reader:
            pieces.append(piece)
        content = b"".join(pieces)
        return content.decode("utf-8", "replace") if format == "text" else content

    def write(
        self,
        path: str,
        data: Union[str, bytes, BinaryIO],
        *,
        metadata: Optional[Mapping[str, str]] = None,
        user: Optional[str] = None,
        request_timeout: Optional[float] = None,
    ) -> WrittenFile:
        """Writes a file, replacing one that is there; directories on the way are made.

        Args:
            data: Text, bytes, or an open binary file, which is read from where it stands and not held in memory.
            metadata: Kept with the file, see `EntryInfo.metadata`. Names are case-insensitive.
            request_timeout: Seconds for each piece, not for all of them.

        Raises:
            NoSpaceError: The sandbox's disk is full.
            InvalidRequestError: There is a directory of that name.
        """
        headers = {"content-type": "application/octet-stream"}
        for name, value in (metadata or {}).items():
            headers[f"x-metadata-{name}"] = value
        body = data.encode() if isinstance(data, str) else data
        target = f"/files?path={quote(path, safe='')}"
        all_headers = {**self._link.headers(user), **headers}
        rows, _ = self._link.connection.json("POST", target, all_headers, body, request_timeout)
        return WrittenFile(name=rows[0]["name"], path=rows[0]["path"])

    def list(
        self,
        path: str,
        *,
        depth: int = 1,
        user: Optional[str] = None,
        request_timeout: Optional[float] = None,
    ) -> List[EntryInfo]:
        """Lists a directory, `depth` levels of it.

        Raises:
            NotFoundError: There is none.
            InvalidRequestError: It is a file.
        """
        answer = self._call("ListDir", {"path": path, "depth": depth}, user, request_timeout)
        return [entry_of(row) for row in answer.get("entries") or []]

    def exists(
        self, path: str, *, user: Optional[str] = None, request_timeout: Optional[float] = None
    ) -> bool:
        try:
            self.get_info(path, user=user, request_timeout=request_timeout)
        except NotFoundError as error:
            if error.code == "not-found":
                return False
            raise
        return True

    def get_info(
        self, path: str, *, user: Optional[str] = None, request_timeout: Optional[float] = None
    ) -> EntryInfo:
        """Raises: NotFoundError."""
        answer = self._call("Stat", {"path": path}, user, request_timeout)
        return entry_of(answer["entry"])

    def make_dir(
        self, path: str, *, user: Optional[str] = None, request_timeout: Optional[float] = None
    ) -> bool:
        """Makes a directory and those on the way. Returns: False when it was there already."""
        try:
            self._call("MakeDir", {"path": path}, user, request_timeout)
        except ConflictError:
            return False
        return True

    def rename(
        self,
        old_path: str,
        new_path: str,
        *,
        user: Optional[str] = None,
        request_timeout: Optional[float] = None,
    ) -> EntryInfo:
        """Moves a file or directory; directories on the way are made. Raises: NotFoundError."""
        message = {"source": old_path, "destination": new_path}
        answer = self._call("Move", message, user, request_timeout)
        return entry_of(answer["entry"])

    def remove(
        self, path: str, *, user: Optional[str] = None, request_timeout: Optional[float] = None
    ) -> None:
        """Removes a file, or a directory with all that is in it; nothing when there is none."""
        self._call("Remove", {"path": path}, user, request_timeout)

    def watch_dir(
        self,
        path: str,
        on_event: EventListener,
        *,
        recursive: bool = False,
        include_entry: bool = False,
        user: Optional[str] = None,
        timeout: float = 0,
        request_timeout: Optional[float] = None,
    ) -> WatchHandle:
        """Calls `on_event` for each change in a directory, from when this returns until `stop`.

        Args:
            recursive: Watch directories below, too.
            include_entry: Send the entry's information with each event.
            timeout: Seconds to watch; 0: without limit.

        Raises:
            NotFoundError: There is none.
            InvalidRequestError: It is a file.
        """
        return WatchHandle.open(
            self._link,
            path,
            on_event,
            recursive=recursive,
            include_entry=include_entry,
            user=user,
            timeout=timeout,
            request_timeout=request_timeout,
        )

    def _call(
        self, method: str, message: Mapping[str, Any], user: Optional[str], request_timeout: Optional[float]
    ) -> Any:
        return self._link.unary(f"filesystem.Filesystem/{method}", message, user, request_timeout)
