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
#include "percpu.h"

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

enum { INDICES = 1024, MAX_THREADS = 64, NODES = 64, VALUES = 64, BYTES = 4096, SITES = 4, OBJECTS = 256,
       OBJECT_BYTES = 64, LONGEST_WORDS = 8 };

/* What the attack fragments of the sections read. */
struct { uint32_t loops, trap; } rl_inject[SITES] __attribute__((visibility("hidden")));

struct node {
	struct rl_node listed;
	int held;	/* by a thread; twice at a time is a violation */
};

/* Words of one index that bare sections work on. */
struct words {
	intptr_t gated, gate, two, copy_of_two, deep;
	intptr_t *deep_pointer, **deep_box;
};

struct message {	/* in the byte ring */
	uint64_t payload_bytes, checksum, words[LONGEST_WORDS];
};

struct worker {
	pthread_t id;
	pid_t tid;
	unsigned seed;
	struct rl_thread thread;
	struct rl_here here;
	struct rl_aborts aborts;
	uint64_t added, locked, gated, doubled, deepened, pushed, popped, written, read, taken, strayed, interruptions;
};

static struct rl_percpu counters, locks, guarded, words, lists, takeables, rings, bytes;
static struct rl_pool pool;
static struct node nodes[2][INDICES][NODES];
static struct worker workers[MAX_THREADS];
static unsigned threads;
static uint64_t operations;
static enum rl_by by;
static cpu_set_t all_cpus;
static int stop;
static __thread struct worker *me;

/* Ends at once: corrupted links may go in circles. */
static void violation(const char *what)
{
	printf("violated: %s\n", what);
	fflush(stdout);
	_exit(1);
}

static unsigned draw(unsigned *seed)
{
	*seed = *seed * 1664525 + 1013904223;
	return *seed >> 8;
}

/* In one step: a signal's handler counts too, and would be lost between a load and a store (aarch64). */
static void tally(uint64_t *counter, unsigned more)
{
	__atomic_fetch_add(counter, more, __ATOMIC_RELAXED);
}

static int other_cpu(unsigned from)
{
	int cpu = from % CPU_SETSIZE;

	while (!CPU_ISSET(cpu, &all_cpus))
		cpu = (cpu + 1) % CPU_SETSIZE;
	return cpu;
}

static void stay_on(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	sched_setaffinity(0, sizeof(set), &set);
}

static void wander(unsigned *seed)
{
	const struct timespec nap = { 0, 20000 };

	switch (draw(seed) % 8) {
	case 0:
		sched_yield();
		break;
	case 1:
		nanosleep(&nap, NULL);
		break;
	case 2:
		stay_on(other_cpu(draw(seed)));
		sched_setaffinity(0, sizeof(all_cpus), &all_cpus);
		break;
	}
}

/* Between this and the section anything may happen, and is made to. */
static struct rl_at now(const struct rl_percpu *memory)
{
	const struct rl_at at = rl_at_here(memory, &me->here);

	if (draw(&me->seed) % 256 == 0)
		wander(&me->seed);
	return at;
}

#define UNTIL_COMMITTED(memory, at, section)					\
	for (;;) {								\
		enum rl_result result_;						\
		(at) = now(memory);						\
		result_ = (section);						\
		if (result_ == RL_COMMITTED)					\
			break;							\
		if (result_ == RL_ABORTED)					\
			rl_after_abort(at, &me->aborts);			\
	}

/* ---- bare sections, with an interruption between the index and the section ---- */

static void add(void)
{
	struct rl_at at;

	UNTIL_COMMITTED(&counters, at, rl_addv(at, rl_slot(&counters, at.index), 1));
	tally(&me->added, 1);
}

static enum rl_result count_if_open_once(struct rl_at at, struct words *here)
{
	const intptr_t seen = __atomic_load_n(&here->gated, __ATOMIC_RELAXED);

	return rl_cmpeqv_cmpeqv_storev(at, &here->gated, seen, &here->gate, 0, seen + 1);
}

static void count_if_open(void)
{
	struct rl_at at;

	UNTIL_COMMITTED(&words, at, count_if_open_once(at, rl_slot(&words, at.index)));
	tally(&me->gated, 1);
}

static enum rl_result count_twice_once(struct rl_at at, struct words *here)
{
	const intptr_t seen = __atomic_load_n(&here->two, __ATOMIC_RELAXED);

	return rl_cmpeqv_trystorev_storev(at, &here->two, seen, &here->copy_of_two, seen + 1, seen + 1);
}

static void count_twice(void)
{
	struct rl_at at;

	UNTIL_COMMITTED(&words, at, count_twice_once(at, rl_slot(&words, at.index)));
	tally(&me->doubled, 1);
}

static void deepen(void)
{
	struct rl_at at;

	UNTIL_COMMITTED(&words, at,
			rl_offset_deref_addv(at, (intptr_t *)&((struct words *)rl_slot(&words, at.index))->deep_box, 0, 1));
	tally(&me->deepened, 1);
}

/*
 * The thread is moved after it chose its data, and stays away: whatever the section does, it must not
 * commit there. Where there is one CPU only, and by mm_cid, the index is one that no thread has.
 */
static void stray(void)
{
	const int here = other_cpu(draw(&me->seed)), there = other_cpu(here + 1);
	struct rl_at at;
	sigset_t storm, before;

	sigemptyset(&storm);
	sigaddset(&storm, SIGUSR1);
	pthread_sigmask(SIG_BLOCK, &storm, &before);	/* its handler would let the thread go back */
	stay_on(here);
	at = rl_at_here(&counters, &me->here);
	stay_on(there);
	if (here == there || by != RL_BY_CPU_ID)
		at.index = INDICES - 1;
	if (rl_addv(at, rl_slot(&counters, at.index), 0) == RL_COMMITTED)
		violation("a section committed with an index that its thread did not have");
	sched_setaffinity(0, sizeof(all_cpus), &all_cpus);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	tally(&me->strayed, 1);
}

/* ---- structures ---- */

/* Inline, or as the function that goes on elsewhere after its first attempt. */
#define EITHER(operation, ...)	\
	(draw(&me->seed) % 2 ? rl_call_##operation(__VA_ARGS__) : rl_##operation(__VA_ARGS__))

/* The function reads the index itself: what strikes between that and its section, the injected delays do. */
static void count_by_function(void)
{
	rl_call_counter_add(&counters, &me->here, 1);
	tally(&me->added, 1);
}

static void lock_and_count(void)
{
	uint32_t index;

	EITHER(lock_take, &locks, &me->here, &index);
	++*(intptr_t *)rl_slot(&guarded, index);	/* plain: the lock is held, wherever this thread runs by now */
	rl_lock_release(&locks, index);
	tally(&me->locked, 1);
}

static void hold(struct node *node)
{
	if (__atomic_exchange_n(&node->held, 1, __ATOMIC_ACQUIRE))
		violation("a node was handed out twice");
	if (draw(&me->seed) % 64 == 0)
		sched_yield();
	__atomic_store_n(&node->held, 0, __ATOMIC_RELEASE);
}

static void take_and_give_back(void)
{
	struct rl_node *node = EITHER(list_pop, &lists, &me->here);

	if (!node)
		return;
	hold((struct node *)node);
	EITHER(list_push, &lists, &me->here, node);
}

static void take_and_give_back_takeable(void)
{
	struct rl_node *node = EITHER(takeable_pop, &takeables, &me->here);

	if (!node)
		return;
	hold((struct node *)node);
	EITHER(takeable_push, &takeables, &me->here, node);
}

/* Takes over another index's whole list, by each of the ways that this machine has. */
static void take_over(void)
{
	static const enum rl_take ways[] = { RL_TAKE_FENCE_CPU, RL_TAKE_FENCE_ALL, RL_TAKE_MOVE };
	const enum rl_take how = by == RL_BY_CPU_ID ? ways[draw(&me->seed) % 3] : RL_TAKE_FENCE_ALL;
	struct rl_node *chain, *next;

	if (rl_takeable_take(&takeables, &me->here, other_cpu(draw(&me->seed)), how, &chain))
		violation("a takeover was refused");
	for (; chain; chain = next) {
		next = chain->next;
		hold((struct node *)chain);
		EITHER(takeable_push, &takeables, &me->here, chain);
	}
	tally(&me->taken, 1);
}

/* The value at each position of the ring is the position, so any loss or disorder shows. */
static void ring_push(void)
{
	const struct rl_at at = now(&rings);
	struct rl_ring *ring = rl_slot(&rings, at.index);
	const intptr_t tail = __atomic_load_n(&ring->tail, __ATOMIC_RELAXED);
	const enum rl_result result = rl_ring_push_once(at, ring, VALUES - 1, tail, tail);

	if (result == RL_ABORTED)
		rl_after_abort(at, &me->aborts);
	tally(&me->pushed, result == RL_COMMITTED);
}

static void ring_pop(void)
{
	const struct rl_at at = now(&rings);
	struct rl_ring *ring = rl_slot(&rings, at.index);
	const intptr_t head = __atomic_load_n(&ring->head, __ATOMIC_RELAXED);
	intptr_t value;
	const enum rl_result result = rl_ring_pop_once(at, ring, VALUES - 1, head, &value);

	if (result == RL_ABORTED)
		rl_after_abort(at, &me->aborts);
	if (result != RL_COMMITTED)
		return;
	tally(&me->popped, 1);
	if (value != head)
		violation("the ring gave another value than was put at this place");
}

static uint64_t checksum(const struct message *message)
{
	uint64_t sum = 14695981039346656037u + message->payload_bytes, i;

	for (i = 0; i < (message->payload_bytes - sizeof(message->checksum)) / 8; i++)
		sum = (sum ^ message->words[i]) * 1099511628211u;
	return sum;
}

static void bytes_write(void)
{
	struct message message;
	const uint64_t count = draw(&me->seed) % (LONGEST_WORDS + 1);
	uint64_t i;

	message.payload_bytes = sizeof(message.checksum) + 8 * count;
	for (i = 0; i < count; i++)
		message.words[i] = draw(&me->seed);
	message.checksum = checksum(&message);
	tally(&me->written, EITHER(bytes_write, &bytes, &me->here, (struct rl_record *)&message) == RL_COMMITTED);
}

static void bytes_read(void)
{
	struct message message;

	if (EITHER(bytes_read, &bytes, &me->here, (struct rl_record *)&message, sizeof(message) - 8) != RL_COMMITTED)
		return;
	tally(&me->read, 1);
	if (message.payload_bytes % 8 || message.checksum != checksum(&message))
		violation("a record came out of the byte ring damaged");
}

static void allocate_and_free(void)
{
	struct node *object = EITHER(pool_alloc, &pool, &me->here);

	if (!object)
		return;
	if (__atomic_exchange_n(&object->held, 1, __ATOMIC_ACQUIRE))
		violation("an object was allocated twice");
	if (draw(&me->seed) % 64 == 0)
		sched_yield();
	__atomic_store_n(&object->held, 0, __ATOMIC_RELEASE);
	EITHER(pool_free, &pool, &me->here, object);
}

static void operate(unsigned which)
{
	static void (*const all[])(void) = {
		add, count_by_function, count_if_open, count_twice, deepen, lock_and_count, take_and_give_back,
		take_and_give_back_takeable, ring_push, ring_pop, bytes_write, bytes_read, allocate_and_free,
	};

	if (which % 4096 == 0)
		stray();
	else if (which % 4096 == 1)
		take_over();
	else
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
		tally(&me->interruptions, 1);
		wander(&me->seed);
		/* Neither the lock nor the slow path of the pool: whom it interrupts may hold it. */
		add();
		deepen();
		count_if_open();
		count_twice();
		take_and_give_back();
		take_and_give_back_takeable();
		ring_push();
		ring_pop();
		bytes_write();
		/* The cause of the abort that this was, if it was one, shows in the area. */
		rl_store_u64((char *)rl_thread_pointer() + me->here.offset_bytes + offsetof(struct rl_area, rseq_cs), 0);
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
	worker->here = (struct rl_here){ worker->thread.offset_bytes, &worker->aborts };
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
	fflush(stdout);
	_exit(1);
}

/* Each node once, in one list. */
static uint64_t listed(const struct rl_node *first, uint64_t limit)
{
	const struct rl_node *node;
	uint64_t found = 0;

	for (node = first; node && found <= limit; node = node->next) {
		if (((struct node *)node)->held++)
			violation("a node is in two places");
		found++;
	}
	return found;
}

static void check_records(const struct rl_bytes *ring, uint64_t *left)
{
	intptr_t place = ring->head;

	while (place < ring->tail) {
		const struct message *message = (const void *)(ring->bytes + place % BYTES);

		if (message->payload_bytes == RL_FILLER) {
			place += BYTES - place % BYTES;
			continue;
		}
		if (message->payload_bytes > sizeof(*message) || message->checksum != checksum(message)) {
			violation("a record lies in the byte ring damaged");
			return;
		}
		place += rl_record_bytes(message->payload_bytes);
		++*left;
	}
}

static void check(void)
{
	uint64_t counter = 0, under_lock = 0, gated = 0, two = 0, deep = 0, in_lists = 0, in_takeables = 0, in_pool = 0,
		 values = 0, records = 0;
	struct worker all = { 0 };
	unsigned i;

	for (i = 0; i < threads; i++) {
		const struct worker *one = &workers[i];

		all.aborts.moved += one->aborts.moved;
		all.aborts.migrated += one->aborts.migrated;
		all.aborts.interrupted += one->aborts.interrupted;
		all.added += one->added;
		all.locked += one->locked;
		all.gated += one->gated;
		all.doubled += one->doubled;
		all.deepened += one->deepened;
		all.pushed += one->pushed;
		all.popped += one->popped;
		all.written += one->written;
		all.read += one->read;
		all.taken += one->taken;
		all.strayed += one->strayed;
		all.interruptions += one->interruptions;
	}
	for (i = 0; i < INDICES; i++) {
		const struct words *here = rl_slot(&words, i);
		const struct rl_ring *ring = rl_slot(&rings, i);
		const struct rl_takeable *takeable = rl_slot(&takeables, i), *free = rl_slot(&pool.lists, i);

		counter += rl_peek(&counters, i);
		under_lock += rl_peek(&guarded, i);
		gated += here->gated;
		two += here->two;
		/* The last attempt here may have been aborted between its two stores. */
		if (here->copy_of_two != here->two && here->copy_of_two != here->two + 1)
			violation("a commit is there without its preparatory store");
		deep += here->deep;
		values += ring->tail - ring->head;
		check_records(rl_slot(&bytes, i), &records);
		in_lists += listed((struct rl_node *)rl_peek(&lists, i), INDICES * NODES);
		in_takeables += listed((struct rl_node *)takeable->heads[0], INDICES * NODES)
				+ listed((struct rl_node *)takeable->heads[1], INDICES * NODES);
		in_pool += listed((struct rl_node *)free->heads[0], OBJECTS) + listed((struct rl_node *)free->heads[1], OBJECTS);
	}
	expect("the sum of addv", counter, all.added);
	expect("the sum under the lock", under_lock, all.locked);
	expect("the sum of two compares and a store", gated, all.gated);
	expect("the sum of two stores", two, all.doubled);
	expect("the sum through a pointer", deep, all.deepened);
	expect("the number of listed nodes", in_lists, INDICES * NODES);
	expect("the number of nodes in takeable lists", in_takeables, INDICES * NODES);
	expect("the number of free objects", in_pool, pool.carved);
	expect("what is left in the rings", values, all.pushed - all.popped);
	expect("the records that are left", records, all.written - all.read);
	printf("aborts %llu\nmoved %llu\nmigrated %llu\ninterrupted %llu\ninterruptions %llu\nrecords %llu\n"
	       "takeovers %llu\nstrays %llu\n",
	       (unsigned long long)(all.aborts.moved + all.aborts.migrated + all.aborts.interrupted),
	       (unsigned long long)all.aborts.moved, (unsigned long long)all.aborts.migrated,
	       (unsigned long long)all.aborts.interrupted, (unsigned long long)all.interruptions,
	       (unsigned long long)all.read, (unsigned long long)all.taken, (unsigned long long)all.strayed);
}

static int prepare(void)
{
	unsigned i, j;

	if (rl_percpu_create(&counters, sizeof(intptr_t), 0, INDICES, by)
	    || rl_percpu_create(&locks, sizeof(intptr_t), 0, INDICES, by)
	    || rl_percpu_create(&guarded, sizeof(intptr_t), 0, INDICES, by)
	    || rl_percpu_create(&words, sizeof(struct words), 0, INDICES, by)
	    || rl_percpu_create(&lists, sizeof(intptr_t), 0, INDICES, by)
	    || rl_percpu_create(&takeables, sizeof(struct rl_takeable), 0, INDICES, by)
	    || rl_ring_create(&rings, VALUES, INDICES, by) || rl_bytes_create(&bytes, BYTES, INDICES, by)
	    || rl_pool_create(&pool, OBJECT_BYTES, OBJECTS, INDICES, by) || rl_takeable_init(&takeables)
	    || rl_fence_register())
		return -1;
	for (i = 0; i < INDICES; i++) {
		struct words *here = rl_slot(&words, i);
		intptr_t *head = rl_slot(&lists, i), *takeable = ((struct rl_takeable *)rl_slot(&takeables, i))->active;

		here->deep_pointer = &here->deep;
		here->deep_box = &here->deep_pointer;
		for (j = 0; j < NODES; j++) {
			nodes[0][i][j].listed.next = (struct rl_node *)*head;
			*head = (intptr_t)&nodes[0][i][j];
			nodes[1][i][j].listed.next = (struct rl_node *)*takeable;
			*takeable = (intptr_t)&nodes[1][i][j];
		}
	}
	return 0;
}

int main(int argc, char **argv)
{
	/* A section inside the handler traps too, and a trap that is blocked kills. */
	struct sigaction action = { .sa_handler = on_signal, .sa_flags = SA_NODEFER };
	pthread_t attacker;
	unsigned i, seed;

	if (argc != 5 || (strcmp(argv[3], "cpu_id") && strcmp(argv[3], "mm_cid")))
		return 2;
	threads = atoi(argv[1]);
	operations = strtoull(argv[2], NULL, 10);
	by = strcmp(argv[3], "cpu_id") ? RL_BY_MM_CID : RL_BY_CPU_ID;
	seed = atoi(argv[4]);
	if (!threads || threads > MAX_THREADS)
		return 2;
	setvbuf(stdout, NULL, _IOLBF, 0);
	alarm(600);	/* and an attack that comes to no end is no success */
	sched_getaffinity(0, sizeof(all_cpus), &all_cpus);
	if (prepare())
		return 2;
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
	return 0;
}
