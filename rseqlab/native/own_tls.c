/* SPDX-License-Identifier: MIT */
#include "own_tls.h"
#include "read_loop.h"

#include <errno.h>

/* Hidden, not static: the assembly names it. */
__attribute__((visibility("hidden"), tls_model("initial-exec"), aligned(RL_ORIGINAL_SIZE_BYTES)))
__thread char rl_own_area[RL_ORIGINAL_SIZE_BYTES];

void *rl_own_tls_area(void)
{
	return rl_own_area;
}

int64_t rl_own_tls_read_loop(enum rl_order order, uint64_t iterations, uint64_t *sum)
{
	int64_t elapsed_ns;

	if (!RL_SUPPORTED)
		return -ENOSYS;
	if (rl_read_loop_refuses(order, iterations))
		return -EINVAL;
	RL_READ_LOOP(order, iterations, rl_read_cpu_id(RL_LOAD_TLS_OFFSET(rl_own_area) + after),
		     elapsed_ns, sum);
	return elapsed_ns;
}
