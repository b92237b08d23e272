/* SPDX-License-Identifier: MIT */
/*
 * Per-CPU structures, inline: each fast path is one critical section, without a call and without an
 * atomic read-modify-write. What each does is said in rseqlab.h.
 *
 * An attempt that did not commit is made again where the thread is by then. rl_after_abort() counts it
 * and yields every RL_PATIENCE times, so that nobody spins for ever on a CPU that somebody else needs.
 */
#ifndef RSEQLAB_PERCPU_H
#define RSEQLAB_PERCPU_H

#include "sections.h"

#define RL_LIKELY(condition) __builtin_expect(!!(condition), 1)
#define RL_FAST static inline __attribute__((always_inline))

RL_FAST struct rl_at rl_at_here(const struct rl_percpu *memory, const struct rl_here *here)
{
	return (struct rl_at){
		here->offset_bytes, memory->by, rl_read_field(here->offset_bytes, memory->by),
	};
}

/* The structure of one index. */
RL_FAST void *rl_slot(const struct rl_percpu *memory, uintptr_t index)
{
	return memory->base + index * memory->stride_bytes;
}

/* In registers: a structure that a call takes in memory would need a stack frame on the fast path. */
static inline void rl_after_abort(struct rl_at at, struct rl_aborts *aborts)
{
	rl_count_abort(at.offset_bytes, at.by, at.index, aborts);
}

/* Runs `attempt`, which may use `at`, until it commits or its compare fails. */
#define RL_UNTIL_DECIDED(result, memory, here, at, attempt)		\
	for (;;) {							\
		(at) = rl_at_here(memory, here);			\
		(result) = (attempt);					\
		if (RL_LIKELY((result) != RL_ABORTED))			\
			break;						\
		rl_after_abort(at, (here)->aborts);			\
	}

/* The same where a failed compare only means that another thread of this CPU was first. */
#define RL_UNTIL_COMMITTED(result, memory, here, at, attempt)		\
	for (;;) {							\
		(at) = rl_at_here(memory, here);			\
		(result) = (attempt);					\
		if (RL_LIKELY((result) == RL_COMMITTED) || (result) == RL_UNSUPPORTED)	\
			break;						\
		if ((result) == RL_ABORTED)				\
			rl_after_abort(at, (here)->aborts);		\
	}

/* ---- counter: a slot is an intptr_t ---- */

RL_FAST enum rl_result rl_counter_add(const struct rl_percpu *memory, const struct rl_here *here, intptr_t count)
{
	struct rl_at at;
	enum rl_result result;

	RL_UNTIL_DECIDED(result, memory, here, at, rl_addv(at, rl_slot(memory, at.index), count));
	return result;
}

/* ---- lock: a slot is an intptr_t, 0 where it is free ---- */

RL_FAST enum rl_result rl_lock_try(const struct rl_percpu *memory, const struct rl_here *here, uint32_t *index)
{
	struct rl_at at;
	enum rl_result result;

	RL_UNTIL_DECIDED(result, memory, here, at, rl_cmpeqv_storev(at, rl_slot(memory, at.index), 0, 1));
	*index = at.index;
	return result;
}

/* A holder that sleeps or was moved away keeps the lock, so whoever waits must let others run. */
RL_FAST enum rl_result rl_lock_take(const struct rl_percpu *memory, const struct rl_here *here, uint32_t *index)
{
	enum rl_result result;

	while (!RL_LIKELY((result = rl_lock_try(memory, here, index)) != RL_COMPARE_FAILED))
		rl_wait();
	return result;
}

RL_FAST void rl_lock_release(const struct rl_percpu *memory, uint32_t index)
{
	__atomic_store_n((intptr_t *)rl_slot(memory, index), 0, __ATOMIC_RELEASE);
}

/* ---- list: a slot is the head, as an intptr_t ---- */

RL_FAST enum rl_result rl_list_push_once(struct rl_at at, intptr_t *head, struct rl_node *node)
{
	const intptr_t first = __atomic_load_n(head, __ATOMIC_RELAXED);

	__atomic_store_n(&node->next, (struct rl_node *)first, __ATOMIC_RELAXED);
	return rl_cmpeqv_storev(at, head, first, (intptr_t)node);
}

RL_FAST enum rl_result rl_list_push(const struct rl_percpu *memory, const struct rl_here *here, struct rl_node *node)
{
	struct rl_at at;
	enum rl_result result;

	RL_UNTIL_COMMITTED(result, memory, here, at, rl_list_push_once(at, rl_slot(memory, at.index), node));
	return result;
}

RL_FAST enum rl_result rl_list_pop_once(struct rl_at at, intptr_t *head, intptr_t *node)
{
	return rl_cmpnev_storeoffp_load(at, head, 0, offsetof(struct rl_node, next), node);
}

RL_FAST struct rl_node *rl_list_pop(const struct rl_percpu *memory, const struct rl_here *here)
{
	struct rl_at at;
	intptr_t node = 0;
	enum rl_result result;

	RL_UNTIL_DECIDED(result, memory, here, at, rl_list_pop_once(at, rl_slot(memory, at.index), &node));
	return RL_LIKELY(result == RL_COMMITTED) ? (struct rl_node *)node : NULL;
}

/* ---- takeable list: a slot is a struct rl_takeable ---- */

RL_FAST enum rl_result rl_takeable_push_once(struct rl_at at, struct rl_takeable *list, struct rl_node *node)
{
	/* Only a guess: the section itself compares with the head that is active by then. */
	const intptr_t first = __atomic_load_n(__atomic_load_n(&list->active, __ATOMIC_RELAXED), __ATOMIC_RELAXED);

	__atomic_store_n(&node->next, (struct rl_node *)first, __ATOMIC_RELAXED);
	return rl_deref_cmpeqv_storev(at, &list->active, first, (intptr_t)node);
}

RL_FAST enum rl_result rl_takeable_push(const struct rl_percpu *memory, const struct rl_here *here,
					struct rl_node *node)
{
	struct rl_at at;
	enum rl_result result;

	RL_UNTIL_COMMITTED(result, memory, here, at, rl_takeable_push_once(at, rl_slot(memory, at.index), node));
	return result;
}

RL_FAST enum rl_result rl_takeable_pop_once(struct rl_at at, struct rl_takeable *list, intptr_t *node)
{
	return rl_deref_cmpnev_storeoffp_load(at, &list->active, 0, offsetof(struct rl_node, next), node);
}

RL_FAST struct rl_node *rl_takeable_pop(const struct rl_percpu *memory, const struct rl_here *here)
{
	struct rl_at at;
	intptr_t node = 0;
	enum rl_result result;

	RL_UNTIL_DECIDED(result, memory, here, at, rl_takeable_pop_once(at, rl_slot(memory, at.index), &node));
	return RL_LIKELY(result == RL_COMMITTED) ? (struct rl_node *)node : NULL;
}

/* ---- ring of pointers: a slot is a struct rl_ring ---- */

/* `tail` and `head` are what was seen of them, with the index that `at` has. */
RL_FAST enum rl_result rl_ring_push_once(struct rl_at at, struct rl_ring *ring, intptr_t mask, intptr_t tail,
					 intptr_t value)
{
	if (tail - __atomic_load_n(&ring->head, __ATOMIC_RELAXED) > mask)
		return RL_FULL;
	return rl_cmpeqv_trystorev_storev_release(at, &ring->tail, tail, &ring->values[tail & mask], value, tail + 1);
}

RL_FAST enum rl_result rl_ring_pop_once(struct rl_at at, struct rl_ring *ring, intptr_t mask, intptr_t head,
					intptr_t *value)
{
	if (head >= __atomic_load_n(&ring->tail, __ATOMIC_ACQUIRE))
		return RL_EMPTY;
	*value = __atomic_load_n(&ring->values[head & mask], __ATOMIC_RELAXED);
	return rl_cmpeqv_storev(at, &ring->head, head, head + 1);
}

RL_FAST struct rl_ring *rl_ring_of(const struct rl_percpu *memory, uintptr_t index)
{
	return rl_slot(memory, index);
}

RL_FAST enum rl_result rl_ring_push(const struct rl_percpu *memory, const struct rl_here *here, intptr_t value)
{
	struct rl_at at;
	enum rl_result result;

	do {
		RL_UNTIL_DECIDED(result, memory, here, at,
				 rl_ring_push_once(at, rl_ring_of(memory, at.index), memory->capacity - 1,
						   __atomic_load_n(&rl_ring_of(memory, at.index)->tail, __ATOMIC_RELAXED),
						   value));
	} while (result == RL_COMPARE_FAILED);
	return result;
}

RL_FAST enum rl_result rl_ring_pop(const struct rl_percpu *memory, const struct rl_here *here, intptr_t *value)
{
	struct rl_at at;
	enum rl_result result;

	do {
		RL_UNTIL_DECIDED(result, memory, here, at,
				 rl_ring_pop_once(at, rl_ring_of(memory, at.index), memory->capacity - 1,
						  __atomic_load_n(&rl_ring_of(memory, at.index)->head, __ATOMIC_RELAXED),
						  value));
	} while (result == RL_COMPARE_FAILED);
	return result;
}

/* ---- ring of records: a slot is a struct rl_bytes ---- */

/* Bytes that a record takes: its header and payload, rounded up so that every header is aligned. */
RL_FAST intptr_t rl_record_bytes(uint64_t payload_bytes)
{
	return (sizeof(struct rl_record) + payload_bytes + 7) & ~(uint64_t)7;
}

/*
 * A record never wraps. Where it would, an empty one fills the rest, and the next try begins at the start. Where
 * `may_fill` is 0, filling is left to another try that may.
 */
RL_FAST enum rl_result rl_bytes_write_once(struct rl_at at, struct rl_bytes *ring, intptr_t capacity,
					   const struct rl_record *record, int may_fill)
{
	const intptr_t tail = __atomic_load_n(&ring->tail, __ATOMIC_RELAXED);
	const intptr_t size = rl_record_bytes(record->payload_bytes), place = tail & (capacity - 1), left = capacity - place;
	const intptr_t used = tail - __atomic_load_n(&ring->head, __ATOMIC_RELAXED);

	if (!RL_LIKELY(size <= left)) {
		if (!may_fill)
			return RL_COMPARE_FAILED;
		if (used + left + size > capacity)
			return RL_FULL;
		return rl_bytes_fill(at.offset_bytes, at.by, at.index, ring, tail, capacity);
	}
	if (used + size > capacity)
		return RL_FULL;
	return rl_cmpeqv_trymemcpy_storev_release(at, &ring->tail, tail, ring->bytes + place, record,
						  sizeof(*record) + record->payload_bytes, tail + size);
}

RL_FAST int rl_bytes_takes(const struct rl_percpu *memory, const struct rl_record *record)
{
	return RL_LIKELY(record->payload_bytes <= (uint64_t)memory->capacity / 2 - sizeof(*record));
}

RL_FAST enum rl_result rl_bytes_write(const struct rl_percpu *memory, const struct rl_here *here,
				      const struct rl_record *record)
{
	struct rl_at at;
	enum rl_result result;

	if (!rl_bytes_takes(memory, record))
		return RL_TOO_LARGE;
	do {
		RL_UNTIL_DECIDED(result, memory, here, at,
				 rl_bytes_write_once(at, rl_slot(memory, at.index), memory->capacity, record, 1));
	} while (result == RL_COMPARE_FAILED);
	return result;
}

/*
 * Copies before it commits: a copy that another reader overtook is thrown away. The length that is read
 * may be another record's by then, so it is bounded before anything is copied. `room_bytes` is a multiple of 8.
 * Where `may_skip` is 0, going past what fills the end of the ring is left to another try that may.
 */
RL_FAST enum rl_result rl_bytes_read_once(struct rl_at at, struct rl_bytes *ring, intptr_t capacity,
					  struct rl_record *record, uint64_t room_bytes, int may_skip)
{
	const intptr_t head = __atomic_load_n(&ring->head, __ATOMIC_RELAXED), place = head & (capacity - 1);
	const uint64_t *words;
	uint64_t payload_bytes, i;

	if (head >= __atomic_load_n(&ring->tail, __ATOMIC_ACQUIRE))
		return RL_EMPTY;
	payload_bytes = __atomic_load_n(&((struct rl_record *)(ring->bytes + place))->payload_bytes, __ATOMIC_RELAXED);
	if (!RL_LIKELY(payload_bytes != RL_FILLER))
		return may_skip ? rl_bytes_skip(at.offset_bytes, at.by, at.index, ring, head, capacity) : RL_COMPARE_FAILED;
	if (payload_bytes > (uint64_t)capacity || (intptr_t)(place + sizeof(*record) + payload_bytes) > capacity)
		return RL_COMPARE_FAILED;	/* not a length: a later head is there already */
	if (!RL_LIKELY(payload_bytes <= room_bytes)) {
		record->payload_bytes = payload_bytes;
		return __atomic_load_n(&ring->head, __ATOMIC_RELAXED) == head ? RL_TOO_LARGE : RL_COMPARE_FAILED;
	}
	record->payload_bytes = payload_bytes;
	words = (const uint64_t *)(ring->bytes + place + sizeof(*record));
	for (i = 0; i < (payload_bytes + 7) / 8; i++)
		((uint64_t *)record->payload)[i] = __atomic_load_n(&words[i], __ATOMIC_RELAXED);
	return rl_cmpeqv_storev(at, &ring->head, head, head + rl_record_bytes(payload_bytes));
}

RL_FAST enum rl_result rl_bytes_read(const struct rl_percpu *memory, const struct rl_here *here,
				     struct rl_record *record, uint64_t room_bytes)
{
	struct rl_at at;
	enum rl_result result;

	do {
		RL_UNTIL_DECIDED(result, memory, here, at,
				 rl_bytes_read_once(at, rl_slot(memory, at.index), memory->capacity, record, room_bytes, 1));
	} while (result == RL_COMPARE_FAILED);
	return result;
}

/* ---- pool: a slot is a struct rl_takeable of free objects ---- */

RL_FAST void *rl_pool_alloc(struct rl_pool *pool, const struct rl_here *here)
{
	struct rl_node *node = rl_takeable_pop(&pool->lists, here);

	return RL_LIKELY(node) ? node : rl_pool_refill(pool, here);
}

RL_FAST enum rl_result rl_pool_free(struct rl_pool *pool, const struct rl_here *here, void *object)
{
	return rl_takeable_push(&pool->lists, here, object);
}

#endif
