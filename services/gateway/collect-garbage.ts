// Owns collecting garbage on demand, for tests that look at memory: what a body leaves behind until the next collection
// is not what is held of it, and how much that is depends on how fast the machine is. Test support, nothing else imports it.
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';

setFlagsFromString('--expose-gc');

export const collectGarbage = runInNewContext('gc') as () => void;
