# Changes in a directory and below it, asked for again and again.
from scenario import eventually


def play(stage) -> None:
    files = stage.sandbox.files
    files.make_dir("watched/below")
    handle = files.watch_dir("watched", recursive=True)
    seen: list = []

    def saw(what: str) -> bool:
        seen.extend(f"{event.type.value} {event.name}" for event in handle.get_new_events())
        return what in seen

    files.write("watched/below/file", "x")
    eventually("create", lambda: saw("create below/file"))
    eventually("write", lambda: saw("write below/file"))
    files.remove("watched/below/file")
    eventually("remove", lambda: saw("remove below/file"))
    handle.stop()
