# Made from ../aio/ports.py by make_sync.py: change that.
# Owns how a port of a sandbox, or a function, is asked something: its own answer, whatever its status.
# Refuses to own what listens there. Invariant: a failure of the platform is an error, the program's own answer never is.
from __future__ import annotations

from typing import Mapping, Optional, Union

from ..errors import error_of_response
from ..models import Response
from .connection import Connection


def request_program(
    connection: Connection,
    method: str,
    target: str,
    headers: Mapping[str, str],
    body: Union[str, bytes, None],
    request_timeout: Optional[float],
) -> Response:
    content = body.encode() if isinstance(body, str) else body
    answer, deadline = connection.request(method, target, headers, content, request_timeout)
    received = answer.read(deadline)
    # The runner marks what the function's own code threw: an answer, too.
    if answer.headers.get("x-thaw-error", "handler-threw") != "handler-threw":
        raise error_of_response(answer.status, answer.headers, received.decode("utf-8", "replace"))
    return Response(status=answer.status, headers=answer.headers, body=received)
