/* SPDX-License-Identifier: MIT */
/* Reading the CPU number in every way a program has. */
#define _GNU_SOURCE
#include "read_loop.h"

#include <dlfcn.h>
#include <errno.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Weak: a libc before glibc 2.35 has none. */
extern const ptrdiff_t __rseq_offset __attribute__((weak));

typedef long (*getcpu_fn)(unsigned *cpu, unsigned *node, void *unused);

static getcpu_fn vdso_getcpu(void)
{
	void *vdso = dlopen("linux-vdso.so.1", RTLD_LAZY | RTLD_NOLOAD);
	void *symbol = NULL;

	if (vdso) {
		symbol = dlsym(vdso, "__vdso_getcpu");
		dlclose(vdso);	/* the kernel's mapping stays */
	}
	return (getcpu_fn)symbol;
}

static inline uint32_t read_nothing(uintptr_t after)
{
	uint32_t value = after;

	__asm__ volatile("" : "+r"(value));
	return value;
}

int64_t rl_read_loop(enum rl_reader reader, enum rl_order order, ptrdiff_t offset_bytes,
		     uint64_t iterations, uint64_t *sum)
{
	const volatile ptrdiff_t offset_in_memory = offset_bytes;
	const getcpu_fn getcpu_vdso = reader == RL_READ_VDSO ? vdso_getcpu() : NULL;
	int64_t elapsed_ns;
	unsigned cpu = 0;

	if (!RL_SUPPORTED)
		return -ENOSYS;
	if (rl_read_loop_refuses(order, iterations))
		return -EINVAL;
	switch (reader) {
	case RL_READ_NOTHING:
		RL_READ_LOOP(order, iterations, read_nothing(after), elapsed_ns, sum);
		return elapsed_ns;
	case RL_READ_FIELD:
		RL_READ_LOOP(order, iterations, rl_read_cpu_id(offset_in_memory + after), elapsed_ns, sum);
		return elapsed_ns;
	case RL_READ_FIELD_EXPORTED:
		if (!&__rseq_offset)
			return -ENOENT;
		RL_READ_LOOP(order, iterations, rl_read_cpu_id(RL_LOAD_EXPORTED(__rseq_offset) + after),
			     elapsed_ns, sum);
		return elapsed_ns;
	case RL_READ_FIELD_HOISTED:
		RL_READ_LOOP(order, iterations, rl_read_cpu_id(offset_bytes + after), elapsed_ns, sum);
		return elapsed_ns;
	case RL_READ_SCHED_GETCPU:
		if (order == RL_DEPENDENT)	/* it takes no argument that could depend on anything */
			return -EINVAL;
		RL_READ_LOOP(order, iterations, (uint32_t)sched_getcpu(), elapsed_ns, sum);
		return elapsed_ns;
	case RL_READ_VDSO:
		if (!getcpu_vdso)
			return -ENOENT;
		RL_READ_LOOP(order, iterations,
			     (getcpu_vdso((unsigned *)((char *)&cpu + after), NULL, NULL), cpu), elapsed_ns, sum);
		return elapsed_ns;
	case RL_READ_SYSCALL:
		RL_READ_LOOP(order, iterations,
			     (syscall(SYS_getcpu, (char *)&cpu + after, NULL, NULL), cpu), elapsed_ns, sum);
		return elapsed_ns;
	default:
		return -EINVAL;
	}
}
