/* SPDX-License-Identifier: MIT */
/*
 * Attacks every section: threads run them on shared per-CPU data while delays, traps, signals and
 * changes of affinity strike at numbered points inside. At the end every invariant must hold exactly.
 *
 *	attack THREADS OPERATIONS cpu_id|mm_cid SEED
 *
 * Exit 0: all invariants hold. Exit 1: one is broken, and standard output says which.
 */
#define _GNU_SOURCE
#include "rseqlab.h"
#include "sections.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { CPUS = 1024, MAX_THREADS = 64, NODES = 64, RING = 64, BYTES = 4096, SITES = 4 };

/* What the attack fragments of the sections read. */
struct { uint32_t loops, trap; } rl_inject[SITES] __attribute__((visibility("hidden")));

struct node {
	struct node *next;
	int held;	/* by a thread; twice at a time is a violation */
};

/* All structures of one index. */
struct slot {
	intptr_t counter, lock, guarded, gated, gate, deep;
	intptr_t *deep_pointer, **deep_box;
	struct node *list;
	intptr_t ring_head, ring_tail, ring[RING];
	intptr_t bytes_head, bytes_tail;
	unsigned char bytes[BYTES];
} __attribute__((aligned(256)));

struct record {		/* in the byte ring */
	intptr_t position;
	uint32_t length_bytes, checksum;
};

struct worker {
	pthread_t id;
	pid_t tid;
	unsigned seed;
	struct rl_thread thread;
	uint64_t aborts, added, locked, gated, deepened, pushed, popped, written, read, traps;
};

static struct slot slots[CPUS];
static struct node nodes[CPUS][NODES];
static struct worker workers[MAX_THREADS];
static unsigned threads;
static uint64_t operations;
static enum rl_by by;
static cpu_set_t all_cpus;
static int violations, stop;
static __thread struct worker *me;

static void violation(const char *what)
{
	if (__atomic_fetch_add(&violations, 1, __ATOMIC_RELAXED) < 5)
		printf("violated: %s\n", what);
}

static unsigned draw(unsigned *seed)
{
	*seed = *seed * 1664525 + 1013904223;
	return *seed >> 8;
}

static void wander(unsigned *seed)
{
	const struct timespec nap = { 0, 20000 };
	cpu_set_t set;
	int cpu;

	switch (draw(seed) % 8) {
	case 0:
		sched_yield();
		break;
	case 1:
		nanosleep(&nap, NULL);
		break;
	case 2:
		cpu = draw(seed) % CPU_SETSIZE;
		while (!CPU_ISSET(cpu, &all_cpus))
			cpu = (cpu + 1) % CPU_SETSIZE;
		CPU_ZERO(&set);
		CPU_SET(cpu, &set);
		sched_setaffinity(0, sizeof(set), &set);
		sched_setaffinity(0, sizeof(all_cpus), &all_cpus);
		break;
	}
}

/* Where this thread is now; between this and the section anything may happen, and is made to. */
static struct rl_at now(void)
{
	const struct rl_area *area = (void *)((char *)rl_thread_pointer() + me->thread.offset_bytes);
	const struct rl_at at = {
		me->thread.offset_bytes, by, (int32_t)rl_load_u32((const char *)area + by),
	};

	if (draw(&me->seed) % 256 == 0)
		wander(&me->seed);
	return at;
}

#define UNTIL_COMMITTED(result, section)			\
	do {							\
		(result) = (section);				\
		if ((result) == RL_ABORTED)			\
			me->aborts++;				\
	} while ((result) == RL_ABORTED)

static void add(void)
{
	struct rl_at at;
	enum rl_result result;

	UNTIL_COMMITTED(result, (at = now(), rl_addv(at, &slots[at.index].counter, 1)));
	me->added++;
}

static void lock_and_count(void)
{
	struct rl_at at;
	enum rl_result result;

	do {
		UNTIL_COMMITTED(result, (at = now(), rl_cmpeqv_storev(at, &slots[at.index].lock, 0, 1)));
		if (result == RL_COMPARE_FAILED)
			sched_yield();
	} while (result != RL_COMMITTED);
	slots[at.index].guarded++;	/* plain: the lock is held, wherever this thread runs by now */
	__atomic_store_n(&slots[at.index].lock, 0, __ATOMIC_RELEASE);
	me->locked++;
}

static void count_if_open(void)
{
	struct rl_at at;
	enum rl_result result;
	struct slot *slot;

	do {
		at = now();
		slot = &slots[at.index];
		result = rl_cmpeqv_cmpeqv_storev(at, &slot->gated, slot->gated, &slot->gate, 0, slot->gated + 1);
		me->aborts += result == RL_ABORTED;
	} while (result != RL_COMMITTED);
	me->gated++;
}

static void deepen(void)
{
	struct rl_at at;
	enum rl_result result;

	UNTIL_COMMITTED(result, (at = now(), rl_offset_deref_addv(at, (intptr_t *)&slots[at.index].deep_box, 0, 1)));
	me->deepened++;
}

static struct node *pop(void)
{
	struct rl_at at;
	enum rl_result result;
	intptr_t node = 0;

	UNTIL_COMMITTED(result, (at = now(), rl_cmpnev_storeoffp_load(at, (intptr_t *)&slots[at.index].list, 0,
								       offsetof(struct node, next), &node)));
	return result == RL_COMMITTED ? (struct node *)node : NULL;
}

static void push(struct node *node)
{
	struct rl_at at;
	enum rl_result result;
	struct node *head;

	do {
		at = now();
		head = __atomic_load_n(&slots[at.index].list, __ATOMIC_RELAXED);
		node->next = head;
		result = rl_cmpeqv_storev(at, (intptr_t *)&slots[at.index].list, (intptr_t)head, (intptr_t)node);
		me->aborts += result == RL_ABORTED;
	} while (result != RL_COMMITTED);
}

static void take_and_give_back(void)
{
	struct node *node = pop();

	if (!node)
		return;
	if (__atomic_exchange_n(&node->held, 1, __ATOMIC_ACQUIRE))
		violation("a node was handed out twice");
	if (draw(&me->seed) % 64 == 0)
		sched_yield();
	__atomic_store_n(&node->held, 0, __ATOMIC_RELEASE);
	push(node);
}

/* The value at each position of the ring is the position, so any loss or disorder shows. */
static void ring_push(void)
{
	struct rl_at at = now();
	struct slot *slot = &slots[at.index];
	const intptr_t tail = __atomic_load_n(&slot->ring_tail, __ATOMIC_RELAXED);
	enum rl_result result;

	if (tail - __atomic_load_n(&slot->ring_head, __ATOMIC_RELAXED) >= RING)
		return;
	result = rl_cmpeqv_trystorev_storev_release(at, &slot->ring_tail, tail, &slot->ring[tail % RING], tail, tail + 1);
	me->aborts += result == RL_ABORTED;
	me->pushed += result == RL_COMMITTED;
}

static void ring_pop(void)
{
	struct rl_at at = now();
	struct slot *slot = &slots[at.index];
	const intptr_t head = __atomic_load_n(&slot->ring_head, __ATOMIC_RELAXED);
	intptr_t value;
	enum rl_result result;

	if (head >= __atomic_load_n(&slot->ring_tail, __ATOMIC_ACQUIRE))
		return;
	value = __atomic_load_n(&slot->ring[head % RING], __ATOMIC_RELAXED);
	result = rl_cmpeqv_storev(at, &slot->ring_head, head, head + 1);
	me->aborts += result == RL_ABORTED;
	if (result != RL_COMMITTED)
		return;
	me->popped++;
	if (value != head)
		violation("the ring gave another value than was put at this place");
}

static uint32_t checksum(const unsigned char *data, uint32_t length_bytes)
{
	uint32_t sum = 2166136261u;

	while (length_bytes--)
		sum = (sum ^ *data++) * 16777619u;
	return sum;
}

/* A record never wraps: where it would, the writer skips to the start by writing an empty one. */
static void bytes_write(void)
{
	unsigned char message[sizeof(struct record) + 64];
	struct rl_at at = now();
	struct slot *slot = &slots[at.index];
	const intptr_t tail = __atomic_load_n(&slot->bytes_tail, __ATOMIC_RELAXED);
	const intptr_t head = __atomic_load_n(&slot->bytes_head, __ATOMIC_RELAXED);
	struct record record = { tail, 8 * (1 + draw(&me->seed) % 8), 0 };
	const uint32_t room_bytes = BYTES - tail % BYTES;
	uint32_t size_bytes, i;
	enum rl_result result;

	size_bytes = sizeof(record) + record.length_bytes;
	if (size_bytes + sizeof(record) > room_bytes) {
		record.length_bytes = 0;
		size_bytes = room_bytes;
	}
	if (tail + (intptr_t)size_bytes - head > BYTES)
		return;
	for (i = 0; i < record.length_bytes; i++)
		message[sizeof(record) + i] = draw(&me->seed);
	record.checksum = checksum(message + sizeof(record), record.length_bytes);
	memcpy(message, &record, sizeof(record));
	result = rl_cmpeqv_trymemcpy_storev_release(at, &slot->bytes_tail, tail, slot->bytes + tail % BYTES, message,
						    sizeof(record) + record.length_bytes, tail + size_bytes);
	me->aborts += result == RL_ABORTED;
	me->written += result == RL_COMMITTED;
}

static void bytes_read(void)
{
	unsigned char message[64];
	struct rl_at at = now();
	struct slot *slot = &slots[at.index];
	const intptr_t head = __atomic_load_n(&slot->bytes_head, __ATOMIC_RELAXED);
	struct record record;
	intptr_t next;
	enum rl_result result;

	if (head >= __atomic_load_n(&slot->bytes_tail, __ATOMIC_ACQUIRE))
		return;
	memcpy(&record, slot->bytes + head % BYTES, sizeof(record));
	memcpy(message, slot->bytes + (head + sizeof(record)) % BYTES,
	       record.length_bytes <= sizeof(message) ? record.length_bytes : 0);
	next = record.length_bytes ? head + (intptr_t)(sizeof(record) + record.length_bytes) : head + BYTES - head % BYTES;
	result = rl_cmpeqv_storev(at, &slot->bytes_head, head, next);
	me->aborts += result == RL_ABORTED;
	if (result != RL_COMMITTED)
		return;
	me->read++;
	if (record.position != head || record.length_bytes > sizeof(message)
	    || checksum(message, record.length_bytes) != record.checksum)
		violation("a record came out of the byte ring damaged");
}

static void operate(unsigned which)
{
	static void (*const all[])(void) = {
		add, lock_and_count, count_if_open, deepen, take_and_give_back,
		ring_push, ring_pop, bytes_write, bytes_read,
	};

	all[which % (sizeof(all) / sizeof(all[0]))]();
}

/* A trap or a signal inside a section: wander about, and use the same data from inside the handler. */
static void on_signal(int number)
{
	const int saved = errno;
	unsigned i;

	if (number == SIGTRAP)
		for (i = 0; i < SITES; i++)
			__atomic_store_n(&rl_inject[i].trap, 0, __ATOMIC_RELAXED);
	if (me) {
		me->traps++;
		wander(&me->seed);
		/* Not the lock: whom it interrupts may hold it. */
		add();
		deepen();
		count_if_open();
		ring_push();
		ring_pop();
	}
	errno = saved;
}

static void *work(void *argument)
{
	struct worker *worker = argument;
	uint64_t i;

	worker->tid = syscall(SYS_gettid);
	if (rl_enter(&worker->thread)) {
		violation("a thread could not register");
		return NULL;
	}
	me = worker;
	for (i = 0; i < operations; i++)
		operate(draw(&worker->seed));
	me = NULL;
	rl_leave(&worker->thread);
	return NULL;
}

/* Strikes until told to stop: delays and traps at random sites, signals to random threads. */
static void *attack(void *argument)
{
	unsigned seed = *(unsigned *)argument;
	const struct timespec pause = { 0, 50000 };
	sigset_t none;

	sigfillset(&none);
	pthread_sigmask(SIG_BLOCK, &none, NULL);
	while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
		const unsigned site = draw(&seed) % SITES, kind = draw(&seed) % 8;

		__atomic_store_n(&rl_inject[site].loops, kind == 0 ? 200000 : kind < 3 ? draw(&seed) % 500 : 0,
				 __ATOMIC_RELAXED);
		if (kind > 3)
			__atomic_store_n(&rl_inject[site].trap, 1, __ATOMIC_RELAXED);
		if (kind == 7)
			syscall(SYS_tgkill, getpid(), workers[draw(&seed) % threads].tid, SIGUSR1);
		nanosleep(&pause, NULL);
	}
	memset(rl_inject, 0, sizeof(rl_inject));
	return NULL;
}

static void expect(const char *what, uint64_t found, uint64_t wanted)
{
	if (found == wanted)
		return;
	printf("violated: %s is %llu, not %llu\n", what, (unsigned long long)found, (unsigned long long)wanted);
	violations++;
}

static void check(void)
{
	uint64_t counter = 0, guarded = 0, gated = 0, deep = 0, listed = 0, in_ring = 0, seen = 0;
	struct worker all = { 0 };
	unsigned i;

	for (i = 0; i < threads; i++) {
		all.aborts += workers[i].aborts;
		all.added += workers[i].added;
		all.locked += workers[i].locked;
		all.gated += workers[i].gated;
		all.deepened += workers[i].deepened;
		all.pushed += workers[i].pushed;
		all.popped += workers[i].popped;
		all.traps += workers[i].traps;
		seen += workers[i].read;
	}
	for (i = 0; i < CPUS; i++) {
		struct node *node;

		counter += slots[i].counter;
		guarded += slots[i].guarded;
		gated += slots[i].gated;
		deep += slots[i].deep;
		in_ring += slots[i].ring_tail - slots[i].ring_head;
		for (node = slots[i].list; node && listed <= CPUS * NODES; node = node->next) {
			if (node->held++)
				violation("a node is in two places");
			listed++;
		}
	}
	expect("the sum of addv", counter, all.added);
	expect("the sum under the lock", guarded, all.locked);
	expect("the sum of two compares and a store", gated, all.gated);
	expect("the sum through a pointer", deep, all.deepened);
	expect("the number of listed nodes", listed, CPUS * NODES);
	expect("what is left in the rings", in_ring, all.pushed - all.popped);
	printf("aborts %llu\ninterruptions %llu\nrecords %llu\n", (unsigned long long)all.aborts,
	       (unsigned long long)all.traps, (unsigned long long)seen);
}

int main(int argc, char **argv)
{
	/* A section inside the handler traps too, and a trap that is blocked kills. */
	struct sigaction action = { .sa_handler = on_signal, .sa_flags = SA_NODEFER };
	pthread_t attacker;
	unsigned i, j, seed;

	if (argc != 5 || (strcmp(argv[3], "cpu_id") && strcmp(argv[3], "mm_cid")))
		return 2;
	threads = atoi(argv[1]);
	operations = strtoull(argv[2], NULL, 10);
	by = strcmp(argv[3], "cpu_id") ? RL_BY_MM_CID : RL_BY_CPU_ID;
	seed = atoi(argv[4]);
	if (!threads || threads > MAX_THREADS)
		return 2;
	setvbuf(stdout, NULL, _IOLBF, 0);
	alarm(120);	/* corrupted links may go in circles */
	sched_getaffinity(0, sizeof(all_cpus), &all_cpus);
	for (i = 0; i < CPUS; i++) {
		slots[i].deep_pointer = &slots[i].deep;
		slots[i].deep_box = &slots[i].deep_pointer;
		for (j = 0; j < NODES; j++) {
			nodes[i][j].next = slots[i].list;
			slots[i].list = &nodes[i][j];
		}
	}
	sigaddset(&action.sa_mask, SIGUSR1);
	sigaction(SIGTRAP, &action, NULL);
	sigaction(SIGUSR1, &action, NULL);
	for (i = 0; i < threads; i++) {
		workers[i].seed = seed * 1000 + i;
		if (pthread_create(&workers[i].id, NULL, work, &workers[i]))
			return 2;
	}
	pthread_create(&attacker, NULL, attack, &seed);
	for (i = 0; i < threads; i++)
		pthread_join(workers[i].id, NULL);
	__atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
	pthread_join(attacker, NULL);
	check();
	return violations != 0;
}
