# A terminal: shown, typed into, resized, connected to again, ended.
from scenario import equal


def play(stage) -> None:
    pty, e2b = stage.sandbox.pty, stage.e2b

    def until(handle, text: str) -> None:
        shown = ""
        for _, _, data in handle:
            shown += (data or b"").decode("utf-8", "replace")
            if text in shown:
                return
        raise AssertionError(f"the terminal ended before it showed {text!r}")

    terminal = pty.create(e2b.PtySize(cols=80, rows=24), timeout=0)
    pty.send_stdin(terminal.pid, b"stty size\n")
    until(terminal, "24 80")
    pty.resize(terminal.pid, e2b.PtySize(cols=101, rows=31))
    pty.send_stdin(terminal.pid, b"stty size\n")
    until(terminal, "31 101")
    terminal.disconnect()
    if not hasattr(pty, "connect"):
        stage.skip("the client cannot connect to a terminal again")
    again = pty.connect(terminal.pid, timeout=0)
    pty.send_stdin(terminal.pid, b"echo back $((6*7)); exit\n")
    until(again, "back 42")
    equal(again.wait().exit_code, 0)
