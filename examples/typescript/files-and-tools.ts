// Files and tools are there: what was installed and written before the snapshot is there in every clone.
// Run: THAW_API_KEY=$(cat .thaw/api-key) node examples/typescript/files-and-tools.ts   Prints: ../expected/files-and-tools.txt
import { readFile } from 'node:fs/promises';
import { Sandbox } from '../../sdk/typescript/index.ts';

const sbx = await Sandbox.create({ timeoutMs: 900_000 });
const wheel = await readFile(new URL('../wheel/build_wheel.py', import.meta.url), 'utf8');
await sbx.files.write('build_wheel.py', wheel);
await sbx.commands.run('python3 build_wheel.py', { timeoutMs: 300_000 });
await sbx.commands.run('pip3 install --no-index ./slowcast-1.0-py3-none-any.whl', { timeoutMs: 600_000 });
await sbx.files.write('/workspace/data.csv', 'x,y\n1,2\n');
await sbx.files.write('/workspace/notes.txt', 'to be continued');
const snapshot = await sbx.createSnapshot();
await sbx.kill();

const clone = await Sandbox.create({ snapshotId: snapshot.snapshotId });
const version = await clone.commands.run("python3 -c 'import slowcast; print(slowcast.__version__)'");
console.log(version.stdout.trim());
const listing = await clone.commands.run('ls /workspace/');
console.log(listing.stdout.trim());
await clone.kill();
