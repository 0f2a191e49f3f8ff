# Signed links: a file is read and written without the token, and not another than the one they are for.
import urllib.error
import urllib.request
from urllib.parse import urlsplit

from scenario import equal


def play(stage) -> None:
    sandbox = stage.sandbox

    def ask(link: str, body=None, content_type=None) -> tuple:
        # With a sandbox URL a link does not say which sandbox it is of: the header does.
        parts = urlsplit(link)
        headers = {"e2b-sandbox-id": sandbox.sandbox_id}
        if content_type:
            headers["content-type"] = content_type
        request = urllib.request.Request(f"{stage.url}{parts.path}?{parts.query}", body, headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    sandbox.files.write("linked", "content")
    link = sandbox.download_url("linked", use_signature_expiration=60_000)
    equal(ask(link), (200, b"content"))
    upload = sandbox.upload_url("up", use_signature_expiration=60_000)
    equal(ask(upload, b"uploaded", "application/octet-stream")[0], 200)
    equal(sandbox.files.read("up"), "uploaded")
    equal(ask(link.replace("linked", "up"))[0], 401)
