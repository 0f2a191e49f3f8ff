# Owns what can go wrong in a call: one class for each thing a caller may want to do about it.
# Refuses to own sending. Invariant: every failure of the platform, the sandbox or the wire becomes a `ThawError` with a
# code of docs/errors.md, or with one of the codes named here.
from __future__ import annotations

import json
from typing import Any, Mapping, Optional


class ThawError(Exception):
    """Base of all failures.

    Attributes:
        code: A code of docs/errors.md; from a sandbox's own services the Connect code with dashes; or one of
            ``connection-lost``, ``unreachable``, ``disconnected``, ``command-exit``.
        status: HTTP status of the answer; None when there was none.
        retryable: True when the same call may succeed if it is made again unchanged.
        retry_after: Seconds the server asks to wait before that, or None.
        request_id: Names the request in the server's log, or None.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str,
        status: Optional[int] = None,
        retryable: bool = False,
        retry_after: Optional[float] = None,
        request_id: Optional[str] = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.status = status
        self.retryable = retryable
        self.retry_after = retry_after
        self.request_id = request_id


class AuthenticationError(ThawError):
    """The API key, access token or user is missing or not allowed to do this."""


class InvalidRequestError(ThawError, ValueError):
    """The request is malformed; the message names the field and what was expected."""


class NotFoundError(ThawError):
    """There is no such sandbox, snapshot, template, function, file or process; `code` says which."""


class ConflictError(ThawError):
    """The resource is in a state that does not allow this, or exists already."""


class BuildError(ThawError):
    """The function's build or start failed; the message holds the end of its output."""


class RateLimitError(ThawError):
    """Too many requests; wait `retry_after` seconds."""


class NoCapacityError(ThawError):
    """Thaw has no room, or cannot serve at the moment; wait `retry_after` seconds."""


class DeadlineExceededError(ThawError, TimeoutError):
    """The deadline passed: the call's own (`status` is None), the command's, or the server's."""


class UnreachableError(ThawError, ConnectionError):
    """No answer could be had: server, sandbox or port not there, or the connection broke."""


class NoSpaceError(ThawError):
    """The disk of the sandbox or of the host is full."""


class NotOfferedError(ThawError):
    """This server does not offer that."""


class CommandExitError(ThawError):
    """The command ended with an exit code other than 0, or by a signal (then `exit_code` is -1).

    Attributes:
        exit_code: The command's exit code.
        stdout, stderr: All that the command wrote.
    """

    def __init__(self, exit_code: int, stdout: str, stderr: str, reason: Optional[str] = None) -> None:
        words = reason or f"exit status {exit_code}"
        lines = stderr.rstrip().split("\n")
        if lines[-1]:
            words = f"{words}: {lines[-1]}"
        super().__init__(f"the command failed: {words}", code="command-exit")
        self.exit_code = exit_code
        self.stdout = stdout
        self.stderr = stderr


_BY_STATUS: dict[int, type[ThawError]] = {
    400: InvalidRequestError,
    401: AuthenticationError,
    403: AuthenticationError,
    404: NotFoundError,
    405: InvalidRequestError,
    409: ConflictError,
    413: InvalidRequestError,
    416: InvalidRequestError,
    422: BuildError,
    429: RateLimitError,
    501: NotOfferedError,
    502: UnreachableError,
    503: NoCapacityError,
    504: DeadlineExceededError,
    507: NoSpaceError,
}

# Connect's codes, with the status that says the same.
_STATUS_OF_CONNECT_CODE = {
    "invalid_argument": 400,
    "failed_precondition": 400,
    "out_of_range": 400,
    "unauthenticated": 401,
    "permission_denied": 403,
    "not_found": 404,
    "already_exists": 409,
    "aborted": 409,
    "resource_exhausted": 429,
    "unimplemented": 501,
    "unavailable": 503,
    "deadline_exceeded": 504,
}


def _class_of(code: str, status: Optional[int]) -> type[ThawError]:
    # A sandbox that is gone is answered 502 on its own port, for the sake of E2B's clients.
    if code == "sandbox-not-found":
        return NotFoundError
    return _BY_STATUS.get(status or 0, ThawError)


def _code_of_status(status: int) -> str:
    if status == 507:
        return "no-space"
    for code, known in _STATUS_OF_CONNECT_CODE.items():
        if known == status:
            return code.replace("_", "-")
    return "internal"


def error_of_response(status: int, headers: Mapping[str, str], text: str) -> ThawError:
    """Reads the three forms of failures: problem details, ``{code: STATUS, message}``, ``{code: CONNECT_CODE, message}``.

    Args:
        headers: With names in lower case.
    """
    body = _object_of(text)
    body_code = body.get("code")
    named = body_code.replace("_", "-") if isinstance(body_code, str) else None
    code = headers.get("x-thaw-error") or named or _code_of_status(status)
    message = str(body.get("detail") or body.get("message") or text[:500].strip() or f"HTTP {status}")
    retryable = body.get("retryable")
    if not isinstance(retryable, bool):
        refused = headers.get("should-retry") == "false"
        retryable = not refused and status in (429, 502, 503, 504) and code != "deadline-exceeded"
    seconds = headers.get("retry-after", "")
    return _class_of(code, status)(
        message,
        code=code,
        status=status,
        retryable=retryable,
        retry_after=float(seconds) if seconds.isdigit() else None,
        request_id=headers.get("x-request-id"),
    )


def error_of_connect(error: Mapping[str, Any]) -> ThawError:
    """An error within a stream: there is no status line of its own."""
    code = str(error.get("code") or "unknown")
    status = _STATUS_OF_CONNECT_CODE.get(code)
    dashed = code.replace("_", "-")
    return _class_of(dashed, status)(str(error.get("message") or code), code=dashed, status=status)


def error_of_entry(error: Mapping[str, Any]) -> ThawError:
    """One failed entry of a list, in the E2B form."""
    status = int(error.get("code") or 500)
    code = _code_of_status(status)
    return _class_of(code, status)(str(error.get("message") or code), code=code, status=status)


def connection_lost(what: str) -> UnreachableError:
    return UnreachableError(what, code="connection-lost")


def overdue(what: str, timeout: float) -> str:
    """The message of a `DeadlineExceededError`."""
    return f"{what} took longer than {timeout:g} s"


def deadline_exceeded(message: str) -> DeadlineExceededError:
    return DeadlineExceededError(message, code="deadline-exceeded")


def _object_of(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
