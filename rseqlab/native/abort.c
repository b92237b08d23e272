/* SPDX-License-Identifier: MIT */
/* What happens when a section does not commit, over and over. */
#define _GNU_SOURCE
#include "layout.h"
#include "read_loop.h"
#include "sections.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <ucontext.h>

static uint64_t handled;	/* by the one thread that runs a loop: SIGTRAP meets whoever trapped */

static void on_trap(int number, siginfo_t *info, void *context)
{
	(void)number, (void)info, (void)context;
	handled++;
#if RL_TRAP_BYTES
	{
		mcontext_t *machine = &((ucontext_t *)context)->uc_mcontext;

		/* After an abort the program counter is at the abort handler, and nothing is to be stepped over. */
		if (*(const uint32_t *)machine->pc == 0xd4200000)
			machine->pc += RL_TRAP_BYTES;
	}
#endif
}

/*
 * A section in which the thread traps, so it never commits. The trap is not its last instruction: behind
 * that one the program counter would be outside already.
 */
RL_SECTION trap_inside(struct rl_at at)
{
	if (!RL_SUPPORTED)
		return RL_UNSUPPORTED;
	__asm__ volatile goto(
		RL_SECTION_BEGIN
		RL_ASM_TRAP
		"nop\n\t"
		RL_SECTION_END
		RL_ASM_ABORT("aborted")
		:
		: RL_GUARD(at)
		: RL_CLOBBERS
		: aborted);
	return RL_COMMITTED;
aborted:
	return RL_ABORTED;
}

/* What an event does to `at` and to a word of data; answers how many sections did not commit. */
#define DEFINE_EVENT(name, EVENT)								\
RL_TIMED static uint64_t name(ptrdiff_t offset_bytes, uint64_t iterations)			\
{												\
	struct rl_at at = { offset_bytes, RL_BY_CPU_ID, 0 };					\
	intptr_t word = 0;									\
	uint64_t i, aborted = 0;								\
												\
	(void)at, (void)word;									\
	RL_LAYOUT_PAD();									\
	for (i = 0; i < iterations; i++) {							\
		EVENT										\
	}											\
	return aborted;										\
}

#define TRAP	__asm__ volatile(RL_ASM_TRAP ::: "memory");
#define ADD_AT(index_now)	at.index = (index_now); aborted += rl_addv(at, &word, 1) == RL_ABORTED;
#define HERE	rl_read_field(offset_bytes, RL_BY_CPU_ID)

DEFINE_EVENT(commit, ADD_AT(HERE))
DEFINE_EVENT(other_index, ADD_AT(HERE + 1))
DEFINE_EVENT(trap, TRAP)
DEFINE_EVENT(trap_again, TRAP)
DEFINE_EVENT(trap_announced, ADD_AT(HERE) TRAP)
DEFINE_EVENT(trap_in_section, at.index = HERE; aborted += trap_inside(at) == RL_ABORTED;)

int64_t rl_event_loop(enum rl_event event, uint64_t iterations, ptrdiff_t offset_bytes, uint64_t *signals,
		      uint64_t *aborted)
{
	static uint64_t (*const events[RL_EVENTS])(ptrdiff_t offset_bytes, uint64_t iterations) = {
		commit, other_index, trap, trap_again, trap_announced, trap_in_section,
	};
	struct sigaction action = { .sa_sigaction = on_trap, .sa_flags = SA_SIGINFO | SA_NODEFER }, before;
	char *area = (char *)rl_thread_pointer() + offset_bytes;
	int64_t start_ns;

	*signals = *aborted = 0;
	if (!RL_SUPPORTED)
		return -ENOSYS;
	if ((unsigned)event >= RL_EVENTS || !iterations)
		return -EINVAL;
	sigaction(SIGTRAP, &action, &before);
	handled = 0;
	rl_store_u64(area + offsetof(struct rl_area, rseq_cs), 0);
	RL_LAYOUT_STACK();
	start_ns = rl_now_ns();
	*aborted = events[event](offset_bytes, iterations);
	start_ns = rl_now_ns() - start_ns;
	*signals = handled;
	rl_store_u64(area + offsetof(struct rl_area, rseq_cs), 0);
	sigaction(SIGTRAP, &before, NULL);
	return start_ns;
}
