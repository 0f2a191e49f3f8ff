// Runs inside a sandbox: says who asked for what, answers each piece of a body at once, and echoes over WebSocket.
// Usage: node guest-server.mjs PORT
import { createServer } from 'node:http';
import { WebSocketServer } from 'ws';

const server = createServer(async (request, response) => {
  response.write(`${request.headers.host} ${request.headers['x-forwarded-proto']}\n`);
  for await (const chunk of request) response.write(String(chunk).toUpperCase());
  response.end();
});
new WebSocketServer({ server }).on('connection', (socket) =>
  socket.on('message', (text) => socket.send(`echo ${text}`)),
);
server.listen(Number(process.argv[2]));
