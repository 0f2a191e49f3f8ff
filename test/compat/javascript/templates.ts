// Templates: built from steps, their lines shown, found by name, the start of a sandbox, refused where they cannot be.
import assert from 'node:assert/strict';
import type { Stage } from './scenario.ts';

export default async ({ e2b, sandbox, skip }: Stage): Promise<void> => {
  const { Template } = e2b;
  if (typeof Template?.build !== 'function') skip('the client has no templates');
  const name = `built-${sandbox.sandboxId}`;
  const lines: string[] = [];
  assert.equal(await Template.exists(name), false);
  const template = Template()
    .fromBaseImage()
    .setUser('root')
    .setWorkdir('/tmp')
    .setEnvs({ COLOUR: 'blue' })
    .runCmd('echo "the colour is $COLOUR"');
  const onBuildLogs = ({ message }: { message: string }) => void lines.push(message);
  const { templateId } = await Template.build(template, name, { cpuCount: 1, memoryMB: 512, onBuildLogs });
  assert.ok(
    lines.some((line) => line.includes('the colour is blue')),
    lines.join(' | '),
  );
  assert.equal(await Template.exists(name), true);
  const built = await e2b.Sandbox.create(name);
  assert.equal((await built.getInfo()).templateId, templateId);
  assert.equal((await built.commands.run('echo ready')).stdout, 'ready\n');
  await built.kill();
  const image = Template().fromImage('debian:12').runCmd('true');
  await assert.rejects(Template.build(image, `${name}x`), /debian:12/);
};
