/* SPDX-License-Identifier: MIT */
/* Between the threads of a job (ops.c) and the techniques that they run (techniques.c). */
#ifndef RSEQLAB_OPS_H
#define RSEQLAB_OPS_H

#include "percpu.h"

#include <pthread.h>

/* A job while it runs: what the technique works on. */
struct rl_ops_data {
	const struct rl_ops_job *job;
	struct rl_percpu memory;	/* by index */
	struct rl_percpu shared;	/* one slot for all, or one for each thread */
	struct rl_percpu nodes;		/* what is listed */
	struct rl_pool pool;
	pthread_mutex_t mutex;
	pthread_spinlock_t spinlock;
};

/* What a thread counts in registers while it works. */
struct rl_tally {
	uint64_t missed;	/* operations that found nothing: the thread was moved to a CPU whose list was empty */
	uint64_t pushed, popped;
};

/* A thread of a job. */
struct rl_ops_thread {
	struct rl_ops_data *data;
	struct rl_here here;
	struct rl_aborts aborts;
	uint32_t index;
	struct rl_tally tally;
};

struct rl_technique {
	const char *name;
	int needs_area;
	enum rl_by by;
	int (*prepare)(struct rl_ops_data *data, enum rl_by by);
	void (*work)(struct rl_ops_thread *thread, uint64_t iterations);
	void (*once)(struct rl_ops_thread *thread);	/* from a signal handler; NULL: nothing */
	uint64_t (*found)(struct rl_ops_data *data, struct rl_ops_thread *const *threads);	/* operations, in the data */
};

extern const struct rl_technique rl_techniques[];

#endif
