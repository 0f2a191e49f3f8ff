// Tests the steps of a restore that a host may try on itself. The clock and the host name need a VM.
import assert from 'node:assert/strict';
import { closeSync, readSync, writeSync } from 'node:fs';
import { describe, it } from 'node:test';
import { hostsWith } from './after-restore.ts';
import { makePipe, reseedKernel } from './kernel-calls.ts';

describe('after restore', () => {
  it('gives the old host name up in /etc/hosts and leaves the rest', () => {
    const hosts = '127.0.0.1 localhost\n127.0.1.1 vm-old\n10.0.0.1 mine\n';
    assert.equal(hostsWith(hosts, 'vm-new'), '127.0.0.1 localhost\n10.0.0.1 mine\n127.0.1.1 vm-new\n');
    assert.equal(hostsWith('', 'vm'), '127.0.1.1 vm\n');
  });

  const skip = process.getuid!() === 0 ? false : 'crediting entropy needs root';
  it('has the kernel take a seed and draw a new key', { skip }, () => {
    // Harmless to a host: entropy is only added.
    reseedKernel(Buffer.alloc(32, 7));
  });

  it('makes pipes that carry bytes', () => {
    const { readFd, writeFd } = makePipe();
    writeSync(writeFd, 'through');
    closeSync(writeFd);
    const buffer = Buffer.alloc(16);
    assert.equal(buffer.toString('utf8', 0, readSync(readFd, buffer)), 'through');
    closeSync(readFd);
  });
});
