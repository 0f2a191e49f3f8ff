// A terminal: shown, typed into, resized, connected to again, ended.
import assert from 'node:assert/strict';
import type { Stage } from './scenario.ts';
import { eventually } from './scenario.ts';

export default async ({ sandbox }: Stage): Promise<void> => {
  let shown = '';
  const onData = (data: Uint8Array) => {
    shown += new TextDecoder().decode(data);
  };
  const type = (pid: number, text: string) => sandbox.pty.sendInput(pid, new TextEncoder().encode(text));
  const terminal = await sandbox.pty.create({ cols: 80, rows: 24, onData, timeoutMs: 0 });
  await type(terminal.pid, 'stty size\n');
  await eventually('its size', () => shown.includes('24 80'));
  await sandbox.pty.resize(terminal.pid, { cols: 101, rows: 31 });
  await type(terminal.pid, 'stty size\n');
  await eventually('its new size', () => shown.includes('31 101'));
  await terminal.disconnect();
  const again = await sandbox.pty.connect(terminal.pid, { onData, timeoutMs: 0 });
  await type(terminal.pid, 'echo back $((6*7)); exit\n');
  await eventually('an answer', () => shown.includes('back 42'));
  assert.equal((await again.wait()).exitCode, 0);
};
