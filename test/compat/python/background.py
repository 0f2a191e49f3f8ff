# A command in the background: listed, connected to again by its process id, killed.
from scenario import equal, raises


def play(stage) -> None:
    sandbox, e2b = stage.sandbox, stage.e2b
    command = "sleep 1; while :; do echo tick; sleep 0.2; done"
    handle = sandbox.commands.run(command, background=True, timeout=0)
    equal(handle.pid in [process.pid for process in sandbox.commands.list()], True)
    handle.disconnect()
    again = sandbox.commands.connect(handle.pid, timeout=0)
    for stdout, _, _ in again:
        if stdout is not None and "tick\n" in stdout:
            break
    equal(sandbox.commands.kill(handle.pid), True)
    raises(e2b.CommandExitException, again.wait)
    equal(sandbox.commands.kill(handle.pid), False)
