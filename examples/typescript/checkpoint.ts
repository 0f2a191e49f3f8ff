// Checkpoint: snapshot after the expensive first step; when the second fails, go on from there instead of from zero.
// Run: THAW_API_KEY=$(cat .thaw/api-key) node examples/typescript/checkpoint.ts   Prints: ../expected/checkpoint.txt
import { CommandExitError, Sandbox } from '../../sdk/typescript/index.ts';

// The first step keeps its result in memory and answers questions about it: a file would be saved, too.
const job = `
import os, time
print("step 1: started", flush=True)
primes = [n for n in range(2, 20000) if all(n % d for d in range(2, int(n ** 0.5) + 1))]
print("step 1: done", flush=True)
os.mkfifo("question"); os.mkfifo("answer")
while True:
    with open("question") as question: asked = question.read()
    with open("answer", "w") as answer: answer.write(str(eval(asked, {"primes": primes})))
`;
const ask = (expression: string) => `echo '${expression}' > question && cat answer`;

const sbx = await Sandbox.create({ timeoutMs: 900_000 });
await sbx.files.write('job.py', job);
await sbx.commands.run('nohup python3 job.py > job.log 2>&1 &');
await sbx.commands.run('until test -p answer; do sleep 0.2; done', { timeoutMs: 300_000 });
const checkpoint = await sbx.createSnapshot();
console.log('step 1 is done; checkpoint taken');

try {
  await sbx.commands.run(`${ask('len(primes)')} && test -e weights.json`);
} catch (error) {
  if (!(error instanceof CommandExitError)) throw error;
  console.log(`step 2 failed with exit code ${error.exitCode}`);
}
await sbx.kill();

const again = await Sandbox.create({ snapshotId: checkpoint.snapshotId });
await again.files.write('weights.json', '{"largest": 1}');
const result = await again.commands.run(`${ask('max(primes)')} && test -e weights.json`);
console.log(`step 2 from the checkpoint: the largest prime is ${result.stdout.trim()}`);
const log = await again.commands.run('grep -c started job.log');
console.log(`step 1 ran ${log.stdout.trim()} time`);
await again.kill();
