# Warm start: install once, snapshot, and give every request a sandbox in which the import just works.
# Run: THAW_API_KEY=$(cat .thaw/api-key) PYTHONPATH=sdk/python python3 examples/python/warm_start.py
# Prints: ../expected/warm-start.txt
import sys
import time
from pathlib import Path

from thaw import Sandbox

# Stands for a package index: a wheel that is built in the sandbox.
wheel = (Path(__file__).parent.parent / "wheel/build_wheel.py").read_text()

sbx = Sandbox.create(timeout=900)
sbx.files.write("build_wheel.py", wheel)
sbx.commands.run("python3 build_wheel.py", timeout=300)
started = time.monotonic()
sbx.commands.run("pip3 install --no-index ./slowcast-1.0-py3-none-any.whl", timeout=600)
install = time.monotonic() - started
snapshot = sbx.create_snapshot()
sbx.kill()
print("installed once, then snapshotted")

slowest = 0.0
for request in range(1, 4):
    started = time.monotonic()
    clone = Sandbox.create(snapshot_id=snapshot.snapshot_id)
    result = clone.commands.run("python3 -c 'import slowcast; print(slowcast.__version__)'")
    slowest = max(slowest, time.monotonic() - started)
    print(f"request {request}: slowcast {result.stdout.strip()}")
    clone.kill()
print(f"every request was faster than installing again: {'true' if slowest < install else 'false'}")
print(f"install {install * 1000:.0f} ms; slowest request {slowest * 1000:.0f} ms", file=sys.stderr)
