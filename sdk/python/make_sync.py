#!/usr/bin/env python3
# Owns making thaw/sync from thaw/aio, and tests/sync from tests/aio: the same code without `async` and `await`, over threads instead of asyncio.
# Usage: make_sync.py [--check]. Invariant: with --check nothing is written, and the exit code says whether all is up to date.
from __future__ import annotations

import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
# From where to where, and what differs and is written by hand.
PAIRS = [
    (HERE / "thaw/aio", HERE / "thaw/sync", {"io.py"}),
    (HERE / "tests/aio", HERE / "tests/sync", {"support.py"}),
]

REPLACEMENTS = [
    (r"\basync (def|with|for)\b", r"\1"),
    (r"\bawait ", ""),
    (r"\bAwaitable\[([^\[\]]+)\]", r"\1"),
    (r"\bAwaitable, ", ""),
    (r"`async with`", "`with`"),
    (r"\bIsolatedAsyncioTestCase\b", "TestCase"),
    (r"\basync(SetUp|TearDown|Cleanup)\b", lambda match: match[1][0].lower() + match[1][1:]),
    (r"\baddAsyncCleanup\b", "addCleanup"),
    (r"\bStopAsyncIteration\b", "StopIteration"),
    (r"\b__a(enter|exit|iter|next)__\b", r"__\1__"),
    (r"\bAsync([A-Z]\w*)", r"\1"),
]


def made_from(path: Path) -> str:
    text = path.read_text()
    for pattern, replacement in REPLACEMENTS:
        text = re.sub(pattern, replacement, text)
    return f"# Made from ../aio/{path.name} by make_sync.py: change that.\n{text}"


def sync(aio_dir: Path, sync_dir: Path, by_hand: set[str], is_check: bool) -> list[Path]:
    """Returns: what was not up to date."""
    wanted = {path.name: made_from(path) for path in sorted(aio_dir.glob("*.py")) if path.name not in by_hand}
    stale = []
    for name, text in wanted.items():
        target = sync_dir / name
        if not target.exists() or target.read_text() != text:
            stale.append(target)
            if not is_check:
                target.write_text(text)
    for path in sync_dir.glob("*.py"):
        if path.name not in wanted and path.name not in by_hand:
            stale.append(path)
            if not is_check:
                path.unlink()
    return stale


def main() -> int:
    is_check = "--check" in sys.argv[1:]
    stale = [path for pair in PAIRS for path in sync(*pair, is_check)]
    if is_check and stale:
        print(f"not up to date, run make_sync.py: {', '.join(map(str, stale))}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
