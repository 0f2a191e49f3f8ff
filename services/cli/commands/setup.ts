// Owns `thaw setup`: installs what the host lacks, saying what and why; with --image, makes the guest image, too.
import { defaultCacheDir, ensureImage } from '../../../images/image.ts';
import { installPackages, missingPrograms, neededPrograms } from '../host-packages.ts';
import { addConfigOptions } from '../load-config.ts';
import { createProgress, withStep } from '../progress.ts';
import { type AddCommand, withJson } from '../session.ts';

export const addSetup: AddCommand = (program, session) => {
  addConfigOptions(withJson(program.command('setup')), ['cacheDir', 'hypervisor', 'cloudHypervisor'])
    .description('install the Debian packages that this machine lacks')
    .option('--image', 'build the guest image as well')
    .action(async (options: { image?: boolean }, command) => {
      const { config } = await session.config(command);
      const progress = createProgress(session.stderr);
      const missing = await missingPrograms(await neededPrograms(config));
      for (const { debianPackage, program: name, why } of missing)
        progress.note(`  ${debianPackage}: ${name} ${why}`);
      if (missing.length > 0)
        await withStep(progress, 'Debian packages', (step) =>
          installPackages(missing, (line) => step.update(line)),
        );
      if (options.image)
        await withStep(progress, 'guest image', (step) =>
          ensureImage({
            cacheDir: config.cacheDir ?? defaultCacheDir(),
            onProgress: (text) => step.update(text),
          }),
        );
      session.output(command).value({ installed: missing.map(({ debianPackage }) => debianPackage) });
    });
};
