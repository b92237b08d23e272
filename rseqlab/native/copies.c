/* SPDX-License-Identifier: MIT */
/*
 * The same loop at many places. Whoever compares two copies of one kind compares a thing with itself, layout
 * included; chain-plus-one against chain is a difference of known size.
 */
#define _GNU_SOURCE
#include "copies.h"

#include "percpu.h"
#include "read_loop.h"

#include <sched.h>

/* One dependent instruction of one cycle. */
#if defined(__x86_64__)
# define LINK "addq %1, %0\n\t"
#elif defined(__aarch64__)
# define LINK "add %0, %0, %1\n\t"
#else
# define LINK ""
#endif
#define FIVE_LINKS LINK LINK LINK LINK LINK
#define TWENTY_LINKS FIVE_LINKS FIVE_LINKS FIVE_LINKS FIVE_LINKS
_Static_assert(RL_CHAIN_LINKS == 20, "TWENTY_LINKS");

static __thread __attribute__((tls_model("initial-exec"))) intptr_t counter_of_thread;

struct loop {
	ptrdiff_t offset_bytes;
	struct rl_percpu counters;
	struct rl_aborts aborts;
};

/* One copy: BODY is done each turn; what it leaves is checked by RESULT, which must be `iterations` times something. */
#define DEFINE_COPY(kind, copy, BEFORE, BODY, RESULT)							\
RL_TIMED static int64_t kind##_##copy(struct loop *loop, uint64_t iterations, uint64_t *sum)		\
{													\
	const ptrdiff_t offset_bytes = loop->offset_bytes;						\
	uint32_t sums[4] = { 0 };									\
	uint64_t i, word = 0;										\
	uintptr_t last = 0;										\
	int64_t start_ns, elapsed_ns;									\
	BEFORE												\
													\
	(void)offset_bytes, (void)sums, (void)last, (void)word;						\
	start_ns = rl_now_ns();										\
	RL_LAYOUT_PAD();										\
	for (i = 0; i < iterations; i += 4) {								\
		BODY BODY BODY BODY									\
	}												\
	elapsed_ns = rl_now_ns() - start_ns;								\
	*sum = (RESULT);										\
	return elapsed_ns;										\
}

#define READ_OVERLAPPING(copy)										\
	DEFINE_COPY(read_throughput, copy, , sums[0] += rl_read_cpu_id(offset_bytes);, sums[0])
#define READ_DEPENDENT(copy)										\
	DEFINE_COPY(read_dependent, copy, ,								\
		    last = rl_read_cpu_id(offset_bytes + rl_zero_after(last)); sums[0] += last;, sums[0])
#define CALL(copy)	DEFINE_COPY(sched_getcpu, copy, , sums[0] += sched_getcpu();, sums[0])
#define COUNT_RSEQ(copy)										\
	DEFINE_COPY(counter_rseq, copy,									\
		    const struct rl_percpu counters = loop->counters;					\
		    const struct rl_here here = { offset_bytes COMMA &loop->aborts };,			\
		    rl_counter_add(&counters, &here, 1);,						\
		    rl_peek(&counters, rl_read_field(offset_bytes, RL_BY_CPU_ID)))
#define COMMA ,
#define COUNT_IN_THREAD(copy)										\
	DEFINE_COPY(counter_thread_local, copy, counter_of_thread = 0;,					\
		    ++counter_of_thread; __asm__ volatile("" ::: "memory");, counter_of_thread)
#define CHAIN(copy)											\
	DEFINE_COPY(chain, copy, const uint64_t one = 1;,						\
		    __asm__ volatile(TWENTY_LINKS : "+r"(word) : "r"(one) : "cc");, word)
#define CHAIN_PLUS_ONE(copy)										\
	DEFINE_COPY(chain_plus_one, copy, const uint64_t one = 1;,					\
		    __asm__ volatile(TWENTY_LINKS LINK : "+r"(word) : "r"(one) : "cc");, word)

#define COPIES(X)											\
	X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15)		\
	X(16) X(17) X(18) X(19) X(20) X(21) X(22) X(23)

COPIES(READ_OVERLAPPING)
COPIES(READ_DEPENDENT)
COPIES(CALL)
COPIES(COUNT_RSEQ)
COPIES(COUNT_IN_THREAD)
COPIES(CHAIN)
COPIES(CHAIN_PLUS_ONE)

typedef int64_t copy_of_loop(struct loop *loop, uint64_t iterations, uint64_t *sum);

#define READ_OVERLAPPING_ENTRY(copy)	read_throughput_##copy,
#define READ_DEPENDENT_ENTRY(copy)	read_dependent_##copy,
#define CALL_ENTRY(copy)		sched_getcpu_##copy,
#define COUNT_RSEQ_ENTRY(copy)		counter_rseq_##copy,
#define COUNT_IN_THREAD_ENTRY(copy)	counter_thread_local_##copy,
#define CHAIN_ENTRY(copy)		chain_##copy,
#define CHAIN_PLUS_ONE_ENTRY(copy)	chain_plus_one_##copy,

static copy_of_loop *const copies[RL_COPY_KINDS][RL_COPIES] = {
	{ COPIES(READ_OVERLAPPING_ENTRY) },
	{ COPIES(READ_DEPENDENT_ENTRY) },
	{ COPIES(CALL_ENTRY) },
	{ COPIES(COUNT_RSEQ_ENTRY) },
	{ COPIES(COUNT_IN_THREAD_ENTRY) },
	{ COPIES(CHAIN_ENTRY) },
	{ COPIES(CHAIN_PLUS_ONE_ENTRY) },
};

int64_t rl_copy_loop(enum rl_copy_kind kind, unsigned copy, ptrdiff_t offset_bytes, uint32_t indices,
		     uint64_t iterations, uint64_t *sum)
{
	struct loop loop = { .offset_bytes = offset_bytes };
	int64_t answer;

	if (!RL_SUPPORTED)
		return -ENOSYS;
	if ((unsigned)kind >= RL_COPY_KINDS || copy >= RL_COPIES || !iterations || iterations % 4)
		return -EINVAL;
	if (kind == RL_COPY_COUNTER_RSEQ && (answer = rl_percpu_create(&loop.counters, sizeof(intptr_t), 0, indices,
									RL_BY_CPU_ID)))
		return answer;
	RL_LAYOUT_STACK();
	answer = copies[kind][copy](&loop, iterations, sum);
	rl_percpu_destroy(&loop.counters);
	return answer;
}
