# Owns running scenarios with one installed Python client, one after the other.
# Usage: run.py CLIENT_DIR SCENARIO…  Prints one line of JSON for each. Invariant: a scenario ends within its time.
import importlib
import json
import os
import re
import signal
import sys
from types import SimpleNamespace

SCENARIO_SECONDS = 120
client_dir, *names = sys.argv[1:]
sys.path.insert(0, client_dir)
import e2b  # noqa: E402
from scenario import Skipped  # noqa: E402


class OutOfTime(BaseException):
    pass


def out_of_time(*_: object) -> None:
    raise OutOfTime(f"not within {SCENARIO_SECONDS} s")


def skip(reason: str) -> None:
    raise Skipped(reason)


def play(name: str) -> None:
    scenario = importlib.import_module(name)
    sandbox = e2b.Sandbox.create("base", timeout=300)
    try:
        scenario.play(SimpleNamespace(e2b=e2b, sandbox=sandbox, url=os.environ["E2B_API_URL"], skip=skip))
    finally:
        try:
            sandbox.kill()
        except Exception:
            pass


def outcome_of(name: str) -> dict:
    signal.alarm(SCENARIO_SECONDS)
    try:
        play(name)
    except Skipped as error:
        return {"status": "skipped", "reason": str(error)}
    except (Exception, OutOfTime) as error:
        reason = (str(error) or repr(error)).split("\n")[0]
        if re.search(r"not.offered|\b501\b|unimplemented", str(error), re.I):
            return {"status": "skipped", "reason": f"Thaw does not offer it: {reason}"}
        return {"status": "failed", "reason": reason}
    finally:
        signal.alarm(0)
    return {"status": "passed", "reason": ""}


signal.signal(signal.SIGALRM, out_of_time)
for name in names:
    print(json.dumps({"scenario": name, **outcome_of(name)}), flush=True)
# Streams that a client still reads must not keep the process.
os._exit(0)
