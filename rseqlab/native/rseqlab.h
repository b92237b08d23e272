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
const char *rl_compile_flags(void);	/* and with which flags that matter to the code */
/* registers is {eax, ebx, ecx, edx}; 0 where the processor has no such leaf, or no such instruction */
int rl_cpuid(uint32_t leaf, uint32_t subleaf, uint32_t registers[4]);
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

/* ---- another process's thread (inspect.c) ---- */

struct rl_inspection {
	struct rl_configuration configuration;
	uint64_t thread_pointer;	/* 0: not known, as in a 32-bit program */
	int64_t stopped_ns;		/* from asking for the stop to letting go: it stood for this at most */
};

/*
 * Stop the thread with PTRACE_SEIZE and PTRACE_INTERRUPT, ask, and let go. A signal that it was about to
 * take is given back; a thread that was stopped by a signal before stays stopped. Returns 0 or -errno:
 * -EPERM not allowed, or traced by another; -ESRCH gone; -EIO kernel older than 5.13; -ETIMEDOUT it did
 * not stop (an uninterruptible sleep): it stays seized, and rl_let_go() must be called until it returns 0.
 * Should the caller die before that, the kernel lets the thread go.
 */
int rl_inspect(int tid, int timeout_ms, struct rl_inspection *answer);
int rl_let_go(int tid);	/* 0: it is free or gone; -EAGAIN: it has still not stopped */

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
	RL_READ_NOTHING,		/* the same loop with a move between registers for the read, of offset_bytes */
	RL_READ_FIELD,			/* offset from a variable in which the library keeps it, then the field */
	RL_READ_FIELD_AGAIN,		/* the same source once more, at another place */
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
 * Reads `iterations` times (a multiple of 4); *sum is the sum of the values modulo 2^32, so that a pinned caller can
 * check the work.
 * Returns elapsed nanoseconds, or -errno (-ENOENT: no vDSO getcpu, or no __rseq_offset; -EINVAL: no such reader, order or
 * count, or RL_READ_SCHED_GETCPU with RL_DEPENDENT: it takes no argument to depend on).
 */
int64_t rl_read_loop(enum rl_reader reader, enum rl_order order, ptrdiff_t offset_bytes,
		     uint64_t iterations, uint64_t *sum);

/* ---- per-CPU critical sections (sections.h) ---- */

enum rl_result {
	RL_COMMITTED = 0, RL_COMPARE_FAILED = 1, RL_ABORTED = 2, RL_UNSUPPORTED = 3,
	RL_FULL = 4, RL_EMPTY = 5, RL_TOO_LARGE = 6,	/* of structures, below */
};

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
	uintptr_t index;		/* what the field, of 32 bits, held when the data was chosen */
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

/* ---- per-CPU structures (percpu.h inline; percpu.c as functions) ---- */

#define RL_SLOT_BYTES 128		/* two lines: the neighbour-line prefetcher must not join slots */
#define RL_PATIENCE 16			/* after so many aborts a thread yields once */

/*
 * One structure for each index, mapped from the kernel and zero. From one index to the next is a power
 * of two: RL_SLOT_BYTES or more, so that no two share a line, and whole pages where a slot is that large,
 * so that the page comes from the node of the CPU that writes it first. An index that no thread ever has
 * costs address space and no memory.
 */
struct rl_percpu {
	char *base;
	size_t stride_bytes;		/* the distance: a multiplication finds a slot in one instruction less than a shift */
	uint32_t shift;			/* log2 of it */
	uint32_t indices;
	enum rl_by by;
	intptr_t capacity;		/* of a ring: values or bytes, a power of two */
	size_t mapped_bytes;
};

/*
 * bytes_per_index of 1 and more; stride_bytes is 0, or a power of two that replaces the chosen distance
 * (to measure layout mistakes). Returns 0 or -errno (-EINVAL, -ENOMEM). Destroy what was created, once.
 */
int rl_percpu_create(struct rl_percpu *memory, size_t bytes_per_index, size_t stride_bytes, uint32_t indices,
		     enum rl_by by);
void rl_percpu_destroy(struct rl_percpu *memory);

/*
 * Attempts that did not commit, by cause. The kernel clears rseq_cs when it aborts a section, so where it
 * is still set the section itself found another index at its start. The thread counts by load and store:
 * where its signal handlers run sections with the same counts, one may be lost now and then.
 */
struct rl_aborts {
	uint64_t moved;			/* the index had changed before the section began */
	uint64_t migrated;		/* aborted by the kernel; the thread is at another index now */
	uint64_t interrupted;		/* aborted by the kernel, at the same index: preempted, or a signal */
};

/* The calling thread, for the structures: where its area is, and where its aborts are counted. */
struct rl_here {
	ptrdiff_t offset_bytes;
	struct rl_aborts *aborts;
};

/* Counts an abort of a section that ran at `index`, and every RL_PATIENCE of them yields. Off every fast path. */
void rl_count_abort(ptrdiff_t offset_bytes, enum rl_by by, uintptr_t index, struct rl_aborts *aborts);
void rl_wait(void);			/* a short pause; every so often the rest of the time slice */

struct rl_node { struct rl_node *next; };	/* at the start of whatever is listed */

/* The two heads take turns: whoever takes over makes the other one active, fences, and owns the first. */
struct rl_takeable { intptr_t *active, heads[2], taker; };

struct rl_ring { intptr_t head, tail; intptr_t pad[6]; intptr_t values[]; };
struct rl_bytes { intptr_t head, tail; intptr_t pad[6]; char bytes[]; };
struct rl_record { uint64_t payload_bytes; char payload[]; };
#define RL_FILLER UINT64_MAX		/* instead of a length: nothing up to the end of the ring */

/* What ends at the end of a byte ring; both answer RL_COMPARE_FAILED where it is time to try again. */
enum rl_result rl_bytes_fill(ptrdiff_t offset_bytes, enum rl_by by, uintptr_t index, struct rl_bytes *ring,
			     intptr_t tail, intptr_t capacity);
enum rl_result rl_bytes_skip(ptrdiff_t offset_bytes, enum rl_by by, uintptr_t index, struct rl_bytes *ring,
			     intptr_t head, intptr_t capacity);

int rl_takeable_init(struct rl_percpu *memory);
int rl_ring_create(struct rl_percpu *memory, uint32_t capacity, uint32_t indices, enum rl_by by);
int rl_bytes_create(struct rl_percpu *memory, uint32_t capacity_bytes, uint32_t indices, enum rl_by by);

/*
 * Objects of one size. Free ones lie in the lists of the CPUs; a CPU that has none carves a batch from
 * what was never used, and after that takes another CPU's list over. NULL where every object is in use.
 * The slow path takes a lock, so a signal handler must not allocate.
 */
struct rl_pool {
	struct rl_percpu lists;		/* of struct rl_takeable */
	char *objects;
	size_t object_bytes, mapped_bytes;
	uint64_t total, carved;
	uint32_t slow;			/* a lock, for the slow path only */
};
int rl_pool_create(struct rl_pool *pool, size_t object_bytes, uint64_t objects, uint32_t indices, enum rl_by by);
void rl_pool_destroy(struct rl_pool *pool);
void *rl_pool_refill(struct rl_pool *pool, const struct rl_here *here);

/*
 * Fence: when it returns, every section that ran when it was called, on one CPU or on all (cpu < 0), has
 * committed or was aborted (membarrier(2), MEMBARRIER_CMD_PRIVATE_EXPEDITED_RSEQ, Linux 5.10, 2a36ab717e8f).
 * A process makes itself known once, with rl_fence_register(). Both return 0 or -errno (-EINVAL: the
 * kernel has no such command; -EPERM: not made known).
 */
int rl_fence_register(void);
int rl_fence(int cpu);

/*
 * Takes over the list of an index: afterwards *chain is the caller's alone.
 *  RL_TAKE_FENCE_CPU	fences the one CPU, or all where it went away; for lists by cpu_id
 *  RL_TAKE_FENCE_ALL	fences all CPUs that run the process; for every index
 *  RL_TAKE_MOVE	needs no fence: moves the calling thread to that CPU, empties the list with a
 *			section, moves back; for lists by cpu_id and CPUs that the thread may use
 * Returns 0 or -errno of what refused.
 */
enum rl_take { RL_TAKE_FENCE_CPU, RL_TAKE_FENCE_ALL, RL_TAKE_MOVE };
int rl_takeable_take(const struct rl_percpu *memory, const struct rl_here *here, uint32_t index,
		     enum rl_take how, struct rl_node **chain);

/*
 * The fast paths of percpu.h as functions. Each is one attempt without a stack frame; what did not commit goes on in
 * a cold function, which is reached by a jump.
 */
enum rl_result rl_call_counter_add(const struct rl_percpu *memory, const struct rl_here *here, intptr_t count);
void rl_call_node_counter_add(const struct rl_percpu *memory, const struct rl_here *here, intptr_t count);
enum rl_result rl_call_lock_try(const struct rl_percpu *memory, const struct rl_here *here, uint32_t *index);
enum rl_result rl_call_lock_take(const struct rl_percpu *memory, const struct rl_here *here, uint32_t *index);
void rl_call_lock_release(const struct rl_percpu *memory, uint32_t index);
enum rl_result rl_call_list_push(const struct rl_percpu *memory, const struct rl_here *here, struct rl_node *node);
struct rl_node *rl_call_list_pop(const struct rl_percpu *memory, const struct rl_here *here);
enum rl_result rl_call_takeable_push(const struct rl_percpu *memory, const struct rl_here *here, struct rl_node *node);
struct rl_node *rl_call_takeable_pop(const struct rl_percpu *memory, const struct rl_here *here);
enum rl_result rl_call_ring_push(const struct rl_percpu *memory, const struct rl_here *here, intptr_t value);
enum rl_result rl_call_ring_pop(const struct rl_percpu *memory, const struct rl_here *here, intptr_t *value);
enum rl_result rl_call_bytes_write(const struct rl_percpu *memory, const struct rl_here *here,
				   const struct rl_record *record);
enum rl_result rl_call_bytes_read(const struct rl_percpu *memory, const struct rl_here *here,
				  struct rl_record *record, uint64_t room_bytes);
void *rl_call_pool_alloc(struct rl_pool *pool, const struct rl_here *here);
enum rl_result rl_call_pool_free(struct rl_pool *pool, const struct rl_here *here, void *object);

/* The intptr_t at the start of an index's slot, for whoever only looks. */
intptr_t rl_peek(const struct rl_percpu *memory, uint32_t index);

/* ---- one operation after another, on threads (ops.c), by technique (techniques.c) ---- */

struct rl_ops_job {
	int technique;			/* from rl_ops_find */
	uint32_t threads;
	uint64_t iterations;		/* of each thread, a multiple of RL_UNROLL */
	const int32_t *cpus;		/* per thread: the CPU to stay on, or -1 */
	uint32_t indices;		/* at least the possible CPUs */
	uint32_t stride_bytes;		/* between per-CPU counters; 0: as rl_percpu_create chooses */
	uint32_t storm_hz;		/* signals a second to each thread; the handler does one operation more */
	uint32_t moves;			/* of each thread to another of its CPUs, evenly over its iterations */
};

struct rl_ops_outcome {
	int64_t elapsed_ns;		/* first start to last end */
	int64_t cpu_ns;			/* CPU time of all threads inside the timed part */
	uint64_t done;			/* operations found in the data; must equal threads * iterations + handled */
	uint64_t handled;		/* operations done by signal handlers */
	struct rl_aborts aborts;
	uint64_t switches;		/* context switches of the threads inside the timed part */
	uint32_t slots_used;		/* indices whose slot is not zero afterwards */
	uint64_t resident_bytes;	/* of the memory by index, by mincore(2) */
};

#define RL_UNROLL 8			/* operations in a turn of the loop */

/*
 * A technique is called "structure/technique", as "counter/rseq". rl_ops_name gives NULL behind the last;
 * rl_ops_find gives -ENOENT for an unknown name.
 */
const char *rl_ops_name(int technique);
int rl_ops_find(const char *name);

/*
 * Runs a job on threads of its own. A thread that libc did not register registers itself for the length
 * of the job. Returns 0 or -errno (-EINVAL also where a storm or moves are asked of a technique that is not
 * a counter by index or by thread).
 */
int rl_ops_run(const struct rl_ops_job *job, struct rl_ops_outcome *outcome);

/* ---- what an abort costs (abort.c) ---- */

enum rl_event {
	RL_EVENT_COMMIT,		/* none: a section that commits */
	RL_EVENT_OTHER_INDEX,		/* a section that finds another index and gives up by itself */
	RL_EVENT_TRAP,			/* a signal, no section announced */
	RL_EVENT_TRAP_AGAIN,		/* the same source once more, at another place */
	RL_EVENT_TRAP_ANNOUNCED,	/* a signal outside of a section whose descriptor is still announced */
	RL_EVENT_TRAP_INSIDE,		/* a signal inside a section, which the kernel aborts */
	RL_EVENTS
};

/*
 * Makes the event `iterations` times on the calling thread, whose area lies at the offset. Each trap runs
 * a handler that only counts. *signals and *aborted say how many there were. Returns elapsed nanoseconds
 * or -errno. Changes the action of SIGTRAP meanwhile.
 */
int64_t rl_event_loop(enum rl_event event, uint64_t iterations, ptrdiff_t offset_bytes, uint64_t *signals,
		      uint64_t *aborted);

/* ---- what a takeover costs (takeover.c) ---- */

/* As enum rl_take, and a list under a mutex, whose owner pays for every operation instead. */
enum rl_taker { RL_TAKER_FENCE_CPU, RL_TAKER_FENCE_ALL, RL_TAKER_MOVE, RL_TAKER_MUTEX, RL_TAKERS };

struct rl_takeover_job {
	enum rl_taker how;
	uint32_t takeovers;
	uint32_t pause_ns;		/* between two of them */
	int32_t owner_cpu, taker_cpu;	/* may be the same */
	uint32_t indices;
	int32_t busy;			/* whether the owner uses the list meanwhile */
};

struct rl_takeover_outcome {
	int64_t taking_ns;		/* all takeovers, each with one reading of the clock */
	int64_t owner_cpu_ns;		/* CPU time of the owner */
	uint64_t owner_pairs;		/* of the owner: a node taken off and put back */
	uint64_t taken;			/* nodes that were found in the lists taken over */
	struct rl_aborts aborts;	/* of the owner */
	uint64_t lost;			/* nodes that were not found afterwards, or twice; must be 0 */
};

/* Returns 0 or -errno. The second is the same source once more, at another place. */
int rl_takeover_run(const struct rl_takeover_job *job, struct rl_takeover_outcome *outcome);
int rl_takeover_run_again(const struct rl_takeover_job *job, struct rl_takeover_outcome *outcome);

/* ---- words in bytes (find.c) ---- */

#define RL_MAX_WORDS 8

/* Four bytes at any alignment, as a little-endian number, of which the bits of the mask count: all of them in
 * the second and in the fourth byte. */
struct rl_word {
	uint32_t value, mask;
};

struct rl_found {
	uint64_t offset_bytes;
	uint64_t word;			/* which */
};

/* Returns how many there are, which may be more than found its capacity; they are in order of offset. */
size_t rl_find(const uint8_t *bytes, size_t length_bytes, const struct rl_word *words, size_t count,
	       struct rl_found *found, size_t capacity);

#endif
