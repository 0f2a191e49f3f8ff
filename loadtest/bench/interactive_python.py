# Owns the time to interactive by Thaw's Python SDK, for benchmarks/tti.ts: each line on standard input starts a sandbox, and
# a line of JSON with its `id` says how it went. Address and key come from THAW_API_URL and THAW_API_KEY.
# Invariant: a sandbox that did not answer rightly has an `error` and no time; each is killed before its line is written.
import asyncio
import json
import re
import sys
import time

from thaw import AsyncSandbox

REQUEST_TIMEOUT_SECONDS = 120


async def interactive_ms() -> float:
    start = time.perf_counter()
    sandbox = await AsyncSandbox.create(request_timeout=REQUEST_TIMEOUT_SECONDS)
    try:
        result = await sandbox.commands.run("node -v", timeout=REQUEST_TIMEOUT_SECONDS)
        elapsed_ms = (time.perf_counter() - start) * 1000
        if not re.fullmatch(r"v\d+\.\d+\.\d+\n", result.stdout):
            raise ValueError(f"node -v answered {result.stdout!r}")
        return elapsed_ms
    finally:
        await sandbox.kill()


async def answer(turn: str) -> None:
    try:
        outcome = {"ms": await interactive_ms()}
    except Exception as error:
        outcome = {"error": str(error) or repr(error)}
    print(json.dumps({"id": turn, **outcome}), flush=True)


async def main() -> None:
    turns = set()
    while line := await asyncio.to_thread(sys.stdin.readline):
        turns.add(asyncio.create_task(answer(line.strip())))
    await asyncio.gather(*turns)


asyncio.run(main())
