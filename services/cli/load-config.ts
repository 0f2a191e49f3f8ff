// Owns gathering configuration for a CLI command: flags of commander, the environment, the file.
// Refuses to own what the keys mean (shared/config.ts). Invariant: the data directory that comes out is absolute.
import { readFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { type Command, Option } from 'commander';
import { Type } from 'typebox';
import { type ConfigKey, configKeys, type ResolvedConfig, resolveConfig } from '../../shared/config.ts';
import { ThawError } from '../../shared/errors.ts';

/** The directory of package.json. */
export const projectDir = resolve(import.meta.dirname, '../..');

/** Adds a flag for each of these keys that has one; for all keys when none are named. */
export function addConfigOptions(command: Command, keys?: readonly ConfigKey[]): Command {
  command.option('--config <FILE>', 'configuration file, instead of thaw.config.json in the data directory');
  for (const { key, flag, description, schema } of configKeys)
    if (flag !== undefined && (keys === undefined || keys.includes(key))) {
      const words = description.replaceAll('`', '');
      if (!Type.IsBoolean(schema)) command.option(`${flag} <VALUE>`, words);
      // Said alone it means yes.
      else command.addOption(new Option(`${flag} [VALUE]`, words).preset('true'));
    }
  return command;
}

export interface ConfigFlags extends Partial<Record<ConfigKey, string>> {
  config?: string;
}

/** @throws ThawError `bad-config`. */
export async function loadConfig(given: ConfigFlags, env: NodeJS.ProcessEnv): Promise<ResolvedConfig> {
  const { config: configPath, ...rest } = given;
  const flags = Object.fromEntries(configKeys.map(({ key }) => [key, rest[key]]));
  const input = { flags, env, defaults: { dataDir: join(projectDir, '.thaw') } };
  // The data directory says where the file is, so it is decided without it first.
  const { dataDir } = resolveConfig(input).config;
  const file = await readConfigFile(
    configPath ?? join(dataDir, 'thaw.config.json'),
    configPath !== undefined,
  );
  if (
    configPath === undefined &&
    typeof file?.value === 'object' &&
    Object.hasOwn(file.value ?? {}, 'dataDir')
  )
    throw new ThawError('bad-config', `${file.path}: dataDir cannot be set by a file in the data directory`);
  const resolved = resolveConfig({ ...input, file });
  resolved.config.dataDir = resolve(resolved.config.dataDir);
  return resolved;
}

async function readConfigFile(
  path: string,
  required: boolean,
): Promise<{ path: string; value: unknown } | undefined> {
  let text: string;
  try {
    text = await readFile(path, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT' && !required) return undefined;
    throw new ThawError('bad-config', `${path} cannot be read: ${(error as Error).message}`);
  }
  try {
    return { path, value: JSON.parse(text) };
  } catch (error) {
    throw new ThawError('bad-config', `${path} is not JSON: ${(error as Error).message}`);
  }
}
