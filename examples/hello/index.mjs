// The smallest function: a handler in the form of edge platforms.
import { hostname, uptime } from 'node:os';

export default {
  async fetch(request) {
    const { pathname } = new URL(request.url);
    return Response.json({
      hello: 'from a microVM',
      vm: hostname(),
      upSeconds: Math.round(uptime()),
      path: pathname,
    });
  },
};
