/* SPDX-License-Identifier: MIT */
/*
 * rseqlab's native layer: the one public header.
 *
 * Conventions, for every function below:
 *  - a wrapper of a system call returns 0 (or a value >= 0) or -errno; nothing mixes the two;
 *  - a critical section returns enum rl_result; a loop retries, a section never does;
 *  - nothing prints, aborts, exits or keeps a pointer that it was given, except where said;
 *  - on an architecture without a port everything links, and says -ENOSYS or RL_UNSUPPORTED.
 */
#ifndef RSEQLAB_H
#define RSEQLAB_H

#include <stddef.h>
#include <stdint.h>

#if defined(RSEQLAB_UNSUPPORTED)	/* the tests build this path on every machine */
# include "arch/unsupported.h"
#elif defined(__x86_64__) && defined(__LP64__)
# include "arch/x86_64.h"
#elif defined(__aarch64__) && defined(__AARCH64EL__)
# include "arch/aarch64.h"
#else
# include "arch/unsupported.h"
#endif

/* ---- the ABI (Linux include/uapi/linux/rseq.h; see rseqlab/abi.py for releases and commits) ---- */

#define RL_FLAG_UNREGISTER		1	/* RSEQ_FLAG_UNREGISTER, 4.18 */
#define RL_CPU_ID_UNINITIALIZED		(-1)	/* not registered yet */
#define RL_CPU_ID_REGISTRATION_FAILED	(-2)	/* libc tried, or was told not to */
#define RL_ORIGINAL_SIZE_BYTES		32	/* length and alignment that every kernel accepts */

/* The area, up to the fields of Linux 7.0. The kernel writes every field but rseq_cs and slice_ctrl. */
struct rl_area {
	uint32_t cpu_id_start;	/* always a valid CPU number */
	uint32_t cpu_id;	/* the CPU number, or one of RL_CPU_ID_* */
	uint64_t rseq_cs;	/* descriptor of the section that runs now, or 0 */
	uint32_t flags;
	uint32_t node_id;	/* Linux 6.3 */
	uint32_t mm_cid;	/* Linux 6.3 */
	uint32_t slice_ctrl;	/* Linux 7.0 */
	uint8_t reserved;	/* Linux 7.0: makes the feature size 33, never 32 */
};

_Static_assert(offsetof(struct rl_area, cpu_id_start) == 0, "ABI");
_Static_assert(offsetof(struct rl_area, cpu_id) == 4, "ABI");
_Static_assert(offsetof(struct rl_area, rseq_cs) == 8, "ABI");
_Static_assert(offsetof(struct rl_area, flags) == 16, "ABI");
_Static_assert(offsetof(struct rl_area, node_id) == 20, "ABI");
_Static_assert(offsetof(struct rl_area, mm_cid) == 24, "ABI");
_Static_assert(offsetof(struct rl_area, slice_ctrl) == 28, "ABI");
_Static_assert(offsetof(struct rl_area, reserved) == 32, "ABI");

/* What PTRACE_GET_RSEQ_CONFIGURATION answers (Linux 5.13, 90f093fa8ea4). */
struct rl_configuration {
	uint64_t pointer;	/* 0: this thread is not registered */
	uint32_t size_bytes;
	uint32_t signature;
	uint32_t flags;
	uint32_t pad;
};
_Static_assert(sizeof(struct rl_configuration) == 24, "ABI");

/* ---- this build ---- */

const char *rl_arch(void);		/* "x86_64", "aarch64" or "unsupported" */
const char *rl_compiler(void);		/* what built this, for the record */
uint32_t rl_signature(void);		/* expected before every abort handler; 0 where unsupported */

/* ---- registration (rseq.c), for the calling thread ---- */

int rl_rseq(void *area, uint32_t length_bytes, int flags, uint32_t signature);	/* the bare call */
unsigned long rl_auxv(unsigned long type);		/* 0 where the kernel gave no such entry */
void *rl_thread_pointer_of_caller(void);		/* NULL where unsupported */
uint32_t rl_load_u32(const void *address);		/* one relaxed load */
uint64_t rl_load_u64(const void *address);
void rl_store_u64(void *address, uint64_t value);	/* one relaxed store */

/* What libc exports, looked up at run time. Returns 0, or -ENOENT where libc has no rseq. */
int rl_libc(ptrdiff_t *offset_bytes, uint32_t *size_bytes, uint32_t *flags);

/*
 * What the kernel says of the calling thread's registration. It cannot be asked directly: a copy of
 * the thread is forked, stopped, inspected with ptrace and killed. Returns 0 or -errno (-EIO: kernel
 * older than 5.13; -EPERM: a sandbox denies ptrace; -EPROTO: the copy did not stop).
 */
int rl_configuration(struct rl_configuration *answer);

/*
 * A C thread's right to run critical sections: libc's registration where it is live, else one of our
 * own at the length and alignment that the kernel asks for, until rl_leave(). Leaving also clears
 * rseq_cs, which a library must do before it goes away. Both return 0 or -errno.
 */
struct rl_thread {
	ptrdiff_t offset_bytes;		/* from the thread pointer to the area */
	void *own;			/* what we allocated and registered, or NULL */
	uint32_t own_length_bytes;
};
int rl_enter(struct rl_thread *thread);
int rl_leave(struct rl_thread *thread);

/* ---- reading the CPU number (cpu_id.c) ---- */

enum rl_reader {
	RL_READ_NOTHING,		/* the loop itself */
	RL_READ_FIELD,			/* offset from a variable in which the library keeps it, then the field */
	RL_READ_FIELD_EXPORTED,		/* offset from libc's __rseq_offset, by way of the GOT, then the field */
	RL_READ_FIELD_HOISTED,		/* offset already in a register */
	RL_READ_SCHED_GETCPU,		/* libc */
	RL_READ_VDSO,			/* the vDSO's getcpu, called directly */
	RL_READ_SYSCALL,		/* getcpu(2) through syscall(2) */
	RL_READERS
};

enum rl_order {
	RL_THROUGHPUT,			/* reads may overlap */
	RL_DEPENDENT,			/* the address of each read depends on the value of the last */
	RL_FENCED,			/* an instruction barrier after each read */
	RL_ORDERS
};

/*
 * Reads `iterations` times (a multiple of 4); *sum is the sum of the values, so that a pinned caller can check the work.
 * Returns elapsed nanoseconds, or -errno (-ENOENT: no vDSO getcpu, or no __rseq_offset; -EINVAL: no such reader, order or
 * count, or RL_READ_SCHED_GETCPU with RL_DEPENDENT: it takes no argument to depend on).
 */
int64_t rl_read_loop(enum rl_reader reader, enum rl_order order, ptrdiff_t offset_bytes,
		     uint64_t iterations, uint64_t *sum);

/* ---- per-CPU critical sections (sections.h), and counting on them (counter.c) ---- */

enum rl_result { RL_COMMITTED = 0, RL_COMPARE_FAILED = 1, RL_ABORTED = 2, RL_UNSUPPORTED = 3 };

/* What the data is indexed by: the field of the area that must not change during a section. */
enum rl_by {
	RL_BY_CPU_ID = offsetof(struct rl_area, cpu_id),
	RL_BY_NODE_ID = offsetof(struct rl_area, node_id),	/* Linux 6.3 */
	RL_BY_MM_CID = offsetof(struct rl_area, mm_cid),	/* Linux 6.3 */
};

/* Where a section runs. `by` must lie within the live bytes of the area: the caller has checked. */
struct rl_at {
	ptrdiff_t offset_bytes;		/* from the thread pointer to this thread's area */
	enum rl_by by;
	int32_t index;			/* what the field held when the data was chosen */
};

/*
 * The sections. Each is one attempt and never retries. In this pseudo-code a section begins with
 * "if (area->by != index) abort", and everything up to the line marked commit happens without
 * preemption, migration or signal in between, or is done over by the caller:
 *
 * addv(v, count)
 *	*v += count						commit
 *
 * cmpeqv_storev(v, expect, value)
 *	if (*v != expect) compare failed
 *	*v = value						commit
 *
 * cmpnev_storeoffp_load(v, expect_not, next_bytes, load)	takes the head off a list
 *	p = *v
 *	if (p == expect_not) compare failed
 *	*load = p
 *	*v = *(p + next_bytes)					commit
 *
 * cmpeqv_trystorev_storev[_release](v, expect, v2, value2, value)
 *	if (*v != expect) compare failed
 *	*v2 = value2						may happen without the commit
 *	*v = value						commit
 *
 * cmpeqv_cmpeqv_storev(v, expect, v2, expect2, value)
 *	if (*v != expect || *v2 != expect2) compare failed
 *	*v = value						commit
 *
 * cmpeqv_trymemcpy_storev[_release](v, expect, to, from, length_bytes, value)
 *	if (*v != expect) compare failed
 *	copy length_bytes from `from` to `to`			may happen without the commit
 *	*v = value						commit
 *
 * offset_deref_addv(v, offset_bytes, count)
 *	p = *(*v + offset_bytes)
 *	*p += count						commit
 *
 * deref_cmpeqv_storev(v, expect, value)			as cmpeqv_storev, on what *v points to
 *	p = *v
 *	if (*p != expect) compare failed
 *	*p = value						commit
 *
 * deref_cmpnev_storeoffp_load(v, expect_not, next_bytes, load)
 *	p = *v
 *	q = *p
 *	if (q == expect_not) compare failed
 *	*load = q
 *	*p = *(q + next_bytes)					commit
 *
 * The pointer of the deref sections is loaded inside, so that another CPU can take over what it points
 * to: put another pointer there, then fence (rl_fence): no section that saw the old one still runs.
 *
 * What `by` means. With cpu_id and mm_cid no other thread of the process has the index at the same time,
 * so a section has its data to itself. With node_id it only stays on the node: the node's other CPUs run
 * at the same time, and data that they share needs atomic instructions as well.
 */

enum rl_counter {
	RL_COUNT_RSEQ,			/* addv on this CPU's slot */
	RL_COUNT_THREAD_LOCAL,		/* plain increment of a variable in initial-exec TLS */
	RL_COUNT_ATOMIC_OWN_LINE,	/* relaxed atomic on this thread's slot */
	RL_COUNT_ATOMIC_SHARED,		/* relaxed atomic on one slot for all */
	RL_COUNT_MUTEX,			/* one slot for all, under a pthread mutex */
	RL_COUNT_GETCPU_ATOMIC,		/* relaxed atomic on the slot that sched_getcpu() names */
	RL_COUNTERS
};

struct rl_counter_job {
	enum rl_counter technique;
	uint32_t threads;
	uint64_t iterations;		/* of each thread */
	const int32_t *cpus;		/* per thread: the CPU to stay on, or -1 */
	uint32_t slots;			/* at least the possible CPUs */
};

struct rl_counter_outcome {
	int64_t elapsed_ns;		/* first start to last end */
	int64_t cpu_ns;			/* CPU time of all threads inside the timed part */
	int64_t sum;			/* over all slots; must equal threads * iterations */
	uint64_t aborts;		/* attempts that did not commit: interrupted, or on another CPU by then */
	uint64_t switches;		/* context switches of the threads inside the timed part */
};

#define RL_SLOT_BYTES 128		/* two lines: the neighbour-line prefetcher must not join slots */

/*
 * Runs a counting job on threads of its own. A thread that libc did not register registers itself for
 * the length of the job. Returns 0 or -errno.
 */
int rl_counter_run(const struct rl_counter_job *job, struct rl_counter_outcome *outcome);

#endif
