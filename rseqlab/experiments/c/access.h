/* SPDX-License-Identifier: MIT */
/*
 * option-access-cost: what its provider (which plays libc), its consumers (libraries and the program)
 * and its program share.
 *
 * Every area is filled in for each thread, so that each sum of what was read can be checked. None is
 * registered: what is measured is the reader's side.
 */
#ifndef RSEQLAB_ACCESS_H
#define RSEQLAB_ACCESS_H

#include "read_loop.h"

#if defined(__x86_64__)
# include "access_x86_64.h"
#elif defined(__aarch64__)
# include "access_aarch64.h"
#else
# error "no port for this architecture"
#endif

#define FIELD_VALUE 41		/* what the field reads in every area */

#define SMALL_BYTES 32
#define LARGE_BYTES 64

#define PADDING_FIELD 28	/* the last of the spare bytes of the original 32 */
#define LARGE_FIELD 60		/* the last word of a struct of 64 bytes */
#define POINTER_AT 24
#define KERNEL_SIZE_AT 22

/* 32 bytes, the field among those that were spare. */
struct small_area {
	char original[PADDING_FIELD];
	uint32_t field;
} __attribute__((aligned(SMALL_BYTES)));
_Static_assert(sizeof(struct small_area) == SMALL_BYTES && offsetof(struct small_area, field) == PADDING_FIELD,
	       "layout");

/* 64 bytes, the field at their end: what an extended area looks like. */
struct large_area {
	char original[SMALL_BYTES];
	char later[LARGE_FIELD - SMALL_BYTES];
	uint32_t field;
} __attribute__((aligned(LARGE_BYTES)));
_Static_assert(sizeof(struct large_area) == LARGE_BYTES && offsetof(struct large_area, field) == LARGE_FIELD,
	       "layout");

/* 32 bytes that lead to the extended struct. */
struct pointer_area {
	char original[POINTER_AT];
	struct large_area *extended;
} __attribute__((aligned(SMALL_BYTES)));
_Static_assert(sizeof(struct pointer_area) == SMALL_BYTES && offsetof(struct pointer_area, extended) == POINTER_AT,
	       "layout");

/* 64 bytes in which the user's and the kernel's size were agreed on at registration. */
struct handshake_area {
	char original[20];
	uint16_t user_size;
	uint16_t kernel_size;
	char later[LARGE_FIELD - 24];
	uint32_t field;
} __attribute__((aligned(LARGE_BYTES)));
_Static_assert(sizeof(struct handshake_area) == LARGE_BYTES &&
	       offsetof(struct handshake_area, kernel_size) == KERNEL_SIZE_AT &&
	       offsetof(struct handshake_area, field) == LARGE_FIELD, "layout");

#define SMALL_INITIAL { .field = FIELD_VALUE }
#define HANDSHAKE_INITIAL { .user_size = LARGE_BYTES, .kernel_size = LARGE_BYTES, .field = FIELD_VALUE }

/* What a thread does before it reads: the areas that hold a pointer get it, as libc would see to. */
void rl_provider_thread(struct large_area *extended);

/* After enum rl_order: one read, with the clock or with a marked instruction on both sides. */
#define RL_FIRST_USE RL_ORDERS
#define RL_MARKED (RL_ORDERS + 1)

struct rl_access {
	const char *label;	/* option, how the area is found, how its library was loaded, size check */
	int64_t (*loop)(int order, uint64_t iterations, uint64_t *sum);
};

struct rl_access_table {
	const struct rl_access *accesses;
	unsigned count;
};

/*
 * How many instructions a fresh thread executes for one read, the calls included: a copy of the process
 * is stepped one by one between the marks. `warm`: the thread has read once before. `enter` prepares the
 * thread. Returns the count or -errno.
 */
int64_t rl_count_instructions(const struct rl_access *access, int warm, void (*enter)(struct large_area *),
			      uint64_t *sum);

/*
 * Reading, in three steps that an architecture spells per TLS model: PLACE finds the area, LOAD reads
 * from it. `after` is the loop's; see read_loop.h.
 */
#define READ_PLAIN(model, symbol, displacement)					\
	({ const uintptr_t place_ = PLACE_##model(symbol) + after;		\
	   LOAD32_##model(symbol, place_, displacement); })

#define READ_BEHIND_POINTER(model, symbol)					\
	({ const uintptr_t place_ = PLACE_##model(symbol) + after;		\
	   load32_at(LOAD64_##model(symbol, place_, POINTER_AT), LARGE_FIELD); })

#define READ_BEHIND_POINTER_IF_SET(model, symbol)				\
	({ const uintptr_t place_ = PLACE_##model(symbol) + after;		\
	   const uintptr_t extended_ = LOAD64_##model(symbol, place_, POINTER_AT);	\
	   __builtin_expect(extended_ != 0, 1) ? load32_at(extended_, LARGE_FIELD) : 0; })

#define READ_IF_AGREED(model, symbol)						\
	({ const uintptr_t place_ = PLACE_##model(symbol) + after;		\
	   __builtin_expect(LOAD16_##model(symbol, place_, KERNEL_SIZE_AT) >= LARGE_BYTES, 1) ?	\
		LOAD32_##model(symbol, place_, LARGE_FIELD) : 0; })

#define READ_AT_OFFSET(offset_bytes)						\
	({ const uintptr_t place_ = (uintptr_t)(offset_bytes) + after;		\
	   load32_from_thread_pointer(place_, LARGE_FIELD); })

#define READ_IF(size_bytes, read)	(__builtin_expect((size_bytes) >= LARGE_BYTES, 1) ? (read) : 0)

/* The same for a model that is itself a macro. */
#define READ_PLAIN_BY(model, symbol, displacement)	READ_PLAIN(model, symbol, displacement)
#define READ_BEHIND_POINTER_BY(model, symbol)		READ_BEHIND_POINTER(model, symbol)

/* One way of reading, in each order. `once` is the hoisted size check, or 1. */
#define DEFINE_ACCESS(name, once, read)						\
	RL_DEFINE_READ_LOOPS(name##_loops, read)				\
	static int64_t name(int order, uint64_t iterations, uint64_t *sum)	\
	{									\
		const ptrdiff_t offset_bytes = 0;				\
		const uintptr_t after = 0;					\
										\
		(void)offset_bytes, (void)after;				\
		if (!(once))							\
			return -EOPNOTSUPP;					\
		if (order == RL_FIRST_USE) {					\
			const int64_t start_ns = rl_now_ns();			\
										\
			*sum = (read);						\
			return rl_now_ns() - start_ns;				\
		}								\
		if (order == RL_MARKED) {					\
			uint32_t value;						\
										\
			__asm__ volatile(MARK ::: "memory");			\
			value = (read);						\
			__asm__ volatile(MARK : "+r"(value) : : "memory");	\
			*sum = value;						\
			return 0;						\
		}								\
		return name##_loops((enum rl_order)order, 0, iterations, sum);	\
	}

#endif
