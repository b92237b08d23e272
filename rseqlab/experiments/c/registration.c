/* SPDX-License-Identifier: MIT */
/* Registering and unregistering, against two other system calls; and threads that make calls as they start. */
#define _GNU_SOURCE
#include "layout.h"
#include "rseq_call.h"

#include <pthread.h>

/*
 * Registers and unregisters the calling thread `turns` times. *sum adds up the CPU numbers that the area
 * held while it was registered, plus AFTERWARDS times what it held then, which is -1. Returns ns or -errno.
 */
#define AFTERWARDS 1000000	/* more than a CPU number: the two cannot make up for each other */

RL_TIMED int64_t registration_turns(uint32_t length_bytes, uint32_t signature, uint64_t turns, int64_t *sum)
{
	static struct area area;
	int64_t start_ns = now_ns();
	int answer;

	*sum = 0;
	RL_LAYOUT_PAD();
	for (uint64_t turn = 0; turn < turns; turn++) {
		answer = call_rseq(&area, length_bytes, 0, signature);
		if (answer)
			return answer;
		*sum += (int32_t)__atomic_load_n(&area.cpu_id, __ATOMIC_RELAXED);
		answer = call_rseq(&area, length_bytes, UNREGISTER, signature);
		if (answer)
			return answer;
		*sum += AFTERWARDS * (int64_t)(int32_t)__atomic_load_n(&area.cpu_id, __ATOMIC_RELAXED);
	}
	return now_ns() - start_ns;
}

/* Two of the cheapest system calls a turn. *sum counts the calls that answered with the parent. */
#define DEFINE_YARDSTICK(name)						\
RL_TIMED int64_t name(uint64_t turns, int64_t *sum)			\
{									\
	const long parent = getppid();					\
	int64_t start_ns = now_ns();					\
									\
	*sum = 0;							\
	RL_LAYOUT_PAD();						\
	for (uint64_t turn = 0; turn < turns; turn++) {			\
		*sum += syscall(SYS_getppid) == parent;			\
		*sum += syscall(SYS_getppid) == parent;			\
	}								\
	return now_ns() - start_ns;					\
}

DEFINE_YARDSTICK(yardstick_turns)
DEFINE_YARDSTICK(yardstick_turns_again)	/* the same source at another place */

struct start {
	unsigned calls;
	int64_t counted;
};

static void *body(void *argument)
{
	struct start *start = argument;

	for (unsigned call = 0; call < start->calls; call++)
		start->counted += syscall(SYS_getppid) >= 0;
	start->counted++;
	return NULL;
}

/* Starts and joins `turns` threads that make `calls` system calls. *sum counts calls and threads. */
#define DEFINE_THREADS(name)						\
RL_TIMED int64_t name(unsigned calls, uint64_t turns, int64_t *sum)	\
{									\
	struct start start = { calls, 0 };				\
	int64_t start_ns = now_ns();					\
	pthread_t thread;						\
	int error;							\
									\
	RL_LAYOUT_PAD();						\
	for (uint64_t turn = 0; turn < turns; turn++) {			\
		error = pthread_create(&thread, NULL, body, &start);	\
		if (error)						\
			return -error;					\
		pthread_join(thread, NULL);				\
	}								\
	*sum = start.counted;						\
	return now_ns() - start_ns;					\
}

DEFINE_THREADS(thread_turns)
DEFINE_THREADS(thread_turns_again)
