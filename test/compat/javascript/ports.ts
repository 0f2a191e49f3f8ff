// A server in the sandbox, reached by the host name that the client gives.
import assert from 'node:assert/strict';
import { request } from 'node:http';
import type { Stage } from './scenario.ts';
import { eventually } from './scenario.ts';

export default async ({ sandbox, url }: Stage): Promise<void> => {
  const port = 20_000 + Math.floor(Math.random() * 10_000);
  const host = sandbox.getHost(port);
  assert.match(host, new RegExp(`^${port}-${sandbox.sandboxId}\\.`));
  await sandbox.files.write('index.html', 'served');
  await sandbox.commands.run(`python3 -m http.server ${port}`, { background: true, timeoutMs: 0 });
  const ask = () =>
    new Promise<string>((resolve, reject) => {
      const asked = request(url, { headers: { host }, agent: false }, (answer) => {
        let text = '';
        answer.on('data', (chunk) => {
          text += chunk;
        });
        answer.on('end', () => resolve(`${answer.statusCode} ${text}`));
      });
      asked.on('error', reject).end();
    });
  await eventually('an answer', async () => (await ask()) === '200 served');
};
