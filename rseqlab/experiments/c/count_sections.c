/* SPDX-License-Identifier: MIT */
/*
 * Runs every loop of section_loops.h on an area that nobody registered: its fields are set so that each
 * compare succeeds, and there is no kernel that could abort. A user-mode emulator, which has no rseq system
 * call, runs it and writes down every instruction.
 *
 * Prints the loops and where their code lies; with a number of turns, runs them all and checks what they did.
 */
#include "percpu.h"
#include "section_loops.h"

#include <stdio.h>
#include <stdlib.h>

enum { INDEX = 3, PAYLOAD_BYTES = 56 };

ptrdiff_t kept_offset_bytes;

extern const char __start_rl_counted[], __stop_rl_counted[];

static _Alignas(64) struct rl_area area;
static struct slot slots[INDEX + 1];
static struct bench bench;

/* What the loops around whole structures run on. The thread's offset is loaded each time, as by their users. */
static struct structures {
	struct rl_percpu counter, lock, list, takeable, ring, bytes;
	struct rl_pool pool;
	struct rl_node node;
	_Alignas(struct rl_record) char written[sizeof(struct rl_record) + PAYLOAD_BYTES];
	_Alignas(struct rl_record) char read[sizeof(struct rl_record) + PAYLOAD_BYTES];
	struct rl_aborts aborts;
	struct rl_here here;
} structures;

/* ONCE is done each turn; it may use s, here, node, i and value. Afterwards `node` and `value` are what they were. */
#define DEFINE_STRUCTURE_LOOP(operation, bytes, ONCE)						\
LOOP_FUNCTION static int structure_##operation(struct bench *unused, intptr_t iterations)	\
{												\
	struct structures *const s = &structures;						\
	const struct rl_here *const here = &s->here;						\
	struct rl_node *node = &s->node;							\
	intptr_t i = 0, next, value = 0;							\
	uint32_t index = 0;									\
												\
	(void)unused, (void)value, (void)index;							\
	do {											\
		next = i + 1;									\
		ONCE;										\
		i = next;									\
	} while (i != iterations);								\
	return node != &s->node || (value && value != iterations);				\
}
#define STRUCTURE_ENTRY(operation, bytes, ONCE)							\
	{ "ours_offset_loaded", #operation, "cpu_id", bytes, NOTHING, structure_##operation, "nothing" },

/* Every structure of percpu.h: its operations, those that undo each other as one. */
#define STRUCTURES(X)										\
	X(counter_add, -1, rl_counter_add(&s->counter, here, 1))				\
	X(lock_take_release, -1, (rl_lock_take(&s->lock, here, &index), rl_lock_release(&s->lock, index)))	\
	X(list_push_pop, -1, (rl_list_push(&s->list, here, node), node = rl_list_pop(&s->list, here)))	\
	X(takeable_push_pop, -1,								\
	  (rl_takeable_push(&s->takeable, here, node), node = rl_takeable_pop(&s->takeable, here)))	\
	X(ring_push_pop, -1, (rl_ring_push(&s->ring, here, next), rl_ring_pop(&s->ring, here, &value)))	\
	X(bytes_write_read, PAYLOAD_BYTES + 8,							\
	  (rl_bytes_write(&s->bytes, here, (struct rl_record *)s->written),			\
	   rl_bytes_read(&s->bytes, here, (struct rl_record *)s->read, PAYLOAD_BYTES)))		\
	X(pool_alloc_free, -1, rl_pool_free(&s->pool, here, rl_pool_alloc(&s->pool, here)))

STRUCTURES(DEFINE_STRUCTURE_LOOP)
static const struct loop structure_loops[] = { STRUCTURES(STRUCTURE_ENTRY) };

static int create_structures(ptrdiff_t offset_bytes)
{
	struct structures *s = &structures;
	const uint32_t indices = INDEX + 1;

	s->here = (struct rl_here){ offset_bytes, &s->aborts };
	memset(s->written, 'x', sizeof(s->written));
	((struct rl_record *)s->written)->payload_bytes = PAYLOAD_BYTES;
	return rl_percpu_create(&s->counter, sizeof(intptr_t), 0, indices, RL_BY_CPU_ID) ||
	       rl_percpu_create(&s->lock, sizeof(intptr_t), 0, indices, RL_BY_CPU_ID) ||
	       rl_percpu_create(&s->list, sizeof(intptr_t), 0, indices, RL_BY_CPU_ID) ||
	       rl_percpu_create(&s->takeable, sizeof(struct rl_takeable), 0, indices, RL_BY_CPU_ID) ||
	       rl_takeable_init(&s->takeable) || rl_ring_create(&s->ring, 64, indices, RL_BY_CPU_ID) ||
	       rl_bytes_create(&s->bytes, 4096, indices, RL_BY_CPU_ID) ||
	       rl_pool_create(&s->pool, 64, 64, indices, RL_BY_CPU_ID);
}

static void print(const struct loop *loop)
{
	printf("%s %s %s %d %s %#lx\n", loop->who, loop->operation, loop->by, loop->bytes, loop->empty,
	       (unsigned long)loop->run);
}

/* Every structure's loop, and what it must have left behind. */
static int run_structures(intptr_t iterations)
{
	int failed = 0;

	for (size_t i = 0; i < sizeof(structure_loops) / sizeof(*structure_loops); i++) {
		print(&structure_loops[i]);
		if (iterations)
			failed |= structure_loops[i].run(NULL, iterations);
	}
	return failed || (iterations && (rl_peek(&structures.counter, INDEX) != iterations ||
					 memcmp(structures.written, structures.read, sizeof(structures.read)) ||
					 structures.aborts.moved || structures.aborts.migrated ||
					 structures.aborts.interrupted));
}

int main(int count, char **arguments)
{
	const intptr_t iterations = count > 1 ? atol(arguments[1]) : 0;

	area.cpu_id_start = area.cpu_id = area.mm_cid = INDEX;
	bench.slots = slots;
	bench.offset_bytes = kept_offset_bytes = (char *)&area - (char *)rl_thread_pointer();
#ifdef RSEQLAB_PEER
	rseq_offset = kept_offset_bytes;
#endif
	for (size_t i = 0; i < LOOPS; i++) {
		const struct loop *loop = &loops[i];

		print(loop);
		if (!iterations)
			continue;
		prepare(&bench, loop, INDEX + 1);
		if (loop->run(&bench, iterations) || bench.aborts ||
		    !was_done(&bench, loop, iterations, strcmp(loop->by, "none") ? INDEX : 0)) {
			fprintf(stderr, "%s %s by %s: not every turn was done\n", loop->who, loop->operation, loop->by);
			return 1;
		}
	}
	if (create_structures(bench.offset_bytes) || run_structures(iterations)) {
		fprintf(stderr, "a structure did not do all its turns\n");
		return 1;
	}
	printf("%#lx %#lx\n", (unsigned long)__start_rl_counted, (unsigned long)__stop_rl_counted);
	return 0;
}
