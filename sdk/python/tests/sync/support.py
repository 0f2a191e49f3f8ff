# Owns what the tests need and differs between asyncio and threads. Written twice, here and in ../aio/support.py.
from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable


def eventually(what: str, condition: Callable[[], bool], timeout: float = 20) -> None:
    """Asks again until the condition holds or the time is over."""
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"not within {timeout} s: {what}")
        time.sleep(0.01)


def all_of(calls: list[Callable[[], Any]]) -> list[Any]:
    """Makes all calls at once. Returns: what each gave."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]
