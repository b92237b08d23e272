/* SPDX-License-Identifier: MIT */
/*
 * Where a timed loop lies. lab/builds.py compiles the loops in many code layouts; these macros are the places that
 * it changes in the assembly. In any other build they do nothing.
 */
#ifndef RSEQLAB_LAYOUT_H
#define RSEQLAB_LAYOUT_H

#include <stdint.h>

/* Directly before a timed loop: a layout puts a number of `nop` here, executed once. */
#define RL_LAYOUT_PAD() __asm__ volatile("/* rl-layout-pad */")

/* By how much a layout moves the stack; below 4096. */
static inline uint32_t rl_layout_stack_bytes(void)
{
	uint32_t bytes = 0;

#if defined(__x86_64__)
	__asm__(".ifndef rl_layout_stack\n\t.set rl_layout_stack, 0\n\t.endif\n\tmovl $rl_layout_stack, %0" : "=r"(bytes));
#elif defined(__aarch64__)
	__asm__(".ifndef rl_layout_stack\n\t.set rl_layout_stack, 0\n\t.endif\n\tmov %w0, #rl_layout_stack" : "=r"(bytes));
#endif
	return bytes;
}

/* In the function that calls a timed loop: the loop's frame lies so much lower. */
#define RL_LAYOUT_STACK()							\
	do {									\
		char *const lower_ = __builtin_alloca(rl_layout_stack_bytes() + 16);	\
										\
		__asm__ volatile("" : : "r"(lower_) : "memory");			\
	} while (0)

/* A function whose code is not mixed with its caller's, and not made one with another of the same code. */
#ifdef __clang__
# define RL_TIMED __attribute__((noinline))
#else
# define RL_TIMED __attribute__((noipa))
#endif

#endif
