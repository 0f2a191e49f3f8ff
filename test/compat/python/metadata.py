# What is given with a file when it is written comes back with its information.
from inspect import signature

from scenario import equal


def play(stage) -> None:
    files = stage.sandbox.files
    if "metadata" not in signature(files.write).parameters:
        stage.skip("the client has no file metadata")
    files.write("noted", "x", metadata={"origin": "test"})
    equal((files.get_info("noted").metadata or {}).get("origin"), "test")
