# Network settings: taken at create, shown, replaced while it runs, and refused where Thaw does not offer them.
import urllib.error
import urllib.request

from scenario import equal, raises


def play(stage) -> None:
    create = stage.e2b.Sandbox.create
    sandbox = create("base", network={"deny_out": ["9.9.9.0/24"], "allow_public_traffic": False})

    def ask(headers: dict) -> int:
        routing = {"e2b-sandbox-id": sandbox.sandbox_id, "e2b-sandbox-port": "1"}
        try:
            with urllib.request.urlopen(urllib.request.Request(stage.url, headers={**routing, **headers})) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code

    try:
        shown = sandbox.get_info().network
        equal((shown["deny_out"], shown["allow_public_traffic"]), (["9.9.9.0/24"], False))
        equal(ask({}), 403)
        equal(ask({"e2b-traffic-access-token": sandbox.traffic_access_token}), 502)
        sandbox.update_network({"deny_out": ["8.8.8.8"]})
        equal(sandbox.get_info().network["deny_out"], ["8.8.8.8"])
    finally:
        sandbox.kill()
    rules = {"example.com": [{"transform": {"headers": {"a": "b"}}}]}
    error = raises(Exception, lambda: create("base", network={"rules": rules}))
    equal("network.rules is not offered" in str(error), True)
