/* SPDX-License-Identifier: MIT */
/*
 * The loops that every reader of the CPU number is measured in. Loops that are compared have the same instructions
 * but for the read: 32-bit accumulators, as an asm that writes 32 bits would otherwise cost an extension more than
 * one that writes 64, and a function for each order, so that no loop spills what another one needs.
 */
#ifndef RSEQLAB_READ_LOOP_H
#define RSEQLAB_READ_LOOP_H

#include "layout.h"
#include "rseqlab.h"

#include <errno.h>
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

/* In the place of a read: the same loop, with a move between registers for the load. */
static inline uint32_t rl_read_nothing(uintptr_t place)
{
	uint32_t value;

#if defined(__x86_64__)
	__asm__ volatile("movl %k1, %0" : "=r"(value) : "r"(place));
#elif defined(__aarch64__)
	__asm__ volatile("mov %w0, %w1" : "=r"(value) : "r"(place));
#else
	value = place;
#endif
	return value;
}

typedef int64_t rl_read_loop_of(ptrdiff_t offset_bytes, uint64_t iterations, uint64_t *sum);

/* The unrolled loop does four reads a turn. */
static inline int rl_read_loop_refuses(enum rl_order order, uint64_t iterations)
{
	return (unsigned)order >= RL_ORDERS || iterations == 0 || iterations % 4;
}

/* One order of the loop: TURN is `step` reads. Answers elapsed nanoseconds; *sum is modulo 2^32. */
#define RL_DEFINE_READ_ORDER(name, step, TURN)						\
RL_TIMED static int64_t name(ptrdiff_t offset_bytes, uint64_t iterations, uint64_t *sum)	\
{											\
	uint32_t sums[4] = { 0 };							\
	uintptr_t last = 0;								\
	uint64_t i;									\
	int64_t elapsed_ns;								\
	const int64_t start_ns = rl_now_ns();						\
											\
	(void)offset_bytes, (void)last;							\
	RL_LAYOUT_PAD();								\
	for (i = 0; i < iterations; i += (step)) {					\
		TURN									\
	}										\
	elapsed_ns = rl_now_ns() - start_ns;						\
	*sum = (uint32_t)(sums[0] + sums[1] + sums[2] + sums[3]);			\
	return elapsed_ns;								\
}

/*
 * The loop of a way to read, in each order: `name(order, offset_bytes, iterations, sum)`. READ may use offset_bytes,
 * and add `after` to an address: always zero, but in a dependent loop known only once the last value is. Four
 * accumulators in the loop of reads that may overlap, so that the additions are not what is measured.
 */
#define RL_DEFINE_READ_LOOPS(name, READ)						\
RL_DEFINE_READ_ORDER(name##_throughput, 4,						\
	const uintptr_t after = 0;							\
	(void)after;									\
	sums[0] += (READ);								\
	sums[1] += (READ);								\
	sums[2] += (READ);								\
	sums[3] += (READ);)								\
RL_DEFINE_READ_ORDER(name##_dependent, 1,						\
	const uintptr_t after = rl_zero_after(last);					\
	(void)after;									\
	last = (READ);									\
	sums[0] += last;)								\
RL_DEFINE_READ_ORDER(name##_fenced, 1,							\
	const uintptr_t after = 0;							\
	(void)after;									\
	sums[0] += (READ);								\
	RL_FENCE();)									\
static int64_t name(enum rl_order order, ptrdiff_t offset_bytes, uint64_t iterations, uint64_t *sum)	\
{											\
	static rl_read_loop_of *const loops[RL_ORDERS] = {				\
		name##_throughput, name##_dependent, name##_fenced,			\
	};										\
											\
	if (rl_read_loop_refuses(order, iterations))					\
		return -EINVAL;								\
	RL_LAYOUT_STACK();								\
	return loops[order](offset_bytes, iterations, sum);				\
}

#endif
