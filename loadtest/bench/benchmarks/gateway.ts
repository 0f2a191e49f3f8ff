export const gateway = null as never;
