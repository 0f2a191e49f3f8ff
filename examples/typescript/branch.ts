// Branch: one prepared sandbox, one snapshot, two approaches side by side in two clones, results compared.
// Run: THAW_API_KEY=$(cat .thaw/api-key) node examples/typescript/branch.ts   Prints: ../expected/branch.txt
import { Sandbox } from '../../sdk/typescript/index.ts';

const prepare = `python3 -c 'print("\\n".join(f"{x} {x * x + x % 3}" for x in range(60)))' > data.txt`;
const approaches = {
  // Each predicts y from x and prints how far off it is, on average.
  linear: 'lambda x: 59 * x - 570',
  square: 'lambda x: x * x + 1',
};
const evaluate = (predict: string) => `python3 -c '
predict = ${predict}
rows = [tuple(map(int, line.split())) for line in open("data.txt")]
print(round(sum(abs(predict(x) - y) for x, y in rows) / len(rows), 2))' | tee result.txt`;

const sbx = await Sandbox.create({ timeoutMs: 900_000 });
await sbx.commands.run(prepare);
const snapshot = await sbx.createSnapshot();
await sbx.kill();

async function attempt(predict: string): Promise<number> {
  const clone = await Sandbox.create({ snapshotId: snapshot.snapshotId });
  try {
    const result = await clone.commands.run(evaluate(predict));
    return Number(result.stdout);
  } finally {
    await clone.kill();
  }
}

const [linear, square] = await Promise.all([attempt(approaches.linear), attempt(approaches.square)]);
console.log(`linear: off by ${linear.toFixed(2)}`);
console.log(`square: off by ${square.toFixed(2)}`);
console.log(`better: ${square < linear ? 'square' : 'linear'}`);
