/* SPDX-License-Identifier: MIT */
/* One thread takes over the list of a CPU, again and again, while the thread of that CPU uses it. */
#define _GNU_SOURCE
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

static struct rl_node *pop(struct run *run, const struct rl_here *here)
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

static void push(struct run *run, const struct rl_here *here, struct rl_node *node)
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

static void *own(void *argument)
{
	struct run *run = argument;
	struct rl_thread thread = { 0 };
	struct rl_aborts aborts = { 0 };
	struct rl_here here = { 0, &aborts };
	struct rl_node *node, *next;
	uint64_t pairs = 0;
	int64_t cpu_ns;
	int i, error = stay_on(run->job->owner_cpu);

	if (!error)
		error = rl_enter(&thread);
	if (error) {
		__atomic_store_n(&run->error, error, __ATOMIC_RELEASE);
		return NULL;
	}
	here.offset_bytes = thread.offset_bytes;
	cpu_ns = rl_thread_cpu_ns();
	for (i = 0; i < NODES; i++)
		push(run, &here, rl_slot(&run->nodes, i));
	while (!__atomic_load_n(&run->stop, __ATOMIC_ACQUIRE)) {
		if (__atomic_load_n(&run->returned, __ATOMIC_RELAXED))
			for (node = __atomic_exchange_n(&run->returned, NULL, __ATOMIC_ACQUIRE); node; node = next) {
				next = node->next;
				push(run, &here, node);
			}
		node = run->job->busy ? pop(run, &here) : NULL;
		if (RL_LIKELY(node)) {
			push(run, &here, node);
			pairs++;
		} else {
			sched_yield();
		}
	}
	run->outcome->owner_cpu_ns = rl_thread_cpu_ns() - cpu_ns;
	run->outcome->owner_pairs = pairs;
	run->outcome->aborts = aborts;
	__atomic_store_n(&run->error, rl_leave(&thread), __ATOMIC_RELEASE);
	return NULL;
}

static int take(struct run *run, const struct rl_here *here, struct rl_node **chain)
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

/* Also where the taker shares the owner's CPU, the owner must come to run: returning a chain waits for it. */
static int take_all(struct run *run, const struct rl_here *here)
{
	struct rl_node *chain;
	uint32_t i;
	int error = 0;

	for (i = 0; i < run->job->takeovers && !error; i++) {
		const int64_t start_ns = rl_now_ns();

		error = take(run, here, &chain);
		run->outcome->taking_ns += rl_now_ns() - start_ns;
		while (!error && chain) {
			struct rl_node *none = NULL, *last;

			for (last = chain; last; last = last->next)
				run->outcome->taken++;
			while (!__atomic_compare_exchange_n(&run->returned, &none, chain, 0, __ATOMIC_RELEASE, __ATOMIC_RELAXED)) {
				if (__atomic_load_n(&run->error, __ATOMIC_ACQUIRE))
					return run->error;
				none = NULL;
				sched_yield();
			}
			chain = NULL;
		}
		pause_for(run->job->pause_ns);
	}
	return error;
}

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

int rl_takeover_run(const struct rl_takeover_job *job, struct rl_takeover_outcome *outcome)
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
