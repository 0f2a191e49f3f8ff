// Owns the pager program: `pool/pagefs` over the node's store. Started by a node, and outlives it.
import { runPager } from '../../pool/pagefs/run-pager.ts';
import { openImages } from './images.ts';

await runPager(openImages);
