/* What the processor says of itself, and how this layer was compiled. */

#include "rseqlab.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#ifndef RL_COMPILE_FLAGS
#define RL_COMPILE_FLAGS ""
#endif

int rl_cpuid(uint32_t leaf, uint32_t subleaf, uint32_t registers[4])
{
#if defined(__x86_64__)
	uint32_t base = leaf & 0x80000000u;
	uint32_t highest;

	/* Leaves of hypervisors begin at 0x40000000; what the processor says of its highest one does not hold for them. */
	if (leaf >> 28 != 4) {
		highest = __get_cpuid_max(base, 0);
		if (!highest || leaf > highest)
			return 0;
	}
	__cpuid_count(leaf, subleaf, registers[0], registers[1], registers[2], registers[3]);
	return 1;
#else
	(void)leaf, (void)subleaf, (void)registers;
	return 0;
#endif
}

const char *rl_compile_flags(void)
{
	return RL_COMPILE_FLAGS;
}
