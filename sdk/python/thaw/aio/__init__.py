# Owns the names of this half of the SDK.
from .command_handle import AsyncCommandHandle
from .commands import AsyncCommands
from .files import AsyncFileReader, AsyncFiles
from .functions import AsyncFunctions
from .pty import AsyncPty, AsyncPtyHandle
from .sandbox import AsyncSandbox
from .snapshots import AsyncSnapshots
from .watch_handle import AsyncWatchHandle

__all__ = [
    "AsyncCommandHandle",
    "AsyncCommands",
    "AsyncFileReader",
    "AsyncFiles",
    "AsyncFunctions",
    "AsyncPty",
    "AsyncPtyHandle",
    "AsyncSandbox",
    "AsyncSnapshots",
    "AsyncWatchHandle",
]
