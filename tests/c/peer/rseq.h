/* SPDX-License-Identifier: MIT */
/*
 * Stands in for librseq's header where the tests run without it: its interface in front of our own sections.
 * It shows that the comparison works, and nothing of how fast librseq is.
 */
#ifndef RSEQLAB_TESTS_PEER_H
#define RSEQLAB_TESTS_PEER_H

#include "sections.h"

extern ptrdiff_t rseq_offset;

enum rseq_mo { RSEQ_MO_RELAXED, RSEQ_MO_RELEASE = 3 };
enum rseq_percpu_mode { RSEQ_PERCPU_CPU_ID, RSEQ_PERCPU_MM_CID };

#define PEER_STAND_IN static inline __attribute__((always_inline)) int
#define STAND_IN_AT ((struct rl_at){ rseq_offset, mode ? RL_BY_MM_CID : RL_BY_CPU_ID, (uint32_t)cpu })

static inline uint32_t rseq_cpu_start(void)
{
	return rl_read_field(rseq_offset, 0);
}

static inline int stand_in_answer(enum rl_result result)
{
	return result == RL_COMMITTED ? 0 : result == RL_COMPARE_FAILED ? 1 : -1;
}

PEER_STAND_IN rseq_addv(enum rseq_mo mo, enum rseq_percpu_mode mode, intptr_t *v, intptr_t count, int cpu)
{
	(void)mo;
	return stand_in_answer(rl_addv(STAND_IN_AT, v, count));
}

PEER_STAND_IN rseq_cmpeqv_storev(enum rseq_mo mo, enum rseq_percpu_mode mode, intptr_t *v, intptr_t expect,
				 intptr_t value, int cpu)
{
	(void)mo;
	return stand_in_answer(rl_cmpeqv_storev(STAND_IN_AT, v, expect, value));
}

PEER_STAND_IN rseq_cmpnev_storeoffp_load(enum rseq_mo mo, enum rseq_percpu_mode mode, intptr_t *v,
					 intptr_t expect_not, long next_bytes, intptr_t *load, int cpu)
{
	(void)mo;
	return stand_in_answer(rl_cmpnev_storeoffp_load(STAND_IN_AT, v, expect_not, next_bytes, load));
}

PEER_STAND_IN rseq_cmpeqv_trystorev_storev(enum rseq_mo mo, enum rseq_percpu_mode mode, intptr_t *v,
					   intptr_t expect, intptr_t *v2, intptr_t value2, intptr_t value, int cpu)
{
	return stand_in_answer(mo == RSEQ_MO_RELEASE
			       ? rl_cmpeqv_trystorev_storev_release(STAND_IN_AT, v, expect, v2, value2, value)
			       : rl_cmpeqv_trystorev_storev(STAND_IN_AT, v, expect, v2, value2, value));
}

PEER_STAND_IN rseq_cmpeqv_cmpeqv_storev(enum rseq_mo mo, enum rseq_percpu_mode mode, intptr_t *v, intptr_t expect,
					intptr_t *v2, intptr_t expect2, intptr_t value, int cpu)
{
	(void)mo;
	return stand_in_answer(rl_cmpeqv_cmpeqv_storev(STAND_IN_AT, v, expect, v2, expect2, value));
}

PEER_STAND_IN rseq_cmpeqv_trymemcpy_storev(enum rseq_mo mo, enum rseq_percpu_mode mode, intptr_t *v,
					   intptr_t expect, void *to, void *from, size_t length_bytes,
					   intptr_t value, int cpu)
{
	return stand_in_answer(
		mo == RSEQ_MO_RELEASE
		? rl_cmpeqv_trymemcpy_storev_release(STAND_IN_AT, v, expect, to, from, length_bytes, value)
		: rl_cmpeqv_trymemcpy_storev(STAND_IN_AT, v, expect, to, from, length_bytes, value));
}

#endif
