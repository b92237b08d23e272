/* SPDX-License-Identifier: MIT */
/*
 * The two threads of a takeover. takeover.c includes this once for each place at which they are to lie; SIDE gives
 * the functions a name of their own.
 */

RL_TIMED static void *SIDE(own)(void *argument)
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
	RL_LAYOUT_PAD();
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

/* Also where the taker shares the owner's CPU, the owner must come to run: returning a chain waits for it. */
RL_TIMED static int SIDE(take_all)(struct run *run, const struct rl_here *here)
{
	struct rl_node *chain;
	uint32_t i;
	int error = 0;

	RL_LAYOUT_PAD();
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
