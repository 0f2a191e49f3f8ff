# A sandbox's log, in both versions of the route: no client reads it, E2B's own command line does.
import json
import os
import urllib.request

from scenario import equal


def play(stage) -> None:
    def ask(path: str) -> list:
        headers = {"x-api-key": os.environ["E2B_API_KEY"]}
        with urllib.request.urlopen(urllib.request.Request(stage.url + path, headers=headers)) as answer:
            return json.load(answer)["logs"]

    sandbox_id = stage.sandbox.sandbox_id
    lines = ask(f"/sandboxes/{sandbox_id}/logs")
    equal(len(lines) > 0 and bool(json.loads(lines[0]["line"])["message"]), True)
    entries = ask(f"/v2/sandboxes/{sandbox_id}/logs?direction=backward&limit=1")
    equal(len(entries), 1)
    equal(bool(entries[0]["message"] and entries[0]["timestamp"]), True)
