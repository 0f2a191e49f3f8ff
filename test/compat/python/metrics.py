# What a sandbox uses.
from scenario import equal, eventually


def play(stage) -> None:
    sandbox = stage.sandbox
    eventually("a sample", lambda: len(sandbox.get_metrics()) > 0)
    sample = sandbox.get_metrics()[0]
    equal(sample.mem_total > 0 and sample.cpu_count > 0, True)
