# What is not there, and who may not: each client's own error classes.
from scenario import equal, raises


def play(stage) -> None:
    sandbox, e2b = stage.sandbox, stage.e2b
    raises(e2b.SandboxException, lambda: e2b.Sandbox.create("no-such-template"))
    api_key = "e2b_" + "1" * 40
    raises(e2b.AuthenticationException, lambda: e2b.Sandbox.list(api_key=api_key).next_items())
    gone = "i" + "0" * 20
    raises(e2b.NotFoundException, lambda: e2b.Sandbox.connect(gone))
    equal(e2b.Sandbox.kill(gone), False)
    sandbox.files.make_dir("directory")
    large = bytes(8 * 1024 * 1024)
    raises(e2b.SandboxException, lambda: sandbox.files.write("directory", large))
    raises(e2b.NotFoundException, lambda: sandbox.files.read("absent"))
    sandbox.kill()
    raises(e2b.SandboxException, lambda: sandbox.commands.run("true"))
