/* SPDX-License-Identifier: MIT */
/* What happens when a section does not commit, over and over. */
#define _GNU_SOURCE
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

int64_t rl_event_loop(enum rl_event event, uint64_t iterations, ptrdiff_t offset_bytes, uint64_t *signals,
		      uint64_t *aborted)
{
	struct sigaction action = { .sa_sigaction = on_trap, .sa_flags = SA_SIGINFO | SA_NODEFER }, before;
	char *area = (char *)rl_thread_pointer() + offset_bytes;
	struct rl_at at = { offset_bytes, RL_BY_CPU_ID, 0 };
	intptr_t word = 0;
	int64_t start_ns;
	uint64_t i;

	*signals = *aborted = 0;
	if (!RL_SUPPORTED)
		return -ENOSYS;
	if ((unsigned)event >= RL_EVENTS || !iterations)
		return -EINVAL;
	sigaction(SIGTRAP, &action, &before);
	handled = 0;
	rl_store_u64(area + offsetof(struct rl_area, rseq_cs), 0);
	start_ns = rl_now_ns();
	switch (event) {
	case RL_EVENT_COMMIT:
		for (i = 0; i < iterations; i++) {
			at.index = rl_read_field(offset_bytes, RL_BY_CPU_ID);
			*aborted += rl_addv(at, &word, 1) == RL_ABORTED;
		}
		break;
	case RL_EVENT_OTHER_INDEX:
		for (i = 0; i < iterations; i++) {
			at.index = rl_read_field(offset_bytes, RL_BY_CPU_ID) + 1;
			*aborted += rl_addv(at, &word, 1) == RL_ABORTED;
		}
		break;
	case RL_EVENT_TRAP:
		for (i = 0; i < iterations; i++)
			__asm__ volatile(RL_ASM_TRAP ::: "memory");
		break;
	case RL_EVENT_TRAP_ANNOUNCED:
		for (i = 0; i < iterations; i++) {
			at.index = rl_read_field(offset_bytes, RL_BY_CPU_ID);
			*aborted += rl_addv(at, &word, 1) == RL_ABORTED;
			__asm__ volatile(RL_ASM_TRAP ::: "memory");
		}
		break;
	default:
		for (i = 0; i < iterations; i++) {
			at.index = rl_read_field(offset_bytes, RL_BY_CPU_ID);
			*aborted += trap_inside(at) == RL_ABORTED;
		}
		break;
	}
	start_ns = rl_now_ns() - start_ns;
	*signals = handled;
	rl_store_u64(area + offsetof(struct rl_area, rseq_cs), 0);
	sigaction(SIGTRAP, &before, NULL);
	return start_ns;
}
