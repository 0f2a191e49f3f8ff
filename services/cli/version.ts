// Owns the product's version, which package.json states. Invariant: there is no second place to change.
import { readFileSync } from 'node:fs';

const packageJson = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8')) as {
  version: string;
};

export const thawVersion: string = packageJson.version;
