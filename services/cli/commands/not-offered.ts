// Owns the commands that the interfaces name and this version does not offer: they say so and fail.
import { ThawError } from '../../../shared/errors.ts';
import type { AddCommand } from '../session.ts';

const commands: [name: string, what: string][] = [
  ['serve', 'running the gateway and nodes as separate programs'],
  ['nodes', 'more than one node'],
];

export const addNotOffered: AddCommand = (program) => {
  for (const [name, what] of commands)
    program
      .command(`${name} [args...]`)
      .description(`${what}: not in this version`)
      .allowUnknownOption()
      .passThroughOptions()
      .action(() => {
        throw new ThawError('not-implemented', `${name}: ${what} is not in this version of Thaw`);
      });
};
