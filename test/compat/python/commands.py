# Output, exit codes, environment, directory, time-outs.
from scenario import equal, raises


def play(stage) -> None:
    sandbox, e2b = stage.sandbox, stage.e2b
    pieces: list = []
    result = sandbox.commands.run("echo out; echo err >&2", on_stdout=pieces.append)
    equal((result.exit_code, result.stdout, result.stderr), (0, "out\n", "err\n"))
    equal("".join(pieces), "out\n")
    error = raises(e2b.CommandExitException, lambda: sandbox.commands.run("exit 3"))
    equal(error.exit_code, 3)
    result = sandbox.commands.run("echo $OWN; pwd", envs={"OWN": "own"}, cwd="/tmp")
    equal(result.stdout, "own\n/tmp\n")
    raises(e2b.TimeoutException, lambda: sandbox.commands.run("sleep 60", timeout=0.5))
