# A command's standard input, written to and closed.
from scenario import equal


def play(stage) -> None:
    commands = stage.sandbox.commands
    if not hasattr(commands, "close_stdin"):
        stage.skip("the client cannot close standard input")
    handle = commands.run("cat; echo end", background=True, stdin=True)
    commands.send_stdin(handle.pid, "one\n")
    commands.send_stdin(handle.pid, "two\n")
    commands.close_stdin(handle.pid)
    equal(handle.wait().stdout, "one\ntwo\nend\n")
