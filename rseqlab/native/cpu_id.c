/* SPDX-License-Identifier: MIT */
/* Reading the CPU number in every way a program has. */
#define _GNU_SOURCE
#include "read_loop.h"

#include <dlfcn.h>
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

/* Where a library keeps libc's offset: it is loaded for each read. */
static volatile ptrdiff_t kept_offset_bytes;

RL_DEFINE_READ_LOOPS(nothing, rl_read_nothing(offset_bytes + after))
RL_DEFINE_READ_LOOPS(field, rl_read_cpu_id(kept_offset_bytes + after))
RL_DEFINE_READ_LOOPS(field_again, rl_read_cpu_id(kept_offset_bytes + after))
RL_DEFINE_READ_LOOPS(exported, rl_read_cpu_id(RL_LOAD_EXPORTED(__rseq_offset) + after))
RL_DEFINE_READ_LOOPS(hoisted, rl_read_cpu_id(offset_bytes + after))
RL_DEFINE_READ_LOOPS(libc_call, (uint32_t)sched_getcpu())
RL_DEFINE_READ_LOOPS(vdso,
	({ unsigned cpu_;
	   ((getcpu_fn)offset_bytes)((unsigned *)((char *)&cpu_ + after), NULL, NULL);
	   cpu_; }))
RL_DEFINE_READ_LOOPS(system_call,
	({ unsigned cpu_;
	   syscall(SYS_getcpu, (char *)&cpu_ + after, NULL, NULL);
	   cpu_; }))

int64_t rl_read_loop(enum rl_reader reader, enum rl_order order, ptrdiff_t offset_bytes,
		     uint64_t iterations, uint64_t *sum)
{
	if (!RL_SUPPORTED)
		return -ENOSYS;
	kept_offset_bytes = offset_bytes;
	switch (reader) {
	case RL_READ_NOTHING:
		return nothing(order, offset_bytes, iterations, sum);
	case RL_READ_FIELD:
		return field(order, offset_bytes, iterations, sum);
	case RL_READ_FIELD_AGAIN:
		return field_again(order, offset_bytes, iterations, sum);
	case RL_READ_FIELD_EXPORTED:
		return &__rseq_offset ? exported(order, offset_bytes, iterations, sum) : -ENOENT;
	case RL_READ_FIELD_HOISTED:
		return hoisted(order, offset_bytes, iterations, sum);
	case RL_READ_SCHED_GETCPU:
		if (order == RL_DEPENDENT)	/* it takes no argument that could depend on anything */
			return -EINVAL;
		return libc_call(order, offset_bytes, iterations, sum);
	case RL_READ_VDSO:
		offset_bytes = (ptrdiff_t)vdso_getcpu();
		return offset_bytes ? vdso(order, offset_bytes, iterations, sum) : -ENOENT;
	case RL_READ_SYSCALL:
		return system_call(order, offset_bytes, iterations, sum);
	default:
		return -EINVAL;
	}
}
