// Owns how behaviour is added to a store: one function around every request, whatever its kind.
// Invariant: a wrapped store offers exactly what the inner one does.
import type { Readable } from 'node:stream';
import type {
  BlobInfo,
  BlobStore,
  FileSource,
  GetOptions,
  ListOptions,
  ListPage,
  PutOutcome,
  RequestOptions,
} from './blob-store.ts';

export type StoreOp = 'put' | 'replace' | 'get' | 'stream' | 'head' | 'list' | 'delete' | 'sweep';

export interface StoreRequest {
  op: StoreOp;
  what: string;
  /** Bytes that go to the store. */
  bodyBytes: number;
  /** Bytes asked of it, where the caller said. */
  askedBytes: number;
  options: RequestOptions;
}

export type Around = <T>(request: StoreRequest, call: (options: RequestOptions) => Promise<T>) => Promise<T>;

export class WrappedStore implements BlobStore {
  readonly #inner: BlobStore;
  readonly #around: Around;

  constructor(inner: BlobStore, around: Around) {
    this.#inner = inner;
    this.#around = around;
  }

  get url(): string {
    return this.#inner.url;
  }

  put(key: string, body: Uint8Array, options: RequestOptions = {}): Promise<PutOutcome> {
    return this.#call('put', key, options, (o) => this.#inner.put(key, body, o), { bodyBytes: body.length });
  }

  putFile(key: string, source: FileSource, options: RequestOptions = {}): Promise<PutOutcome> {
    const { sizeBytes: bodyBytes } = source;
    return this.#call('put', key, options, (o) => this.#inner.putFile(key, source, o), { bodyBytes });
  }

  replace(key: string, body: Uint8Array, options: RequestOptions = {}): Promise<void> {
    const { length: bodyBytes } = body;
    return this.#call('replace', key, options, (o) => this.#inner.replace(key, body, o), { bodyBytes });
  }

  get(key: string, options: GetOptions = {}): Promise<Buffer> {
    const askedBytes = options.range?.sizeBytes ?? 0;
    const call = (o: RequestOptions) => this.#inner.get(key, { ...options, ...o });
    return this.#call('get', key, options, call, { askedBytes });
  }

  getStream(key: string, options: GetOptions = {}): Promise<Readable> {
    const askedBytes = options.range?.sizeBytes ?? 0;
    const call = (o: RequestOptions) => this.#inner.getStream(key, { ...options, ...o });
    return this.#call('stream', key, options, call, { askedBytes });
  }

  head(key: string, options: RequestOptions = {}): Promise<BlobInfo | undefined> {
    return this.#call('head', key, options, (o) => this.#inner.head(key, o));
  }

  list(prefix: string, options: ListOptions = {}): Promise<ListPage<BlobInfo>> {
    return this.#call('list', prefix, options, (o) => this.#inner.list(prefix, { ...options, ...o }));
  }

  listKeys(prefix: string, options: ListOptions = {}): Promise<ListPage<string>> {
    return this.#call('list', prefix, options, (o) => this.#inner.listKeys(prefix, { ...options, ...o }));
  }

  delete(key: string, options: RequestOptions = {}): Promise<void> {
    return this.#call('delete', key, options, (o) => this.#inner.delete(key, o));
  }

  sweepUnfinished(olderThanMs: number, options: RequestOptions = {}): Promise<number> {
    return this.#call('sweep', '', options, (o) => this.#inner.sweepUnfinished(olderThanMs, o));
  }

  close(): Promise<void> {
    return this.#inner.close();
  }

  #call<T>(
    op: StoreOp,
    key: string,
    options: RequestOptions,
    call: (options: RequestOptions) => Promise<T>,
    sizes: { bodyBytes?: number; askedBytes?: number } = {},
  ): Promise<T> {
    const request = { op, what: `${op} of ${key}`, bodyBytes: 0, askedBytes: 0, options, ...sizes };
    return this.#around(request, call);
  }
}
