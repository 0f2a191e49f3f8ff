// Owns what the guest kernel is told whatever hypervisor boots it. Refuses to own what only one of them needs.
// Invariant: memory that a guest has freed is zero, for pages of zeros are not stored.

export const commonKernelArguments = 'console=ttyS0 quiet panic=-1 init_on_free=1';
