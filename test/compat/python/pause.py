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

    # It is empty between its shell's opening and writing it.
    def count() -> int:
        return int(resumed.files.read("counter") or 0)

    before = count()
    eventually("the counter to go on", lambda: count() > before)
