// Templates as a user builds them, with the unmodified E2B client and the command line, in real VMs over one Thaw.
// What only the records decide is held by services/gateway/routes/templates.test.ts.
import assert from 'node:assert/strict';
import { mkdir, mkdtemp, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { Sandbox, Template, waitForPort } from 'e2b';
import { newDataDir, removeDir, runCli, startThaw, type ThawProcess } from './thaw-process.ts';

describe('templates in real VMs', () => {
  let thaw: ThawProcess;
  let dataDir: string;
  let contextDir: string;
  const options = () => ({
    apiKey: thaw.apiKey,
    apiUrl: thaw.url,
    sandboxUrl: thaw.url,
    requestTimeoutMs: 120_000,
  });
  const create = (template: string) => Sandbox.create(template, options());
  const said = async (sandbox: Sandbox, command: string) =>
    (await sandbox.commands.run(command)).stdout.trim();
  const snapshotIds = async () => {
    const { snapshots } = (await (await thaw.call('/v1/snapshots')).json()) as {
      snapshots: { snapshotId: string; names: string[] }[];
    };
    return snapshots.filter(({ names }) => names.length > 0).map(({ snapshotId }) => snapshotId);
  };

  before(async () => {
    dataDir = await newDataDir();
    contextDir = await mkdtemp(join(tmpdir(), 'thaw-template-'));
    await mkdir(join(contextDir, 'site/deep'), { recursive: true });
    await writeFile(join(contextDir, 'site/index.html'), 'first page');
    await writeFile(join(contextDir, 'site/deep/tool.sh'), '#!/bin/sh\necho a tool of $(id -un)\n', {
      mode: 0o755,
    });
    await symlink('index.html', join(contextDir, 'site/link.html'));
    await writeFile(join(contextDir, 'Dockerfile'), 'FROM web\nRUN echo by the command line > /by-cli\n');
    thaw = await startThaw(dataDir);
  });
  after(async () => {
    await thaw?.end();
    for (const dir of [dataDir, contextDir]) await removeDir(dir);
  });

  it('builds one from base: commands, files, environment, working directory, a server that runs', async () => {
    const lines: string[] = [];
    const template = Template({ fileContextPath: contextDir })
      .fromBaseImage()
      .setEnvs({ COLOUR: 'blue', PATH: '/opt/tools:$PATH' })
      .runCmd('mkdir /opt/tools && echo made by $(id -un) > /opt/made', { user: 'root' })
      .copy('site/deep/tool.sh', '/opt/tools/', { user: 'root' })
      .setWorkdir('/home/user/site')
      .copy('site', '.')
      .runCmd('echo "$COLOUR in $PWD" > note.txt')
      .setStartCmd('python3 -m http.server 8000', waitForPort(8000));
    const { templateId } = await Template.build(template, 'web', {
      ...options(),
      onBuildLogs: ({ message }) => lines.push(message),
    });
    assert.ok(
      lines.some((line) => line.startsWith('[5/6] COPY site')),
      lines.join('\n'),
    );
    assert.equal(await Template.exists('web', options()), true);
    const sandbox = await create('web');
    assert.equal((await sandbox.getInfo()).templateId, templateId);
    assert.equal(await said(sandbox, 'curl -s localhost:8000/link.html'), 'first page');
    assert.equal(await said(sandbox, 'cat note.txt; pwd'), 'blue in /home/user/site\n/home/user/site');
    assert.equal(
      await said(sandbox, 'tool.sh; cat /opt/made; echo $COLOUR'),
      'a tool of user\nmade by root\nblue',
    );
    assert.equal(await said(sandbox, 'stat -c "%U %a" . deep deep/tool.sh'), 'user 755\nuser 755\nuser 755');
    const started = (await sandbox.commands.list()).filter(({ args }) =>
      args.join(' ').includes('http.server'),
    );
    assert.equal(started.length, 1);
    await sandbox.kill();
  });

  it('builds on a template of its own; a rebuild moves the name and leaves what runs alone', async () => {
    const before = await create('web');
    const old = await snapshotIds();
    const rebuilt = Template({ fileContextPath: contextDir })
      .fromTemplate('web')
      .runCmd('echo second page > index.html');
    await Template.build(rebuilt, 'web', options());
    const now = await create('web');
    assert.equal(await said(now, 'curl -s localhost:8000; echo $COLOUR'), 'second page\nblue');
    assert.equal(await said(before, 'curl -s localhost:8000'), 'first page');
    const left = await snapshotIds();
    assert.equal(left.length, 1);
    assert.ok(!old.includes(left[0]!), 'the content that lost its name is gone');
    await Promise.all([before.kill(), now.kill()]);
  });

  it('says what a failing step printed, and the name stays what it was', async () => {
    const failing = Template().fromTemplate('web').runCmd('true').runCmd('echo no luck >&2; exit 7');
    await assert.rejects(Template.build(failing, 'web', options()), /step 2: .*exit status 7\nno luck/s);
    const dying = Template().fromTemplate('base').setStartCmd('echo cannot >&2; exit 9', waitForPort(9));
    await assert.rejects(Template.build(dying, 'dying', options()), /exit status 9\ncannot/);
    const sandbox = await create('web');
    assert.equal(await said(sandbox, 'curl -s localhost:8000'), 'second page');
    await sandbox.kill();
  });

  it('is built, listed and removed on the command line, and survives a restart', async () => {
    const cli = (...args: string[]) => runCli([...args, '--json'], { THAW_DATA_DIR: dataDir });
    const built = await cli('template', 'build', contextDir, '--name', 'from-cli', '--ready', 'true');
    assert.equal(built.exitCode, 0, built.stderr + built.stdout);
    assert.match(built.stderr, /\[3\/5\] RUN echo by the command line/);
    await thaw.end();
    thaw = await startThaw(dataDir);
    const sandbox = await create('from-cli');
    assert.equal(
      await said(sandbox, 'cat /by-cli; curl -s localhost:8000'),
      'by the command line\nsecond page',
    );
    await sandbox.kill();
    const { templates } = JSON.parse((await cli('template', 'ls')).stdout) as {
      templates: { names: string[]; buildStatus: string }[];
    };
    assert.deepEqual(
      templates.map(({ names, buildStatus }) => `${names} ${buildStatus}`),
      ['from-cli ready', 'dying error', 'web ready', 'base ready'],
    );
    for (const name of ['from-cli', 'web', 'dying'])
      assert.equal((await cli('template', 'rm', name)).exitCode, 0);
    assert.deepEqual(await snapshotIds(), []);
    await assert.rejects(create('web'), /no template "web"/);
  });
});
