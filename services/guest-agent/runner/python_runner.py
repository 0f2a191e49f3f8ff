"""Owns serving a Python function: finds `app` in the bundle and serves it with uvicorn.

Refuses to own logging, restarts and readiness (the agent's).
Invariant: an exception of the application before its answer is a 500 with `x-thaw-error: handler-threw`, its
traceback in standard error and never in the body.
Arguments: HOST PORT ENTRY (a path in the working directory, or '' to look for main.py and app.py).
"""

import importlib.util
import inspect
import os
import sys
import threading
import traceback

import uvicorn

ERROR_HEADER = (b"x-thaw-error", b"handler-threw")
CONVENTIONAL = ("main.py", "app.py")


def find_entry(entry):
    for name in (entry,) if entry else CONVENTIONAL:
        if os.path.isfile(name):
            return os.path.abspath(name)
    sys.exit("no entry: expected " + (entry or " or ".join(CONVENTIONAL)))


def load_app(path):
    sys.path.insert(0, os.getcwd())
    sys.path.insert(0, os.path.dirname(path))
    name = os.path.splitext(os.path.basename(path))[0]
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    if not hasattr(module, "app"):
        sys.exit(f"{os.path.basename(path)} has no `app`: expected an ASGI or WSGI application of that name")
    return module.app


def is_asgi(app):
    if inspect.iscoroutinefunction(app) or inspect.iscoroutinefunction(getattr(app, "__call__", None)):
        return True
    try:
        parameters = inspect.signature(app).parameters.values()
    except (TypeError, ValueError):
        return False
    required = [p for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return len(required) == 3


def as_asgi(app):
    if is_asgi(app):
        return app
    from asgiref.wsgi import WsgiToAsgi

    return WsgiToAsgi(app)


def guarded(app):
    async def call(scope, receive, send):
        if scope["type"] != "http":
            return await app(scope, receive, send)
        # The agent's readiness probe: answered here, so that it never runs the function.
        if scope["method"] == "OPTIONS" and scope["path"] == "*":
            await send({"type": "http.response.start", "status": 204, "headers": []})
            return await send({"type": "http.response.body", "body": b""})
        started = False

        async def watched_send(message):
            nonlocal started
            started = True
            await send(message)

        try:
            await app(scope, receive, watched_send)
        except Exception:
            traceback.print_exc()
            if started:
                raise
            body = b"The function threw an exception; its log has the traceback.\n"
            headers = [ERROR_HEADER, (b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body))]
            await send({"type": "http.response.start", "status": 500, "headers": headers})
            await send({"type": "http.response.body", "body": body})

    return call


def end_with_agent():
    """The agent holds the other end of standard input: its end is the end of this process."""
    while os.read(0, 1024):
        pass
    os._exit(0)


def main():
    host, port, entry = sys.argv[1:4]
    app = guarded(as_asgi(load_app(find_entry(entry))))
    threading.Thread(target=end_with_agent, daemon=True).start()
    uvicorn.run(
        app,
        host=host,
        port=int(port),
        loop="asyncio",
        http="h11",
        log_level="warning",
        access_log=False,
        # The host keeps its connections open; it closes them, not we.
        timeout_keep_alive=24 * 3600,
    )


main()
