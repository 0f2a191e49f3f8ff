# Files and tools are there: what was installed and written before the snapshot is there in every clone.
# Run: THAW_API_KEY=$(cat .thaw/api-key) PYTHONPATH=sdk/python python3 examples/python/files_and_tools.py
# Prints: ../expected/files-and-tools.txt
from pathlib import Path

from thaw import Sandbox

sbx = Sandbox.create(timeout=900)
wheel = (Path(__file__).parent.parent / "wheel/build_wheel.py").read_text()
sbx.files.write("build_wheel.py", wheel)
sbx.commands.run("python3 build_wheel.py", timeout=300)
sbx.commands.run("pip3 install --no-index ./slowcast-1.0-py3-none-any.whl", timeout=600)
sbx.files.write("/workspace/data.csv", "x,y\n1,2\n")
sbx.files.write("/workspace/notes.txt", "to be continued")
snapshot = sbx.create_snapshot()
sbx.kill()

clone = Sandbox.create(snapshot_id=snapshot.snapshot_id)
result = clone.commands.run("python3 -c 'import slowcast; print(slowcast.__version__)'")
print(result.stdout.strip())
result = clone.commands.run("ls /workspace/")
print(result.stdout.strip())
clone.kill()
