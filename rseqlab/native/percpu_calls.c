/* SPDX-License-Identifier: MIT */
/*
 * The fast paths of percpu.h as functions.
 *
 * Each makes one attempt. What did not commit goes on in a function of its own, the last thing that is done, so that it
 * is reached by a jump: a call would need a stack frame, which every fast path would build and take down in vain. Which
 * attempt it was travels in registers.
 */
#include "percpu.h"

/* gcc 14 sees that such a function always returns the same, calls it, and returns that itself: `noipa` forbids it. */
#if defined(__has_attribute)
# if __has_attribute(noipa)
#  define AGAIN static __attribute__((cold, noinline, noipa))
# endif
#endif
#ifndef AGAIN
# define AGAIN static __attribute__((cold, noinline))
#endif

/* After an attempt at `index` that did not commit; a failed compare only means that somebody else was first. */
static void note(const struct rl_percpu *memory, const struct rl_here *here, uintptr_t index, enum rl_result result)
{
	if (result == RL_ABORTED)
		rl_count_abort(here->offset_bytes, memory->by, index, here->aborts);
}

AGAIN enum rl_result counter_add_again(const struct rl_percpu *memory, const struct rl_here *here, intptr_t count,
				       uintptr_t index)
{
	note(memory, here, index, RL_ABORTED);
	return rl_counter_add(memory, here, count);
}

enum rl_result rl_call_counter_add(const struct rl_percpu *memory, const struct rl_here *here, intptr_t count)
{
	const struct rl_at at = rl_at_here(memory, here);
	const enum rl_result result = rl_addv(at, rl_slot(memory, at.index), count);

	if (RL_LIKELY(result != RL_ABORTED))
		return result;
	return counter_add_again(memory, here, count, at.index);
}

/* A node's CPUs run at the same time, so this needs an atomic instruction; it stays within the node. */
void rl_call_node_counter_add(const struct rl_percpu *memory, const struct rl_here *here, intptr_t count)
{
	const uint32_t node = rl_read_field(here->offset_bytes, RL_BY_NODE_ID);

	if (node < memory->indices)
		__atomic_fetch_add((intptr_t *)rl_slot(memory, node), count, __ATOMIC_RELAXED);
}

AGAIN enum rl_result lock_try_again(const struct rl_percpu *memory, const struct rl_here *here, uint32_t *index,
				    uintptr_t tried)
{
	note(memory, here, tried, RL_ABORTED);
	return rl_lock_try(memory, here, index);
}

enum rl_result rl_call_lock_try(const struct rl_percpu *memory, const struct rl_here *here, uint32_t *index)
{
	const struct rl_at at = rl_at_here(memory, here);
	const enum rl_result result = rl_cmpeqv_storev(at, rl_slot(memory, at.index), 0, 1);

	if (!RL_LIKELY(result != RL_ABORTED))
		return lock_try_again(memory, here, index, at.index);
	*index = at.index;
	return result;
}

AGAIN enum rl_result lock_take_again(const struct rl_percpu *memory, const struct rl_here *here, uint32_t *index,
				     uintptr_t tried, enum rl_result result)
{
	note(memory, here, tried, result);
	if (result == RL_COMPARE_FAILED)
		rl_wait();
	return rl_lock_take(memory, here, index);
}

enum rl_result rl_call_lock_take(const struct rl_percpu *memory, const struct rl_here *here, uint32_t *index)
{
	const struct rl_at at = rl_at_here(memory, here);
	const enum rl_result result = rl_cmpeqv_storev(at, rl_slot(memory, at.index), 0, 1);

	if (!RL_LIKELY(result == RL_COMMITTED || result == RL_UNSUPPORTED))
		return lock_take_again(memory, here, index, at.index, result);
	*index = at.index;
	return result;
}

void rl_call_lock_release(const struct rl_percpu *memory, uint32_t index)
{
	rl_lock_release(memory, index);
}

AGAIN enum rl_result list_push_again(const struct rl_percpu *memory, const struct rl_here *here, struct rl_node *node,
				     uintptr_t index, enum rl_result result)
{
	note(memory, here, index, result);
	return rl_list_push(memory, here, node);
}

enum rl_result rl_call_list_push(const struct rl_percpu *memory, const struct rl_here *here, struct rl_node *node)
{
	const struct rl_at at = rl_at_here(memory, here);
	const enum rl_result result = rl_list_push_once(at, rl_slot(memory, at.index), node);

	if (RL_LIKELY(result == RL_COMMITTED || result == RL_UNSUPPORTED))
		return result;
	return list_push_again(memory, here, node, at.index, result);
}

AGAIN struct rl_node *list_pop_again(const struct rl_percpu *memory, const struct rl_here *here, uintptr_t index)
{
	note(memory, here, index, RL_ABORTED);
	return rl_list_pop(memory, here);
}

struct rl_node *rl_call_list_pop(const struct rl_percpu *memory, const struct rl_here *here)
{
	const struct rl_at at = rl_at_here(memory, here);
	intptr_t node = 0;
	const enum rl_result result = rl_list_pop_once(at, rl_slot(memory, at.index), &node);

	if (!RL_LIKELY(result != RL_ABORTED))
		return list_pop_again(memory, here, at.index);
	return RL_LIKELY(result == RL_COMMITTED) ? (struct rl_node *)node : NULL;
}

AGAIN enum rl_result takeable_push_again(const struct rl_percpu *memory, const struct rl_here *here,
					 struct rl_node *node, uintptr_t index, enum rl_result result)
{
	note(memory, here, index, result);
	return rl_takeable_push(memory, here, node);
}

RL_FAST enum rl_result takeable_push(const struct rl_percpu *memory, const struct rl_here *here, struct rl_node *node)
{
	const struct rl_at at = rl_at_here(memory, here);
	const enum rl_result result = rl_takeable_push_once(at, rl_slot(memory, at.index), node);

	if (RL_LIKELY(result == RL_COMMITTED || result == RL_UNSUPPORTED))
		return result;
	return takeable_push_again(memory, here, node, at.index, result);
}

enum rl_result rl_call_takeable_push(const struct rl_percpu *memory, const struct rl_here *here, struct rl_node *node)
{
	return takeable_push(memory, here, node);
}

AGAIN struct rl_node *takeable_pop_again(const struct rl_percpu *memory, const struct rl_here *here, uintptr_t index)
{
	note(memory, here, index, RL_ABORTED);
	return rl_takeable_pop(memory, here);
}

struct rl_node *rl_call_takeable_pop(const struct rl_percpu *memory, const struct rl_here *here)
{
	const struct rl_at at = rl_at_here(memory, here);
	intptr_t node = 0;
	const enum rl_result result = rl_takeable_pop_once(at, rl_slot(memory, at.index), &node);

	if (!RL_LIKELY(result != RL_ABORTED))
		return takeable_pop_again(memory, here, at.index);
	return RL_LIKELY(result == RL_COMMITTED) ? (struct rl_node *)node : NULL;
}

AGAIN enum rl_result ring_push_again(const struct rl_percpu *memory, const struct rl_here *here, intptr_t value,
				     uintptr_t index, enum rl_result result)
{
	note(memory, here, index, result);
	return rl_ring_push(memory, here, value);
}

enum rl_result rl_call_ring_push(const struct rl_percpu *memory, const struct rl_here *here, intptr_t value)
{
	const struct rl_at at = rl_at_here(memory, here);
	struct rl_ring *ring = rl_ring_of(memory, at.index);
	const intptr_t tail = __atomic_load_n(&ring->tail, __ATOMIC_RELAXED);
	const enum rl_result result = rl_ring_push_once(at, ring, memory->capacity - 1, tail, value);

	if (RL_LIKELY(result != RL_ABORTED && result != RL_COMPARE_FAILED))
		return result;
	return ring_push_again(memory, here, value, at.index, result);
}

AGAIN enum rl_result ring_pop_again(const struct rl_percpu *memory, const struct rl_here *here, intptr_t *value,
				    uintptr_t index, enum rl_result result)
{
	note(memory, here, index, result);
	return rl_ring_pop(memory, here, value);
}

enum rl_result rl_call_ring_pop(const struct rl_percpu *memory, const struct rl_here *here, intptr_t *value)
{
	const struct rl_at at = rl_at_here(memory, here);
	struct rl_ring *ring = rl_ring_of(memory, at.index);
	const intptr_t head = __atomic_load_n(&ring->head, __ATOMIC_RELAXED);
	const enum rl_result result = rl_ring_pop_once(at, ring, memory->capacity - 1, head, value);

	if (RL_LIKELY(result != RL_ABORTED && result != RL_COMPARE_FAILED))
		return result;
	return ring_pop_again(memory, here, value, at.index, result);
}

AGAIN enum rl_result bytes_write_again(const struct rl_percpu *memory, const struct rl_here *here,
				       const struct rl_record *record, uintptr_t index, enum rl_result result)
{
	note(memory, here, index, result);
	return rl_bytes_write(memory, here, record);
}

enum rl_result rl_call_bytes_write(const struct rl_percpu *memory, const struct rl_here *here,
				   const struct rl_record *record)
{
	struct rl_at at;
	enum rl_result result;

	if (!rl_bytes_takes(memory, record))
		return RL_TOO_LARGE;
	at = rl_at_here(memory, here);
	result = rl_bytes_write_once(at, rl_slot(memory, at.index), memory->capacity, record, 0);
	if (RL_LIKELY(result != RL_ABORTED && result != RL_COMPARE_FAILED))
		return result;
	return bytes_write_again(memory, here, record, at.index, result);
}

AGAIN enum rl_result bytes_read_again(const struct rl_percpu *memory, const struct rl_here *here,
				      struct rl_record *record, uint64_t room_bytes, uintptr_t index,
				      enum rl_result result)
{
	note(memory, here, index, result);
	return rl_bytes_read(memory, here, record, room_bytes);
}

enum rl_result rl_call_bytes_read(const struct rl_percpu *memory, const struct rl_here *here,
				  struct rl_record *record, uint64_t room_bytes)
{
	const struct rl_at at = rl_at_here(memory, here);
	const enum rl_result result = rl_bytes_read_once(at, rl_slot(memory, at.index), memory->capacity, record,
							 room_bytes, 0);

	if (RL_LIKELY(result != RL_ABORTED && result != RL_COMPARE_FAILED))
		return result;
	return bytes_read_again(memory, here, record, room_bytes, at.index, result);
}

AGAIN void *pool_alloc_again(struct rl_pool *pool, const struct rl_here *here, uintptr_t index, enum rl_result result)
{
	note(&pool->lists, here, index, result);
	return rl_pool_alloc(pool, here);
}

void *rl_call_pool_alloc(struct rl_pool *pool, const struct rl_here *here)
{
	const struct rl_at at = rl_at_here(&pool->lists, here);
	intptr_t node = 0;
	const enum rl_result result = rl_takeable_pop_once(at, rl_slot(&pool->lists, at.index), &node);

	if (RL_LIKELY(result == RL_COMMITTED))
		return (void *)node;
	return pool_alloc_again(pool, here, at.index, result);
}

enum rl_result rl_call_pool_free(struct rl_pool *pool, const struct rl_here *here, void *object)
{
	return takeable_push(&pool->lists, here, object);
}
