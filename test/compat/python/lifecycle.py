# Create, tell about, list, find again, extend, end.
from datetime import datetime, timezone

from scenario import equal


def play(stage) -> None:
    sandbox, e2b = stage.sandbox, stage.e2b
    equal(sandbox.is_running(), True)
    info = sandbox.get_info()
    equal(info.sandbox_id, sandbox.sandbox_id)
    equal(info.state.value, "running")
    sandbox.set_timeout(600)
    left = sandbox.get_info().end_at - datetime.now(timezone.utc)
    equal(left.total_seconds() > 590, True)
    mark = f"{sandbox.sandbox_id} & co"
    marked = e2b.Sandbox.create("base", metadata={"mark": mark})
    listed = e2b.Sandbox.list(query=e2b.SandboxQuery(metadata={"mark": mark})).next_items()
    equal([row.sandbox_id for row in listed], [marked.sandbox_id])
    again = e2b.Sandbox.connect(marked.sandbox_id)
    equal(again.commands.run("echo here").stdout, "here\n")
    equal(marked.kill(), True)
    equal(again.is_running(), False)
    equal(e2b.Sandbox.kill(marked.sandbox_id), False)
