export const tti = null as never;
