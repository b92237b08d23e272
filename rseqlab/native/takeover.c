/* SPDX-License-Identifier: MIT */
/* One thread takes over the list of a CPU, again and again, while the thread of that CPU uses it. */
#define _GNU_SOURCE
#include "layout.h"
#include "percpu.h"
#include "read_loop.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <string.h>

enum { NODES = 16 };

struct run {
	const struct rl_takeover_job *job;
	struct rl_percpu lists;
	struct rl_percpu nodes;
	pthread_mutex_t mutex;
	intptr_t head;			/* of the list under the mutex */
	struct rl_node *returned;	/* from the taker to the owner, one chain at a time */
	int stop, error;
	struct rl_takeover_outcome *outcome;
};

static int stay_on(int32_t cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	return -pthread_setaffinity_np(pthread_self(), sizeof(set), &set);
}

RL_FAST struct rl_node *pop(struct run *run, const struct rl_here *here)
{
	struct rl_node *node;

	if (run->job->how != RL_TAKER_MUTEX)
		return rl_takeable_pop(&run->lists, here);
	pthread_mutex_lock(&run->mutex);
	node = (struct rl_node *)run->head;
	if (node)
		run->head = (intptr_t)node->next;
	pthread_mutex_unlock(&run->mutex);
	return node;
}

RL_FAST void push(struct run *run, const struct rl_here *here, struct rl_node *node)
{
	if (run->job->how != RL_TAKER_MUTEX) {
		rl_takeable_push(&run->lists, here, node);
		return;
	}
	pthread_mutex_lock(&run->mutex);
	node->next = (struct rl_node *)run->head;
	run->head = (intptr_t)node;
	pthread_mutex_unlock(&run->mutex);
}

RL_FAST int take(struct run *run, const struct rl_here *here, struct rl_node **chain)
{
	if (run->job->how != RL_TAKER_MUTEX)
		return rl_takeable_take(&run->lists, here, run->job->owner_cpu, (enum rl_take)run->job->how, chain);
	pthread_mutex_lock(&run->mutex);
	*chain = (struct rl_node *)run->head;
	run->head = 0;
	pthread_mutex_unlock(&run->mutex);
	return 0;
}

static void pause_for(uint32_t pause_ns)
{
	const int64_t end_ns = rl_now_ns() + pause_ns;

	while (rl_now_ns() < end_ns)
		if (pause_ns > 1000000)
			sched_yield();
}

#define SIDE(name) name
#include "takeover_sides.h"
#undef SIDE
#define SIDE(name) name##_again
#include "takeover_sides.h"
#undef SIDE

static uint64_t not_once(struct run *run)
{
	const struct rl_takeable *list = rl_slot(&run->lists, run->job->owner_cpu);
	struct rl_node *const chains[] = {
		(struct rl_node *)list->heads[0], (struct rl_node *)list->heads[1], (struct rl_node *)run->head, run->returned,
	};
	uint32_t seen[NODES] = { 0 };
	uint64_t lost = 0;
	unsigned i;

	for (i = 0; i < sizeof(chains) / sizeof(chains[0]); i++) {
		struct rl_node *node;
		int limit = 2 * NODES;

		for (node = chains[i]; node && limit--; node = node->next)
			seen[((char *)node - run->nodes.base) >> run->nodes.shift]++;
	}
	for (i = 0; i < NODES; i++)
		lost += seen[i] != 1;
	return lost;
}

static int run_sides(const struct rl_takeover_job *job, struct rl_takeover_outcome *outcome, void *(*own)(void *),
		     int (*take_all)(struct run *, const struct rl_here *))
{
	struct run run = { .job = job, .mutex = PTHREAD_MUTEX_INITIALIZER, .outcome = outcome };
	struct rl_thread thread = { 0 };
	struct rl_aborts aborts = { 0 };
	struct rl_here here = { 0, &aborts };
	cpu_set_t before;
	pthread_t owner;
	int error;

	memset(outcome, 0, sizeof(*outcome));
	if (!RL_SUPPORTED)
		return -ENOSYS;
	if ((unsigned)job->how >= RL_TAKERS || !job->takeovers || job->owner_cpu < 0 || job->taker_cpu < 0
	    || job->owner_cpu >= CPU_SETSIZE || job->taker_cpu >= CPU_SETSIZE || (uint32_t)job->owner_cpu >= job->indices)
		return -EINVAL;
	error = rl_percpu_create(&run.lists, sizeof(struct rl_takeable), 0, job->indices, RL_BY_CPU_ID);
	if (!error)
		error = rl_percpu_create(&run.nodes, sizeof(struct rl_node), 0, NODES, RL_BY_CPU_ID);
	if (!error && (job->how == RL_TAKER_FENCE_CPU || job->how == RL_TAKER_FENCE_ALL))
		error = rl_fence_register();
	if (error)
		goto out;
	rl_takeable_init(&run.lists);
	sched_getaffinity(0, sizeof(before), &before);
	error = stay_on(job->taker_cpu);
	if (!error)
		error = rl_enter(&thread);
	if (error)
		goto back;
	here.offset_bytes = thread.offset_bytes;
	RL_LAYOUT_STACK();
	error = -pthread_create(&owner, NULL, own, &run);
	if (!error) {
		error = take_all(&run, &here);
		__atomic_store_n(&run.stop, 1, __ATOMIC_RELEASE);
		pthread_join(owner, NULL);
		error = error ? error : run.error;
		outcome->lost = not_once(&run);
	}
	rl_leave(&thread);
back:
	sched_setaffinity(0, sizeof(before), &before);
out:
	rl_percpu_destroy(&run.lists);
	rl_percpu_destroy(&run.nodes);
	return error;
}

int rl_takeover_run(const struct rl_takeover_job *job, struct rl_takeover_outcome *outcome)
{
	return run_sides(job, outcome, own, take_all);
}

int rl_takeover_run_again(const struct rl_takeover_job *job, struct rl_takeover_outcome *outcome)
{
	return run_sides(job, outcome, own_again, take_all_again);
}
