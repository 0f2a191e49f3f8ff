// Owns a process that publishes a made-up snapshot and kills itself before or after a given request to the store.
// Started by publish-crash.test.ts with: store directory, spool directory, capture directory, step, before | after.
// Prints the number of requests when it was not killed.
import { DirectoryStore } from '../store/directory-store.ts';
import { type Around, WrappedStore } from '../store/wrapped-store.ts';
import { deltaCapture, testImage, testKey, testPage, wholeCapture } from './capture-for-tests.ts';
import { pageBytes } from './extents.ts';
import { Publisher } from './publish.ts';

const [storeDir, spoolDir, captureDir, step, when] = process.argv.slice(2);
let requests = 0;

const dieAtStep: Around = async (request, call) => {
  const mine = requests++ === Number(step);
  if (mine && when === 'before') process.kill(process.pid, 'SIGKILL');
  const result = await call(request.options);
  if (mine && when === 'after') process.kill(process.pid, 'SIGKILL');
  return result;
};

const image = testImage(1);
const parent = await wholeCapture(`${captureDir}/parent`, 1, image);
for (const page of [0, 1, 2, 500]) testPage(5_000 + page).copy(image.memory, page * pageBytes);
const dirty = { memory: [0, 1, 2, 500], disk: [] };
const child = await deltaCapture(`${captureDir}/child`, 2, image, parent, dirty);
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
console.log(requests);
