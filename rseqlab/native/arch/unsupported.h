/* SPDX-License-Identifier: MIT */
/*
 * Every other architecture: the same names with nothing behind them, so that the package builds and
 * imports, and each function can say that it is unsupported. The tests compile and call this path.
 */
#ifndef RSEQLAB_H
# error "include rseqlab.h"
#endif

#define RL_ARCH "unsupported"
#define RL_SUPPORTED 0
#define RL_SIGNATURE 0

static inline void *rl_thread_pointer(void)
{
	return NULL;
}

#define RL_AREA(offset_bytes)	((char *)(offset_bytes))
#define RL_VALUE		"r"
#define RL_MEMORY		"+m"
#define RL_LENGTH		"r"
#define RL_CLOBBERS		"memory"
#define RL_CLOBBERS_BOX		RL_CLOBBERS
#define RL_CLOBBERS_COPY	RL_CLOBBERS
#define RL_ASM_BEGIN		""
#define RL_ASM_COMPARE_INDEX	""
#define RL_ASM_LEAVE_UNLESS_EQUAL(v, value, label)	""
#define RL_ASM_LOAD(v)		""
#define RL_ASM_LOAD_INTO(reg, v)	""
#define RL_ASM_LEAVE_IF(reg, value, label)	""
#define RL_ASM_FOLLOW(reg, offset)	""
#define RL_ASM_FOLLOW_BY(reg, offset)	""
#define RL_ASM_STORE_SCRATCH(v)	""
#define RL_ASM_FOLLOW_SCRATCH_AT(offset)	""
#define RL_ASM_ADD_TO_SCRATCH(count)	""
#define RL_ASM_LOAD_BOX(v)	""
#define RL_ASM_LOAD_FROM_BOX_INTO(reg)	""
#define RL_ASM_STORE_SCRATCH_TO_BOX	""
#define RL_ASM_LEAVE_UNLESS_BOX_HOLDS(value, label)	""
#define RL_ASM_STORE_TO_BOX(value)	""
#define RL_ASM_STORE(v, value)	""
#define RL_ASM_STORE_RELEASE(v, value)	""
#define RL_ASM_ADD(v, count)	""
#define RL_ASM_COPY(to, from, length)	""
#define RL_ASM_INJECT_AT(site)	""
#define RL_ASM_TRAP		""
#define RL_TRAP_BYTES		0
#define RL_ASM_ABORT(label)	""
#define RL_FENCE()		__asm__ volatile("" ::: "memory")

static inline uintptr_t rl_zero_after(uintptr_t value)
{
	(void)value;
	return 0;
}

static inline uint32_t rl_read_cpu_id(ptrdiff_t offset_bytes)
{
	(void)offset_bytes;
	return 0;
}

static inline uintptr_t rl_read_field(ptrdiff_t offset_bytes, ptrdiff_t field_bytes)
{
	(void)offset_bytes, (void)field_bytes;
	return 0;
}

#define RL_LOAD_TLS_OFFSET(symbol) ((ptrdiff_t)0)
#define RL_LOAD_EXPORTED(symbol) ((ptrdiff_t)0)
