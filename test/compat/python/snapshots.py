# A snapshot of a running sandbox: listed, the start of new ones, deleted.
from scenario import equal


def play(stage) -> None:
    sandbox, e2b = stage.sandbox, stage.e2b
    if not hasattr(sandbox, "create_snapshot"):
        stage.skip("the client has no snapshots")
    sandbox.files.write("kept", "yes")
    snapshot = sandbox.create_snapshot()
    equal(sandbox.is_running(), True)
    listed = sandbox.list_snapshots().next_items()
    equal([row.snapshot_id for row in listed], [snapshot.snapshot_id])
    sandbox.kill()
    clones = [e2b.Sandbox.create(snapshot.snapshot_id) for _ in range(2)]
    for clone in clones:
        equal(clone.files.read("kept"), "yes")
    equal(len({clone.sandbox_id for clone in clones}), 2)
    for clone in clones:
        clone.kill()
    equal(e2b.Sandbox.delete_snapshot(snapshot.snapshot_id), True)
    equal(e2b.Sandbox.delete_snapshot(snapshot.snapshot_id), False)
