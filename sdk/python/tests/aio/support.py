# Owns what the tests need and differs between asyncio and threads. Written twice, here and in ../sync/support.py.
from __future__ import annotations

import asyncio
import time
from typing import Any, Awaitable, Callable


async def eventually(what: str, condition: Callable[[], bool], timeout: float = 20) -> None:
    """Asks again until the condition holds or the time is over."""
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"not within {timeout} s: {what}")
        await asyncio.sleep(0.01)


async def all_of(calls: list[Callable[[], Awaitable[Any]]]) -> list[Any]:
    """Makes all calls at once. Returns: what each gave."""
    return list(await asyncio.gather(*(call() for call in calls)))
