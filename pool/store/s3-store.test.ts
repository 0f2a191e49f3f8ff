import { describeStoreConformance } from './conformance.ts';
import { openStore } from './open-store.ts';
import { s3Missing, startS3, testCredentials } from './s3-server-for-tests.ts';
import { S3Store } from './s3-store.ts';

const skip = (await s3Missing()) ?? false;

describeStoreConformance(
  'S3',
  async () => {
    const s3 = await startS3();
    const { bucket, endpoint } = s3;
    const store = new S3Store({ bucket, prefix: 'some/prefix', endpoint, credentials: testCredentials });
    return {
      store,
      close: async () => {
        await store.close();
        await s3.stop();
      },
    };
  },
  skip,
);

describeStoreConformance(
  'S3, with all that openStore adds',
  async () => {
    const s3 = await startS3();
    const store = await openStore(`s3://${s3.bucket}`, {
      s3Endpoint: s3.endpoint,
      s3Credentials: testCredentials,
    });
    return {
      store,
      close: async () => {
        await store.close();
        await s3.stop();
      },
    };
  },
  skip,
);
