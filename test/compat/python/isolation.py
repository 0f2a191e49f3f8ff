# No way out when it is not wanted: what is asked for at create is refused or kept, never ignored.
from scenario import equal


def play(stage) -> None:
    sandbox = stage.e2b.Sandbox.create("base", allow_internet_access=False)
    try:
        probe = 'timeout 5 bash -c "echo > /dev/tcp/1.1.1.1/80" 2> /dev/null && echo open || echo closed'
        equal(sandbox.commands.run(probe).stdout, "closed\n")
    finally:
        sandbox.kill()
