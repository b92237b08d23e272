/* SPDX-License-Identifier: MIT */
/*
 * Runs every loop of section_loops.h on an area that nobody registered: its fields are set so that each
 * compare succeeds, and there is no kernel that could abort. A user-mode emulator, which has no rseq system
 * call, runs it and writes down every instruction.
 *
 * Prints the loops and where their code lies; with a number of turns, runs them all and checks what they did.
 */
#include "section_loops.h"

#include <stdio.h>
#include <stdlib.h>

enum { INDEX = 3 };

ptrdiff_t kept_offset_bytes;

extern const char __start_rl_counted[], __stop_rl_counted[];

static _Alignas(64) struct rl_area area;
static struct slot slots[INDEX + 1];
static struct bench bench;

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

		printf("%s %s %s %d %s %#lx\n", loop->who, loop->operation, loop->by, loop->bytes, loop->empty,
		       (unsigned long)loop->run);
		if (!iterations)
			continue;
		prepare(&bench, loop, INDEX + 1);
		if (loop->run(&bench, iterations) || bench.aborts ||
		    !was_done(&bench, loop, iterations, strcmp(loop->by, "none") ? INDEX : 0)) {
			fprintf(stderr, "%s %s by %s: not every turn was done\n", loop->who, loop->operation, loop->by);
			return 1;
		}
	}
	printf("%#lx %#lx\n", (unsigned long)__start_rl_counted, (unsigned long)__stop_rl_counted);
	return 0;
}
