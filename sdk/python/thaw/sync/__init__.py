# Made from ../aio/__init__.py by make_sync.py: change that.
# Owns the names of this half of the SDK.
from .command_handle import CommandHandle
from .commands import Commands
from .files import FileReader, Files
from .functions import Functions
from .pty import Pty, PtyHandle
from .sandbox import Sandbox
from .snapshots import Snapshots
from .watch_handle import WatchHandle

__all__ = [
    "CommandHandle",
    "Commands",
    "FileReader",
    "Files",
    "Functions",
    "Pty",
    "PtyHandle",
    "Sandbox",
    "Snapshots",
    "WatchHandle",
]
