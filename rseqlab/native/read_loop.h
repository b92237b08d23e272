/* SPDX-License-Identifier: MIT */
/* The loop that every reader of the CPU number is measured in. */
#ifndef RSEQLAB_READ_LOOP_H
#define RSEQLAB_READ_LOOP_H

#include "rseqlab.h"

#include <time.h>

static inline int64_t rl_now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static inline int64_t rl_thread_cpu_ns(void)
{
	struct timespec used;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &used);
	return (int64_t)used.tv_sec * 1000000000 + used.tv_nsec;
}

/*
 * Sets `elapsed_ns` and `*sum`. READ may add `after` to an address: always zero, but in a dependent loop
 * known only once the last value is. Four accumulators, so that the additions are not what is measured.
 */
#define RL_READ_LOOP(order, iterations, READ, elapsed_ns, sum)		\
	do {								\
		uint64_t sums_[4] = { 0 }, i_;				\
		uintptr_t last_ = 0;					\
		const int64_t start_ = rl_now_ns();			\
		switch (order) {					\
		case RL_THROUGHPUT:					\
			for (i_ = 0; i_ < (iterations); i_ += 4) {	\
				const uintptr_t after = 0;		\
				(void)after;				\
				sums_[0] += (READ);			\
				sums_[1] += (READ);			\
				sums_[2] += (READ);			\
				sums_[3] += (READ);			\
			}						\
			break;						\
		case RL_DEPENDENT:					\
			for (i_ = 0; i_ < (iterations); i_++) {		\
				const uintptr_t after = rl_zero_after(last_);	\
				(void)after;				\
				last_ = (READ);				\
				sums_[0] += last_;			\
			}						\
			break;						\
		default:						\
			for (i_ = 0; i_ < (iterations); i_++) {		\
				const uintptr_t after = 0;		\
				(void)after;				\
				sums_[0] += (READ);			\
				RL_FENCE();				\
			}						\
			break;						\
		}							\
		(elapsed_ns) = rl_now_ns() - start_;			\
		*(sum) = sums_[0] + sums_[1] + sums_[2] + sums_[3];	\
	} while (0)

/* The unrolled loop does four reads a turn. */
static inline int rl_read_loop_refuses(enum rl_order order, uint64_t iterations)
{
	return (unsigned)order >= RL_ORDERS || iterations == 0 || iterations % 4;
}

#endif
