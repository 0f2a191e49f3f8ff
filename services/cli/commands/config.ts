// Owns `thaw config`: what each key is set to and by what; the reference page made from the schema.
import { renderConfigPage, shownConfig } from '../../../shared/config.ts';
import { addConfigOptions } from '../load-config.ts';
import { table } from '../output.ts';
import { type AddCommand, withJson } from '../session.ts';

export const addConfig: AddCommand = (program, session) => {
  const config = program.command('config').description('show the configuration');
  addConfigOptions(withJson(config.command('print')))
    .description('each key, its value and where that comes from')
    .action(async (_options, command) => {
      const output = session.output(command);
      const rows = shownConfig(await session.config(command));
      output.value({ config: rows });
      output.line(
        table(
          ['KEY', 'VALUE', 'FROM'],
          rows.map((row) => [row.key, row.value === null ? null : String(row.value), row.source]),
        ),
      );
    });
  config
    .command('page')
    .description('print docs/config.md')
    .action(() => void session.stdout.write(renderConfigPage()));
};
