# Owns snapshots by themselves: list, inspect, delete. Taking one is a sandbox's (sandbox.py).
# Invariant: a snapshot is named by its id; what is not known of it is None, never a guess.
from __future__ import annotations

from typing import List, Optional
from urllib.parse import quote

from ..errors import NotFoundError
from ..models import SnapshotDetails, SnapshotInfo, snapshot_details_of, snapshot_of, without_none
from ..settings import resolve_settings
from .connection import AsyncConnection


class AsyncSnapshots:
    """The snapshots of a server. Options default to `THAW_API_URL` and `THAW_API_KEY`; times are seconds."""

    def __init__(
        self,
        *,
        api_url: Optional[str] = None,
        api_key: Optional[str] = None,
        request_timeout: Optional[float] = None,
    ) -> None:
        self._connection = AsyncConnection(resolve_settings(api_url, api_key, request_timeout))

    async def list(
        self,
        *,
        sandbox_id: Optional[str] = None,
        name: Optional[str] = None,
        limit: Optional[int] = None,
        request_timeout: Optional[float] = None,
    ) -> List[SnapshotInfo]:
        """Newest first. Args: sandbox_id: only those taken of this sandbox. name: only those of this name."""
        return await list_snapshots(self._connection, sandbox_id, name, limit, request_timeout)

    async def get(self, snapshot_id: str, *, request_timeout: Optional[float] = None) -> SnapshotDetails:
        """Raises: NotFoundError."""
        path = f"/v1/snapshots/{quote(snapshot_id, safe='')}"
        return snapshot_details_of(
            await self._connection.call("GET", path, request_timeout=request_timeout)
        )

    async def delete(self, snapshot_id: str, *, request_timeout: Optional[float] = None) -> bool:
        """Sandboxes that were made from it go on. Returns: False when there is none of that id."""
        path = f"/templates/{quote(snapshot_id, safe='')}"
        try:
            await self._connection.call("DELETE", path, request_timeout=request_timeout)
        except NotFoundError:
            return False
        return True


async def list_snapshots(
    connection: AsyncConnection,
    sandbox_id: Optional[str],
    name: Optional[str],
    limit: Optional[int],
    request_timeout: Optional[float],
) -> List[SnapshotInfo]:
    query = without_none(sandboxID=sandbox_id, name=name)
    rows = await connection.pages("/snapshots", query, limit, request_timeout)
    return [snapshot_of(row) for row in rows]
