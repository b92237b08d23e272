/* SPDX-License-Identifier: MIT */
#include "own_tls.h"
#include "read_loop.h"

/* Hidden, not static: the assembly names it. */
__attribute__((visibility("hidden"), tls_model("initial-exec"), aligned(RL_ORIGINAL_SIZE_BYTES)))
__thread char rl_own_area[RL_ORIGINAL_SIZE_BYTES];

void *rl_own_tls_area(void)
{
	return rl_own_area;
}

RL_DEFINE_READ_LOOPS(own, rl_read_cpu_id(RL_LOAD_TLS_OFFSET(rl_own_area) + after))

int64_t rl_own_tls_read_loop(enum rl_order order, uint64_t iterations, uint64_t *sum)
{
	return RL_SUPPORTED ? own(order, 0, iterations, sum) : -ENOSYS;
}
