# Commands and files of another user than the default one.
from scenario import equal, raises


def play(stage) -> None:
    sandbox = stage.sandbox
    equal(sandbox.commands.run("whoami").stdout, "user\n")
    equal(sandbox.commands.run("whoami", user="root").stdout, "root\n")
    sandbox.files.write("/root/secret", "x", user="root")
    equal(sandbox.files.get_info("/root/secret", user="root").owner, "root")
    raises(Exception, lambda: sandbox.commands.run("true", user="nobody-of-that-name"))
