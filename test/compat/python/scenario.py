# Owns what the scenarios of the Python client share.
import time
from typing import Callable


class Skipped(Exception):
    """Not to be tested with this client."""


def eventually(what: str, condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"not within 30 s: {what}")
        time.sleep(0.02)


def equal(got: object, expected: object) -> None:
    """`assert` says less, and nothing under -O."""
    if got != expected:
        raise AssertionError(f"expected {expected!r}, got {got!r}")


def raises(kind: type, call: Callable[[], object]) -> Exception:
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"expected {kind.__name__}")
