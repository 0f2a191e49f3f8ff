# Two forks go on from the sandbox's state, and so does the sandbox.
from scenario import equal


def play(stage) -> None:
    sandbox, e2b = stage.sandbox, stage.e2b
    if not hasattr(sandbox, "fork"):
        stage.skip("the client has no fork")
    sandbox.files.write("kept", "yes")
    forks = sandbox.fork(count=2)
    equal(len(forks), 2)
    for fork in forks:
        if not isinstance(fork, e2b.Sandbox):
            raise fork
        equal(fork.files.read("kept"), "yes")
        fork.kill()
    equal(sandbox.is_running(), True)
