// Owns certificates for tests: an authority of their own, and pairs for a domain and all names one label below it.
// Invariant: private keys are readable by their owner alone, as the gateway demands.
import { execFileSync, spawnSync } from 'node:child_process';
import { chmodSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

export const noOpenssl =
  spawnSync('openssl', ['version']).status === 0 ? false : 'openssl is missing: apt-get install openssl';

export interface Certificate {
  certPath: string;
  keyPath: string;
}

const newKey = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes'];

export function makeAuthority(dir: string): Certificate {
  const authority = { certPath: join(dir, 'authority.pem'), keyPath: join(dir, 'authority.key') };
  const use = ['-addext', 'basicConstraints=critical,CA:TRUE', '-addext', 'keyUsage=critical,keyCertSign'];
  request([...newKey, '-subj', '/CN=Thaw test authority', ...use], authority);
  return authority;
}

/** Written over files that are there, the certificate first: as a renewal does. */
export function makeCertificate(authority: Certificate, dir: string, domain: string): Certificate {
  const made = { certPath: join(dir, 'cert.pem'), keyPath: join(dir, 'key.pem') };
  const names = `subjectAltName=DNS:${domain},DNS:*.${domain}`;
  const config = join(dir, 'openssl.cnf');
  writeFileSync(config, '[req]\ndistinguished_name=dn\n[dn]\n');
  const signer = ['-CA', authority.certPath, '-CAkey', authority.keyPath];
  request(
    [
      ...newKey,
      ...signer,
      '-config',
      config,
      '-subj',
      `/CN=${domain}`,
      '-addext',
      names,
      '-addext',
      'basicConstraints=CA:FALSE',
    ],
    made,
  );
  return made;
}

function request(args: string[], { certPath, keyPath }: Certificate): void {
  const files = ['-keyout', keyPath, '-out', certPath, '-days', '2'];
  execFileSync('openssl', ['req', '-x509', ...args, ...files], { stdio: ['ignore', 'ignore', 'pipe'] });
  chmodSync(keyPath, 0o600);
}
