// Owns the yardstick of the gateway benchmark: what one would write to proxy to one place with plain fastify and
// undici, streaming both ways, and nothing else. A program of its own: TARGET_ORIGIN is its one argument.
// Invariant: it does for a request what a correct proxy must and no more; making it slower would flatter Thaw.
import type { AddressInfo } from 'node:net';
import fastify from 'fastify';
import { Agent } from 'undici';

const [targetOrigin = ''] = process.argv.slice(2);
const agent = new Agent({ connections: 256 });
const app = fastify();
// Bodies pass through unread.
app.removeAllContentTypeParsers();
app.addContentTypeParser('*', (_request, _payload, done) => done(null));

app.all('/*', async (request, reply) => {
  const { connection: _, 'transfer-encoding': chunked, ...headers } = request.headers;
  const hasBody = chunked !== undefined || Number(headers['content-length'] ?? 0) > 0;
  const answer = await agent.request({
    origin: targetOrigin,
    path: request.url,
    method: request.method as 'GET',
    headers,
    body: hasBody ? request.raw : null,
  });
  const { connection: __, 'keep-alive': ___, 'transfer-encoding': ____, ...answered } = answer.headers;
  return reply.code(answer.statusCode).headers(answered).send(answer.body);
});

await app.listen({ host: '127.0.0.1', port: 0 });
process.stdout.write(`${(app.server.address() as AddressInfo).port}\n`);
process.once('SIGTERM', () => process.exit(0));
