/* SPDX-License-Identifier: MIT */
/*
 * Two threads or processes on one CPU hand a number back and forth; each registers an rseq area of the
 * length that it is told, or none. The caller has pinned itself; what it starts inherits that.
 */
#define _GNU_SOURCE
#include "layout.h"
#include "rseq_call.h"

#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>

struct job {
	int futex_between_threads;	/* else: two pipes between processes */
	int again;			/* by the same source at another place */
	uint32_t length_bytes[2];	/* of each side's area; 0: not registered */
	uint32_t signature;
	uint64_t turns;
};

struct outcome {
	int64_t elapsed_ns;
	int64_t voluntary_switches;	/* of both sides, inside the timed part */
	int64_t involuntary_switches;
	int64_t number;			/* one more per handing over */
	int32_t cpu_id[2];		/* in each side's area at the end; -1 where it has none */
};

struct side {
	struct area area;
	int from, to;
	int32_t cpu_id;
	int error;
	struct rusage before, after;
};

struct shared {
	struct side side[2];
	struct job job;
	uint32_t turn;			/* futex: whose turn it is */
	int give_up;			/* the asking side ended early */
	int64_t number;
};

#define INLINED static inline __attribute__((always_inline))

INLINED void wait_for(struct shared *shared, uint32_t mine)
{
	uint32_t seen;

	while ((seen = __atomic_load_n(&shared->turn, __ATOMIC_ACQUIRE)) != mine)
		syscall(SYS_futex, &shared->turn, FUTEX_WAIT, seen, NULL, NULL, 0);
}

INLINED void hand_over(struct shared *shared, uint32_t whose)
{
	__atomic_store_n(&shared->turn, whose, __ATOMIC_RELEASE);
	syscall(SYS_futex, &shared->turn, FUTEX_WAKE, 1, NULL, NULL, 0);
}

/* Waits for the number, adds one. Returns 0 or -errno. */
INLINED int receive(struct shared *shared, int me)
{
	if (shared->job.futex_between_threads) {
		wait_for(shared, me);
		shared->number++;
		return 0;
	}
	if (read(shared->side[me].from, &shared->number, sizeof(shared->number)) != sizeof(shared->number))
		return -EPIPE;
	shared->number++;
	return 0;
}

INLINED int send(struct shared *shared, int me)
{
	if (shared->job.futex_between_threads) {
		hand_over(shared, !me);
		return 0;
	}
	return write(shared->side[me].to, &shared->number, sizeof(shared->number)) == sizeof(shared->number) ?
		0 : -errno;
}

static int enter(struct shared *shared, int me)
{
	const uint32_t length = shared->job.length_bytes[me];

	return length ? call_rseq(&shared->side[me].area, length, 0, shared->job.signature) : 0;
}

/* Whether the kernel kept the area up to date shows in its CPU number. */
static int leave(struct shared *shared, int me)
{
	const uint32_t length = shared->job.length_bytes[me];
	struct side *side = &shared->side[me];

	side->cpu_id = length ? (int32_t)__atomic_load_n(&side->area.cpu_id, __ATOMIC_RELAXED) : -1;
	return length ? call_rseq(&side->area, length, UNREGISTER, shared->job.signature) : 0;
}

#define SIDE(name) name
#include "ping_pong_sides.h"
#undef SIDE
#define SIDE(name) name##_again
#include "ping_pong_sides.h"
#undef SIDE

typedef void *answering(void *argument);
typedef int asking(struct shared *shared, struct outcome *outcome);

static answering *answering_of(const struct shared *shared)
{
	return shared->job.again ? answer_again : answer;
}

static asking *asking_of(const struct shared *shared)
{
	return shared->job.again ? ask_again : ask;
}

static int with_thread(struct shared *shared, struct outcome *outcome)
{
	pthread_t thread;
	int error = -pthread_create(&thread, NULL, answering_of(shared), shared);

	if (error)
		return error;
	error = asking_of(shared)(shared, outcome);
	if (error) {	/* nobody closes a pipe here: the other side must be told */
		shared->give_up = 1;
		hand_over(shared, 1);
	}
	pthread_join(thread, NULL);
	return error;
}

static int with_process(struct shared *shared, struct outcome *outcome)
{
	int there[2], back[2], error;
	pid_t child;

	if (pipe(there))
		return -errno;
	if (pipe(back)) {
		error = -errno;
		close(there[0]);
		close(there[1]);
		return error;
	}
	shared->side[0].from = back[0];
	shared->side[0].to = there[1];
	shared->side[1].from = there[0];
	shared->side[1].to = back[1];
	child = fork();
	if (child == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close(there[1]);
		close(back[0]);
		answering_of(shared)(shared);
		_exit(0);
	}
	error = child < 0 ? -errno : 0;
	close(there[0]);
	close(back[1]);
	if (!error)
		error = asking_of(shared)(shared, outcome);
	close(there[1]);
	close(back[0]);
	if (child > 0)
		waitpid(child, NULL, 0);
	return error;
}

int ping_pong(const struct job *job, struct outcome *outcome)
{
	struct shared *shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int error;

	memset(outcome, 0, sizeof(*outcome));
	RL_LAYOUT_STACK();
	if (shared == MAP_FAILED)
		return -errno;
	shared->job = *job;
	shared->turn = 1;	/* the other side's, until it is there */
	error = job->futex_between_threads ? with_thread(shared, outcome) : with_process(shared, outcome);
	if (!error)
		error = shared->side[1].error;
	for (int me = 0; me < 2; me++) {
		const struct side *side = &shared->side[me];

		outcome->voluntary_switches += side->after.ru_nvcsw - side->before.ru_nvcsw;
		outcome->involuntary_switches += side->after.ru_nivcsw - side->before.ru_nivcsw;
		outcome->cpu_id[me] = side->cpu_id;
	}
	outcome->number = shared->number;
	munmap(shared, sizeof(*shared));
	return error;
}
