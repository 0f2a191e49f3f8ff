# Owns turning a function's directory into a tar archive. Refuses to own what may be in it: the server checks that.
# Invariant: entries come in one order, times and owners are left out: the same content gives the same bytes.
from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Optional

from .errors import InvalidRequestError

# Never part of a function: history and Thaw's own data.
_IGNORED = {".git", ".thaw"}
# Held in memory until it is sent: what is larger was not meant, or belongs into an archive made beforehand.
_MAX_FILE_BYTES = 256 * 1024 * 1024


def pack_directory(directory: str, name: Optional[str] = None) -> tuple[str, bytes]:
    """Returns: the function's name and the archive. Default of the name: the one in thaw.json, else the directory's."""
    root = Path(directory).resolve()
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.PAX_FORMAT) as archive:
        _add(archive, root, "")
    return name or _declared_name(root) or root.name, sink.getvalue()


def _declared_name(root: Path) -> Optional[str]:
    try:
        name = json.loads((root / "thaw.json").read_text()).get("name")
        return name if isinstance(name, str) else None
    except (OSError, ValueError, AttributeError):
        # The server says what is wrong with it, and where.
        return None


def _add(archive: tarfile.TarFile, directory: Path, prefix: str) -> None:
    for path in sorted(directory.iterdir()):
        if path.name in _IGNORED:
            continue
        info = archive.gettarinfo(str(path), f"{prefix}{path.name}")
        if info is None or not (info.isdir() or info.isfile() or info.issym() or info.islnk()):
            raise InvalidRequestError(f"{path} is neither a file, a directory nor a link", code="bad-bundle")
        info.mtime, info.uid, info.gid, info.uname, info.gname = 0, 0, 0, "", ""
        info.mode &= 0o755
        if info.isdir():
            archive.addfile(info)
            _add(archive, path, f"{prefix}{path.name}/")
        elif info.issym():
            archive.addfile(info)
        else:
            _add_file(archive, info, path)


def _add_file(archive: tarfile.TarFile, info: tarfile.TarInfo, path: Path) -> None:
    if info.size > _MAX_FILE_BYTES:
        raise InvalidRequestError(f"{path} has more than {_MAX_FILE_BYTES} bytes", code="body-too-large")
    # A second name of one file is a file of its own here.
    content = path.read_bytes()
    info.type, info.linkname, info.size = tarfile.REGTYPE, "", len(content)
    archive.addfile(info, io.BytesIO(content))
