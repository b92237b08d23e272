/* SPDX-License-Identifier: MIT */
/* Counting on threads: the rseq increment and everything a program would use instead. */
#define _GNU_SOURCE
#include "read_loop.h"
#include "sections.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

/* What a thread-local counter is in a shared library; too small to make a loader refuse this one. */
static __thread __attribute__((tls_model("initial-exec"))) intptr_t counter_of_thread;

struct slot {
	intptr_t value;
	char pad[RL_SLOT_BYTES - sizeof(intptr_t)];
} __attribute__((aligned(RL_SLOT_BYTES)));
_Static_assert(sizeof(struct slot) == RL_SLOT_BYTES, "one slot, two lines");

struct run {
	const struct rl_counter_job *job;
	struct slot *slots;		/* by CPU, by thread, or the first one for all */
	pthread_mutex_t mutex;		/* what RL_COUNT_MUTEX measures, nothing else */
	pthread_mutex_t gate_mutex;	/* guards the two below */
	pthread_cond_t gate;
	uint32_t ready;
	enum { GATE_CLOSED, GATE_OPEN, GATE_GIVE_UP } state;
};

struct worker {
	struct run *run;
	pthread_t id;
	uint32_t index;
	int error;
	int64_t start_ns, end_ns, cpu_ns;
	uint64_t aborts, switches;
} __attribute__((aligned(RL_SLOT_BYTES)));

static uint64_t switches_of_thread(void)
{
	struct rusage usage;

	getrusage(RUSAGE_THREAD, &usage);
	return usage.ru_nvcsw + usage.ru_nivcsw;
}

static int64_t cpu_time_of_thread_ns(void)
{
	struct timespec used;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &used);
	return (int64_t)used.tv_sec * 1000000000 + used.tv_nsec;
}

/* Returns the attempts that did not commit: interrupted inside, or on another CPU by its start. */
static uint64_t count_rseq(struct slot *slots, uint64_t iterations, ptrdiff_t offset_bytes)
{
	uint64_t i, aborts = 0;

	for (i = 0; i < iterations; i++)
		for (;;) {
			const struct rl_at at = { offset_bytes, RL_BY_CPU_ID, rl_read_cpu_id(offset_bytes) };

			if (__builtin_expect(rl_addv(at, &slots[at.index].value, 1) == RL_COMMITTED, 1))
				break;
			aborts++;
		}
	return aborts;
}

static uint64_t count(struct worker *worker, ptrdiff_t offset_bytes)
{
	struct run *run = worker->run;
	struct slot *slots = run->slots, *own = &slots[worker->index];
	const uint64_t iterations = run->job->iterations;
	uint64_t i;

	switch (run->job->technique) {
	case RL_COUNT_RSEQ:
		return count_rseq(slots, iterations, offset_bytes);
	case RL_COUNT_THREAD_LOCAL:
		for (i = 0; i < iterations; i++) {
			counter_of_thread++;
			__asm__ volatile("" ::: "memory");	/* every increment reaches memory */
		}
		own->value = counter_of_thread;
		break;
	case RL_COUNT_ATOMIC_OWN_LINE:
		for (i = 0; i < iterations; i++)
			__atomic_fetch_add(&own->value, 1, __ATOMIC_RELAXED);
		break;
	case RL_COUNT_ATOMIC_SHARED:
		for (i = 0; i < iterations; i++)
			__atomic_fetch_add(&slots->value, 1, __ATOMIC_RELAXED);
		break;
	case RL_COUNT_MUTEX:
		for (i = 0; i < iterations; i++) {
			pthread_mutex_lock(&run->mutex);
			slots->value++;
			pthread_mutex_unlock(&run->mutex);
		}
		break;
	case RL_COUNT_GETCPU_ATOMIC:
		for (i = 0; i < iterations; i++)
			__atomic_fetch_add(&slots[sched_getcpu()].value, 1, __ATOMIC_RELAXED);
		break;
	default:
		break;
	}
	return 0;
}

/* Waits until every thread is there. Returns whether to go on: where one could not start, nobody does. */
static int pass_gate(struct run *run)
{
	int go;

	pthread_mutex_lock(&run->gate_mutex);
	run->ready++;
	pthread_cond_broadcast(&run->gate);
	while (run->state == GATE_CLOSED)
		pthread_cond_wait(&run->gate, &run->gate_mutex);
	go = run->state == GATE_OPEN;
	pthread_mutex_unlock(&run->gate_mutex);
	return go;
}

static void open_gate(struct run *run, uint32_t threads, int error)
{
	pthread_mutex_lock(&run->gate_mutex);
	while (!error && run->ready < threads)
		pthread_cond_wait(&run->gate, &run->gate_mutex);
	run->state = error ? GATE_GIVE_UP : GATE_OPEN;
	pthread_cond_broadcast(&run->gate);
	pthread_mutex_unlock(&run->gate_mutex);
}

static void *work(void *argument)
{
	struct worker *worker = argument;
	struct run *run = worker->run;
	const int needs_area = run->job->technique == RL_COUNT_RSEQ;
	const int32_t cpu = run->job->cpus[worker->index];
	struct rl_thread thread = { 0 };
	uint64_t switches;
	int64_t cpu_ns;
	cpu_set_t set;

	if (cpu >= 0) {
		CPU_ZERO(&set);
		CPU_SET(cpu, &set);
		worker->error = -pthread_setaffinity_np(pthread_self(), sizeof(set), &set);
	}
	if (!worker->error && needs_area)
		worker->error = rl_enter(&thread);
	if (pass_gate(run) && !worker->error) {
		switches = switches_of_thread();
		cpu_ns = cpu_time_of_thread_ns();
		worker->start_ns = rl_now_ns();
		worker->aborts = count(worker, thread.offset_bytes);
		worker->end_ns = rl_now_ns();
		worker->cpu_ns = cpu_time_of_thread_ns() - cpu_ns;
		worker->switches = switches_of_thread() - switches;
	}
	if (!worker->error && needs_area)
		worker->error = rl_leave(&thread);
	return NULL;
}

static int run_all(struct run *run, struct worker *workers, uint32_t threads)
{
	uint32_t started, i;
	int error = 0;

	for (started = 0; started < threads && !error; started += !error) {
		workers[started].run = run;
		workers[started].index = started;
		error = pthread_create(&workers[started].id, NULL, work, &workers[started]);
	}
	open_gate(run, threads, error);
	for (i = 0; i < started; i++)
		pthread_join(workers[i].id, NULL);
	return -error;
}

int rl_counter_run(const struct rl_counter_job *job, struct rl_counter_outcome *outcome)
{
	struct run run = {
		.job = job,
		.mutex = PTHREAD_MUTEX_INITIALIZER,
		.gate_mutex = PTHREAD_MUTEX_INITIALIZER,
		.gate = PTHREAD_COND_INITIALIZER,
	};
	struct worker *workers = NULL;
	int64_t first_ns = INT64_MAX, last_ns = 0;
	uint32_t i, slots = job->slots > job->threads ? job->slots : job->threads;
	int error;

	memset(outcome, 0, sizeof(*outcome));
	if (!RL_SUPPORTED)
		return -ENOSYS;
	if ((unsigned)job->technique >= RL_COUNTERS || !job->threads || !job->iterations)
		return -EINVAL;
	run.slots = aligned_alloc(RL_SLOT_BYTES, slots * sizeof(*run.slots));
	workers = aligned_alloc(RL_SLOT_BYTES, job->threads * sizeof(*workers));
	if (!run.slots || !workers) {
		error = -ENOMEM;
		goto out;
	}
	memset(run.slots, 0, slots * sizeof(*run.slots));
	memset(workers, 0, job->threads * sizeof(*workers));
	error = run_all(&run, workers, job->threads);
	for (i = 0; !error && i < job->threads; i++) {
		error = workers[i].error;
		if (workers[i].start_ns < first_ns)
			first_ns = workers[i].start_ns;
		if (workers[i].end_ns > last_ns)
			last_ns = workers[i].end_ns;
		outcome->cpu_ns += workers[i].cpu_ns;
		outcome->aborts += workers[i].aborts;
		outcome->switches += workers[i].switches;
	}
	for (i = 0; i < slots; i++)
		outcome->sum += run.slots[i].value;
	outcome->elapsed_ns = last_ns - first_ns;
out:
	free(workers);
	free(run.slots);
	return error;
}
