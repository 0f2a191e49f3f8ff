// Owns finding out what a bundle is: from its thaw.json, else by convention.
// Invariant: a manifest that comes from here names a runtime and, where no build makes it, an entry that exists.
import { ThawError } from '../../shared/errors.ts';
import {
  type FunctionManifest,
  parseFunctionManifest,
  type ResolvedManifest,
} from '../../shared/function-manifest.ts';
import type { BundleLayout } from './bundle-layout.ts';

const conventions = {
  node: ['index.js', 'index.mjs', 'index.ts'],
  python: ['main.py', 'app.py'],
} as const;

/** @throws ThawError `bad-manifest` saying what was looked for. */
export function manifestOf(
  name: string,
  manifestText: string | undefined,
  layout: BundleLayout,
): ResolvedManifest {
  if (manifestText === undefined) return byConvention(name, layout);
  const manifest = parseFunctionManifest(parsedJson(manifestText));
  if (manifest.name !== name)
    throw new ThawError(
      'bad-manifest',
      `thaw.json: name: expected ${JSON.stringify(name)}, as in the address`,
    );
  requireEntry(manifest, layout);
  return manifest;
}

function parsedJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new ThawError('bad-manifest', `thaw.json is not JSON: ${(error as Error).message}`);
  }
}

function byConvention(name: string, layout: BundleLayout): ResolvedManifest {
  for (const runtime of ['node', 'python'] as const)
    for (const entry of conventions[runtime])
      if (layout.has(entry))
        return parseFunctionManifest({ name, runtime, entry } satisfies FunctionManifest);
  const looked = ['thaw.json', ...conventions.node, ...conventions.python].join(', ');
  const hint = layout.soleDirectory
    ? `; everything is below ${JSON.stringify(layout.soleDirectory)}: pack its contents instead`
    : '';
  throw new ThawError('bad-manifest', `the bundle has none of ${looked} at its top${hint}`);
}

function requireEntry(manifest: ResolvedManifest, layout: BundleLayout): void {
  // A build may make the entry; a command need not be a file of the bundle.
  if (manifest.build || manifest.runtime === 'command') return;
  const candidates = manifest.entry
    ? [manifest.entry.replace(/^(\.\/)+/, '')]
    : conventions[manifest.runtime];
  if (!candidates.some((candidate) => layout.has(candidate)))
    throw new ThawError('bad-manifest', `thaw.json: entry: the bundle has no ${candidates.join(', ')}`);
}
