/* SPDX-License-Identifier: MIT */
/* Per-CPU structures: their memory, and what happens off the fast path. */
#define _GNU_SOURCE
#include "percpu.h"

#include <errno.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

/* linux/membarrier.h of Linux 5.10; older headers lack them. */
#define MEMBARRIER_FENCE		(1 << 7)	/* MEMBARRIER_CMD_PRIVATE_EXPEDITED_RSEQ */
#define MEMBARRIER_REGISTER		(1 << 8)	/* MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_RSEQ */
#define MEMBARRIER_ONE_CPU		1		/* MEMBARRIER_CMD_FLAG_CPU */

enum { CARVE_OBJECTS = 32 };

static void *mapped(size_t bytes)
{
	void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return memory == MAP_FAILED ? NULL : memory;
}

int rl_percpu_create(struct rl_percpu *memory, size_t bytes_per_index, size_t stride_bytes, uint32_t indices,
		     enum rl_by by)
{
	size_t stride = stride_bytes ? stride_bytes : RL_SLOT_BYTES;

	*memory = (struct rl_percpu){ .indices = indices, .by = by };
	if (!bytes_per_index || bytes_per_index > (size_t)1 << 40 || !indices || indices > 1 << 20
	    || (stride & (stride - 1)) || (by != RL_BY_CPU_ID && by != RL_BY_NODE_ID && by != RL_BY_MM_CID))
		return -EINVAL;
	while (!stride_bytes && stride < bytes_per_index)
		stride *= 2;
	if (stride < bytes_per_index)
		return -EINVAL;
	memory->stride_bytes = stride;
	memory->shift = __builtin_ctzl(stride);
	memory->mapped_bytes = stride * indices;
	memory->base = mapped(memory->mapped_bytes);
	return memory->base ? 0 : -ENOMEM;
}

void rl_percpu_destroy(struct rl_percpu *memory)
{
	if (memory->base)
		munmap(memory->base, memory->mapped_bytes);
	memory->base = NULL;
}

__attribute__((cold, noinline)) void rl_count_abort(ptrdiff_t offset_bytes, enum rl_by by, uintptr_t index,
						    struct rl_aborts *aborts)
{
	const char *area = (char *)rl_thread_pointer() + offset_bytes;

	if (rl_load_u64(area + offsetof(struct rl_area, rseq_cs)))
		aborts->moved++;
	else if (rl_load_u32(area + by) != index)
		aborts->migrated++;
	else
		aborts->interrupted++;
	if ((aborts->moved + aborts->migrated + aborts->interrupted) % RL_PATIENCE == 0)
		sched_yield();
}

__attribute__((cold, noinline)) void rl_wait(void)
{
	sched_yield();
}

/* ---- fence and takeover ---- */

static int membarrier(int command, unsigned flags, int cpu)
{
#if RL_SUPPORTED && defined(SYS_membarrier)
	return syscall(SYS_membarrier, command, flags, cpu) < 0 ? -errno : 0;
#else
	(void)command, (void)flags, (void)cpu;
	return -ENOSYS;
#endif
}

int rl_fence_register(void)
{
	return membarrier(MEMBARRIER_REGISTER, 0, 0);
}

int rl_fence(int cpu)
{
	return cpu < 0 ? membarrier(MEMBARRIER_FENCE, 0, 0) : membarrier(MEMBARRIER_FENCE, MEMBARRIER_ONE_CPU, cpu);
}

int rl_takeable_init(struct rl_percpu *memory)
{
	uint32_t i;

	for (i = 0; i < memory->indices; i++) {
		struct rl_takeable *list = rl_slot(memory, i);

		list->active = &list->heads[0];
	}
	return 0;
}

static int fence_works;	/* once it did, it does for as long as the process lives */

/*
 * Between the two stores to `active` there is no way back: sections put nodes under both heads until they
 * are fenced. So whether there is a fence is found out first.
 */
static int take_by_fence(struct rl_takeable *list, int cpu, struct rl_node **chain)
{
	intptr_t *theirs = list->active, *other = theirs == &list->heads[0] ? &list->heads[1] : &list->heads[0];
	int error = __atomic_load_n(&fence_works, __ATOMIC_RELAXED) ? 0 : rl_fence(-1);

	if (error)
		return error;
	__atomic_store_n(&fence_works, 1, __ATOMIC_RELAXED);
	__atomic_store_n(&list->active, other, __ATOMIC_RELEASE);
	error = rl_fence(cpu);
	if (error)	/* the one CPU went away */
		error = rl_fence(-1);
	*chain = error ? NULL : (struct rl_node *)*theirs;
	if (!error)
		*theirs = 0;
	return error;
}

/*
 * On the list's own CPU no section of another thread is under way. Somebody else may move this thread away
 * again, so it goes there again; -EAGAIN where it is not let stay.
 */
static int take_by_moving(const struct rl_percpu *memory, const struct rl_here *here, struct rl_takeable *list,
			  uint32_t cpu, struct rl_node **chain)
{
	cpu_set_t before, there;
	intptr_t head = 0;
	int error = -EAGAIN, tries;

	if (cpu >= CPU_SETSIZE || sched_getaffinity(0, sizeof(before), &before))
		return -EINVAL;
	CPU_ZERO(&there);
	CPU_SET(cpu, &there);
	for (tries = 0; tries < RL_PATIENCE && error == -EAGAIN; tries++) {
		struct rl_at at;
		enum rl_result result;

		if (sched_setaffinity(0, sizeof(there), &there)) {
			error = -errno;
			break;
		}
		do {
			at = rl_at_here(memory, here);
			if (at.index != cpu)
				break;
			head = __atomic_load_n(list->active, __ATOMIC_RELAXED);
			result = head ? rl_deref_cmpeqv_storev(at, &list->active, head, 0) : RL_COMMITTED;
			if (result == RL_COMMITTED)
				error = 0;
			else if (result == RL_ABORTED)
				rl_after_abort(at, here->aborts);
		} while (error);
	}
	sched_setaffinity(0, sizeof(before), &before);
	*chain = error ? NULL : (struct rl_node *)head;
	return error;
}

int rl_takeable_take(const struct rl_percpu *memory, const struct rl_here *here, uint32_t index,
		     enum rl_take how, struct rl_node **chain)
{
	struct rl_takeable *list;
	int error;

	*chain = NULL;
	if (!RL_SUPPORTED)
		return -ENOSYS;
	if (index >= memory->indices || (memory->by != RL_BY_CPU_ID && how != RL_TAKE_FENCE_ALL))
		return -EINVAL;
	list = rl_slot(memory, index);
	while (__atomic_exchange_n(&list->taker, 1, __ATOMIC_ACQUIRE))
		rl_wait();
	error = how == RL_TAKE_MOVE ? take_by_moving(memory, here, list, index, chain)
				    : take_by_fence(list, how == RL_TAKE_FENCE_CPU ? (int)index : -1, chain);
	__atomic_store_n(&list->taker, 0, __ATOMIC_RELEASE);
	return error;
}

/* ---- rings ---- */

static int ring_create(struct rl_percpu *memory, size_t header_bytes, size_t unit_bytes, uint32_t capacity,
		       uint32_t indices, enum rl_by by)
{
	int error;

	if (capacity < 2 || (capacity & (capacity - 1)))
		return -EINVAL;
	error = rl_percpu_create(memory, header_bytes + unit_bytes * capacity, 0, indices, by);
	memory->capacity = capacity;
	return error;
}

int rl_ring_create(struct rl_percpu *memory, uint32_t capacity, uint32_t indices, enum rl_by by)
{
	return ring_create(memory, sizeof(struct rl_ring), sizeof(intptr_t), capacity, indices, by);
}

int rl_bytes_create(struct rl_percpu *memory, uint32_t capacity_bytes, uint32_t indices, enum rl_by by)
{
	return capacity_bytes < 64 ? -EINVAL : ring_create(memory, sizeof(struct rl_bytes), 1, capacity_bytes, indices, by);
}

static enum rl_result then_again(enum rl_result result)
{
	return result == RL_COMMITTED ? RL_COMPARE_FAILED : result;
}

__attribute__((cold, noinline)) enum rl_result rl_bytes_fill(ptrdiff_t offset_bytes, enum rl_by by, uintptr_t index,
							     struct rl_bytes *ring, intptr_t tail, intptr_t capacity)
{
	const struct rl_at at = { offset_bytes, by, index };
	const struct rl_record filler = { RL_FILLER };
	const intptr_t place = tail & (capacity - 1);

	return then_again(rl_cmpeqv_trymemcpy_storev_release(at, &ring->tail, tail, ring->bytes + place, &filler,
							     sizeof(filler), tail + capacity - place));
}

__attribute__((cold, noinline)) enum rl_result rl_bytes_skip(ptrdiff_t offset_bytes, enum rl_by by, uintptr_t index,
							     struct rl_bytes *ring, intptr_t head, intptr_t capacity)
{
	const struct rl_at at = { offset_bytes, by, index };

	return then_again(rl_cmpeqv_storev(at, &ring->head, head, head + capacity - (head & (capacity - 1))));
}

/* ---- pool ---- */

int rl_pool_create(struct rl_pool *pool, size_t object_bytes, uint64_t objects, uint32_t indices, enum rl_by by)
{
	int error;

	*pool = (struct rl_pool){ .object_bytes = object_bytes, .total = objects };
	if (object_bytes < sizeof(struct rl_node) || object_bytes % sizeof(void *) || object_bytes > 1 << 30
	    || !objects || objects > (uint64_t)1 << 40 || by == RL_BY_NODE_ID)
		return -EINVAL;
	error = rl_percpu_create(&pool->lists, sizeof(struct rl_takeable), 0, indices, by);
	if (error)
		return error;
	rl_takeable_init(&pool->lists);
	if (__builtin_mul_overflow(object_bytes, objects, &pool->mapped_bytes))
		pool->mapped_bytes = SIZE_MAX / 2;
	pool->objects = mapped(pool->mapped_bytes);
	if (pool->objects)
		return 0;
	rl_percpu_destroy(&pool->lists);
	return -ENOMEM;
}

void rl_pool_destroy(struct rl_pool *pool)
{
	if (pool->objects)
		munmap(pool->objects, pool->mapped_bytes);
	pool->objects = NULL;
	rl_percpu_destroy(&pool->lists);
}

/* What no thread ever had: one for the caller, the rest of a batch for its CPU. */
static void *carve(struct rl_pool *pool, const struct rl_here *here)
{
	uint64_t first = pool->carved, last = first + CARVE_OBJECTS < pool->total ? first + CARVE_OBJECTS : pool->total;

	pool->carved = last;
	while (last-- > first + 1)
		rl_takeable_push(&pool->lists, here, (struct rl_node *)(pool->objects + last * pool->object_bytes));
	return pool->objects + first * pool->object_bytes;
}

/* Another index's free objects: one for the caller, the rest for its CPU. */
static void *steal(struct rl_pool *pool, const struct rl_here *here)
{
	struct rl_node *chain = NULL, *next;
	uint32_t i;

	for (i = 0; i < pool->lists.indices && !chain; i++) {
		const struct rl_takeable *list = rl_slot(&pool->lists, i);

		if (!__atomic_load_n(__atomic_load_n(&list->active, __ATOMIC_RELAXED), __ATOMIC_RELAXED))
			continue;
		if (pool->lists.by == RL_BY_CPU_ID && !rl_takeable_take(&pool->lists, here, i, RL_TAKE_FENCE_CPU, &chain))
			continue;
		if (!rl_takeable_take(&pool->lists, here, i, RL_TAKE_FENCE_ALL, &chain))
			continue;
		rl_takeable_take(&pool->lists, here, i, RL_TAKE_MOVE, &chain);
	}
	for (next = chain ? chain->next : NULL; next;) {
		struct rl_node *node = next;

		next = node->next;
		rl_takeable_push(&pool->lists, here, node);
	}
	return chain;
}

__attribute__((cold, noinline)) void *rl_pool_refill(struct rl_pool *pool, const struct rl_here *here)
{
	void *object;

	if (!RL_SUPPORTED)
		return NULL;
	while (__atomic_exchange_n(&pool->slow, 1, __ATOMIC_ACQUIRE))
		rl_wait();
	object = rl_takeable_pop(&pool->lists, here);	/* somebody may have freed one meanwhile */
	if (!object)
		object = pool->carved < pool->total ? carve(pool, here) : steal(pool, here);
	__atomic_store_n(&pool->slow, 0, __ATOMIC_RELEASE);
	return object;
}

intptr_t rl_peek(const struct rl_percpu *memory, uint32_t index)
{
	return index < memory->indices ? __atomic_load_n((intptr_t *)rl_slot(memory, index), __ATOMIC_RELAXED) : 0;
}
