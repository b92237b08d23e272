/* SPDX-License-Identifier: MIT */
/* What the probe would like a libc to have. Linked against, never loaded: its name is that of the real one. */
#include <stddef.h>

const ptrdiff_t __rseq_offset = 0;
const unsigned int __rseq_size = 0, __rseq_flags = 0;

int pthread_create(void)
{
	return 0;
}

int pthread_join(void)
{
	return 0;
}
