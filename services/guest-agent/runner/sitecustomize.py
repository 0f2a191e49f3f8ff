"""Owns the random state of a Python process: a preload (on PYTHONPATH) that joins the agent's reseed line.

Refuses to own generators that a program made itself (random.Random(), numpy default_rng()): nobody can find them.
Invariant: after a confirmation `random`, OpenSSL and numpy's global generator start from the new seed; what reads
the kernel (os.urandom, secrets, uuid4, SystemRandom) needs nothing.
"""

import os
import sys


def _reseed(seed):
    # A module that is not loaded yet will seed itself from the kernel, which was reseeded before.
    random = sys.modules.get("random")
    if random is not None and hasattr(random, "seed"):
        random.seed(seed)
    ssl = sys.modules.get("_ssl")
    if ssl is not None:
        ssl.RAND_add(seed, float(len(seed)))
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None and hasattr(numpy_random, "seed"):
        numpy_random.seed([int.from_bytes(seed[at : at + 4], "little") for at in range(0, len(seed), 4)])


def _serve(line):
    held = b""
    while True:
        try:
            chunk = line.recv(1024)
        except OSError:
            return
        if not chunk:
            return
        held += chunk
        while b"\n" in held:
            message, held = held.split(b"\n", 1)
            number, seed = message.split(b" ")
            try:
                _reseed(bytes.fromhex(seed.decode()))
                answer = number
            except Exception as error:  # the agent must hear it: an unseeded clone is not fit for use
                answer = number + b" !" + repr(error).replace("\n", " ").encode()[:200]
            line.sendall(answer + b"\n")


_line = None


def _join():
    global _line
    import _socket
    import _thread

    if _line is not None:
        _line.close()  # the parent's, after a fork
    address = os.environ["THAW_RESEED_SOCKET"]
    _line = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        _line.connect("\0" + address[1:] if address.startswith("@") else address)
    except OSError:
        return
    # Not a `threading` thread: it must neither cost an import nor hold up the end of the program.
    _thread.start_new_thread(_serve, (_line,))


def _next_sitecustomize():
    """Runs the file of the same name that this one hides, if there is one."""
    here = os.path.dirname(os.path.abspath(__file__))
    for folder in sys.path:
        path = os.path.join(folder, "sitecustomize.py")
        if folder and os.path.abspath(folder) != here and os.path.isfile(path):
            with open(path, "rb") as source:
                exec(compile(source.read(), path, "exec"), {"__name__": "sitecustomize", "__file__": path})
            return


if "THAW_RESEED_SOCKET" in os.environ:
    _join()
    os.register_at_fork(after_in_child=_join)
_next_sitecustomize()
