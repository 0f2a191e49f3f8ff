# Checkpoint: snapshot after the expensive first step; when the second fails, go on from there instead of from zero.
# Run: THAW_API_KEY=$(cat .thaw/api-key) PYTHONPATH=sdk/python python3 examples/python/checkpoint.py
# Prints: ../expected/checkpoint.txt
from thaw import CommandExitError, Sandbox

# The first step keeps its result in memory and answers questions about it: a file would be saved, too.
JOB = """
import os, time
print("step 1: started", flush=True)
primes = [n for n in range(2, 20000) if all(n % d for d in range(2, int(n ** 0.5) + 1))]
print("step 1: done", flush=True)
os.mkfifo("question"); os.mkfifo("answer")
while True:
    with open("question") as question: asked = question.read()
    with open("answer", "w") as answer: answer.write(str(eval(asked, {"primes": primes})))
"""


def ask(expression: str) -> str:
    return f"echo '{expression}' > question && cat answer"


sbx = Sandbox.create(timeout=900)
sbx.files.write("job.py", JOB)
sbx.commands.run("nohup python3 job.py > job.log 2>&1 &")
sbx.commands.run("until test -p answer; do sleep 0.2; done", timeout=300)
checkpoint = sbx.create_snapshot()
print("step 1 is done; checkpoint taken")

try:
    sbx.commands.run(f"{ask('len(primes)')} && test -e weights.json")
except CommandExitError as error:
    print(f"step 2 failed with exit code {error.exit_code}")
sbx.kill()

again = Sandbox.create(snapshot_id=checkpoint.snapshot_id)
again.files.write("weights.json", '{"largest": 1}')
result = again.commands.run(f"{ask('max(primes)')} && test -e weights.json")
print(f"step 2 from the checkpoint: the largest prime is {result.stdout.strip()}")
log = again.commands.run("grep -c started job.log")
print(f"step 1 ran {log.stdout.strip()} time")
again.kill()
