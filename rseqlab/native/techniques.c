/* SPDX-License-Identifier: MIT */
/*
 * One operation, done over and over by one technique: rseq sections on data by CPU, and everything else
 * that a program would use instead. Every technique leaves traces in the data, by which its work is counted.
 */
#define _GNU_SOURCE
#include "layout.h"
#include "ops.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>

enum { NODES_PER_INDEX = 8, RING_VALUES = 64, RING_BYTES = 16384, RECORD_BYTES = 64, OBJECT_BYTES = 64, MOST_NODES = 1024 };

struct node {
	struct rl_node listed;
	intptr_t uses;		/* plain: whoever took the node has it alone */
};

/* A record with its payload: its size divides the ring, so none ever wraps. */
union message {
	uint64_t payload_bytes, words[RECORD_BYTES / 8];
};
#define MESSAGE { .words = { RECORD_BYTES - sizeof(struct rl_record), 1, 2, 3, 4, 5, 6, 7 } }

/* What a thread-local counter is in a shared library; too small to make a loader refuse this one. */
static __thread __attribute__((tls_model("initial-exec"))) intptr_t counter_of_thread;

#define EIGHT_TIMES(operation) \
	{ operation; operation; operation; operation; operation; operation; operation; operation; }

/* A job's loop. The memory by index is copied, so that the compiler sees that no operation changes it. */
#define WORK(name, operation)								\
RL_TIMED static void name(struct rl_ops_thread *thread, uint64_t iterations)			\
{											\
	struct rl_ops_data *data = thread->data;					\
	const struct rl_percpu memory = data->memory, shared = data->shared;		\
	const struct rl_here here = thread->here;					\
	const uint32_t own = thread->index;						\
	struct rl_tally tally = { 0 };							\
	uint64_t i;									\
											\
	(void)data, (void)memory, (void)shared, (void)here, (void)own;			\
	RL_LAYOUT_PAD();								\
	for (i = 0; i < iterations; i += RL_UNROLL)					\
		EIGHT_TIMES(operation)							\
	thread->tally = tally;								\
}

/* The same operation once, from a signal handler. */
#define ONCE(name, operation)								\
static void name(struct rl_ops_thread *thread)						\
{											\
	struct rl_ops_data *data = thread->data;					\
	const struct rl_percpu memory = data->memory, shared = data->shared;		\
	const struct rl_here here = thread->here;					\
	const uint32_t own = thread->index;						\
											\
	(void)memory, (void)shared, (void)here, (void)own;				\
	operation;									\
}

static intptr_t *of_thread(const struct rl_percpu *shared, uint32_t thread)
{
	return rl_slot(shared, thread);
}

/* ---- what is prepared ---- */

static int prepare_slots(struct rl_ops_data *data, enum rl_by by)
{
	int error = rl_percpu_create(&data->memory, sizeof(intptr_t), data->job->stride_bytes, data->job->indices, by);

	return error ? error : rl_percpu_create(&data->shared, RL_SLOT_BYTES, 0, data->job->threads, RL_BY_CPU_ID);
}

/* By node: more nodes have numbers than CPUs do. */
static int prepare_nodes(struct rl_ops_data *data, enum rl_by by)
{
	return rl_percpu_create(&data->memory, sizeof(intptr_t), 0, MOST_NODES, by);
}

/* `lists` lists of nodes, their heads in `memory`; where `takeable`, as such. */
static int prepare_lists(struct rl_ops_data *data, struct rl_percpu *memory, uint32_t lists, enum rl_by by, int takeable)
{
	int error = rl_percpu_create(memory, RL_SLOT_BYTES, 0, lists, by);
	uint32_t i, j;

	if (!error)
		error = rl_percpu_create(&data->nodes, RL_SLOT_BYTES, 0, lists * NODES_PER_INDEX, by);
	if (error)
		return error;
	if (takeable)
		rl_takeable_init(memory);
	for (i = 0; i < lists; i++)
		for (j = 0; j < NODES_PER_INDEX; j++) {
			struct rl_node *node = rl_slot(&data->nodes, i * NODES_PER_INDEX + j);
			intptr_t *head = takeable ? ((struct rl_takeable *)rl_slot(memory, i))->active : rl_slot(memory, i);

			node->next = (struct rl_node *)*head;
			*head = (intptr_t)node;
		}
	return 0;
}

static int prepare_list(struct rl_ops_data *data, enum rl_by by)
{
	return prepare_lists(data, &data->memory, data->job->indices, by, 0);
}

static int prepare_takeable(struct rl_ops_data *data, enum rl_by by)
{
	return prepare_lists(data, &data->memory, data->job->indices, by, 1);
}

static int prepare_list_of_thread(struct rl_ops_data *data, enum rl_by by)
{
	return prepare_lists(data, &data->shared, data->job->threads, by, 0);
}

static int prepare_ring(struct rl_ops_data *data, enum rl_by by)
{
	return rl_ring_create(&data->memory, RING_VALUES, data->job->indices, by);
}

static int prepare_ring_of_thread(struct rl_ops_data *data, enum rl_by by)
{
	return rl_ring_create(&data->shared, RING_VALUES, data->job->threads, by);
}

static int prepare_bytes(struct rl_ops_data *data, enum rl_by by)
{
	return rl_bytes_create(&data->memory, RING_BYTES, data->job->indices, by);
}

static int prepare_bytes_of_thread(struct rl_ops_data *data, enum rl_by by)
{
	return rl_bytes_create(&data->shared, RING_BYTES, data->job->threads, by);
}

static int prepare_pool(struct rl_ops_data *data, enum rl_by by)
{
	const uint64_t objects = (uint64_t)data->job->indices * 64 + data->job->threads;

	return rl_pool_create(&data->pool, OBJECT_BYTES, objects, data->job->indices, by);
}

/* ---- how the work is found in the data ---- */

static uint64_t in_slots(struct rl_ops_data *data, struct rl_ops_thread *const *threads)
{
	uint64_t found = 0;
	uint32_t i;

	(void)threads;
	for (i = 0; i < data->memory.indices; i++)
		found += rl_peek(&data->memory, i);
	for (i = 0; i < data->shared.indices; i++)
		found += rl_peek(&data->shared, i);
	return found;
}

/* Every node says how often it was taken; and each must be back. */
static uint64_t in_nodes(struct rl_ops_data *data, struct rl_ops_thread *const *threads)
{
	uint64_t found = 0;
	uint32_t i;

	for (i = 0; i < data->job->threads; i++)
		found += threads[i]->tally.missed;
	for (i = 0; i < data->nodes.indices; i++)
		found += ((struct node *)rl_slot(&data->nodes, i))->uses;
	return found;
}

/* What was put in and not taken out must be what is left; then every operation is found. */
static uint64_t in_all_rings(struct rl_ops_data *data, struct rl_ops_thread *const *threads,
			     uint64_t (*left_in)(const void *ring))
{
	const struct rl_percpu *memory = data->memory.base ? &data->memory : &data->shared;
	uint64_t pushed = 0, popped = 0, missed = 0, left = 0;
	uint32_t i;

	for (i = 0; i < data->job->threads; i++) {
		pushed += threads[i]->tally.pushed;
		popped += threads[i]->tally.popped;
		missed += threads[i]->tally.missed;
	}
	for (i = 0; i < memory->indices; i++)
		left += left_in(rl_slot(memory, i));
	return popped + left == pushed ? pushed + missed : popped + left;
}

static uint64_t values_left(const void *slot)
{
	const struct rl_ring *ring = slot;

	return ring->tail - ring->head;
}

static uint64_t records_left(const void *slot)
{
	const struct rl_bytes *ring = slot;

	return (ring->tail - ring->head) / RECORD_BYTES;
}

static uint64_t in_rings(struct rl_ops_data *data, struct rl_ops_thread *const *threads)
{
	return in_all_rings(data, threads, values_left);
}

static uint64_t in_byte_rings(struct rl_ops_data *data, struct rl_ops_thread *const *threads)
{
	return in_all_rings(data, threads, records_left);
}

static uint64_t in_threads(struct rl_ops_data *data, struct rl_ops_thread *const *threads)
{
	uint64_t found = 0;
	uint32_t i;

	for (i = 0; i < data->job->threads; i++)
		found += threads[i]->tally.popped;
	return found;
}

/* ---- counter ---- */

static void add_plainly(intptr_t *value)
{
	++*value;
	__asm__ volatile("" ::: "memory");	/* every increment reaches memory */
}

static void add_under(pthread_mutex_t *mutex, intptr_t *value)
{
	pthread_mutex_lock(mutex);
	++*value;
	pthread_mutex_unlock(mutex);
}

static void add_spinning(pthread_spinlock_t *spinlock, intptr_t *value)
{
	pthread_spin_lock(spinlock);
	++*value;
	pthread_spin_unlock(spinlock);
}

/* In the place of an operation: a move between registers, and the compiler's barrier of the others. */
static inline void move(uint64_t value)
{
	uint64_t other;

#if defined(__x86_64__)
	__asm__ volatile("movq %1, %0" : "=r"(other) : "r"(value) : "memory");
#elif defined(__aarch64__)
	__asm__ volatile("mov %0, %1" : "=r"(other) : "r"(value) : "memory");
#else
	__asm__ volatile("" : "=r"(other) : "0"(value) : "memory");
#endif
	(void)other;
}

RL_TIMED static void count_nothing(struct rl_ops_thread *thread, uint64_t iterations)
{
	const uint64_t value = iterations;
	uint64_t i;

	RL_LAYOUT_PAD();
	for (i = 0; i < iterations; i += RL_UNROLL)
		EIGHT_TIMES(move(value))
	*of_thread(&thread->data->shared, thread->index) = i;
}

RL_TIMED static void count_in_thread(struct rl_ops_thread *thread, uint64_t iterations)
{
	uint64_t i;

	RL_LAYOUT_PAD();
	for (i = 0; i < iterations; i += RL_UNROLL)
		EIGHT_TIMES(add_plainly(&counter_of_thread))
	*of_thread(&thread->data->shared, thread->index) = counter_of_thread;
}

/* What a section cannot do without: a second store, on another line than the counter's. */
RL_TIMED static void count_on_two_lines(struct rl_ops_thread *thread, uint64_t iterations)
{
	intptr_t *counter = of_thread(&thread->data->shared, thread->index), *other = counter + 8;
	uint64_t i;

	RL_LAYOUT_PAD();
	for (i = 0; i < iterations; i += RL_UNROLL)
		EIGHT_TIMES(__atomic_store_n(other, i, __ATOMIC_RELAXED); add_plainly(counter))
}

WORK(count_rseq, rl_counter_add(&memory, &here, 1))
ONCE(count_rseq_once, rl_counter_add(&memory, &here, 1))
WORK(count_rseq_again, rl_counter_add(&memory, &here, 1))
ONCE(count_rseq_once_again, rl_counter_add(&memory, &here, 1))
WORK(count_own_line, __atomic_fetch_add(of_thread(&shared, own), 1, __ATOMIC_RELAXED))
ONCE(count_own_line_once, __atomic_fetch_add(of_thread(&shared, own), 1, __ATOMIC_RELAXED))
WORK(count_own_line_again, __atomic_fetch_add(of_thread(&shared, own), 1, __ATOMIC_RELAXED))
ONCE(count_own_line_once_again, __atomic_fetch_add(of_thread(&shared, own), 1, __ATOMIC_RELAXED))
WORK(count_one_line, __atomic_fetch_add(of_thread(&shared, 0), 1, __ATOMIC_RELAXED))
WORK(count_getcpu, __atomic_fetch_add((intptr_t *)rl_slot(&memory, sched_getcpu()), 1, __ATOMIC_RELAXED))
WORK(count_getcpu_again, __atomic_fetch_add((intptr_t *)rl_slot(&memory, sched_getcpu()), 1, __ATOMIC_RELAXED))
WORK(count_node, __atomic_fetch_add((intptr_t *)rl_slot(&memory, rl_read_field(here.offset_bytes, RL_BY_NODE_ID)), 1,
				    __ATOMIC_RELAXED))
WORK(count_mutex, add_under(&data->mutex, of_thread(&shared, 0)))
WORK(count_spinlock, add_spinning(&data->spinlock, of_thread(&shared, 0)))

/* ---- the other sections, each on this CPU's slot; a slot counts how often it was committed ---- */

RL_FAST void until_committed(const struct rl_percpu *memory, const struct rl_here *here,
			     enum rl_result (*section)(struct rl_at at, intptr_t *slot))
{
	struct rl_at at;
	enum rl_result result;

	RL_UNTIL_COMMITTED(result, memory, here, at, section(at, rl_slot(memory, at.index)));
}

RL_FAST enum rl_result store(struct rl_at at, intptr_t *slot)
{
	const intptr_t seen = __atomic_load_n(slot, __ATOMIC_RELAXED);

	return rl_cmpeqv_storev(at, slot, seen, seen + 1);
}

RL_FAST enum rl_result store_two(struct rl_at at, intptr_t *slot)
{
	const intptr_t seen = __atomic_load_n(slot, __ATOMIC_RELAXED);

	return rl_cmpeqv_trystorev_storev(at, slot, seen, slot + 1, seen, seen + 1);
}

RL_FAST enum rl_result store_two_release(struct rl_at at, intptr_t *slot)
{
	const intptr_t seen = __atomic_load_n(slot, __ATOMIC_RELAXED);

	return rl_cmpeqv_trystorev_storev_release(at, slot, seen, slot + 1, seen, seen + 1);
}

RL_FAST enum rl_result compare_two(struct rl_at at, intptr_t *slot)
{
	const intptr_t seen = __atomic_load_n(slot, __ATOMIC_RELAXED);

	return rl_cmpeqv_cmpeqv_storev(at, slot, seen, slot + 1, 0, seen + 1);
}

static const char source[RECORD_BYTES] __attribute__((aligned(64)));

RL_FAST enum rl_result copy(struct rl_at at, intptr_t *slot)
{
	const intptr_t seen = __atomic_load_n(slot, __ATOMIC_RELAXED);

	return rl_cmpeqv_trymemcpy_storev(at, slot, seen, slot + 8, source, sizeof(source), seen + 1);
}

/* The slot's second word leads to a pointer to the first. */
static int prepare_pointers(struct rl_ops_data *data, enum rl_by by)
{
	int error = prepare_slots(data, by);
	uint32_t i;

	for (i = 0; !error && i < data->memory.indices; i++) {
		intptr_t *slot = rl_slot(&data->memory, i);

		slot[1] = (intptr_t)&slot[2];
		slot[2] = (intptr_t)slot;
	}
	return error;
}

RL_FAST enum rl_result add_through_pointer(struct rl_at at, intptr_t *slot)
{
	return rl_offset_deref_addv(at, slot + 1, 0, 1);
}

WORK(section_store, until_committed(&memory, &here, store))
WORK(section_store_two, until_committed(&memory, &here, store_two))
WORK(section_store_two_release, until_committed(&memory, &here, store_two_release))
WORK(section_compare_two, until_committed(&memory, &here, compare_two))
WORK(section_copy, until_committed(&memory, &here, copy))
WORK(section_deref, until_committed(&memory, &here, add_through_pointer))

/* ---- lock: what it protects is the slot's second word ---- */

RL_FAST void lock_rseq(const struct rl_percpu *memory, const struct rl_here *here)
{
	uint32_t index;

	rl_lock_take(memory, here, &index);
	add_plainly((intptr_t *)rl_slot(memory, index) + 1);
	rl_lock_release(memory, index);
}

RL_FAST void lock_exchanging(const struct rl_percpu *memory)
{
	intptr_t *lock = rl_slot(memory, sched_getcpu());

	while (__atomic_exchange_n(lock, 1, __ATOMIC_ACQUIRE))
		rl_wait();
	add_plainly(lock + 1);
	__atomic_store_n(lock, 0, __ATOMIC_RELEASE);
}

RL_FAST void lock_mutex(const struct rl_percpu *memory)
{
	intptr_t *slot = rl_slot(memory, sched_getcpu());

	add_under((pthread_mutex_t *)(slot + 2), slot + 1);
}

static int prepare_locks(struct rl_ops_data *data, enum rl_by by)
{
	return rl_percpu_create(&data->memory, RL_SLOT_BYTES, 0, data->job->indices, by);	/* a mutex of zeros is free */
}
_Static_assert(sizeof(pthread_mutex_t) + 2 * sizeof(intptr_t) <= RL_SLOT_BYTES, "a lock and its data in one slot");

static uint64_t behind_locks(struct rl_ops_data *data, struct rl_ops_thread *const *threads)
{
	uint64_t found = 0;
	uint32_t i;

	(void)threads;
	for (i = 0; i < data->memory.indices; i++)
		found += ((intptr_t *)rl_slot(&data->memory, i))[1];
	return found;
}

WORK(locking_rseq, lock_rseq(&memory, &here))
WORK(locking_exchange, lock_exchanging(&memory))
WORK(locking_mutex, lock_mutex(&memory))

/* ---- list: take a node, use it, put it back ---- */

RL_FAST void use(struct rl_tally *tally, struct rl_node *node)
{
	if (RL_LIKELY(node))
		((struct node *)node)->uses++;
	else
		tally->missed++;
}

RL_FAST struct rl_node *plain_pop(intptr_t *head)
{
	struct rl_node *node = (struct rl_node *)*head;

	if (RL_LIKELY(node))
		*head = (intptr_t)node->next;
	__asm__ volatile("" ::: "memory");
	return node;
}

RL_FAST void plain_push(intptr_t *head, struct rl_node *node)
{
	node->next = (struct rl_node *)*head;
	*head = (intptr_t)node;
	__asm__ volatile("" ::: "memory");
}

/*
 * A stack for all CPUs by compare-and-swap: the head is a node's number, 0 for none, below a tag that
 * every change increments, so that a node that came back is not taken for one that never left.
 */
RL_FAST struct rl_node *cas_pop(const struct rl_percpu *nodes, intptr_t *head)
{
	uint64_t seen = __atomic_load_n((uint64_t *)head, __ATOMIC_ACQUIRE), next;
	struct rl_node *node;

	do {
		if (!(uint32_t)seen)
			return NULL;
		node = rl_slot(nodes, (uint32_t)seen - 1);
		next = ((seen >> 32) + 1) << 32 | (uint32_t)(uintptr_t)__atomic_load_n(&node->next, __ATOMIC_RELAXED);
	} while (!__atomic_compare_exchange_n((uint64_t *)head, &seen, next, 1, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE));
	return node;
}

RL_FAST void cas_push(const struct rl_percpu *nodes, intptr_t *head, struct rl_node *node)
{
	const uint32_t number = (((char *)node - nodes->base) >> nodes->shift) + 1;
	uint64_t seen = __atomic_load_n((uint64_t *)head, __ATOMIC_RELAXED), next;

	do {
		__atomic_store_n(&node->next, (struct rl_node *)(uintptr_t)(uint32_t)seen, __ATOMIC_RELAXED);
		next = ((seen >> 32) + 1) << 32 | number;
	} while (!__atomic_compare_exchange_n((uint64_t *)head, &seen, next, 1, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED));
}

/* The lists of prepare_list, with numbers instead of pointers. */
static int prepare_cas(struct rl_ops_data *data, enum rl_by by)
{
	int error = prepare_list(data, by);
	uint32_t i, j;

	for (i = 0; !error && i < data->job->indices; i++) {
		*(intptr_t *)rl_slot(&data->memory, i) = 0;
		for (j = 0; j < NODES_PER_INDEX; j++)
			cas_push(&data->nodes, rl_slot(&data->memory, i), rl_slot(&data->nodes, i * NODES_PER_INDEX + j));
	}
	return error;
}

RL_FAST void list_rseq(struct rl_tally *tally, const struct rl_percpu *memory, const struct rl_here *here)
{
	struct rl_node *node = rl_list_pop(memory, here);

	use(tally, node);
	if (RL_LIKELY(node))
		rl_list_push(memory, here, node);
}

RL_FAST void list_takeable(struct rl_tally *tally, const struct rl_percpu *memory, const struct rl_here *here)
{
	struct rl_node *node = rl_takeable_pop(memory, here);

	use(tally, node);
	if (RL_LIKELY(node))
		rl_takeable_push(memory, here, node);
}

RL_FAST void list_plain(struct rl_tally *tally, intptr_t *head)
{
	struct rl_node *node = plain_pop(head);

	use(tally, node);
	if (RL_LIKELY(node))
		plain_push(head, node);
}

RL_FAST void list_mutex(struct rl_tally *tally, pthread_mutex_t *mutex, intptr_t *head)
{
	struct rl_node *node;

	pthread_mutex_lock(mutex);
	node = plain_pop(head);
	pthread_mutex_unlock(mutex);
	use(tally, node);
	if (!node)
		return;
	pthread_mutex_lock(mutex);
	plain_push(head, node);
	pthread_mutex_unlock(mutex);
}

RL_FAST void list_spinlock(struct rl_tally *tally, pthread_spinlock_t *spinlock, intptr_t *head)
{
	struct rl_node *node;

	pthread_spin_lock(spinlock);
	node = plain_pop(head);
	pthread_spin_unlock(spinlock);
	use(tally, node);
	if (!node)
		return;
	pthread_spin_lock(spinlock);
	plain_push(head, node);
	pthread_spin_unlock(spinlock);
}

RL_FAST void list_cas(struct rl_tally *tally, const struct rl_percpu *nodes, intptr_t *head)
{
	struct rl_node *node = cas_pop(nodes, head);

	use(tally, node);
	if (RL_LIKELY(node))
		cas_push(nodes, head, node);
}

WORK(listing_rseq, list_rseq(&tally, &memory, &here))
WORK(listing_takeable, list_takeable(&tally, &memory, &here))
WORK(listing_in_thread, list_plain(&tally, of_thread(&shared, own)))
WORK(listing_mutex, list_mutex(&tally, &data->mutex, of_thread(&shared, 0)))
WORK(listing_spinlock, list_spinlock(&tally, &data->spinlock, of_thread(&shared, 0)))
WORK(listing_cas, list_cas(&tally, &data->nodes, rl_slot(&memory, 0)))
WORK(listing_getcpu_cas, list_cas(&tally, &data->nodes, rl_slot(&memory, sched_getcpu())))

/* ---- ring of pointers: put one in, take one out ---- */

RL_FAST void counted_push(struct rl_tally *tally, enum rl_result result)
{
	if (RL_LIKELY(result == RL_COMMITTED))
		tally->pushed++;
	else
		tally->missed++;
}

RL_FAST void ring_rseq(struct rl_tally *tally, const struct rl_percpu *memory, const struct rl_here *here)
{
	intptr_t value;

	counted_push(tally, rl_ring_push(memory, here, 1));
	tally->popped += rl_ring_pop(memory, here, &value) == RL_COMMITTED;
}

RL_FAST void ring_plain(struct rl_tally *tally, struct rl_ring *ring)
{
	counted_push(tally, ring->tail - ring->head < RING_VALUES ? RL_COMMITTED : RL_FULL);
	ring->values[ring->tail++ & (RING_VALUES - 1)] = 1;
	__asm__ volatile("" ::: "memory");
	tally->popped += ring->values[ring->head++ & (RING_VALUES - 1)];
	__asm__ volatile("" ::: "memory");
}

/* One lock for both halves would be half the work: a program puts in here and takes out elsewhere. */
RL_FAST void ring_mutex(struct rl_tally *tally, pthread_mutex_t *mutex, struct rl_ring *ring)
{
	pthread_mutex_lock(mutex);
	if (RL_LIKELY(ring->tail - ring->head < RING_VALUES)) {
		ring->values[ring->tail++ & (RING_VALUES - 1)] = 1;
		tally->pushed++;
	} else {
		tally->missed++;
	}
	pthread_mutex_unlock(mutex);
	pthread_mutex_lock(mutex);
	if (RL_LIKELY(ring->tail != ring->head))
		tally->popped += ring->values[ring->head++ & (RING_VALUES - 1)];
	pthread_mutex_unlock(mutex);
}

WORK(ringing_rseq, ring_rseq(&tally, &memory, &here))
WORK(ringing_in_thread, ring_plain(&tally, rl_slot(&shared, own)))
WORK(ringing_mutex, ring_mutex(&tally, &data->mutex, rl_slot(&shared, 0)))

/* ---- ring of records: write one, read one ---- */

RL_FAST void bytes_rseq(struct rl_tally *tally, const struct rl_percpu *memory, const struct rl_here *here)
{
	const union message out = MESSAGE;
	union message in;

	counted_push(tally, rl_bytes_write(memory, here, (const struct rl_record *)&out));
	tally->popped += rl_bytes_read(memory, here, (struct rl_record *)&in, sizeof(in) - sizeof(struct rl_record))
			 == RL_COMMITTED;
}

RL_FAST void bytes_put(struct rl_tally *tally, struct rl_bytes *ring)
{
	const union message out = MESSAGE;

	if (RL_LIKELY(ring->tail - ring->head < RING_BYTES)) {
		__builtin_memcpy(ring->bytes + ring->tail % RING_BYTES, &out, sizeof(out));
		ring->tail += sizeof(out);
		tally->pushed++;
	} else {
		tally->missed++;
	}
	__asm__ volatile("" ::: "memory");
}

RL_FAST void bytes_get(struct rl_tally *tally, struct rl_bytes *ring)
{
	union message in;

	if (RL_LIKELY(ring->tail != ring->head)) {
		__builtin_memcpy(&in, ring->bytes + ring->head % RING_BYTES, sizeof(in));
		ring->head += sizeof(in);
		tally->popped++;
	}
	__asm__ volatile("" : : "r"(&in) : "memory");	/* whoever reads a record gets it all */
}

RL_FAST void bytes_plain(struct rl_tally *tally, struct rl_bytes *ring)
{
	bytes_put(tally, ring);
	bytes_get(tally, ring);
}

RL_FAST void bytes_mutex(struct rl_tally *tally, pthread_mutex_t *mutex, struct rl_bytes *ring)
{
	pthread_mutex_lock(mutex);
	bytes_put(tally, ring);
	pthread_mutex_unlock(mutex);
	pthread_mutex_lock(mutex);
	bytes_get(tally, ring);
	pthread_mutex_unlock(mutex);
}

WORK(recording_rseq, bytes_rseq(&tally, &memory, &here))
WORK(recording_in_thread, bytes_plain(&tally, rl_slot(&shared, own)))
WORK(recording_mutex, bytes_mutex(&tally, &data->mutex, rl_slot(&shared, 0)))

/* ---- pool: allocate, touch, free ---- */

RL_FAST void touch(struct rl_tally *tally, void *object)
{
	if (RL_LIKELY(object)) {
		((volatile intptr_t *)object)[1] = 1;
		tally->popped++;
	}
}

RL_FAST void pool_rseq(struct rl_tally *tally, struct rl_pool *pool, const struct rl_here *here)
{
	void *object = rl_pool_alloc(pool, here);

	touch(tally, object);
	if (RL_LIKELY(object))
		rl_pool_free(pool, here, object);
}

RL_FAST void pool_libc(struct rl_tally *tally)
{
	void *object = malloc(OBJECT_BYTES);

	touch(tally, object);
	free(object);
}

WORK(pooling_rseq, pool_rseq(&tally, &data->pool, &here))
WORK(pooling_libc, pool_libc(&tally))

static int prepare_nothing(struct rl_ops_data *data, enum rl_by by)
{
	(void)data, (void)by;
	return 0;
}

/* What is called ...-again is the same source at another place: the A/A control, code layout included. */
const struct rl_technique rl_techniques[] = {
	{ "counter/nothing", 0, RL_BY_CPU_ID, prepare_slots, count_nothing, NULL, in_slots },
	{ "counter/thread-local", 0, RL_BY_CPU_ID, prepare_slots, count_in_thread, NULL, in_slots },
	{ "counter/two-stores", 0, RL_BY_CPU_ID, prepare_slots, count_on_two_lines, NULL, in_slots },
	{ "counter/rseq", 1, RL_BY_CPU_ID, prepare_slots, count_rseq, count_rseq_once, in_slots },
	{ "counter/rseq-again", 1, RL_BY_CPU_ID, prepare_slots, count_rseq_again, count_rseq_once_again, in_slots },
	{ "counter/rseq-mm_cid", 1, RL_BY_MM_CID, prepare_slots, count_rseq, count_rseq_once, in_slots },
	{ "counter/atomic-own-line", 0, RL_BY_CPU_ID, prepare_slots, count_own_line, count_own_line_once, in_slots },
	{ "counter/atomic-own-line-again", 0, RL_BY_CPU_ID, prepare_slots, count_own_line_again, count_own_line_once_again,
	  in_slots },
	{ "counter/atomic-shared-line", 0, RL_BY_CPU_ID, prepare_slots, count_one_line, NULL, in_slots },
	{ "counter/mutex", 0, RL_BY_CPU_ID, prepare_slots, count_mutex, NULL, in_slots },
	{ "counter/spinlock", 0, RL_BY_CPU_ID, prepare_slots, count_spinlock, NULL, in_slots },
	{ "counter/sched_getcpu-atomic", 0, RL_BY_CPU_ID, prepare_slots, count_getcpu, NULL, in_slots },
	{ "counter/sched_getcpu-atomic-again", 0, RL_BY_CPU_ID, prepare_slots, count_getcpu_again, NULL, in_slots },
	{ "counter/node_id-atomic", 1, RL_BY_NODE_ID, prepare_nodes, count_node, NULL, in_slots },
	{ "section/cmpeqv_storev", 1, RL_BY_CPU_ID, prepare_slots, section_store, NULL, in_slots },
	{ "section/cmpeqv_trystorev_storev", 1, RL_BY_CPU_ID, prepare_slots, section_store_two, NULL, in_slots },
	{ "section/cmpeqv_trystorev_storev_release", 1, RL_BY_CPU_ID, prepare_slots, section_store_two_release, NULL,
	  in_slots },
	{ "section/cmpeqv_cmpeqv_storev", 1, RL_BY_CPU_ID, prepare_slots, section_compare_two, NULL, in_slots },
	{ "section/cmpeqv_trymemcpy_storev", 1, RL_BY_CPU_ID, prepare_slots, section_copy, NULL, in_slots },
	{ "section/offset_deref_addv", 1, RL_BY_CPU_ID, prepare_pointers, section_deref, NULL, in_slots },
	{ "lock/rseq", 1, RL_BY_CPU_ID, prepare_locks, locking_rseq, NULL, behind_locks },
	{ "lock/sched_getcpu-exchange", 0, RL_BY_CPU_ID, prepare_locks, locking_exchange, NULL, behind_locks },
	{ "lock/sched_getcpu-mutex", 0, RL_BY_CPU_ID, prepare_locks, locking_mutex, NULL, behind_locks },
	{ "list/thread-local", 0, RL_BY_CPU_ID, prepare_list_of_thread, listing_in_thread, NULL, in_nodes },
	{ "list/rseq", 1, RL_BY_CPU_ID, prepare_list, listing_rseq, NULL, in_nodes },
	{ "list/rseq-takeable", 1, RL_BY_CPU_ID, prepare_takeable, listing_takeable, NULL, in_nodes },
	{ "list/rseq-mm_cid", 1, RL_BY_MM_CID, prepare_list, listing_rseq, NULL, in_nodes },
	{ "list/cas", 0, RL_BY_CPU_ID, prepare_cas, listing_cas, NULL, in_nodes },
	{ "list/sched_getcpu-cas", 0, RL_BY_CPU_ID, prepare_cas, listing_getcpu_cas, NULL, in_nodes },
	{ "list/mutex", 0, RL_BY_CPU_ID, prepare_list_of_thread, listing_mutex, NULL, in_nodes },
	{ "list/spinlock", 0, RL_BY_CPU_ID, prepare_list_of_thread, listing_spinlock, NULL, in_nodes },
	{ "ring/thread-local", 0, RL_BY_CPU_ID, prepare_ring_of_thread, ringing_in_thread, NULL, in_rings },
	{ "ring/rseq", 1, RL_BY_CPU_ID, prepare_ring, ringing_rseq, NULL, in_rings },
	{ "ring/mutex", 0, RL_BY_CPU_ID, prepare_ring_of_thread, ringing_mutex, NULL, in_rings },
	{ "bytes/thread-local", 0, RL_BY_CPU_ID, prepare_bytes_of_thread, recording_in_thread, NULL, in_byte_rings },
	{ "bytes/rseq", 1, RL_BY_CPU_ID, prepare_bytes, recording_rseq, NULL, in_byte_rings },
	{ "bytes/mutex", 0, RL_BY_CPU_ID, prepare_bytes_of_thread, recording_mutex, NULL, in_byte_rings },
	{ "pool/rseq", 1, RL_BY_CPU_ID, prepare_pool, pooling_rseq, NULL, in_threads },
	{ "pool/malloc", 0, RL_BY_CPU_ID, prepare_nothing, pooling_libc, NULL, in_threads },
	{ NULL, 0, 0, NULL, NULL, NULL, NULL },
};
