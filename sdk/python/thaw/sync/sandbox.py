# Made from ../aio/sandbox.py by make_sync.py: change that.
# Owns one sandbox as its user sees it: create, connect, pause, snapshot, fork, end; and its commands, files, terminals.
# Refuses to own what runs inside (commands.py, files.py, pty.py).
# Invariant: an object of this class has an id and a token that the server gave; it holds no state of the sandbox.
from __future__ import annotations

import math
from typing import Any, List, Mapping, Optional, Union
from urllib.parse import quote, urlencode

from ..errors import ConflictError, NotFoundError, ThawError, error_of_entry
from ..hosts import host_of
from ..models import (
    NetworkOptions,
    Response,
    SandboxInfo,
    SandboxMetrics,
    SnapshotInfo,
    metrics_of,
    sandbox_of,
    snapshot_of,
    without_none,
)
from ..settings import resolve_settings
from .commands import Commands
from .connection import Connection
from .files import Files
from .link import Link
from .ports import request_program
from .pty import Pty
from .snapshots import list_snapshots

DEFAULT_TIMEOUT = 300.0


class Sandbox:
    """A sandbox. `with` kills it at the end of the block.

    Every method takes `request_timeout`: seconds the call may take, 0 without limit, by default the connection's 60.
    `api_url` and `api_key` default to the variables `THAW_API_URL` (else http://127.0.0.1:8080) and `THAW_API_KEY`.

    Attributes:
        sandbox_id: Names it.
        template_id: What it is a clone of.
        traffic_access_token: Needed by requests to its ports when `allow_public_traffic` is False.
        commands, files, pty: What runs inside.
    """

    def __init__(self, connection: Connection, wire: Mapping[str, Any]) -> None:
        """Use `create` or `connect`."""
        self.sandbox_id: str = wire["sandboxID"]
        self.template_id: str = wire["templateID"]
        self.traffic_access_token: Optional[str] = wire.get("trafficAccessToken")
        self._domain: Optional[str] = wire.get("domain")
        self._connection = connection
        self._link = Link(
            connection, self.sandbox_id, wire.get("envdAccessToken"), self.traffic_access_token
        )
        self.commands = Commands(self._link)
        self.files = Files(self._link)
        self.pty = Pty(self._link)

    @classmethod
    def create(
        cls,
        template: Optional[str] = None,
        *,
        snapshot_id: Optional[str] = None,
        timeout: float = DEFAULT_TIMEOUT,
        metadata: Optional[Mapping[str, str]] = None,
        envs: Optional[Mapping[str, str]] = None,
        on_timeout: Optional[str] = None,
        auto_resume: Optional[bool] = None,
        allow_internet_access: Optional[bool] = None,
        network: Optional[NetworkOptions] = None,
        api_url: Optional[str] = None,
        api_key: Optional[str] = None,
        request_timeout: Optional[float] = None,
    ) -> Sandbox:
        """Starts a new sandbox: a clone of a template, or of a snapshot, which then goes on exactly where it was taken.

        Args:
            template: Default: `base`.
            snapshot_id: Snapshot it goes on from, instead of a template.
            timeout: Seconds it may live.
            metadata: Shown in lists, and a filter there.
            envs: Environment of all its commands.
            on_timeout: `kill` (default) or `pause`: what happens at the end of its time.
            auto_resume: True: a paused one resumes when a request reaches it.
            allow_internet_access: Default: True.

        Raises:
            NotFoundError: There is no such template or snapshot.
            NoCapacityError: There is no room.
            AuthenticationError: The key is missing or wrong.
        """
        connection = Connection(resolve_settings(api_url, api_key, request_timeout))
        message = without_none(
            templateID=snapshot_id or template or "base",
            timeout=math.ceil(timeout),
            metadata=None if metadata is None else dict(metadata),
            envVars=None if envs is None else dict(envs),
            autoPause=None if on_timeout is None else on_timeout == "pause",
            autoResume=None if auto_resume is None else {"enabled": auto_resume},
            allow_internet_access=allow_internet_access,
            network=None if network is None else network.to_wire(),
        )
        return cls(connection, connection.call("POST", "/v2/sandboxes", message))

    @classmethod
    def connect(
        cls,
        sandbox_id: str,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        api_url: Optional[str] = None,
        api_key: Optional[str] = None,
        request_timeout: Optional[float] = None,
    ) -> Sandbox:
        """Reaches a sandbox that exists; a paused one resumes. Raises: NotFoundError."""
        connection = Connection(resolve_settings(api_url, api_key, request_timeout))
        return cls(connection, _connect(connection, sandbox_id, timeout, None))

    @classmethod
    def list(
        cls,
        *,
        metadata: Optional[Mapping[str, str]] = None,
        state: Optional[List[str]] = None,
        template: Optional[str] = None,
        limit: Optional[int] = None,
        api_url: Optional[str] = None,
        api_key: Optional[str] = None,
        request_timeout: Optional[float] = None,
    ) -> List[SandboxInfo]:
        """The sandboxes that run or are paused, newest first.

        Args:
            metadata: Only those that have all of these.
            state: `running`, `paused`; default: both.
            template: Only those of this template or snapshot.
            limit: At most so many; default: all.
        """
        connection = Connection(resolve_settings(api_url, api_key, request_timeout))
        query = without_none(
            metadata=None if metadata is None else _twice_encoded(metadata),
            state=None if state is None else ",".join(state),
            template=template,
        )
        rows = connection.pages("/v2/sandboxes", query, limit, None)
        return [sandbox_of(row) for row in rows]

    @classmethod
    def kill_by_id(
        cls,
        sandbox_id: str,
        *,
        api_url: Optional[str] = None,
        api_key: Optional[str] = None,
        request_timeout: Optional[float] = None,
    ) -> bool:
        """Ends a sandbox, running or paused. Returns: False when there is none of that id."""
        connection = Connection(resolve_settings(api_url, api_key, request_timeout))
        return _kill(connection, sandbox_id, None)

    def create_snapshot(
        self, name: Optional[str] = None, *, request_timeout: Optional[float] = None
    ) -> SnapshotInfo:
        """Saves the complete state of the sandbox at this instant: memory, file system, processes.

        It pauses briefly and goes on. The snapshot outlives the sandbox; `create(snapshot_id=…)` starts new ones from it.

        Raises:
            NotFoundError: It has ended.
            ConflictError: It is paused.
            NoSpaceError: The host's disk is full.
        """
        return snapshot_of(self._post("snapshots", without_none(name=name), request_timeout))

    def list_snapshots(
        self, *, limit: Optional[int] = None, request_timeout: Optional[float] = None
    ) -> List[SnapshotInfo]:
        """The snapshots taken of this sandbox, newest first."""
        return list_snapshots(self._connection, self.sandbox_id, None, limit, request_timeout)

    def pause(self, *, request_timeout: Optional[float] = None) -> bool:
        """Stops it and frees its memory; id, files and processes stay. Connections to it break.

        Returns:
            False when it was paused before.

        Raises:
            NotFoundError: It has ended.
        """
        try:
            self._post("pause", {}, request_timeout)
        except ConflictError:
            return False
        return True

    def resume(
        self, *, timeout: float = DEFAULT_TIMEOUT, request_timeout: Optional[float] = None
    ) -> None:
        """Goes on where `pause` stopped it; one that runs only gets the time. Raises: NotFoundError."""
        _connect(self._connection, self.sandbox_id, timeout, request_timeout)

    def fork(
        self,
        count: int = 1,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        request_timeout: Optional[float] = None,
    ) -> List[Sandbox]:
        """Starts `count` new sandboxes that go on from this one's present state; this one goes on, too.

        When one cannot be started, the others are killed and its error is raised.

        Raises:
            NotFoundError: It has ended.
            ConflictError: It is paused.
            NoCapacityError: There is no room.
        """
        message = {"count": count, "timeout": math.ceil(timeout)}
        results = self._post("fork", message, request_timeout)
        forks = [type(self)(self._connection, row["sandbox"]) for row in results if row.get("sandbox")]
        errors = [row["error"] for row in results if row.get("error")]
        if not errors:
            return forks
        for fork in forks:
            fork._kill_quietly()
        raise error_of_entry(errors[0])

    def kill(self, *, request_timeout: Optional[float] = None) -> bool:
        """Ends it; its snapshots stay. Returns: False when it had ended before."""
        is_killed = _kill(self._connection, self.sandbox_id, request_timeout)
        self._connection.http.close()
        return is_killed

    def set_timeout(self, timeout: float, *, request_timeout: Optional[float] = None) -> None:
        """Moves its end to `timeout` seconds from now, earlier or later. Raises: NotFoundError."""
        self._post("timeout", {"timeout": math.ceil(timeout)}, request_timeout)

    def is_running(self, *, request_timeout: Optional[float] = None) -> bool:
        """False when it is killed, paused or timed out."""
        return self._link.is_running(request_timeout)

    def get_info(self, *, request_timeout: Optional[float] = None) -> SandboxInfo:
        """Raises: NotFoundError."""
        return sandbox_of(
            self._connection.call("GET", _path_of(self.sandbox_id), request_timeout=request_timeout)
        )

    def get_metrics(self, *, request_timeout: Optional[float] = None) -> List[SandboxMetrics]:
        """Samples of what it used, oldest first."""
        path = f"{_path_of(self.sandbox_id)}/metrics"
        rows = self._connection.call("GET", path, request_timeout=request_timeout)
        return [metrics_of(row) for row in rows]

    def set_network(
        self, network: NetworkOptions, *, request_timeout: Optional[float] = None
    ) -> None:
        """Replaces the rules for its traffic."""
        path = f"{_path_of(self.sandbox_id)}/network"
        self._connection.call("PUT", path, network.to_wire(), request_timeout=request_timeout)

    def get_host(self, port: int) -> str:
        """The host name, with the port if it needs one, under which a port of the sandbox is reached by others.

        It must resolve: a server on this machine is given a name below `localhost`, any other needs a wildcard DNS entry.
        """
        return host_of(self.sandbox_id, port, self._domain or self._connection.settings.api_url)

    def fetch(
        self,
        port: int,
        path: str = "/",
        *,
        method: str = "GET",
        headers: Optional[Mapping[str, str]] = None,
        body: Union[str, bytes, None] = None,
        request_timeout: Optional[float] = None,
    ) -> Response:
        """Requests something of a port of the sandbox, through the server and without DNS. Any status is an answer.

        Args:
            path: With its query, beginning with `/`.

        Raises:
            UnreachableError: Nothing listens there.
        """
        all_headers = {**(headers or {}), **self._link.route_to(port)}
        return request_program(
            self._connection, method, path, all_headers, body, request_timeout
        )

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def _post(self, verb: str, message: Mapping[str, Any], request_timeout: Optional[float]) -> Any:
        path = f"{_path_of(self.sandbox_id)}/{verb}"
        return self._connection.call("POST", path, message, request_timeout=request_timeout)

    def _kill_quietly(self) -> None:
        try:
            self.kill()
        except ThawError:
            # What made the caller give up says more.
            pass


def _path_of(sandbox_id: str) -> str:
    return f"/sandboxes/{quote(sandbox_id, safe='')}"


def _connect(
    connection: Connection, sandbox_id: str, timeout: float, request_timeout: Optional[float]
) -> Any:
    path = f"/v2{_path_of(sandbox_id)}/connect"
    message = {"timeout": math.ceil(timeout)}
    return connection.call("POST", path, message, request_timeout=request_timeout)


def _kill(connection: Connection, sandbox_id: str, request_timeout: Optional[float]) -> bool:
    try:
        connection.call("DELETE", _path_of(sandbox_id), request_timeout=request_timeout)
    except NotFoundError:
        return False
    return True


def _twice_encoded(metadata: Mapping[str, str]) -> str:
    """A form within the query: its keys and values are encoded before the form is."""
    return urlencode([(quote(key, safe=""), quote(value, safe="")) for key, value in metadata.items()])
