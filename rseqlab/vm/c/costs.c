/* SPDX-License-Identifier: MIT */
/*
 * What registration and sections cost, counted: under `qemu -icount shift=0` the clock goes on by one nanosecond
 * for each instruction, the kernel's included, so a difference of two readings is a number of instructions.
 *
 * A turn always stores to rseq_cs of an area, enters the kernel, and counts how it came back. Only what was
 * stored and whether the area is registered differ, so the program's own instructions are the same. Turns come in
 * batches that are shorter than the kernel's clock ticks are apart: the median of them is one without a tick.
 */
#define _GNU_SOURCE
#include "guest.h"
#include "section_loops.h"

#include <signal.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>

ptrdiff_t kept_offset_bytes;

enum {
	UNREGISTER = 1, SETTLE_S = 20, REPEATS = 3, PAGES = 256, PAGE_BYTES = 4096, BATCHES = 13,
	PAIRS = 4,	/* of processes that switch: after a millisecond or ten a scheduler changes its ways with one */
	CALLS = 2000, ROUND_TRIPS = 64, SIGNALS = 200, OPERATIONS = 20000, CALIBRATION = 100000,
};

static struct { _Alignas(256) char bytes[256]; } area_memory;
static char *const area = area_memory.bytes;
static struct slot slots[1];
static struct bench bench;

__attribute__((visibility("hidden"))) uint64_t rl_left, rl_aborted;	/* sections that ended, and that the kernel aborted */

/* call_inside(area, descriptor, number, a, b, c) and touch_inside(area, descriptor, address) */
long call_inside(char *area, uint64_t descriptor, long number, long a, long b, long c);
void touch_inside(char *area, uint64_t descriptor, char *address);
extern char call_start[], call_end[], call_abort[], touch_start[], touch_end[], touch_abort[], elsewhere_abort[];

#if defined(__x86_64__)
# define COUNT(what) "incq rl_" what "(%rip)\n\tret\n"
# define SIGNED ".byte 0x0f, 0xb9, 0x3d\n\t.long 0x53053053\n"
__asm__(
	".text\n.p2align 6\n.globl call_inside, call_start, call_end, call_abort\ncall_inside:\n\t"
	"movq %rsi, 8(%rdi)\n\tmovq %rdx, %rax\n\tmovq %rcx, %rdi\n\tmovq %r8, %rsi\n\tmovq %r9, %rdx\n"
	"call_start:\n\tsyscall\n\tnop\ncall_end:\n\t" COUNT("left") SIGNED "call_abort:\n\tnop\n\t" COUNT("aborted")
	".p2align 6\n.globl touch_inside, touch_start, touch_end, touch_abort\ntouch_inside:\n\t"
	"movq %rsi, 8(%rdi)\n"
	"touch_start:\n\tmovb $1, (%rdx)\n\tnop\ntouch_end:\n\t" COUNT("left") SIGNED "touch_abort:\n\tnop\n\t" COUNT("aborted")
	".p2align 6\n\t.globl elsewhere_abort\n" SIGNED "elsewhere_abort:\n\tud2\n");
#else
# define COUNT(what) "adrp x9, rl_" what "\n\tldr x10, [x9, :lo12:rl_" what "]\n\tadd x10, x10, #1\n\t" \
	"str x10, [x9, :lo12:rl_" what "]\n\tret\n"
# define SIGNED ".inst 0xd428bc00\n"
__asm__(
	".text\n.p2align 6\n.globl call_inside, call_start, call_end, call_abort\ncall_inside:\n\t"
	"str x1, [x0, #8]\n\tmov x8, x2\n\tmov x0, x3\n\tmov x1, x4\n\tmov x2, x5\n"
	"call_start:\n\tsvc #0\n\tnop\ncall_end:\n\t" COUNT("left") SIGNED "call_abort:\n\tnop\n\t" COUNT("aborted")
	".p2align 6\n.globl touch_inside, touch_start, touch_end, touch_abort\ntouch_inside:\n\t"
	"str x1, [x0, #8]\n\tmov w10, #1\n"
	"touch_start:\n\tstrb w10, [x2]\n\tnop\ntouch_end:\n\t" COUNT("left") SIGNED "touch_abort:\n\tnop\n\t" COUNT("aborted")
	".p2align 6\n\t.globl elsewhere_abort\n" SIGNED "elsewhere_abort:\n\tbrk #1\n");
#endif

static struct rl_descriptor of_calls __attribute__((aligned(32))), of_touches __attribute__((aligned(32))),
	elsewhere __attribute__((aligned(32)));

static struct rl_descriptor section(const char *start, const char *end, const char *abort)
{
	return (struct rl_descriptor){ 0, 0, (uintptr_t)start, (uint64_t)(end - start), (uintptr_t)abort };
}

static int64_t clock_now(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static void rest(void)
{
	struct timespec length = { 0, 300000000 };

	nanosleep(&length, NULL);
}

/* Six instructions a turn, and nothing else: what the clock says of it says whether the clock counts. */
static void six_instructions(uint64_t turns)
{
#if defined(__x86_64__)
	__asm__ volatile("1:\n\tnop\n\tnop\n\tnop\n\tnop\n\tdecq %0\n\tjnz 1b" : "+r"(turns) : : "cc");
#else
	__asm__ volatile("1:\n\tnop\n\tnop\n\tnop\n\tnop\n\tsubs %0, %0, #1\n\tb.ne 1b" : "+r"(turns) : : "cc");
#endif
}

enum section_state { NO_DESCRIPTOR, ELSEWHERE, INSIDE };
static const char *const state_names[] = { "null", "elsewhere", "inside" };

static uint64_t descriptor(enum section_state state, int touches)
{
	const struct rl_descriptor *inside = touches ? &of_touches : &of_calls;

	return state == NO_DESCRIPTOR ? 0 : (uintptr_t)(state == INSIDE ? inside : &elsewhere);
}

/* The instructions of each batch. */
struct series { int64_t values[PAIRS * BATCHES], total; int batches, failed; };

static void add(struct series *series, int64_t start)
{
	const int64_t found = clock_now() - start;
	int place = series->batches++;

	for (series->total += found; place && series->values[place - 1] > found; place--)
		series->values[place] = series->values[place - 1];
	series->values[place] = found;
}

static void say_series(int turns, const struct series *series, uint64_t aborted)
{
	guest_printf("\"turns\":%d,\"batches\":%d,\"total\":%lld,\"least\":%lld,\"median\":%lld,\"aborted\":%llu,\"failed\":%d}\n",
		     turns, series->batches, (long long)series->total, (long long)series->values[0],
		     (long long)series->values[series->batches / 2], (unsigned long long)aborted, series->failed != 0);
}

static void calls(enum section_state state, struct series *series)
{
	const uint64_t cs = descriptor(state, 0);

	for (int batch = 0; batch < BATCHES; batch++) {
		const int64_t start = clock_now();

		for (int i = 0; i < CALLS; i++)
			call_inside(area, cs, SYS_getppid, 0, 0, 0);
		add(series, start);
	}
}

static volatile int handled;

static void handler(int number)
{
	(void)number;
	handled++;
}

static void signals(enum section_state state, struct series *series)
{
	const uint64_t cs = descriptor(state, 0);
	const long self = getpid();

	signal(SIGUSR1, handler);
	handled = 0;
	for (int batch = 0; batch < BATCHES; batch++) {
		const int64_t start = clock_now();

		for (int i = 0; i < SIGNALS; i++)
			call_inside(area, cs, SYS_kill, self, SIGUSR1, 0);
		add(series, start);
	}
	series->failed = handled != SIGNALS * BATCHES;
}

static void faults(enum section_state state, struct series *series)
{
	const uint64_t cs = descriptor(state, 1);
	char *memory = mmap(NULL, PAGES * PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED) {
		series->failed = 1;
		return;
	}
	for (int page = 0; page < PAGES; page++)
		memory[page * PAGE_BYTES] = 2;
	for (int batch = 0; batch < BATCHES; batch++) {
		int64_t start;

		madvise(memory, PAGES * PAGE_BYTES, MADV_DONTNEED);	/* the pages stay, only their entries go */
		start = clock_now();
		for (int page = 0; page < PAGES; page++)
			touch_inside(area, cs, memory + page * PAGE_BYTES);
		add(series, start);
	}
	for (int page = 0; page < PAGES; page++)
		series->failed |= memory[page * PAGE_BYTES] != 1;
	munmap(memory, PAGES * PAGE_BYTES);
}

/* The other process is a fork: it is registered as this one is, at the same address. */
static void switches_of_one_pair(enum section_state state, struct series *series)
{
	const uint64_t cs = descriptor(state, 0);
	int there[2], back[2], status = 0;
	char byte = 1;
	pid_t child;

	series->failed = 1;
	if (pipe(there) || pipe(back))
		return;
	child = fork();
	if (child == 0) {
		for (int i = 0; i < ROUND_TRIPS * BATCHES + 1; i++)
			if (call_inside(area, cs, SYS_read, there[0], (long)&byte, 1) != 1 ||
			    call_inside(area, cs, SYS_write, back[1], (long)&byte, 1) != 1)
				_exit(1);
		_exit(0);
	}
	if (write(there[1], &byte, 1) != 1 || read(back[0], &byte, 1) != 1)
		return;
	rest();
	for (int batch = 0; batch < BATCHES; batch++) {
		const int64_t start = clock_now();

		for (int i = 0; i < ROUND_TRIPS; i++)
			if (call_inside(area, cs, SYS_write, there[1], (long)&byte, 1) != 1 ||
			    call_inside(area, cs, SYS_read, back[0], (long)&byte, 1) != 1)
				return;
		add(series, start);
	}
	waitpid(child, &status, 0);
	close(there[0]), close(there[1]), close(back[0]), close(back[1]);
	series->failed = status != 0;
}

static void switches(enum section_state state, struct series *series)
{
	for (int pair = 0; pair < PAIRS && !series->failed; pair++)
		switches_of_one_pair(state, series);
}

static const struct {
	const char *name;
	void (*run)(enum section_state, struct series *);
	int turns;
} measures[] = {
	{ "system-call", calls, CALLS },
	{ "context-switch", switches, ROUND_TRIPS },
	{ "signal", signals, SIGNALS },
	{ "page-fault", faults, PAGES },
};

static long registration(uint32_t length, int flags)
{
	return length && syscall(__NR_rseq, area, length, flags, RL_SIGNATURE) ? -errno : 0;
}

static void row(const char *measure, uint32_t length, const char *state, int repeat, int turns, const struct series *series)
{
	guest_printf("{\"measure\":\"%s\",\"length\":%u,\"section\":\"%s\",\"repeat\":%d,", measure, length, state, repeat);
	say_series(turns, series, rl_aborted);
}

static void costs(int repeat, uint32_t length)
{
	for (int state = NO_DESCRIPTOR; state <= (length ? INSIDE : NO_DESCRIPTOR); state++) {
		for (size_t i = 0; i < sizeof(measures) / sizeof(*measures); i++) {
			const long error = registration(length, 0);
			struct series series = { 0 };

			if (error) {
				guest_printf("{\"refused\":%ld,\"length\":%u,\"repeat\":%d}\n", -error, length, repeat);
				return;
			}
			rest();
			rl_left = rl_aborted = 0;
			measures[i].run(state, &series);
			row(measures[i].name, length, state_names[state], repeat, measures[i].turns, &series);
			__atomic_store_n((uint64_t *)(area + 8), 0, __ATOMIC_SEQ_CST);
			registration(length, UNREGISTER);
		}
	}
}

static void operations(int repeat)
{
	bench.slots = slots;
	bench.offset_bytes = kept_offset_bytes = area - (char *)rl_thread_pointer();
	if (registration(32, 0))
		return;
	((struct rl_area *)area)->rseq_cs = 0;
	for (size_t i = 0; i < LOOPS; i++) {
		const struct loop *loop = &loops[i];
		struct series series = { 0 };
		uint64_t aborts = 0;

		if (strcmp(loop->who, "ours") || !strcmp(loop->by, "mm_cid"))
			continue;
		for (int batch = 0; batch < BATCHES; batch++) {
			int64_t start;

			prepare(&bench, loop, 1);
			start = clock_now();
			series.failed |= loop->run(&bench, OPERATIONS);
			add(&series, start);
			series.failed |= !was_done(&bench, loop, OPERATIONS, 0);
			aborts += bench.aborts;
		}
		guest_printf("{\"operation\":\"%s\",\"by\":\"%s\",\"bytes\":%d,\"empty\":\"%s\",\"repeat\":%d,", loop->operation,
			     loop->by, loop->bytes, loop->empty, repeat);
		say_series(OPERATIONS, &series, aborts);
	}
	__atomic_store_n((uint64_t *)(area + 8), 0, __ATOMIC_SEQ_CST);
	registration(32, UNREGISTER);
}

int main(void)
{
	const uint32_t feature = (uint32_t)getauxval(27), rounded = (feature + 31) & ~31u;
	const uint32_t lengths[] = { 0, 32, rounded > 32 ? rounded : 64 };
	struct timespec settle = { SETTLE_S, 0 };

	guest_begin();
	of_calls = section(call_start, call_end, call_abort);
	of_touches = section(touch_start, touch_end, touch_abort);
	elsewhere = section(elsewhere_abort, elsewhere_abort + 1, elsewhere_abort);
	elsewhere.start_ip -= 64;	/* code that nobody runs, before its handler */
	nanosleep(&settle, NULL);
	for (int repeat = 0; repeat < REPEATS; repeat++) {
		struct series series = { 0 };

		rl_aborted = 0;
		for (int batch = 0; batch < BATCHES; batch++) {
			const int64_t start = clock_now();

			six_instructions(CALIBRATION);
			add(&series, start);
		}
		row("calibration", 0, "null", repeat, CALIBRATION, &series);
		for (size_t i = 0; i < sizeof(lengths) / sizeof(*lengths); i++)
			costs(repeat, lengths[i]);
		operations(repeat);
	}
	guest_end();
}
