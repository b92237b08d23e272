/* SPDX-License-Identifier: MIT */
/* x86_64: assembly fragments of a critical section. Included by rseqlab.h only. */
#ifndef RSEQLAB_H
# error "include rseqlab.h"
#endif

#define RL_ARCH "x86_64"
#define RL_SUPPORTED 1

/* The four bytes before an abort handler. They follow 0f b9 3d, which decodes as `ud1 <sig>(%rip),%edi`. */
#define RL_SIGNATURE 0x53053053

static inline void *rl_thread_pointer(void)
{
	void *tp;

	__asm__("movq %%fs:0, %0" : "=r"(tp));
	return tp;
}

/*
 * The fragments of a section. [area] is an offset and [field] a place in the %fs segment; the words of data are
 * memory operands and what is stored there are values, named by the strings that a fragment takes. r11 is
 * scratch, one register for everything, so that a function needs to save none; and rcx is the box: a pointer that the
 * section itself has loaded, so that another CPU can put another one there.
 */
#define RL_AREA(offset_bytes)	((char *)(offset_bytes))
/* What a value operand may be: a register, or a constant that fits the instruction. */
#define RL_VALUE		"er"
#define RL_MEMORY		"+m"
#define RL_LENGTH		"er"
#define RL_CLOBBERS		"memory", "cc", "r11"
#define RL_CLOBBERS_BOX		RL_CLOBBERS, "rcx"
#define RL_CLOBBERS_COPY	RL_CLOBBERS, "rax", "rcx", "rsi", "rdi", "xmm15"

/* Tell the kernel which section runs, then start it. */
#define RL_ASM_BEGIN			\
	"leaq 3b(%%rip), %%r11\n\t"	\
	"movq %%r11, %%fs:8(%[area])\n"	\
	"1:\n\t"

/* Abort unless the area's field [field] still holds [index]. */
#define RL_ASM_COMPARE_INDEX			\
	"cmpl %k[index], %%fs:%[field]\n\t"	\
	"jnz 4f\n\t"

/* Leave to `label` if *v is not, or is, the value. */
#define RL_ASM_LEAVE_UNLESS_EQUAL(v, value, label)	\
	"cmpq %[" value "], %[" v "]\n\t"		\
	"jnz %l[" label "]\n\t"

/* scratch = *v */
#define RL_ASM_LOAD(v)			"movq %[" v "], %%r11\n\t"
/* reg = *v; leave to `label` if reg is the value; scratch = *(reg + offset) */
#define RL_ASM_LOAD_INTO(reg, v)	"movq %[" v "], %[" reg "]\n\t"
#define RL_ASM_LEAVE_IF(reg, value, label)		\
	"cmpq %[" value "], %[" reg "]\n\t"		\
	"je %l[" label "]\n\t"
#define RL_ASM_FOLLOW(reg, offset)	"movq (%[" reg "],%[" offset "]), %%r11\n\t"
#define RL_ASM_FOLLOW_BY(reg, offset)	"movq %c[" offset "](%[" reg "]), %%r11\n\t"	/* by a constant */
/* *v = scratch, scratch = *(scratch + offset), *scratch += count */
#define RL_ASM_STORE_SCRATCH(v)		"movq %%r11, %[" v "]\n\t"
#define RL_ASM_FOLLOW_SCRATCH_AT(offset)	"movq (%%r11,%[" offset "]), %%r11\n\t"
#define RL_ASM_ADD_TO_SCRATCH(count)	"addq %[" count "], (%%r11)\n\t"

/* box = *v, reg = *box, *box = scratch, and the comparison and the store through the box */
#define RL_ASM_LOAD_BOX(v)		"movq %[" v "], %%rcx\n\t"
#define RL_ASM_LOAD_FROM_BOX_INTO(reg)	"movq (%%rcx), %[" reg "]\n\t"
#define RL_ASM_STORE_SCRATCH_TO_BOX	"movq %%r11, (%%rcx)\n\t"
#define RL_ASM_LEAVE_UNLESS_BOX_HOLDS(value, label)	\
	"cmpq %[" value "], (%%rcx)\n\t"		\
	"jnz %l[" label "]\n\t"
#define RL_ASM_STORE_TO_BOX(value)	"movq %[" value "], (%%rcx)\n\t"

#define RL_ASM_STORE(v, value)		"movq %[" value "], %[" v "]\n\t"
#define RL_ASM_STORE_RELEASE(v, value)	RL_ASM_STORE(v, value)	/* x86 stores are not reordered */
#define RL_ASM_ADD(v, count)		"addq %[" count "], %[" v "]\n\t"

/*
 * Copies 16 bytes at a time, the last block up to the end even where it overlaps the one before; below 16
 * likewise by 8, below 8 single bytes. What an abort leaves half-copied is copied anew. The loop is aligned: across
 * two cache lines it takes twice as long.
 */
#define RL_ASM_COPY(to, from, length)			\
	"movq %[" to "], %%rdi\n\t"			\
	"movq %[" from "], %%rsi\n\t"			\
	"movq %[" length "], %%rcx\n\t"		\
	"cmpq $16, %%rcx\n\t"				\
	"jb 6f\n\t"					\
	"addq %%rcx, %%rsi\n\t"			\
	"addq %%rcx, %%rdi\n\t"			\
	"negq %%rcx\n\t"				\
	"addq $16, %%rcx\n\t"				\
	"jz 7f\n\t"					\
	".p2align 5\n"					\
	"5:\n\t"					\
	"movups -16(%%rsi,%%rcx), %%xmm15\n\t"		\
	"movups %%xmm15, -16(%%rdi,%%rcx)\n\t"		\
	"addq $16, %%rcx\n\t"				\
	"jl 5b\n"					\
	"7:\n\t"					\
	"movups -16(%%rsi), %%xmm15\n\t"		\
	"movups %%xmm15, -16(%%rdi)\n\t"		\
	"jmp 9f\n"					\
	"6:\n\t"					\
	"cmpq $8, %%rcx\n\t"				\
	"jb 6f\n\t"					\
	"movq (%%rsi), %%rax\n\t"			\
	"movq -8(%%rsi,%%rcx), %%r11\n\t"		\
	"movq %%rax, (%%rdi)\n\t"			\
	"movq %%r11, -8(%%rdi,%%rcx)\n\t"		\
	"jmp 9f\n"					\
	"6:\n\t"					\
	"testq %%rcx, %%rcx\n\t"			\
	"jz 9f\n"					\
	"8:\n\t"					\
	"movb -1(%%rsi,%%rcx), %%r11b\n\t"		\
	"movb %%r11b, -1(%%rdi,%%rcx)\n\t"		\
	"decq %%rcx\n\t"				\
	"jnz 8b\n"					\
	"9:\n\t"

/*
 * Attack builds only: at a numbered point of the section, spin rl_inject[site].loops times, then trap
 * if .trap is set (the kernel aborts the section and runs the handler of SIGTRAP).
 */
#define RL_ASM_INJECT_AT(site)					\
	"movl rl_inject+8*" #site "(%%rip), %%r11d\n\t"	\
	"testl %%r11d, %%r11d\n\t"				\
	"jz 6f\n"						\
	"5:\n\t"						\
	"decl %%r11d\n\t"					\
	"jnz 5b\n"						\
	"6:\n\t"						\
	"cmpl $0, rl_inject+8*" #site "+4(%%rip)\n\t"	\
	"jz 7f\n\t"						\
	"int3\n"						\
	"7:\n\t"

/* A trap: the kernel delivers SIGTRAP to this thread at once. It goes on behind. */
#define RL_ASM_TRAP		"int3\n\t"
#define RL_TRAP_BYTES		0	/* what a handler must add to the program counter to go on */

#define RL_ASM_ABORT(label)				\
	".pushsection __rseq_failure, \"ax\"\n\t"	\
	".byte 0x0f, 0xb9, 0x3d\n\t"			\
	".long 0x53053053\n"				\
	"4:\n\t"					\
	"jmp %l[" label "]\n\t"				\
	".popsection\n\t"

/* No later instruction starts before earlier ones are done. */
#define RL_FENCE() __asm__ volatile("lfence" ::: "memory")

/* Zero, but the CPU must wait for `value` to know (an `and` is no zeroing idiom). */
static inline uintptr_t rl_zero_after(uintptr_t value)
{
	__asm__ volatile("andq $0, %0" : "+r"(value) : : "cc");
	return value;
}

static inline uint32_t rl_read_cpu_id(ptrdiff_t offset_bytes)
{
	uint32_t value;

	__asm__ volatile("movl %%fs:4(%1), %0" : "=r"(value) : "r"(offset_bytes));
	return value;
}

/*
 * A 32-bit field of the area, by its place in it; zero-extended, as an index is used. Where the place is a
 * constant it becomes the displacement: an address that the section uses as well, the compiler would keep in a
 * register at the price of a `lea`.
 */
static inline uintptr_t rl_read_field(ptrdiff_t offset_bytes, ptrdiff_t field_bytes)
{
	uintptr_t value;

# define READ_FIELD_AT(constant)									\
	if (__builtin_constant_p(field_bytes) && field_bytes == (constant)) {			\
		__asm__ volatile("movl %%fs:" #constant "(%1), %k0" : "=r"(value) : "r"(offset_bytes));	\
		return value;									\
	}
	READ_FIELD_AT(4)
	READ_FIELD_AT(20)
	READ_FIELD_AT(24)
# undef READ_FIELD_AT
	__asm__ volatile("movl %%fs:(%1,%2), %k0" : "=r"(value) : "r"(offset_bytes), "r"(field_bytes));
	return value;
}

/* The offset of an initial-exec TLS symbol, loaded from the GOT as in any shared library. */
#define RL_LOAD_TLS_OFFSET(symbol)						\
	({ ptrdiff_t offset_;							\
	   __asm__ volatile("movq " #symbol "@gottpoff(%%rip), %0" : "=r"(offset_));	\
	   offset_; })

/* The value of an exported variable of another library, through the GOT as in any shared library. */
#define RL_LOAD_EXPORTED(symbol)						\
	({ ptrdiff_t value_;							\
	   __asm__ volatile("movq " #symbol "@GOTPCREL(%%rip), %0\n\t"		\
			    "movq (%0), %0" : "=r"(value_));			\
	   value_; })
