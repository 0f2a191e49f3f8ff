# Owns functions as their author sees them: deploy, make from a snapshot, invoke, list, delete.
# Refuses to own packing a directory (../pack.py). Invariant: `deploy` returns when the function serves, not before.
from __future__ import annotations

import json
from typing import Any, List, Mapping, Optional, Union
from urllib.parse import quote

from ..clock import Deadline
from ..errors import BuildError, InvalidRequestError, NotFoundError
from ..models import FunctionInfo, FunctionVersion, Response, function_of, version_of, without_none
from ..pack import pack_directory
from ..settings import resolve_settings
from .connection import AsyncConnection
from .io import sleep
from .ports import request_program

_DEFAULT_BUILD_TIMEOUT = 600.0
# How long one request waits for a build: less than any proxy's patience.
_WAIT_SECONDS = 25
# Builds take seconds to minutes.
_POLL_SECONDS = 0.5


class AsyncFunctions:
    """The functions of a server. Options default to `THAW_API_URL` and `THAW_API_KEY`; times are seconds."""

    def __init__(
        self,
        *,
        api_url: Optional[str] = None,
        api_key: Optional[str] = None,
        request_timeout: Optional[float] = None,
    ) -> None:
        self._connection = AsyncConnection(resolve_settings(api_url, api_key, request_timeout))

    async def deploy(
        self,
        *,
        directory: Optional[str] = None,
        archive: Optional[bytes] = None,
        name: Optional[str] = None,
        timeout: float = _DEFAULT_BUILD_TIMEOUT,
    ) -> FunctionVersion:
        """Deploys a new version and waits until it serves.

        Args:
            directory: Its name, or the one in its `thaw.json`, becomes the function's.
            archive: Instead: a tar or tar.gz archive; then `name` is needed.
            timeout: Seconds the build may take altogether.

        Raises:
            BuildError: With the end of the output.
            InvalidRequestError: A bad archive or manifest.
            DeadlineExceededError: After `timeout`; the build then goes on.
        """
        called, content = _bundle_of(directory, archive, name)
        deadline = Deadline(f"building {called}", timeout)
        headers = {
            **self._connection.credentials,
            "content-type": "application/x-tar",
            "prefer": f"wait={_WAIT_SECONDS}",
        }
        path = f"{_path_of(called)}/versions"
        record, _ = await self._connection.json("POST", path, headers, content, deadline.left() or 0)
        return await self._when_ready(record, deadline)

    async def from_snapshot(
        self,
        *,
        name: str,
        snapshot_id: str,
        port: int,
        command: Optional[List[str]] = None,
        envs: Optional[Mapping[str, str]] = None,
        prime: Optional[List[str]] = None,
        warm: Optional[Mapping[str, int]] = None,
        recycle: Optional[str] = None,
        concurrency: Optional[int] = None,
        auth: Optional[str] = None,
        timeout: float = _DEFAULT_BUILD_TIMEOUT,
    ) -> FunctionVersion:
        """Makes a sandbox's snapshot a new version of a function, and waits until it serves.

        A server runs in the snapshot, or `command` starts one. The snapshot may then be deleted. Random numbers: Thaw
        reseeds the kernel of every instance, and Node and Python programs that `command` starts; a server that ran before
        keeps its own generator's state, the same in every instance, until it draws from the kernel again.

        Args:
            snapshot_id: Id or name of a sandbox's snapshot.
            port: Port that answers requests, inside the sandbox; the server listens on 0.0.0.0.
            command: Program that starts the server; default: it runs in the snapshot already.
            envs: Environment of `command`.
            prime: Paths that a new instance must answer before it takes requests. Default: `/`.
            warm: `min` instances that wait for requests, `max` that there may be.
            recycle: `reuse`, or `fresh`: every request gets a new instance.
            concurrency: Requests that one instance serves at a time. Default: 1.
            auth: `public`, or `key`: callers need an API key.
            timeout: Seconds that making it may take altogether.

        Raises:
            NotFoundError: There is no such snapshot.
            BuildError: Nothing answers on the port.
            DeadlineExceededError: After `timeout`; the work then goes on.
        """
        message = without_none(
            name=name,
            fromSnapshot=snapshot_id,
            port=port,
            command=command,
            env=envs,
            prime=prime,
            warm=warm,
            recycle=recycle,
            concurrency=concurrency,
            auth=auth,
        )
        deadline = Deadline(f"making {name} from {snapshot_id}", timeout)
        headers = {
            **self._connection.credentials,
            "content-type": "application/json",
            "prefer": f"wait={_WAIT_SECONDS}",
        }
        content = json.dumps(message).encode()
        record, _ = await self._connection.json(
            "POST", "/v1/functions", headers, content, deadline.left() or 0
        )
        return await self._when_ready(record, deadline)

    async def invoke(
        self,
        name: str,
        path: str = "/",
        *,
        method: str = "GET",
        headers: Optional[Mapping[str, str]] = None,
        body: Union[str, bytes, None] = None,
        version: Optional[int] = None,
        request_timeout: Optional[float] = None,
    ) -> Response:
        """Sends a request to a function. Any status is an answer, a failing function's own 500, too.

        Args:
            path: With its query.
            version: One other than the current.

        Raises:
            NotFoundError: There is no such function.
            RateLimitError, NoCapacityError, DeadlineExceededError.
            UnreachableError: Its VM died meanwhile.
        """
        at = "" if version is None else f"@{version}"
        target = f"/fn/{quote(name, safe='')}{at}{path}"
        all_headers = {**(headers or {}), **self._connection.credentials}
        return await request_program(
            self._connection, method, target, all_headers, body, request_timeout
        )

    async def list(self, *, request_timeout: Optional[float] = None) -> List[FunctionInfo]:
        answer = await self._connection.call("GET", "/v1/functions", request_timeout=request_timeout)
        return [function_of(row) for row in answer["functions"]]

    async def get(self, name: str, *, request_timeout: Optional[float] = None) -> FunctionInfo:
        """Raises: NotFoundError."""
        return function_of(
            await self._connection.call("GET", _path_of(name), request_timeout=request_timeout)
        )

    async def delete(self, name: str, *, request_timeout: Optional[float] = None) -> bool:
        """Removes a function with all its versions. Returns: False when there is none of that name."""
        try:
            await self._connection.call("DELETE", _path_of(name), request_timeout=request_timeout)
        except NotFoundError:
            return False
        return True

    async def _when_ready(self, accepted: Mapping[str, Any], deadline: Deadline) -> FunctionVersion:
        path = f"{_path_of(accepted['name'])}/versions/{accepted['version']}"
        record = accepted
        while record["state"] == "building":
            deadline.left()
            await sleep(_POLL_SECONDS)
            record = await self._connection.call("GET", path)
        if record.get("error"):
            raise BuildError(record["error"]["detail"], code=record["error"]["code"])
        return version_of(record)


def _path_of(name: str) -> str:
    return f"/v1/functions/{quote(name, safe='')}"


def _bundle_of(
    directory: Optional[str], archive: Optional[bytes], name: Optional[str]
) -> tuple[str, bytes]:
    if directory is not None and archive is None:
        return pack_directory(directory, name)
    if archive is not None and name is not None and directory is None:
        return name, archive
    raise InvalidRequestError("deploy: give a directory, or an archive and a name", code="bad-request")
