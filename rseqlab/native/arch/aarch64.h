/* SPDX-License-Identifier: MIT */
/* aarch64: assembly fragments of a critical section. Included by rseqlab.h only. */
#ifndef RSEQLAB_H
# error "include rseqlab.h"
#endif

#define RL_ARCH "aarch64"
#define RL_SUPPORTED 1

/* The word before an abort handler decodes as `brk #0x45e0`. */
#define RL_SIGNATURE 0xd428bc00

static inline void *rl_thread_pointer(void)
{
	void *tp;

	__asm__("mrs %0, tpidr_el0" : "=r"(tp));
	return tp;
}

/*
 * The fragments of a section. [area] is the area's address and [field] a place in it; the words of data are
 * memory operands and what is stored there are values, named by the strings that a fragment takes. x15 to x17
 * are scratch, and x14 is the box: a pointer that the section itself has loaded, so that another CPU can put
 * another one there.
 */
/* One value to the compiler: what is reached from it is then a displacement, not a sum of its own. */
#define RL_AREA(offset_bytes)								\
	({ char *area_ = (char *)rl_thread_pointer() + (offset_bytes);			\
	   __asm__("" : "+r"(area_));							\
	   area_; })
/* What a value operand may be. */
#define RL_VALUE		"r"
#define RL_MEMORY		"+Q"
#define RL_LENGTH		"r"
#define RL_CLOBBERS		"memory", "cc", "x15", "x16", "x17"
#define RL_CLOBBERS_BOX		RL_CLOBBERS, "x14"
#define RL_CLOBBERS_COPY	RL_CLOBBERS, "x13", "x14"

/* Tell the kernel which section runs, then start it. */
#define RL_ASM_BEGIN				\
	"adrp x16, 3b\n\t"			\
	"add x16, x16, :lo12:3b\n\t"		\
	"str x16, [%[area], #8]\n"		\
	"1:\n\t"

/* Abort unless the area's field [field] still holds [index]. */
#define RL_ASM_COMPARE_INDEX			\
	"ldr w17, %[field]\n\t"		\
	"cmp w17, %w[index]\n\t"		\
	"b.ne 4f\n\t"

/* Leave to `label` if *v is not, or is, the value. */
#define RL_ASM_LEAVE_UNLESS_EQUAL(v, value, label)	\
	"ldr x17, %[" v "]\n\t"			\
	"cmp x17, %[" value "]\n\t"			\
	"b.ne %l[" label "]\n\t"

/* scratch = *v */
#define RL_ASM_LOAD(v)			"ldr x15, %[" v "]\n\t"
/* reg = *v; leave to `label` if reg is the value; scratch = *(reg + offset) */
#define RL_ASM_LOAD_INTO(reg, v)	"ldr %[" reg "], %[" v "]\n\t"
#define RL_ASM_LEAVE_IF(reg, value, label)		\
	"cmp %[" reg "], %[" value "]\n\t"		\
	"b.eq %l[" label "]\n\t"
#define RL_ASM_FOLLOW(reg, offset)	"ldr x15, [%[" reg "], %[" offset "]]\n\t"
#define RL_ASM_FOLLOW_BY(reg, offset)	"ldr x15, [%[" reg "], #%c[" offset "]]\n\t"	/* by a constant */
/* *v = scratch, scratch = *(scratch + offset), *scratch += count */
#define RL_ASM_STORE_SCRATCH(v)		"str x15, %[" v "]\n\t"
#define RL_ASM_FOLLOW_SCRATCH_AT(offset)	"ldr x15, [x15, %[" offset "]]\n\t"
#define RL_ASM_ADD_TO_SCRATCH(count)			\
	"ldr x17, [x15]\n\t"				\
	"add x17, x17, %[" count "]\n\t"		\
	"str x17, [x15]\n\t"

/* box = *v, reg = *box, *box = scratch, and the comparison and the store through the box */
#define RL_ASM_LOAD_BOX(v)		"ldr x14, %[" v "]\n\t"
#define RL_ASM_LOAD_FROM_BOX_INTO(reg)	"ldr %[" reg "], [x14]\n\t"
#define RL_ASM_STORE_SCRATCH_TO_BOX	"str x15, [x14]\n\t"
#define RL_ASM_LEAVE_UNLESS_BOX_HOLDS(value, label)	\
	"ldr x17, [x14]\n\t"				\
	"cmp x17, %[" value "]\n\t"			\
	"b.ne %l[" label "]\n\t"
#define RL_ASM_STORE_TO_BOX(value)	"str %[" value "], [x14]\n\t"

#define RL_ASM_STORE(v, value)		"str %[" value "], %[" v "]\n\t"
#define RL_ASM_STORE_RELEASE(v, value)	"stlr %[" value "], %[" v "]\n\t"
#define RL_ASM_ADD(v, count)				\
	"ldr x17, %[" v "]\n\t"			\
	"add x17, x17, %[" count "]\n\t"		\
	"str x17, %[" v "]\n\t"

/* Copies 16 bytes at a time, then 8, then single ones; what an abort leaves half-copied is copied anew. */
#define RL_ASM_COPY(to, from, length)			\
	"mov x14, %[" to "]\n\t"			\
	"mov x13, %[" from "]\n\t"			\
	"subs x15, %[" length "], #16\n\t"		\
	"b.lo 6f\n"					\
	"5:\n\t"					\
	"ldp x16, x17, [x13], #16\n\t"			\
	"stp x16, x17, [x14], #16\n\t"			\
	"subs x15, x15, #16\n\t"			\
	"b.hs 5b\n"					\
	"6:\n\t"					\
	"adds x15, x15, #16\n\t"			\
	"b.eq 9f\n\t"					\
	"subs x15, x15, #8\n\t"			\
	"b.lo 7f\n\t"					\
	"ldr x17, [x13], #8\n\t"			\
	"str x17, [x14], #8\n\t"			\
	"b.ne 8f\n\t"					\
	"b 9f\n"					\
	"7:\n\t"					\
	"add x15, x15, #8\n"				\
	"8:\n\t"					\
	"ldrb w17, [x13], #1\n\t"			\
	"strb w17, [x14], #1\n\t"			\
	"subs x15, x15, #1\n\t"			\
	"b.ne 8b\n"					\
	"9:\n\t"

/*
 * Attack builds only: at a numbered point of the section, spin rl_inject[site].loops times, then trap
 * if .trap is set (the kernel aborts the section and runs the handler of SIGTRAP).
 */
#define RL_ASM_INJECT_AT(site)				\
	"adrp x16, rl_inject\n\t"			\
	"add x16, x16, :lo12:rl_inject\n\t"		\
	"ldr w17, [x16, #8*" #site "]\n\t"		\
	"cbz w17, 6f\n"					\
	"5:\n\t"					\
	"subs w17, w17, #1\n\t"				\
	"b.ne 5b\n"					\
	"6:\n\t"					\
	"ldr w17, [x16, #8*" #site "+4]\n\t"		\
	"cbz w17, 7f\n\t"				\
	"brk #0\n"					\
	"7:\n\t"

/* A trap: the kernel delivers SIGTRAP to this thread at once. The handler must step over it. */
#define RL_ASM_TRAP		"brk #0\n\t"
#define RL_TRAP_BYTES		4

#define RL_ASM_ABORT(label)				\
	".pushsection __rseq_failure, \"ax\"\n\t"	\
	".inst 0xd428bc00\n"				\
	"4:\n\t"					\
	"b %l[" label "]\n\t"				\
	".popsection\n\t"

/* No later instruction starts before earlier ones are done. */
#define RL_FENCE() __asm__ volatile("isb" ::: "memory")

/* Zero, but the CPU must wait for `value` to know. */
static inline uintptr_t rl_zero_after(uintptr_t value)
{
	__asm__ volatile("and %0, %0, xzr" : "+r"(value));
	return value;
}

static inline uint32_t rl_read_cpu_id(ptrdiff_t offset_bytes)
{
	uint32_t value;

	__asm__ volatile("ldr %w0, [%1, #4]"
			 : "=r"(value) : "r"((char *)rl_thread_pointer() + offset_bytes));
	return value;
}

/* A 32-bit field of the area, by its place in it; zero-extended, as an index is used. */
static inline uintptr_t rl_read_field(ptrdiff_t offset_bytes, ptrdiff_t field_bytes)
{
	uintptr_t value;

	__asm__ volatile("ldr %w0, %1"
			 : "=r"(value) : "m"(*(const uint32_t *)(RL_AREA(offset_bytes) + field_bytes)));
	return value;
}

/* The offset of an initial-exec TLS symbol, loaded from the GOT as in any shared library. */
#define RL_LOAD_TLS_OFFSET(symbol)						\
	({ ptrdiff_t offset_;							\
	   __asm__ volatile("adrp %0, :gottprel:" #symbol "\n\t"		\
			    "ldr %0, [%0, :gottprel_lo12:" #symbol "]" : "=r"(offset_));	\
	   offset_; })

/* The value of an exported variable of another library, through the GOT as in any shared library. */
#define RL_LOAD_EXPORTED(symbol)						\
	({ ptrdiff_t value_;							\
	   __asm__ volatile("adrp %0, :got:" #symbol "\n\t"			\
			    "ldr %0, [%0, :got_lo12:" #symbol "]\n\t"		\
			    "ldr %0, [%0]" : "=r"(value_));			\
	   value_; })
