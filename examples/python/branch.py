# Branch: one prepared sandbox, one snapshot, two approaches side by side in two clones, results compared.
# Run: THAW_API_KEY=$(cat .thaw/api-key) PYTHONPATH=sdk/python python3 examples/python/branch.py
# Prints: ../expected/branch.txt
import asyncio

from thaw import AsyncSandbox

PREPARE = r"""python3 -c 'print("\n".join(f"{x} {x * x + x % 3}" for x in range(60)))' > data.txt"""
# Each predicts y from x and prints how far off it is, on average.
APPROACHES = {"linear": "lambda x: 59 * x - 570", "square": "lambda x: x * x + 1"}
EVALUATE = """python3 -c '
predict = {predict}
rows = [tuple(map(int, line.split())) for line in open("data.txt")]
print(round(sum(abs(predict(x) - y) for x, y in rows) / len(rows), 2))' | tee result.txt"""


async def attempt(snapshot_id: str, predict: str) -> float:
    async with await AsyncSandbox.create(snapshot_id=snapshot_id) as clone:
        result = await clone.commands.run(EVALUATE.format(predict=predict))
        return float(result.stdout)


async def main() -> None:
    sbx = await AsyncSandbox.create(timeout=900)
    await sbx.commands.run(PREPARE)
    snapshot = await sbx.create_snapshot()
    await sbx.kill()
    attempts = [attempt(snapshot.snapshot_id, predict) for predict in APPROACHES.values()]
    linear, square = await asyncio.gather(*attempts)
    print(f"linear: off by {linear:.2f}")
    print(f"square: off by {square:.2f}")
    print(f"better: {'square' if square < linear else 'linear'}")


asyncio.run(main())
