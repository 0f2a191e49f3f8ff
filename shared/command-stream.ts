// Owns the words of starting a command at a guest's agent, and of what comes back, for those of Thaw's parts that run
// commands of their own. Refuses to own sockets, and users' calls, which pass through as they are.
// Invariant: events come in the order of the stream; how it ended is the reader's to judge.
import { encodeFrame, endFlag, FrameDecoder } from './connect-frames.ts';

export interface CommandStart {
  cmd: string;
  args: string[];
  cwd?: string | undefined;
  env?: Record<string, string> | undefined;
}

export interface CommandEnd {
  /** 0 when it went well; -1 when a signal ended it. */
  exitCode: number;
  /** False when a signal ended it. */
  exited: boolean;
  /** In the agent's words: "exit status 2", "signal: killed". */
  status: string;
}

export interface CommandEvent {
  pid?: number;
  stdout?: Buffer;
  stderr?: Buffer;
  end?: CommandEnd;
  /** The agent's refusal, or what ended the stream before the command. */
  error?: { code: string; message: string };
}

interface StartEvent {
  event?: {
    start?: { pid: number };
    data?: { stdout?: string; stderr?: string };
    end?: { exitCode?: number; exited?: boolean; status?: string };
  };
  error?: { code: string; message: string };
}

/** Output comes in chunks far below this. */
const maxFrameBytes = 1024 * 1024;

export const startPath = '/process.Process/Start';

export const startHeaders = (
  accessToken: string | null | undefined,
  user?: string,
): Record<string, string> => ({
  'content-type': 'application/connect+json',
  'connect-protocol-version': '1',
  ...(accessToken ? { 'x-access-token': accessToken } : {}),
  ...(user ? { authorization: `Basic ${Buffer.from(`${user}:`).toString('base64')}` } : {}),
});

export const startMessage = ({ cmd, args, cwd, env }: CommandStart): Buffer =>
  encodeFrame({
    process: { cmd, args, ...(cwd ? { cwd } : {}), ...(env ? { envs: env } : {}) },
    stdin: false,
  });

/** @throws ConnectError for a body that is no such stream. */
export async function* commandEvents(body: AsyncIterable<unknown>): AsyncGenerator<CommandEvent> {
  const decoder = new FrameDecoder(maxFrameBytes);
  for await (const chunk of body)
    for (const { flag, message } of decoder.push(chunk as Buffer)) {
      const event = eventOf(message as StartEvent);
      if ((flag & endFlag) === 0 || event.error) yield event;
    }
}

function eventOf({ event, error }: StartEvent): CommandEvent {
  const { start, data, end } = event ?? {};
  return {
    ...(start ? { pid: start.pid } : {}),
    ...(data?.stdout ? { stdout: Buffer.from(data.stdout, 'base64') } : {}),
    ...(data?.stderr ? { stderr: Buffer.from(data.stderr, 'base64') } : {}),
    ...(end ? { end: endOf(end) } : {}),
    ...(error ? { error } : {}),
  };
}

// JSON of this protocol leaves out what is zero or false; agents of Thaw say `exited` always.
const endOf = ({
  exitCode = 0,
  exited = true,
  status = '',
}: {
  exitCode?: number;
  exited?: boolean;
  status?: string;
}): CommandEnd => ({ exitCode, exited, status });
