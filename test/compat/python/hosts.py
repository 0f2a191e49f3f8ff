# Host names over TLS: the client knows a domain, a key, an authority and a proxy, and nothing of a server's address.
import os
import random
import ssl
import urllib.error
import urllib.request
from urllib.parse import urlsplit

from scenario import equal, eventually


def play(stage) -> None:
    domain, proxy = os.environ.get("THAW_TEST_HOST_NAMES"), os.environ.get("THAW_TEST_PROXY")
    if not domain or not proxy:
        stage.skip("this server has no host names")
    addresses = {name: os.environ.pop(name) for name in ("E2B_API_URL", "E2B_SANDBOX_URL")}
    try:
        use_by_name(stage.e2b, domain, proxy)
    finally:
        os.environ.update(addresses)


def use_by_name(e2b, domain: str, proxy: str) -> None:
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({"https": proxy}),
        urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=os.environ["SSL_CERT_FILE"])),
    )

    def ask(url: str, headers: dict = {}) -> tuple:
        try:
            with opener.open(urllib.request.Request(url, headers=headers), timeout=30) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, b""

    network = {"allow_public_traffic": False}
    sandbox = e2b.Sandbox.create("base", domain=domain, proxy=proxy, network=network)
    try:
        equal(sandbox.commands.run("printf named").stdout, "named")
        port = random.randrange(20_000, 30_000)
        equal(sandbox.get_host(port), f"{port}-{sandbox.sandbox_id}.{domain}")
        sandbox.files.write("index.html", "served")
        sandbox.commands.run(f"python3 -m http.server {port}", background=True, timeout=0)
        url = f"https://{sandbox.get_host(port)}/"
        token = {"e2b-traffic-access-token": sandbox.traffic_access_token}
        eventually("an answer", lambda: ask(url, token) == (200, b"served"))
        equal(ask(url)[0], 403)
        link = sandbox.download_url("index.html", use_signature_expiration=60_000)
        equal(urlsplit(link).netloc, sandbox.get_host(49_983))
        equal(ask(link), (200, b"served"))
        expired = sandbox.download_url("index.html", use_signature_expiration=-60_000)
        equal(ask(expired)[0], 401)
    finally:
        sandbox.kill()
