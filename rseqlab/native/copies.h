/* SPDX-License-Identifier: MIT */
/* Loops of one source at many places of one build, for comparisons whose truth is known. */
#ifndef RSEQLAB_COPIES_H
#define RSEQLAB_COPIES_H

#include <stddef.h>
#include <stdint.h>

#define RL_COPIES 24
#define RL_CHAIN_LINKS 20

enum rl_copy_kind {
	RL_COPY_READ_THROUGHPUT,	/* the CPU number from libc's area; reads may overlap */
	RL_COPY_READ_DEPENDENT,		/* the same, each waits for the last */
	RL_COPY_SCHED_GETCPU,
	RL_COPY_COUNTER_RSEQ,		/* an increment as a critical section */
	RL_COPY_COUNTER_THREAD_LOCAL,
	RL_COPY_CHAIN,			/* RL_CHAIN_LINKS additions, each waits for the last */
	RL_COPY_CHAIN_PLUS_ONE,		/* one more of them */
	RL_COPY_KINDS
};

/*
 * Runs one copy `iterations` times, a multiple of 4. *sum is the CPU numbers read modulo 2^32, the increments made
 * or the additions done, for the caller to check. Returns elapsed nanoseconds or -errno (-EINVAL: no such copy).
 */
int64_t rl_copy_loop(enum rl_copy_kind kind, unsigned copy, ptrdiff_t offset_bytes, uint32_t indices,
		     uint64_t iterations, uint64_t *sum);

#endif
