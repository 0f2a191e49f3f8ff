export const claim = null as never;
