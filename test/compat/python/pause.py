# Paused, not running, resumed with its processes, files and id.
from scenario import equal, eventually


def play(stage) -> None:
    sandbox, e2b = stage.sandbox, stage.e2b
    sandbox.files.write("kept", "yes")
    loop = 'nohup sh -c "while :; do date +%s%N > counter; sleep 0.2; done" > /dev/null 2>&1 &'
    sandbox.commands.run(loop)
    (sandbox.pause if hasattr(sandbox, "pause") else sandbox.beta_pause)()
    equal(sandbox.is_running(), False)
    resumed = e2b.Sandbox.connect(sandbox.sandbox_id)
    equal(resumed.sandbox_id, sandbox.sandbox_id)
    equal(resumed.files.read("kept"), "yes")
    before = resumed.files.read("counter")
    eventually("the counter to go on", lambda: resumed.files.read("counter") != before)
