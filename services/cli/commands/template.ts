// Owns `thaw template`: build, ls, rm. A build is described by a Dockerfile whose FROM names a template of this Thaw.
// Refuses to own the description's meaning and its upload: those are the E2B client's, which users have too.
// Invariant: `build` succeeds only when the name stands for what was built.
import { readFile, stat } from 'node:fs/promises';
import { basename, dirname, join, resolve } from 'node:path';
import type { BuildInfo } from 'e2b';
import type { ApiClient } from '../api-client.ts';
import { ApiError, UsageError } from '../failure.ts';
import { table } from '../output.ts';
import { createProgress, type Progress, secondsText, withStep } from '../progress.ts';
import { type AddCommand, withClientOptions } from '../session.ts';

interface BuildFlags {
  name?: string;
  tag?: string[];
  ready?: string;
  memoryMb?: string;
  cpus?: string;
}

interface TemplateRow {
  templateID: string;
  names: string[];
  buildStatus: string;
  buildCount: number;
  cpuCount: number;
  memoryMB: number;
  updatedAt: string;
}

export const addTemplate: AddCommand = (program, session) => {
  const template = program.command('template').description('templates of your own: build, list, remove');
  withClientOptions(template.command('build <path>'))
    .description("build a template from a Dockerfile, or a directory's; FROM names base or another template")
    .option('--name <NAME>', "the template's name, instead of the directory's")
    .option('--tag <TAG...>', 'tags that name this build; without any it is the default one')
    .option('--ready <COMMAND>', 'the start command is ready when this succeeds; without it, after 20 s')
    .option('--memory-mb <MB>', 'memory, instead of what base has')
    .option('--cpus <N>', 'processors, instead of what base has')
    .action(async (path: string, flags: BuildFlags, command) =>
      session.withClient(command, async (client, output) => {
        const startedAtMs = performance.now();
        const built = await build(client, path, flags, createProgress(session.stderr));
        const elapsedMs = Math.round(performance.now() - startedAtMs);
        const { name, templateId, buildId, tags } = built;
        output.value({ name, templateId, buildId, tags, elapsedMs });
        output.line(`${name} (${tags.join(', ')}) is ready after ${secondsText(elapsedMs)}`);
      }),
    );
  withClientOptions(template.command('ls'))
    .description('all templates')
    .action(async (_options, command) =>
      session.withClient(command, async (client, output) => {
        const templates = await client.json<TemplateRow[]>('/templates');
        output.value({ templates });
        output.line(
          table(
            ['TEMPLATE', 'ID', 'STATUS', 'BUILDS', 'CPUS', 'MEMORY', 'UPDATED'],
            templates.map((row) => [
              row.names.join(' '),
              row.templateID,
              row.buildStatus,
              row.buildCount,
              row.cpuCount,
              `${row.memoryMB} MB`,
              row.updatedAt,
            ]),
          ),
        );
      }),
    );
  withClientOptions(template.command('rm <name>'))
    .description('remove a template with all its builds, by name or id; sandboxes of it run on')
    .action(async (name: string, _options, command) =>
      session.withClient(command, async (client, output) => {
        await client.json(`/templates/${encodeURIComponent(name)}`, { method: 'DELETE' });
        output.value({ removed: name });
        output.line(`${name} is removed`);
      }),
    );
};

async function build(
  client: ApiClient,
  path: string,
  flags: BuildFlags,
  progress: Progress,
): Promise<BuildInfo> {
  const dockerfile = await dockerfileAt(path);
  const contextDir = dirname(dockerfile);
  const name = flags.name ?? basename(contextDir);
  const size = { ...numberOf('memoryMB', flags.memoryMb), ...numberOf('cpuCount', flags.cpus) };
  // A failure to reach Thaw has its own exit code; the client below would only call it a failed fetch.
  await client.json('/health');
  const { Template, SandboxError, BuildError } = await import('e2b');
  const definition = Template({ fileContextPath: contextDir });
  const steps = definition.fromDockerfile(dockerfile);
  const from = /^\s*FROM\s+(\S+)/im.exec(await readFile(dockerfile, 'utf8'))![1]!;
  if (from !== 'base' && !from.startsWith('e2bdev/base')) definition.fromTemplate(from);
  const template = flags.ready === undefined ? steps : steps.setReadyCmd(flags.ready);
  const options = {
    apiUrl: client.url,
    apiKey: client.apiKey,
    ...(flags.tag ? { tags: flags.tag } : {}),
    ...size,
    onBuildLogs: ({ message }: { message: string }) => progress.note(message),
  };
  try {
    return await withStep(progress, `building ${name}`, () => Template.build(template, name, options));
  } catch (error) {
    if (error instanceof SandboxError || error instanceof BuildError)
      throw new ApiError(422, 'build-failed', error.message, undefined);
    throw error;
  }
}

/** @throws UsageError when there is none. */
async function dockerfileAt(path: string): Promise<string> {
  const facts = await stat(path).catch(() => undefined);
  const file = resolve(facts?.isDirectory() ? join(path, 'Dockerfile') : path);
  const text = await readFile(file, 'utf8').catch(() => undefined);
  if (text === undefined)
    throw new UsageError(`${file} cannot be read; a template is built from a Dockerfile`);
  if (!/^\s*FROM\s+\S+/im.test(text))
    throw new UsageError(`${file}: a Dockerfile needs a line FROM TEMPLATE`);
  return file;
}

function numberOf(name: 'memoryMB' | 'cpuCount', given: string | undefined): Record<string, number> {
  if (given === undefined) return {};
  if (!/^[1-9][0-9]{0,5}$/.test(given))
    throw new UsageError(`${name}: expected a whole number, got ${given}`);
  return { [name]: Number(given) };
}
