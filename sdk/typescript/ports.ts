// Owns how a port of a sandbox is reached: by a host name, and by a request through the server.
// Refuses to own what listens there. Invariant: a failure of the platform is an error, the program's own answer never is.
import { type CallOptions, type RequestBody, textOf } from './connection.ts';
import { errorOfResponse } from './errors.ts';
import { readPiecewise } from './piecewise.ts';
import type { SandboxLink } from './sandbox-link.ts';

export interface PortRequest extends CallOptions {
  method?: 'GET' | 'POST' | 'PUT' | 'PATCH' | 'DELETE' | undefined;
  headers?: Record<string, string> | undefined;
  body?: RequestBody | undefined;
}

const loopback = /^(localhost|127(\.[0-9]+){3}|\[::1\])$/;

/** @param server a domain, or the server's own address. */
export function hostOf(sandboxId: string, port: number, server: string): string {
  const { hostname, host, port: serverPort } = new URL(server.includes('://') ? server : `http://${server}`);
  // An address cannot have names below it; `localhost` resolves to this machine with all below it.
  const domain = loopback.test(hostname) ? `localhost${serverPort === '' ? '' : `:${serverPort}`}` : host;
  return `${port}-${sandboxId}.${domain}`;
}

export async function requestPort(
  link: SandboxLink,
  port: number,
  path: string,
  request: PortRequest,
): Promise<Response> {
  const headers = { ...request.headers, ...link.routeTo(port) };
  const { response, deadline } = await link.connection.request(path, { ...request, headers });
  return await answerOf(response, deadline, request.requestTimeoutMs ?? link.connection.requestTimeoutMs);
}

/** The program's answer, its body still to be read; each piece of it has the call's time. */
export async function answerOf(
  response: Response,
  deadline: Parameters<typeof textOf>[1],
  requestTimeoutMs: number,
): Promise<Response> {
  const failure = response.headers.get('x-thaw-error');
  // The runner marks what the function's own code threw: an answer, too.
  if (failure !== null && failure !== 'handler-threw')
    throw errorOfResponse(response.status, response.headers, await textOf(response, deadline));
  const { status, statusText, headers } = response;
  if (response.body === null) {
    deadline.clear();
    return response;
  }
  const body = readPiecewise(response, deadline, 'the answer', requestTimeoutMs);
  return new Response(body, { status, statusText, headers });
}
