/* SPDX-License-Identifier: MIT */
/*
 * Somebody who defines what glibc exports of rseq: __rseq_offset, __rseq_size, __rseq_flags. Linked into the
 * program, or a library of its own.
 *
 * VALUE: what the offset says (below). SIZE: what the size says. BINDING: an attribute, or nothing for a strong one.
 * ONLY_SIZE: the other two are left to libc.
 */
#define _GNU_SOURCE
#include "redefine.h"

/* Values that a definition may hold. */
#define ZERO 1		/* as `ptrdiff_t __rseq_offset;` has it: the thread pointer itself */
#define OWN_ZEROED 2	/* a thread-local area of its own, all zero */
#define OWN_UNREGISTERED 3	/* the same, marked as not registered: cpu_id is -1 */
#define SHIFTED 4	/* 8 bytes beside such an area: an alignment that no kernel takes */
#define FAR 5		/* where no memory is */
#define OF_LIBC 6	/* libc's own offset and size, looked up in the loader at the start */

#ifndef BINDING
#define BINDING
#endif

#if VALUE == OWN_UNREGISTERED
#define CPU_ID UINT32_MAX
#else
#define CPU_ID 0
#endif

/* More than 64 bytes, so that something lies behind whatever a kernel writes. */
static __thread union {
	struct { uint32_t cpu_id_start, cpu_id; };
	unsigned char bytes[256];
} area __attribute__((aligned(64), used, tls_model("initial-exec"))) = { { 0, CPU_ID } };

#if !ONLY_SIZE
BINDING ptrdiff_t __rseq_offset = VALUE == FAR ? 1l << 40 : 0;
BINDING unsigned __rseq_flags = 0;
#endif
BINDING unsigned __rseq_size = SIZE;

/* Its own objects, whoever's the names mean in this process: libc's may not be written. */
#if !ONLY_SIZE
extern ptrdiff_t own_offset __attribute__((alias("__rseq_offset"), visibility("hidden")));
#endif
extern unsigned own_size __attribute__((alias("__rseq_size"), visibility("hidden"), unused));

__attribute__((constructor)) static void set_up(void)
{
#if VALUE == OWN_ZEROED || VALUE == OWN_UNREGISTERED
	own_offset = (char *)&area - (char *)thread_pointer();
#elif VALUE == SHIFTED
	own_offset = (char *)&area - (char *)thread_pointer() + 8;
#elif VALUE == OF_LIBC
	const struct exported libc = exported_by_libc();

	own_offset = libc.offset;
	own_size = libc.size;
#endif
}
