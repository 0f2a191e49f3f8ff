# A server in the sandbox, reached by the host name that the client gives.
import random
import urllib.error
import urllib.request

from scenario import equal, eventually


def play(stage) -> None:
    sandbox = stage.sandbox
    port = random.randrange(20_000, 30_000)
    host = sandbox.get_host(port)
    equal(host.startswith(f"{port}-{sandbox.sandbox_id}."), True)
    sandbox.files.write("index.html", "served")
    sandbox.commands.run(f"python3 -m http.server {port}", background=True, timeout=0)

    def is_served() -> bool:
        request = urllib.request.Request(f"{stage.url}/", headers={"host": host})
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.read() == b"served"
        except urllib.error.HTTPError:
            return False

    eventually("an answer", is_served)
