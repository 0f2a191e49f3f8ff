# Contents of several kinds, listing, moving, removing, and what is not there.
import os

from scenario import equal, raises


def play(stage) -> None:
    files, e2b = stage.sandbox.files, stage.e2b
    files.write("a/text.txt", "grüße")
    equal(files.read("a/text.txt"), "grüße")
    content = os.urandom(200_000)
    files.write("a/bytes", content)
    equal(bytes(files.read("a/bytes", format="bytes")), content)
    equal(b"".join(files.read("a/bytes", format="stream")), content)
    files.write_files([{"path": "many/one", "data": "1"}, {"path": "many/two", "data": "22"}])
    equal([(entry.name, entry.size) for entry in files.list("many")], [("one", 1), ("two", 2)])
    equal(files.make_dir("many"), False)
    files.rename("many/one", "other/three")
    equal(files.exists("many/one"), False)
    equal(files.get_info("other/three").type.value, "file")
    files.remove("many")
    equal(files.exists("many"), False)
    raises(e2b.NotFoundException, lambda: files.read("none"))
