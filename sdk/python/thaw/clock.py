# Owns how long a call may still take. Invariant: a deadline of 0 seconds is none.
from __future__ import annotations

import time
from typing import Optional

from .errors import deadline_exceeded, overdue


class Deadline:
    """Ends `timeout` seconds from now; 0: never."""

    def __init__(self, what: str, timeout: float) -> None:
        self.what = what
        self.timeout = timeout
        self.overdue = overdue(what, timeout)
        self._at = time.monotonic() + timeout if timeout > 0 else None

    def left(self) -> Optional[float]:
        """Seconds left, None for ever. Raises: DeadlineExceededError."""
        if self._at is None:
            return None
        seconds = self._at - time.monotonic()
        if seconds <= 0:
            raise deadline_exceeded(self.overdue)
        return seconds

    def again(self) -> Deadline:
        """The same from now."""
        return Deadline(self.what, self.timeout)
