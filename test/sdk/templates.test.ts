// The routes of templates with the unmodified E2B client, over a real Redis: every refusal over a simulated node, and
// what a build does over agents that are plain host processes (no isolation: they touch only a directory of the test).
import assert from 'node:assert/strict';
import { mkdir, mkdtemp, readdir, readFile, rm, stat, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, beforeEach, describe, it } from 'node:test';
import { gzipSync } from 'node:zlib';
import { BuildError, Sandbox, Template, waitForFile } from 'e2b';
import { eventually } from '../../services/gateway/eventually.ts';
import { type GatewayForTests, startGateway, tarball } from '../../services/gateway/gateway-for-tests.ts';
import type { SandboxRequest } from '../../services/gateway/node-client.ts';
import { ThawError } from '../../shared/errors.ts';
import { AgentNode } from './agent-node.ts';

let gateway: GatewayForTests;
let node: AgentNode;
let dir: string;
before(async () => {
  node = await new AgentNode().start();
  gateway = await startGateway(
    { maxBuilds: 2, templateReadyTimeoutMs: 1_500, drainTimeoutMs: 200 },
    undefined,
    node,
  );
  dir = await mkdtemp(join(tmpdir(), 'thaw-templates-'));
});
after(async () => {
  await gateway.close();
  await rm(dir, { recursive: true, force: true });
});
beforeEach(() => node.failures.clear());

const connection = () => ({ apiKey: gateway.apiKey, apiUrl: gateway.url, sandboxUrl: gateway.url });
const send = (method: string, path: string, body?: object) =>
  gateway.call(path, {
    method,
    ...(body ? { headers: { 'content-type': 'application/json' }, body: JSON.stringify(body) } : {}),
  });
const json = async (response: Response) => (await response.json()) as Record<string, unknown>;
const request = async (name: string, over: object = {}) => {
  const answer = await send('POST', '/v3/templates', { name, ...over });
  assert.equal(answer.status, 202, await answer.clone().text());
  return (await answer.json()) as { templateID: string; buildID: string; tags: string[] };
};
const startPath = ({ templateID, buildID }: { templateID: string; buildID: string }) =>
  `/v2/templates/${templateID}/builds/${buildID}`;
const statusOf = async ({ templateID, buildID }: { templateID: string; buildID: string }, offset = 0) => {
  const answer = await gateway.call(`/templates/${templateID}/builds/${buildID}/status?logsOffset=${offset}`);
  return (await answer.json()) as {
    status: string;
    logEntries: { message: string; step: string; level: string }[];
    reason?: { message: string; step?: string };
  };
};
const build = (template: Parameters<typeof Template.build>[0], name: string, over: object = {}) =>
  Template.build(template, name, { ...connection(), ...over });
const plain = () => Template({ fileContextPath: dir }).fromBaseImage().setUser('root').setWorkdir(dir);
const templatesShown = () =>
  node.snapshots.filter(({ names }) => names.some((name) => name.startsWith('template/')));

describe('building templates', () => {
  it('runs steps in order, copies files, starts the program and makes a name of it', async () => {
    await mkdir(join(dir, 'src/deep'), { recursive: true });
    await writeFile(join(dir, 'src/a.txt'), 'content of a');
    await writeFile(join(dir, 'src/deep/run.sh'), 'echo ran', { mode: 0o750 });
    await symlink('a.txt', join(dir, 'src/link'));
    const lines: string[] = [];
    const template = plain()
      .setEnvs({ COLOUR: 'blue' })
      .setEnvs({ BOTH: '$COLOUR and $NONE more' })
      .copy('src', 'whole')
      .copy('src/*.txt', join(dir, 'matched/'))
      .copy('src/a.txt', 'single', { mode: 0o600 })
      .runCmd('echo "$BOTH" in "$PWD" > note; printf "no line end"')
      .setStartCmd('touch started; exec sleep 60', waitForFile(join(dir, 'started')));
    const info = await build(template, 'mine', {
      onBuildLogs: ({ message }: { message: string }) => lines.push(message),
    });
    assert.deepEqual(info.tags, ['default']);
    assert.equal(await readFile(join(dir, 'note'), 'utf8'), `blue and  more in ${dir}\n`);
    assert.equal(await readFile(join(dir, 'whole/link'), 'utf8'), 'content of a');
    assert.equal((await stat(join(dir, 'whole/deep/run.sh'))).mode & 0o777, 0o750);
    assert.equal((await stat(join(dir, 'single'))).mode & 0o777, 0o600);
    assert.deepEqual(await readdir(join(dir, 'matched')), ['a.txt']);
    for (const line of ['FROM base', '[4/8] ENV BOTH', 'no line end', 'Taking the snapshot'])
      assert.ok(lines.includes(line), `${line} in\n${lines.join('\n')}`);
    assert.equal(node.sandboxes.size, 0, 'the sandbox of the build has ended');
    const [snapshot] = templatesShown();
    assert.deepEqual(snapshot?.names, [`template/mine:default/${info.buildId}`]);
    const sandbox = await Sandbox.create('mine', connection());
    const detail = await sandbox.getInfo();
    assert.deepEqual([detail.templateId, detail.name], [info.templateId, 'mine']);
    assert.equal(node.sandboxes.get(sandbox.sandboxId)?.snapshotId, snapshot?.snapshotId);
    await sandbox.kill();
  });

  it('sends files once for the same content', async () => {
    const lines: string[] = [];
    const onBuildLogs = ({ message }: { message: string }) => void lines.push(message);
    await build(plain().copy('src/a.txt', 'single'), 'mine', { onBuildLogs });
    assert.ok(lines.includes("Skipping upload of 'src/a.txt', already cached"), lines.join('\n'));
  });

  it('moves the name to a newer build at once, and keeps what another tag names', async () => {
    await build(plain().runCmd('true'), 'mine:v1');
    await Template.assignTags('mine:v1', ['stable', 'old'], connection());
    await Template.removeTags('mine', ['v1'], connection());
    await build(Template().fromTemplate('mine:stable').setUser('root').runCmd('true'), 'mine');
    const tags = await Template.getTags('mine', connection());
    assert.deepEqual(tags.map(({ tag }) => tag).sort(), ['default', 'old', 'stable']);
    assert.equal(templatesShown().length, 2);
    await Template.removeTags('mine', ['stable', 'old'], connection());
    assert.equal(templatesShown().length, 1);
    await assert.rejects(Sandbox.create('mine:stable', connection()), /no build that is ready under stable/);
  });

  it('gives a sandbox that is being created what the name stands for now', async (context) => {
    await build(plain(), 'moving');
    const [old] = templatesShown();
    const create = node.createSandbox.bind(node);
    context.mock.method(node, 'createSandbox', async (wanted: SandboxRequest) => {
      if (wanted.snapshotId !== old!.snapshotId) return await create(wanted);
      await build(plain(), 'moving');
      throw new ThawError('template-not-found', `no snapshot ${wanted.snapshotId}`);
    });
    const sandbox = await Sandbox.create('moving', connection());
    assert.notEqual(node.sandboxes.get(sandbox.sandboxId)?.snapshotId, old!.snapshotId);
    await sandbox.kill();
    await send('DELETE', '/templates/moving');
  });

  it('fails with the step and its output, and leaves the name as it was', async () => {
    const [before] = templatesShown();
    const failing = plain().runCmd('echo about to; echo no luck >&2; exit 3').runCmd('never');
    await assert.rejects(build(failing, 'mine'), (error) => {
      assert.ok(error instanceof BuildError);
      assert.match(error.message, /^step 3: echo about to.*: exit status 3\nabout to\nno luck$/s);
      assert.match(error.stack!, /templates\.test\.ts/);
      return true;
    });
    assert.deepEqual(templatesShown(), [before]);
    assert.equal(node.sandboxes.size, 0);
  });

  it('fails when the start command does, and when its check never holds', async () => {
    const dying = plain().setStartCmd('echo cannot >&2; exit 9', 'false');
    await assert.rejects(build(dying, 'dying'), /exit status 9\ncannot/);
    const silent = plain().setStartCmd('sleep 60', 'false');
    await assert.rejects(build(silent, 'silent'), /not ready within 1500 ms: false/);
    assert.equal(await Template.exists('silent', connection()), false);
  });

  it('is given up when a newer build of the name begins, or the template is removed', async () => {
    const hold = `touch ${join(dir, 'waits')}; sleep 60`;
    const older = build(plain().runCmd(hold), 'raced');
    const refused = assert.rejects(older, /a newer build of the same name/);
    await eventually('the first one works', async () => (await readdir(dir)).includes('waits'));
    await build(plain().runCmd('true'), 'raced');
    await refused;
    await rm(join(dir, 'waits'));
    const asked = await request('raced');
    const steps = [{ type: 'RUN', args: [hold, 'root'] }];
    const body = { fromTemplate: 'base', steps: [{ type: 'WORKDIR', args: [dir] }, ...steps].slice(1) };
    assert.equal((await send('POST', startPath(asked), body)).status, 202);
    await eventually('it works', async () => (await readdir(dir)).includes('waits'));
    assert.equal((await send('DELETE', '/templates/raced')).status, 204);
    assert.equal(node.sandboxes.size, 0);
    assert.equal(await Template.exists('raced', connection()), false);
    assert.equal(
      (await gateway.call(`/templates/${asked.templateID}/builds/${asked.buildID}/status`)).status,
      404,
    );
  });

  it('ends at its deadline', async () => {
    const short = await startGateway(
      { templateBuildTimeoutMs: 300, drainTimeoutMs: 200 },
      undefined,
      await new AgentNode().start(),
    );
    try {
      const options = { apiKey: short.apiKey, apiUrl: short.url };
      const slow = plain().runCmd('sleep 60');
      await assert.rejects(Template.build(slow, 'slow', options), /the build took longer than 300 ms/);
    } finally {
      await short.close();
    }
  });

  it('gives log lines from where the client is', async () => {
    const asked = await request('many-lines');
    const steps = [{ type: 'RUN', args: ['seq 250', 'root'] }];
    assert.equal((await send('POST', startPath(asked), { fromTemplate: 'base', steps })).status, 202);
    await eventually('it is ready', async () => (await statusOf(asked)).status === 'ready');
    const pages = [
      await statusOf(asked),
      await statusOf(asked, 100),
      await statusOf(asked, 200),
      await statusOf(asked, 300),
    ];
    assert.deepEqual(
      pages.map(({ logEntries }) => logEntries.length),
      [100, 100, 56, 0],
    );
    assert.deepEqual(pages[1]!.logEntries[0], {
      ...pages[1]!.logEntries[0],
      message: '99',
      step: '1',
      level: 'info',
    });
    assert.equal((await gateway.call('/templates/many-lines/builds/x/status?logsOffset=-1')).status, 400);
    await send('DELETE', '/templates/many-lines');
  });
});

describe('listing templates', () => {
  it('shows them with what they came to, newest first, and base', async () => {
    await build(plain(), 'listed', { tags: ['default', 'v9'] });
    await request('waits');
    const rows = (await (await gateway.call('/templates')).json()) as Record<string, unknown>[];
    const shown = rows.map(({ names, buildStatus }) => `${names} ${buildStatus}`);
    assert.deepEqual([...shown.slice(0, 2), shown.at(-1)], ['waits waiting', 'listed ready', 'base ready']);
    assert.deepEqual([rows[1]!.memoryMB, rows[1]!.cpuCount, rows[1]!.public], [512, 2, false]);
    const one = await json(await gateway.call('/templates/listed'));
    assert.equal((one.builds as object[]).length, 1);
    assert.equal((await gateway.call('/templates/nowhere')).status, 404);
    assert.equal((await gateway.call('/templates/aliases/base')).status, 200);
  });
});

describe('templates after a restart', () => {
  it('names and builds are there; a build that was cut off has failed; a lost record is found again', async () => {
    const info = await build(plain().runCmd('true'), 'kept:v2', { tags: ['default'] });
    const cut = await request('kept');
    const steps = [{ type: 'RUN', args: ['sleep 60', 'root'] }];
    assert.equal((await send('POST', startPath(cut), { fromTemplate: 'base', steps })).status, 202);
    await gateway.restart();
    await gateway.app.gateway.resume();
    assert.equal((await statusOf({ templateID: info.templateId, buildID: info.buildId })).status, 'ready');
    const failed = await statusOf(cut);
    assert.match(`${failed.status}: ${failed.reason?.message}`, /error: .*the gateway ended/);
    const snapshots = templatesShown().map(({ snapshotId }) => snapshotId);
    await gateway.state.templates.change('kept', () => undefined);
    await gateway.app.gateway.resume();
    assert.equal((await json(await gateway.call('/templates/aliases/kept:v2'))).public, false);
    assert.deepEqual(
      templatesShown().map(({ snapshotId }) => snapshotId),
      snapshots,
    );
  });

  it('a build whose gateway is gone has failed once its lease has ended', async () => {
    const lost = await request('lost');
    await gateway.state.templates.change('lost', (known) => ({
      ...known!,
      builds: known!.builds.map((row) => ({ ...row, state: 'building' as const })),
    }));
    await gateway.state.templates.hold(lost.buildID, 10_000);
    assert.equal((await statusOf(lost)).status, 'building');
    await gateway.state.templates.hold(lost.buildID, 1);
    await eventually('its lease has ended', async () => (await statusOf(lost)).status === 'error');
  });
});

describe('what cannot be built is refused', () => {
  const sources: [what: string, template: () => Parameters<typeof Template.build>[0], words: RegExp][] = [
    ['an image', () => Template().fromImage('node:20'), /501: .*node:20.*builds from e2bdev\/base/],
    [
      'another Dockerfile base',
      () => Template().fromDockerfile('FROM debian:12\nRUN true'),
      /501: .*debian:12/,
    ],
    [
      'a private registry',
      () => Template().fromImage('e2bdev/base', { username: 'a', password: 'b' }),
      /501: .*registry/,
    ],
    [
      'AWS',
      () => Template().fromAWSRegistry('x', { accessKeyId: 'a', secretAccessKey: 'b', region: 'c' }),
      /501: .*registry/,
    ],
    ['GCP', () => Template().fromGCPRegistry('x', { serviceAccountJSON: {} }), /501: .*registry/],
    ['MCP servers', () => Template().fromTemplate('mcp-gateway').addMcpServer('exa'), /501: .*mcp-gateway/],
    ['a template that is none', () => Template().fromTemplate('nowhere'), /404: no template "nowhere"/],
  ];
  for (const [what, template, words] of sources)
    it(what, () =>
      assert.rejects(
        build(template(), 'refused'),
        (error) => error instanceof BuildError && words.test(error.message),
      ),
    );

  it('names that are taken, reserved or none', async () => {
    const sandbox = await Sandbox.create('base', connection());
    await sandbox.createSnapshot({ name: 'a-snapshot' });
    for (const [name, status] of [
      ['a-snapshot', 409],
      ['base', 409],
      [`t${'0'.repeat(20)}`, 409],
      [`snap-${'0'.repeat(24)}`, 409],
      ['with space', 400],
      ['name:', 400],
      ['name:a/b', 400],
      ['../up', 400],
      ['x'.repeat(49), 400],
      ['', 400],
    ] as const)
      assert.equal((await send('POST', '/v3/templates', { name })).status, status, name);
    assert.equal((await send('POST', '/v3/templates', { name: 'x', tags: ['a/b'] })).status, 400);
    const named = (name: string) => send('POST', `/sandboxes/${sandbox.sandboxId}/snapshots`, { name });
    await request('taken');
    assert.equal((await named('taken')).status, 409);
    assert.equal((await named('template/x')).status, 400);
    await sandbox.kill();
  });

  it('builds that are unknown, started twice, or one too many', async () => {
    const asked = await request('limits');
    const nowhere = { ...asked, buildID: '00000000-0000-0000-0000-000000000000' };
    const body = { fromTemplate: 'base', steps: [{ type: 'RUN', args: ['sleep 60', 'root'] }] };
    assert.equal((await send('POST', startPath(nowhere), body)).status, 404);
    assert.equal((await send('POST', startPath({ ...asked, templateID: 'nowhere' }), body)).status, 404);
    assert.equal((await send('POST', startPath(asked), body)).status, 202);
    assert.equal((await send('POST', startPath(asked), body)).status, 409);
    const other = await request('limits', { tags: ['b'] });
    assert.equal((await send('POST', startPath(other), body)).status, 202);
    const third = await request('limits', { tags: ['c'] });
    const refused = await send('POST', startPath(third), body);
    assert.equal(refused.status, 429);
    assert.ok(Number(refused.headers.get('retry-after')) > 0);
    assert.equal((await send('DELETE', '/templates/limits')).status, 204);
  });

  it('what the node cannot give', async () => {
    node.failures.set('createSandbox', new ThawError('no-capacity', 'no memory is left'));
    await assert.rejects(build(plain(), 'refused'), /no memory is left/);
    const big = await json(await send('POST', '/v3/templates', { name: 'refused', memoryMB: 1 }));
    assert.match(String(big.message), /memoryMB/);
  });

  it('removing what is not a template of ours', async () => {
    assert.equal((await send('DELETE', '/templates/base')).status, 409);
    assert.equal((await send('DELETE', '/templates/nowhere')).status, 404);
    await build(plain(), 'owned');
    const [snapshot] = templatesShown();
    for (const path of [`/templates/${snapshot!.snapshotId}`, `/v1/snapshots/${snapshot!.snapshotId}`])
      assert.equal((await send('DELETE', path)).status, 409, path);
    const listed = (await (await gateway.call('/snapshots')).json()) as { snapshotID: string }[];
    assert.ok(!listed.some(({ snapshotID }) => snapshotID === snapshot!.snapshotId));
  });

  it('anything without a key', async () => {
    for (const [method, path] of [
      ['GET', '/templates'],
      ['POST', '/v3/templates'],
      ['GET', `/templates/owned/files/${'a'.repeat(64)}`],
      ['DELETE', '/templates/owned'],
    ] as const)
      assert.equal((await fetch(`${gateway.url}${path}`, { method })).status, 401, path);
  });
});

describe('uploads for builds', () => {
  const hash = 'b'.repeat(64);
  const linkOf = async (wanted = hash) => {
    const answer = await gateway.call(`/templates/owned/files/${wanted}`);
    return { status: answer.status, ...((await answer.json()) as { present: boolean; url: string }) };
  };
  const put = (url: string, body: string | Buffer) =>
    fetch(url, { method: 'PUT', body: typeof body === 'string' ? body : new Uint8Array(body) });

  it('go to a link of their own, and nowhere else', async () => {
    const { status, present, url } = await linkOf();
    assert.deepEqual([status, present], [201, false]);
    assert.ok(url.startsWith(gateway.url));
    const files = await tarball({ 'a.txt': 'a' });
    for (const wrong of [
      url.replace(hash, 'c'.repeat(64)),
      url.replace(/expires=\d+/, 'expires=9999999999999'),
      url.split('?')[0]!,
    ])
      assert.equal((await put(wrong, files)).status, 403, wrong);
    assert.equal((await put(url, gzipSync(files))).status, 200);
    assert.equal((await linkOf()).present, true);
    assert.equal((await linkOf('not-a-hash')).status, 400);
  });

  it('are checked as bundles are, and limited', async () => {
    const { url } = await linkOf('d'.repeat(64));
    assert.equal((await put(url, await tarball({ '../up': 'x' }))).status, 400);
    assert.equal((await put(url, 'no archive')).status, 400);
    assert.equal((await put(url, '')).status, 400);
    assert.equal((await linkOf('d'.repeat(64))).present, false);
    const small = await startGateway({ maxBundleBytes: 1_000, drainTimeoutMs: 200 });
    try {
      await small.call('/v3/templates', {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body: '{"name":"x"}',
      });
      const link = (await (await small.call(`/templates/x/files/${hash}`)).json()) as { url: string };
      assert.equal((await put(link.url, Buffer.alloc(2_000))).status, 413);
    } finally {
      await small.close();
    }
  });

  it('go where the proxy in front says that the client is', async () => {
    const behind = await startGateway({ trustForwarded: true, drainTimeoutMs: 200 });
    try {
      await behind.state.templates.change('x', () => ({
        templateId: 't',
        name: 'x',
        createdAt: 'now',
        tags: {},
        builds: [],
      }));
      const headers = { 'x-forwarded-proto': 'https', 'x-forwarded-host': 'thaw.example' };
      const answer = await behind.call(`/templates/x/files/${hash}`, { headers });
      assert.match(
        ((await answer.json()) as { url: string }).url,
        /^https:\/\/thaw\.example\/templates\/files\//,
      );
    } finally {
      await behind.close();
    }
    const { url } = await linkOf('f'.repeat(64));
    assert.ok(url.startsWith(`${gateway.url}/`));
  });

  it('must be there when a build wants them', async () => {
    const asked = await request('owned');
    const steps = [{ type: 'COPY', args: ['a', 'b'], filesHash: 'e'.repeat(64) }];
    const answer = await send('POST', startPath(asked), { fromTemplate: 'base', steps });
    assert.equal(answer.status, 400);
    assert.match(String((await json(answer)).message), /have not been uploaded/);
  });
});
