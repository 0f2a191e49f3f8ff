# Owns what calls give back, and how it is read from the wire.
# Invariant: times are aware datetimes, durations seconds unless named _ms, sizes end in _mb or _bytes.
from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, Mapping, Optional


@dataclass(frozen=True)
class CommandResult:
    """A command that ended well: one that fails raises `CommandExitError`.

    Attributes:
        exit_code: 0.
        stdout, stderr: All that was written; bytes that are no UTF-8 appear as U+FFFD.
    """

    exit_code: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class ProcessInfo:
    """A command or terminal that runs."""

    pid: int
    tag: Optional[str]
    cmd: str
    args: list[str]
    envs: dict[str, str]
    cwd: Optional[str]


@dataclass(frozen=True)
class EntryInfo:
    """One file or directory of a sandbox.

    Attributes:
        path: Absolute.
        type: `file`, `directory`, `symlink` or `other`. A symbolic link has its target's type; `symlink` is one whose
            target is gone.
        mode: Permission bits, for example 0o644.
        permissions: As `ls -l` shows them, for example ``-rw-r--r--``.
        symlink_target: Where a symbolic link leads.
        metadata: What was given as `metadata` when it was written.
    """

    name: str
    path: str
    type: str
    size_bytes: int
    mode: int
    permissions: str
    owner: str
    group: str
    modified_at: datetime
    symlink_target: Optional[str]
    metadata: dict[str, str]


@dataclass(frozen=True)
class WrittenFile:
    """Attributes: path: Absolute."""

    name: str
    path: str


@dataclass(frozen=True)
class FilesystemEvent:
    """One change in a watched directory.

    Attributes:
        type: `create`, `write`, `remove`, `rename` or `chmod`.
        name: Relative to the watched directory.
        entry: The entry as it was found; only with `include_entry`, and not for one that is gone.
    """

    type: str
    name: str
    entry: Optional[EntryInfo]


@dataclass(frozen=True)
class SandboxInfo:
    """Attributes: state: `running` or `paused`. end_at: when it is killed, or paused, unless its time is extended."""

    sandbox_id: str
    template_id: str
    alias: Optional[str]
    state: str
    started_at: datetime
    end_at: datetime
    cpu_count: int
    memory_mb: int
    disk_size_mb: int
    metadata: dict[str, str]


@dataclass(frozen=True)
class SandboxMetrics:
    """One sample of what a sandbox uses. `cpu_used_pct` is in percent of one CPU: several may exceed 100."""

    at: datetime
    cpu_count: int
    cpu_used_pct: float
    mem_used_bytes: int
    mem_total_bytes: int
    disk_used_bytes: int
    disk_total_bytes: int


@dataclass(frozen=True)
class SnapshotInfo:
    snapshot_id: str
    names: list[str]


@dataclass(frozen=True)
class SnapshotDetails:
    """A snapshot from inside: what it holds and what taking it cost. What is not known is None.

    Attributes:
        sandbox_id: The sandbox it was taken of.
        parent: The snapshot it was taken on top of.
        size_bytes: Guest memory it stands for.
        unique_bytes: Room it takes beyond what it shares with others.
        pause_ms: Milliseconds the sandbox stood still, by stage and in all (`total`).
        compatibility: What a host must have to restore it.
    """

    snapshot_id: str
    names: list[str]
    created_at: Optional[datetime]
    sandbox_id: Optional[str]
    parent: Optional[str]
    size_bytes: Optional[int]
    unique_bytes: Optional[int]
    dirty_pages: Optional[int]
    pause_ms: dict[str, float]
    compatibility: dict[str, Any]


@dataclass(frozen=True)
class NetworkOptions:
    """Which traffic may leave and enter a sandbox. Addresses are IPs, CIDRs or domain names.

    Attributes:
        allow_public_traffic: False: requests to the sandbox's ports need its `traffic_access_token`.
        mask_request_host: Host header that programs in the sandbox shall see; ``${PORT}`` stands for the port.
    """

    allow_out: Optional[list[str]] = None
    deny_out: Optional[list[str]] = None
    allow_public_traffic: Optional[bool] = None
    mask_request_host: Optional[str] = None

    def to_wire(self) -> dict[str, Any]:
        return without_none(
            allowOut=self.allow_out,
            denyOut=self.deny_out,
            allowPublicTraffic=self.allow_public_traffic,
            maskRequestHost=self.mask_request_host,
        )


@dataclass(frozen=True)
class FunctionVersion:
    name: str
    version: int
    state: str
    snapshot_id: Optional[str]
    created_at: datetime


@dataclass(frozen=True)
class FunctionInfo:
    """Attributes: url: path on the server below which it answers. versions: states by version number."""

    name: str
    url: str
    current_version: Optional[int]
    versions: dict[int, str]
    created_at: datetime


@dataclass(frozen=True)
class Response:
    """What a program or a function answered. Names of `headers` are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes = field(repr=False)

    @property
    def text(self) -> str:
        return self.body.decode("utf-8", "replace")

    def json(self) -> Any:
        return json.loads(self.body)


def without_none(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


_TIME = re.compile(r"^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d+))?(Z|[+-]\d\d:\d\d)$")


def time_of(text: str) -> datetime:
    """RFC 3339, with any number of digits."""
    match = _TIME.match(text)
    if match is None:
        return datetime.fromtimestamp(0, timezone.utc)
    seconds, fraction, zone = match.groups()
    micros = ((fraction or "") + "000000")[:6]
    return datetime.fromisoformat(f"{seconds}.{micros}{'+00:00' if zone == 'Z' else zone}")


_FILE_TYPES = {
    "FILE_TYPE_FILE": "file",
    "FILE_TYPE_DIRECTORY": "directory",
    "FILE_TYPE_SYMLINK": "symlink",
}


def entry_of(wire: Mapping[str, Any]) -> EntryInfo:
    return EntryInfo(
        name=wire.get("name", ""),
        path=wire.get("path", ""),
        type=_FILE_TYPES.get(wire.get("type", ""), "other"),
        size_bytes=int(wire.get("size", 0)),
        mode=int(wire.get("mode", 0)),
        permissions=wire.get("permissions", ""),
        owner=wire.get("owner", ""),
        group=wire.get("group", ""),
        modified_at=time_of(wire.get("modifiedTime", "")),
        symlink_target=wire.get("symlinkTarget"),
        metadata=dict(wire.get("metadata") or {}),
    )


def event_of(wire: Mapping[str, Any]) -> FilesystemEvent:
    entry = wire.get("entry")
    return FilesystemEvent(
        type=str(wire.get("type", "")).replace("EVENT_TYPE_", "").lower(),
        name=wire.get("name", ""),
        entry=None if entry is None else entry_of(entry),
    )


def process_of(wire: Mapping[str, Any]) -> ProcessInfo:
    config = wire.get("config") or {}
    return ProcessInfo(
        pid=int(wire["pid"]),
        tag=wire.get("tag"),
        cmd=config.get("cmd", ""),
        args=list(config.get("args") or []),
        envs=dict(config.get("envs") or {}),
        cwd=config.get("cwd"),
    )


def sandbox_of(wire: Mapping[str, Any]) -> SandboxInfo:
    return SandboxInfo(
        sandbox_id=wire["sandboxID"],
        template_id=wire["templateID"],
        alias=wire.get("alias"),
        state=wire.get("state", "running"),
        started_at=time_of(wire.get("startedAt", "")),
        end_at=time_of(wire.get("endAt", "")),
        cpu_count=int(wire.get("cpuCount", 0)),
        memory_mb=int(wire.get("memoryMB", 0)),
        disk_size_mb=int(wire.get("diskSizeMB", 0)),
        metadata=dict(wire.get("metadata") or {}),
    )


def metrics_of(wire: Mapping[str, Any]) -> SandboxMetrics:
    return SandboxMetrics(
        at=datetime.fromtimestamp(float(wire["timestampUnix"]), timezone.utc),
        cpu_count=int(wire["cpuCount"]),
        cpu_used_pct=float(wire["cpuUsedPct"]),
        mem_used_bytes=int(wire["memUsed"]),
        mem_total_bytes=int(wire["memTotal"]),
        disk_used_bytes=int(wire["diskUsed"]),
        disk_total_bytes=int(wire["diskTotal"]),
    )


def snapshot_of(wire: Mapping[str, Any]) -> SnapshotInfo:
    return SnapshotInfo(snapshot_id=wire["snapshotID"], names=list(wire.get("names") or []))


def snapshot_details_of(wire: Mapping[str, Any]) -> SnapshotDetails:
    return SnapshotDetails(
        snapshot_id=wire["snapshotId"],
        names=list(wire.get("names") or []),
        created_at=time_of(wire["createdAt"]) if wire.get("createdAt") else None,
        sandbox_id=wire.get("sandboxId"),
        parent=wire.get("parent"),
        size_bytes=wire.get("sizeBytes"),
        unique_bytes=wire.get("uniqueBytes"),
        dirty_pages=wire.get("dirtyPages"),
        pause_ms=dict(wire.get("pauseMs") or {}),
        compatibility=dict(wire.get("compatibility") or {}),
    )


def version_of(wire: Mapping[str, Any]) -> FunctionVersion:
    return FunctionVersion(
        name=wire["name"],
        version=int(wire["version"]),
        state=wire["state"],
        snapshot_id=wire.get("snapshotId"),
        created_at=time_of(wire.get("createdAt", "")),
    )


def function_of(wire: Mapping[str, Any]) -> FunctionInfo:
    return FunctionInfo(
        name=wire["name"],
        url=wire["url"],
        current_version=wire.get("currentVersion"),
        versions={int(row["version"]): row["state"] for row in wire.get("versions") or []},
        created_at=time_of(wire.get("createdAt", "")),
    )
