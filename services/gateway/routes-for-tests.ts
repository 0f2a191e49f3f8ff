// Owns the table of all routes that a gateway has, as the framework itself lists them, so that a test over all of them
// cannot leave out a new one.
import type { FastifyInstance } from 'fastify';

export interface Route {
  method: string;
  /** With its parameters, `/sandboxes/:id`. */
  path: string;
}

const row = /^((?:[│ ] {3})*)[├└]── (\S+) \(([^)]*)\)$/;

/** HEAD is left out: it is what GET is. */
export function routesOf(app: FastifyInstance): Route[] {
  const above: string[] = [];
  return app
    .printRoutes({ commonPrefix: false })
    .trimEnd()
    .split('\n')
    .flatMap((line) => {
      const [, indent, part, methods] = row.exec(line) ?? [];
      if (part === undefined) throw new Error(`no route in ${JSON.stringify(line)}`);
      const depth = indent!.length / 4;
      above.length = depth;
      const path = above.join('') + part;
      above.push(part);
      return methods!.split(', ').flatMap((method) => (method === 'HEAD' ? [] : [{ method, path }]));
    });
}
