// Owns a process that publishes a made-up snapshot and its child, and kills itself at a given change to the store.
// Started by publish-crash.test.ts with: store directory, spool directory, capture directory, number of the change (the
// first is 0), before | after. Ends by itself when there are not so many changes.
import { DirectoryStore } from '../store/directory-store.ts';
import { type Around, WrappedStore } from '../store/wrapped-store.ts';
import { crashCaptures, testKey } from './capture-for-tests.ts';
import { Publisher } from './publish.ts';

const [storeDir, spoolDir, captureDir, step, when] = process.argv.slice(2);
let changes = 0;

const dieAtStep: Around = async (request, call) => {
  const changing = request.op === 'put' || request.op === 'replace' || request.op === 'delete';
  const mine = changing && changes++ === Number(step);
  if (mine && when === 'before') process.kill(process.pid, 'SIGKILL');
  try {
    return await call(request.options);
  } finally {
    if (mine) process.kill(process.pid, 'SIGKILL');
  }
};

const { parent, child } = await crashCaptures(captureDir!);
const store = new WrappedStore(await DirectoryStore.open(storeDir!), dieAtStep);
const publisher = await Publisher.open({
  store,
  clusterKey: testKey,
  spoolDir: spoolDir!,
  threads: 1,
  reserveBytes: 0,
});
await publisher.publish(parent);
await publisher.publish(child);
await publisher.close();
