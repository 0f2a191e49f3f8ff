# A sandbox that pauses at its time-out and goes on with the next request.
from scenario import equal, eventually


def play(stage) -> None:
    lifecycle = {"on_timeout": "pause", "auto_resume": True}
    sandbox = stage.e2b.Sandbox.create("base", timeout=3, lifecycle=lifecycle)

    def state() -> str:
        return str(getattr(sandbox.get_info().state, "value", sandbox.get_info().state))

    try:
        equal(dict(sandbox.get_info().lifecycle), lifecycle)
        sandbox.files.write("kept", "yes")
        eventually("it is paused", lambda: state() == "paused")
        equal(sandbox.files.read("kept"), "yes")
        equal(state(), "running")
    finally:
        sandbox.kill()
