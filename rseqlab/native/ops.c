/* SPDX-License-Identifier: MIT */
/* Threads that start together, do operations by one technique, and are timed while they do. */
#define _GNU_SOURCE
#include "layout.h"
#include "ops.h"
#include "read_loop.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#define STORM_SIGNAL SIGUSR2

struct run {
	struct rl_ops_data data;
	const struct rl_technique *technique;
	pthread_mutex_t gate_mutex;	/* guards the two below */
	pthread_cond_t gate;
	uint32_t ready;
	enum { GATE_CLOSED, GATE_OPEN, GATE_GIVE_UP } state;
};

struct worker {
	struct rl_ops_thread thread;
	struct run *run;
	pthread_t id;
	int error;
	int64_t start_ns, end_ns, cpu_ns;
	uint64_t switches, handled;
} __attribute__((aligned(RL_SLOT_BYTES)));

/* Whose storm a signal belongs to; small enough that no loader refuses this library for it. */
static __thread __attribute__((tls_model("initial-exec"))) struct worker *in_storm;

static uint64_t switches_of_thread(void)
{
	struct rusage usage;

	getrusage(RUSAGE_THREAD, &usage);
	return usage.ru_nvcsw + usage.ru_nivcsw;
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

/* The operation of a handler is made on the very data that the interrupted section works on. */
static void on_storm(int number)
{
	struct worker *worker = in_storm;
	const int saved = errno;

	(void)number;
	if (worker) {
		worker->run->technique->once(&worker->thread);
		/* The interrupted section was aborted, if one was; without this its cause would not show. */
		if (worker->run->technique->needs_area)
			rl_store_u64((char *)rl_thread_pointer() + worker->thread.here.offset_bytes
				     + offsetof(struct rl_area, rseq_cs), 0);
		worker->handled++;
	}
	errno = saved;
}

static int start_storm(struct worker *worker, uint32_t hz, timer_t *timer)
{
	struct sigevent event = { .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = STORM_SIGNAL };
	struct itimerspec every = { { 0, 0 }, { 0, 0 } };

	if (!hz)
		return 0;
	every.it_interval.tv_sec = 1 / hz;
	every.it_interval.tv_nsec = 1000000000 / hz % 1000000000;
	every.it_value = every.it_interval;
#ifdef sigev_notify_thread_id
	event.sigev_notify_thread_id = syscall(SYS_gettid);
#else
	event._sigev_un._tid = syscall(SYS_gettid);
#endif
	if (timer_create(CLOCK_MONOTONIC, &event, timer))
		return -errno;
	in_storm = worker;
	return timer_settime(*timer, 0, &every, NULL) ? -errno : 0;
}

static void stop_storm(uint32_t hz, timer_t timer)
{
	if (!hz)
		return;
	timer_delete(timer);
	in_storm = NULL;	/* a signal that is still on its way does nothing */
}

/* In as many pieces as there are moves and one more, each on the next of the CPUs that the thread may use. */
static void work_and_move(struct worker *worker, const struct rl_technique *technique)
{
	const struct rl_ops_job *job = worker->run->data.job;
	const uint64_t piece = job->iterations / (job->moves + 1) / RL_UNROLL * RL_UNROLL;
	uint32_t number;
	cpu_set_t set, all;
	int cpu = -1;

	sched_getaffinity(0, sizeof(all), &all);
	for (number = 0; number <= job->moves; number++) {
		if (job->moves) {
			do
				cpu = (cpu + 1) % CPU_SETSIZE;
			while (!CPU_ISSET(cpu, &all));
			CPU_ZERO(&set);
			CPU_SET(cpu, &set);
			sched_setaffinity(0, sizeof(set), &set);
		}
		technique->work(&worker->thread, number < job->moves ? piece : job->iterations - piece * job->moves);
	}
}

static void *work(void *argument)
{
	struct worker *worker = argument;
	struct run *run = worker->run;
	const struct rl_ops_job *job = run->data.job;
	const int32_t cpu = job->cpus[worker->thread.index];
	struct rl_thread area = { 0 };
	uint64_t switches;
	timer_t storm;
	int64_t cpu_ns;
	cpu_set_t set;

	if (cpu >= 0) {
		CPU_ZERO(&set);
		CPU_SET(cpu, &set);
		worker->error = -pthread_setaffinity_np(pthread_self(), sizeof(set), &set);
	}
	if (!worker->error && run->technique->needs_area)
		worker->error = rl_enter(&area);
	RL_LAYOUT_STACK();
	worker->thread.here.offset_bytes = area.offset_bytes;
	if (pass_gate(run) && !worker->error) {
		worker->error = start_storm(worker, job->storm_hz, &storm);
		switches = switches_of_thread();
		cpu_ns = rl_thread_cpu_ns();
		worker->start_ns = rl_now_ns();
		if (!worker->error)
			work_and_move(worker, run->technique);
		worker->end_ns = rl_now_ns();
		worker->cpu_ns = rl_thread_cpu_ns() - cpu_ns;
		worker->switches = switches_of_thread() - switches;
		if (!worker->error)
			stop_storm(job->storm_hz, storm);
	}
	if (area.offset_bytes || area.own) {
		const int error = rl_leave(&area);

		worker->error = worker->error ? worker->error : error;
	}
	return NULL;
}

static int run_all(struct run *run, struct worker *workers, uint32_t threads)
{
	uint32_t started, i;
	int error = 0;

	for (started = 0; started < threads && !error; started += !error) {
		workers[started].run = run;
		workers[started].thread.data = &run->data;
		workers[started].thread.index = started;
		workers[started].thread.here.aborts = &workers[started].thread.aborts;
		error = pthread_create(&workers[started].id, NULL, work, &workers[started]);
	}
	open_gate(run, threads, error);
	for (i = 0; i < started; i++)
		pthread_join(workers[i].id, NULL);
	return -error;
}

static uint64_t resident_bytes(const struct rl_percpu *memory)
{
	const size_t page_bytes = sysconf(_SC_PAGESIZE), pages = (memory->mapped_bytes + page_bytes - 1) / page_bytes;
	unsigned char *in_memory = memory->base ? malloc(pages) : NULL;
	uint64_t found = 0;
	size_t i;

	if (in_memory && !mincore(memory->base, memory->mapped_bytes, in_memory))
		for (i = 0; i < pages; i++)
			found += (in_memory[i] & 1) * page_bytes;
	free(in_memory);
	return found;
}

static void collect(struct run *run, struct worker *workers, struct rl_ops_outcome *outcome)
{
	const uint32_t threads = run->data.job->threads;
	struct rl_ops_thread *all[threads];
	int64_t first_ns = INT64_MAX, last_ns = 0;
	uint32_t i;

	for (i = 0; i < threads; i++) {
		all[i] = &workers[i].thread;
		if (workers[i].start_ns < first_ns)
			first_ns = workers[i].start_ns;
		if (workers[i].end_ns > last_ns)
			last_ns = workers[i].end_ns;
		outcome->cpu_ns += workers[i].cpu_ns;
		outcome->switches += workers[i].switches;
		outcome->handled += workers[i].handled;
		outcome->aborts.moved += workers[i].thread.aborts.moved;
		outcome->aborts.migrated += workers[i].thread.aborts.migrated;
		outcome->aborts.interrupted += workers[i].thread.aborts.interrupted;
	}
	outcome->elapsed_ns = last_ns - first_ns;
	outcome->resident_bytes = resident_bytes(&run->data.memory);	/* before anybody looks at the slots */
	for (i = 0; run->data.memory.base && i < run->data.memory.indices; i++)
		outcome->slots_used += rl_peek(&run->data.memory, i) != 0;
	outcome->done = run->technique->found(&run->data, all);
}

const char *rl_ops_name(int technique)
{
	int i;

	for (i = 0; i <= technique; i++)
		if (!rl_techniques[i].name)
			return NULL;
	return technique < 0 ? NULL : rl_techniques[technique].name;
}

int rl_ops_find(const char *name)
{
	int i;

	for (i = 0; rl_techniques[i].name; i++)
		if (!strcmp(rl_techniques[i].name, name))
			return i;
	return -ENOENT;
}

int rl_ops_run(const struct rl_ops_job *job, struct rl_ops_outcome *outcome)
{
	struct sigaction action = { .sa_handler = on_storm, .sa_flags = SA_RESTART }, before;
	struct run run = {
		.data = { .job = job, .mutex = PTHREAD_MUTEX_INITIALIZER },
		.gate_mutex = PTHREAD_MUTEX_INITIALIZER,
		.gate = PTHREAD_COND_INITIALIZER,
	};
	struct worker *workers;
	uint32_t i;
	int error;

	memset(outcome, 0, sizeof(*outcome));
	if (!RL_SUPPORTED)
		return -ENOSYS;
	if (!rl_ops_name(job->technique) || !job->threads || job->threads > 1 << 14 || !job->iterations
	    || job->iterations % RL_UNROLL || job->storm_hz > 100000)
		return -EINVAL;
	run.technique = &rl_techniques[job->technique];
	if ((job->storm_hz || job->moves) && !run.technique->once)
		return -EINVAL;
	workers = aligned_alloc(RL_SLOT_BYTES, job->threads * sizeof(*workers));
	if (!workers)
		return -ENOMEM;
	memset(workers, 0, job->threads * sizeof(*workers));
	pthread_spin_init(&run.data.spinlock, PTHREAD_PROCESS_PRIVATE);
	error = run.technique->prepare(&run.data, run.technique->by);
	if (!error) {
		sigaction(STORM_SIGNAL, job->storm_hz ? &action : NULL, &before);
		error = run_all(&run, workers, job->threads);
		sigaction(STORM_SIGNAL, &before, NULL);
	}
	for (i = 0; !error && i < job->threads; i++)
		error = workers[i].error;
	if (!error)
		collect(&run, workers, outcome);
	rl_percpu_destroy(&run.data.memory);
	rl_percpu_destroy(&run.data.shared);
	rl_percpu_destroy(&run.data.nodes);
	rl_pool_destroy(&run.data.pool);
	free(workers);
	return error;
}
