/* SPDX-License-Identifier: MIT */
/*
 * One loop around every operation, each in a function of its own, listed in a table. count_sections.c counts
 * the instructions of the very loops that time_sections.c times.
 *
 * Every turn does what a user does: read the index from the area, find the data of that index, run the
 * section, try again where it did not commit. What the section is given it has in registers already; the
 * values depend on the turn, so that the memory afterwards shows whether every turn was done.
 */
#ifndef RSEQLAB_SECTION_LOOPS_H
#define RSEQLAB_SECTION_LOOPS_H

#include "layout.h"
#include "rseqlab.h"
#include "sections.h"

#include <string.h>

#ifdef RSEQLAB_PEER
# include "peer_loops.h"
#endif

#define MOST_BYTES 256
#define MOST_ABORTS 1000000	/* a section that commits never is a fault, not bad luck */

struct node {
	intptr_t payload;
	struct node *next;
};

/* The data of one index. */
struct slot {
	intptr_t value;
	intptr_t second;
	intptr_t *target;	/* points to `value` */
	struct node nodes[2];	/* each is the other's next: the list is never empty */
	char to[MOST_BYTES];
} __attribute__((aligned(512)));
_Static_assert(sizeof(struct slot) == 512, "a shift finds a slot");

struct bench {
	struct slot *slots;
	ptrdiff_t offset_bytes;		/* from the thread pointer to the area */
	intptr_t loaded;		/* what the head-of-list removal took last */
	uint64_t aborts;
	char from[MOST_BYTES];
};

/* Where a library keeps what libc told it, for the loops that load it each turn. */
extern ptrdiff_t kept_offset_bytes __attribute__((visibility("hidden")));

/* What the slots must hold before the first turn, and afterwards. */
enum shape {
	COUNTS,			/* value: 0, then one a turn */
	COUNTS_AND_STORES,	/* and second holds the last turn */
	COUNTS_AND_COPIES,	/* and `to` holds `from` */
	COUNTS_THROUGH,		/* second points to the slot, target to value */
	TAKES,			/* value is the head of the list, which moves on each turn */
	EXCHANGES,		/* value is the head of the list, and stays */
	NOTHING,
};

typedef int loop_function(struct bench *bench, intptr_t iterations);

struct loop {
	const char *who, *operation, *by;
	int bytes;		/* copied by the section, or -1 */
	enum shape shape;
	loop_function *run;
	const char *empty;	/* the loop that does the same without the operation */
};

#ifndef LOOP_FUNCTION	/* whoever times the loops lays them out by itself */
# define LOOP_FUNCTION __attribute__((noinline, section("rl_counted"), aligned(64)))
#endif
#define LIKELY(condition) __builtin_expect(!!(condition), 1)

/* Where a turn's section runs: the index, read anew. PLACE is the offset of the area. */
#define AT(FIELD, PLACE)									\
	({ const ptrdiff_t place_ = (PLACE);							\
	   (struct rl_at){ place_, FIELD, rl_read_field(place_, FIELD) }; })

/* `i` is the turn and `next` the turn after. HERE is evaluated every turn; ONCE may use at, slot, bench, i and next. */
#define DEFINE_LOOP(who, operation, by, bytes, HERE, ONCE)					\
LOOP_FUNCTION static int who##_##operation##_##bytes##_##by(struct bench *bench, intptr_t iterations)	\
{												\
	struct slot *const slots = bench->slots;						\
	const ptrdiff_t offset_bytes = bench->offset_bytes;					\
	uint64_t aborts = 0;									\
	intptr_t i = 0, next;									\
												\
	(void)offset_bytes;									\
	RL_LAYOUT_PAD();									\
	do {											\
		next = i + 1;									\
		for (;;) {									\
			const struct rl_at at = HERE;						\
			struct slot *const slot = &slots[at.index];				\
			const enum rl_result result = (ONCE);					\
												\
			if (LIKELY(result == RL_COMMITTED))					\
				break;								\
			if (result != RL_ABORTED || ++aborts > MOST_ABORTS)			\
				return -1;							\
		}										\
		i = next;									\
	} while (i != iterations);								\
	bench->aborts = aborts;									\
	return 0;										\
}

/* For what has no section: BODY is done each turn. */
#define DEFINE_PLAIN_LOOP(operation, ATTRIBUTES, BODY)						\
ATTRIBUTES LOOP_FUNCTION static int plain_##operation(struct bench *bench, intptr_t iterations)	\
{												\
	struct slot *const slot = bench->slots;							\
	intptr_t i = 0, next;									\
												\
	(void)slot;										\
	do {											\
		next = i + 1;									\
		BODY;										\
		i = next;									\
	} while (i != iterations);								\
	return 0;										\
}

/*
 * Every section: name, bytes copied (-1 in the table where it copies nothing), what it leaves, whether its
 * operands need the turn's number, and one attempt. A new one is one line.
 */
#define SECTIONS(X, ...)									\
	X(addv, 0, COUNTS, nothing, rl_addv(at, &slot->value, 1), __VA_ARGS__)			\
	X(cmpeqv_storev, 0, COUNTS, turns, rl_cmpeqv_storev(at, &slot->value, i, next), __VA_ARGS__)	\
	X(cmpnev_storeoffp_load, 0, TAKES, nothing,						\
	  rl_cmpnev_storeoffp_load(at, &slot->value, 0, offsetof(struct node, next), &bench->loaded), __VA_ARGS__)	\
	X(cmpeqv_trystorev_storev, 0, COUNTS_AND_STORES, turns,					\
	  rl_cmpeqv_trystorev_storev(at, &slot->value, i, &slot->second, i, next), __VA_ARGS__)	\
	X(cmpeqv_trystorev_storev_release, 0, COUNTS_AND_STORES, turns,				\
	  rl_cmpeqv_trystorev_storev_release(at, &slot->value, i, &slot->second, i, next), __VA_ARGS__)	\
	X(cmpeqv_cmpeqv_storev, 0, COUNTS, turns,						\
	  rl_cmpeqv_cmpeqv_storev(at, &slot->value, i, &slot->second, 0, next), __VA_ARGS__)	\
	X(cmpeqv_trymemcpy_storev, 8, COUNTS_AND_COPIES, turns, COPY_OF(, 8), __VA_ARGS__)	\
	X(cmpeqv_trymemcpy_storev, 16, COUNTS_AND_COPIES, turns, COPY_OF(, 16), __VA_ARGS__)	\
	X(cmpeqv_trymemcpy_storev, 64, COUNTS_AND_COPIES, turns, COPY_OF(, 64), __VA_ARGS__)	\
	X(cmpeqv_trymemcpy_storev, 256, COUNTS_AND_COPIES, turns, COPY_OF(, 256), __VA_ARGS__)	\
	X(cmpeqv_trymemcpy_storev_release, 8, COUNTS_AND_COPIES, turns, COPY_OF(_release, 8), __VA_ARGS__)	\
	X(cmpeqv_trymemcpy_storev_release, 16, COUNTS_AND_COPIES, turns, COPY_OF(_release, 16), __VA_ARGS__)	\
	X(cmpeqv_trymemcpy_storev_release, 64, COUNTS_AND_COPIES, turns, COPY_OF(_release, 64), __VA_ARGS__)	\
	X(cmpeqv_trymemcpy_storev_release, 256, COUNTS_AND_COPIES, turns, COPY_OF(_release, 256), __VA_ARGS__)	\
	X(offset_deref_addv, 0, COUNTS_THROUGH, nothing,					\
	  rl_offset_deref_addv(at, &slot->second, offsetof(struct slot, target), 1), __VA_ARGS__)	\
	X(deref_cmpeqv_storev, 0, COUNTS, turns, rl_deref_cmpeqv_storev(at, &slot->target, i, next), __VA_ARGS__)	\
	X(deref_cmpnev_storeoffp_load, 0, TAKES, nothing,					\
	  rl_deref_cmpnev_storeoffp_load(at, &slot->target, 0, offsetof(struct node, next), &bench->loaded), __VA_ARGS__)

#define COPY_OF(order, bytes)									\
	rl_cmpeqv_trymemcpy_storev##order(at, &slot->value, i, slot->to, bench->from, bytes, next)

#define DEFINE_SECTION_LOOP(operation, bytes, shape, empty, ONCE, who, by, HERE)		\
	DEFINE_LOOP(who, operation, by, bytes, HERE, ONCE)
#define SECTION_ENTRY(operation, bytes, shape, empty, ONCE, who, by, HERE)				\
	{ #who, #operation, #by, (bytes) ? (bytes) : -1, shape, who##_##operation##_##bytes##_##by, #empty },

SECTIONS(DEFINE_SECTION_LOOP, ours, cpu_id, AT(RL_BY_CPU_ID, offset_bytes))
SECTIONS(DEFINE_SECTION_LOOP, ours, mm_cid, AT(RL_BY_MM_CID, offset_bytes))
SECTIONS(DEFINE_SECTION_LOOP, ours_offset_loaded, cpu_id, AT(RL_BY_CPU_ID, kept_offset_bytes))
#ifdef RSEQLAB_AGAIN	/* the same source at another place */
SECTIONS(DEFINE_SECTION_LOOP, ours_again, cpu_id, AT(RL_BY_CPU_ID, offset_bytes))
#endif
#ifdef RSEQLAB_PEER
PEER_SECTIONS(DEFINE_SECTION_LOOP, theirs, cpu_id, PEER_AT)
#endif

/* What a program does instead of a section, and the loops alone. */
static __thread intptr_t value_of_thread;

static inline __attribute__((always_inline)) void exchange(intptr_t *head)
{
	struct node *old = (struct node *)__atomic_load_n(head, __ATOMIC_ACQUIRE), *next;

	do {	/* as every lock-free stack without a tag: wrong when a node comes back in between (ABA) */
		next = old->next;
	} while (!__atomic_compare_exchange_n(head, (intptr_t *)&old, (intptr_t)next, 0, __ATOMIC_ACQUIRE,
					      __ATOMIC_ACQUIRE));
	next = (struct node *)__atomic_load_n(head, __ATOMIC_RELAXED);
	do {
		old->next = next;
	} while (!__atomic_compare_exchange_n(head, (intptr_t *)&next, (intptr_t)old, 0, __ATOMIC_RELEASE,
					      __ATOMIC_RELAXED));
}

DEFINE_PLAIN_LOOP(nothing, , __asm__ volatile("" ::: "memory"))
DEFINE_PLAIN_LOOP(turns, , __asm__ volatile("" : : "r"(i), "r"(next) : "memory"))
DEFINE_PLAIN_LOOP(plain_add, , __asm__ volatile("" ::: "memory"); slot->value++)
DEFINE_PLAIN_LOOP(thread_local_add, , __asm__ volatile("" ::: "memory"); value_of_thread++)
DEFINE_PLAIN_LOOP(atomic_add, , __atomic_fetch_add(&slot->value, 1, __ATOMIC_RELAXED))
DEFINE_PLAIN_LOOP(cas_pop_push, , exchange(&slot->value))
#define PLAIN_ENTRY(operation, shape) { "ours", #operation, "none", -1, shape, plain_##operation, "nothing" },
#define PLAIN_LOOPS(X) X(nothing, NOTHING) X(turns, NOTHING) X(plain_add, COUNTS) X(thread_local_add, NOTHING)	\
	X(atomic_add, COUNTS) X(cas_pop_push, EXCHANGES)

#if defined(__aarch64__)	/* since Armv8.1 an atomic addition is one instruction */
DEFINE_PLAIN_LOOP(atomic_add_lse, __attribute__((target("arch=armv8.1-a"))),
		  __atomic_fetch_add(&slot->value, 1, __ATOMIC_RELAXED))
DEFINE_PLAIN_LOOP(cas_pop_push_lse, __attribute__((target("arch=armv8.1-a"))), exchange(&slot->value))
# define PLAIN_LOOPS_OF_ARCH(X) X(atomic_add_lse, COUNTS) X(cas_pop_push_lse, EXCHANGES)
#else
# define PLAIN_LOOPS_OF_ARCH(X)
#endif

static const struct loop loops[] = {
	SECTIONS(SECTION_ENTRY, ours, cpu_id, AT(RL_BY_CPU_ID, offset_bytes))
	SECTIONS(SECTION_ENTRY, ours, mm_cid, AT(RL_BY_MM_CID, offset_bytes))
	SECTIONS(SECTION_ENTRY, ours_offset_loaded, cpu_id, AT(RL_BY_CPU_ID, kept_offset_bytes))
#ifdef RSEQLAB_AGAIN
	SECTIONS(SECTION_ENTRY, ours_again, cpu_id, AT(RL_BY_CPU_ID, offset_bytes))
#endif
#ifdef RSEQLAB_PEER
	PEER_SECTIONS(SECTION_ENTRY, theirs, cpu_id, PEER_AT)
#endif
	PLAIN_LOOPS(PLAIN_ENTRY)
	PLAIN_LOOPS_OF_ARCH(PLAIN_ENTRY)
};
#define LOOPS (sizeof(loops) / sizeof(*loops))

static inline void prepare(struct bench *bench, const struct loop *loop, int indexes)
{
	for (int i = 0; i < MOST_BYTES; i++)
		bench->from[i] = (char)(i + 1);
	bench->loaded = 0;
	bench->aborts = 0;
	value_of_thread = 0;
	for (int i = 0; i < indexes; i++) {
		struct slot *slot = &bench->slots[i];

		memset(slot, 0, sizeof(*slot));
		slot->nodes[0].next = &slot->nodes[1];
		slot->nodes[1].next = &slot->nodes[0];
		slot->target = &slot->value;
		if (loop->shape == TAKES || loop->shape == EXCHANGES)
			slot->value = (intptr_t)&slot->nodes[0];
		if (loop->shape == COUNTS_THROUGH)
			slot->second = (intptr_t)slot;
	}
}

/* Whether the slot of `index` shows `iterations` turns. For a caller that stayed on one index. */
static inline int was_done(const struct bench *bench, const struct loop *loop, intptr_t iterations, int index)
{
	const struct slot *slot = &bench->slots[index];

	switch (loop->shape) {
	case COUNTS:
	case COUNTS_THROUGH:
		return slot->value == iterations;
	case COUNTS_AND_STORES:
		return slot->value == iterations && slot->second == iterations - 1;
	case COUNTS_AND_COPIES:
		return slot->value == iterations && !memcmp(slot->to, bench->from, loop->bytes);
	case TAKES:
		return slot->value == (intptr_t)&slot->nodes[iterations % 2] &&
		       bench->loaded == (intptr_t)&slot->nodes[(iterations + 1) % 2];
	case EXCHANGES:
		return slot->value == (intptr_t)&slot->nodes[0] && slot->nodes[0].next == &slot->nodes[1];
	default:
		return !strcmp(loop->operation, "thread_local_add") ? value_of_thread == iterations : 1;
	}
}

#endif
