/* SPDX-License-Identifier: MIT */
/* Times the loops of section_loops.h on the calling thread's real area. Built as a shared library. */
#define _GNU_SOURCE
#define RSEQLAB_AGAIN
#define LOOP_FUNCTION RL_TIMED
#include "section_loops.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <time.h>

#define EXPORTED __attribute__((visibility("default")))

ptrdiff_t kept_offset_bytes;

static int64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static const struct loop *find(const char *who, const char *operation, int bytes)
{
	for (size_t i = 0; i < LOOPS; i++)
		if (!strcmp(loops[i].who, who) && !strcmp(loops[i].operation, operation) &&
		    loops[i].bytes == bytes && strcmp(loops[i].by, "mm_cid"))
			return &loops[i];
	return NULL;
}

/* Whether there is such a loop; `bytes` is -1 where it copies nothing. */
EXPORTED int rl_has_loop(const char *who, const char *operation, int bytes)
{
	return find(who, operation, bytes) != NULL;
}

/*
 * Runs one loop by cpu_id, on a thread that stays on `cpu`. Returns elapsed nanoseconds, or -errno (-ENOENT: no
 * such loop; -EIO: not every turn was done). *aborts is the attempts that did not commit.
 */
EXPORTED int64_t rl_time_loop(const char *who, const char *operation, int bytes, int cpu, int64_t iterations,
			      uint64_t *aborts)
{
	const struct loop *loop = find(who, operation, bytes);
	struct rl_thread thread;
	struct bench bench;
	int64_t elapsed_ns;
	int error, failed;

	if (!loop)
		return -ENOENT;
	if (iterations < 1 || cpu < 0)
		return -EINVAL;
	bench.slots = aligned_alloc(sizeof(struct slot), (cpu + 1) * sizeof(struct slot));
	if (!bench.slots)
		return -ENOMEM;
	error = rl_enter(&thread);
	if (error) {
		free(bench.slots);
		return error;
	}
	bench.offset_bytes = kept_offset_bytes = thread.offset_bytes;
#ifdef RSEQLAB_PEER
	rseq_offset = thread.offset_bytes;
#endif
	RL_LAYOUT_STACK();
	prepare(&bench, loop, cpu + 1);
	elapsed_ns = now_ns();
	failed = loop->run(&bench, iterations);
	elapsed_ns = now_ns() - elapsed_ns;
	error = rl_leave(&thread);
	if (failed || !was_done(&bench, loop, iterations, strcmp(loop->by, "none") ? cpu : 0))
		error = -EIO;
	*aborts = bench.aborts;
	free(bench.slots);
	return error ? error : elapsed_ns;
}
