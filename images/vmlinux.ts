// Owns taking the uncompressed kernel out of Debian's bzImage: what a hypervisor that enters by PVH loads.
// Invariant: the result is an ELF file, or an error says what was found instead.
// Source: setup header fields in the kernel's Documentation/arch/x86/boot.rst.
import { open, readFile, rm, writeFile } from 'node:fs/promises';
import { ThawError } from '../shared/errors.ts';
import { runProgram } from './run-program.ts';

const sectorBytes = 512;
const setupSectorsAt = 0x1f1;
const payloadOffsetAt = 0x248;
const payloadLengthAt = 0x24c;
/** The last bytes of the payload are its unpacked size, not part of the compressed stream. */
const sizeTrailerBytes = 4;
const lz4LegacyMagic = 0x184c2102;

export async function extractVmlinux(bzImagePath: string, targetPath: string): Promise<void> {
  const packedPath = `${targetPath}.lz4`;
  try {
    await writeFile(packedPath, payloadOf(await readFile(bzImagePath)));
    await runProgram('lz4', ['-d', '-q', '-f', packedPath, targetPath]);
    if (!(await isElf(targetPath))) throw new ThawError('image-failed', `${bzImagePath} holds no ELF kernel`);
  } finally {
    await rm(packedPath, { force: true });
  }
}

/** @throws ThawError `image-failed` for a kernel that is packed in another way. */
export function payloadOf(bzImage: Buffer): Buffer {
  const setupBytes = (bzImage.readUInt8(setupSectorsAt) + 1) * sectorBytes;
  const start = setupBytes + bzImage.readUInt32LE(payloadOffsetAt);
  const length = bzImage.readUInt32LE(payloadLengthAt) - sizeTrailerBytes;
  const payload = bzImage.subarray(start, start + length);
  if (payload.length !== length || payload.readUInt32LE(0) !== lz4LegacyMagic)
    throw new ThawError('image-failed', 'the kernel is not packed with LZ4');
  return payload;
}

async function isElf(path: string): Promise<boolean> {
  await using file = await open(path, 'r');
  const { buffer } = await file.read(Buffer.alloc(4), 0, 4, 0);
  return buffer.toString('latin1') === '\x7fELF';
}
