/* What a lock costs whose holder is preempted, with and without rseq's slice extension, and who counts what.
 *
 * One CPU, three threads: the holder takes the lock over and over; the waiter wakes and wants it; the competitor
 * wakes and only computes. Without the extension a wake-up may take the CPU from the holder in the middle of its
 * section, and everybody waits for the competitor. With it the holder may finish first, for some microseconds.
 *
 * It runs as init of a guest; what it shall do stands in its environment, that is on the kernel's command line:
 *
 *     RSEQLAB_SLICE=sizes             one line per length of registration: flags, prctl
 *     RSEQLAB_SLICE=lock,SEED,ROUNDS  one line per round, section and way
 *     RSEQLAB_CHECKED=0|1             with the kernel's checks of rseq (debugfs rseq/debug) off or on
 *
 * Every line is a JSON object. Time is read without a system call, as one would take a granted slice back.
 */
#define _GNU_SOURCE
#include "guest.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define NR_SLICE_YIELD 471 /* the same on all architectures */
#define SIGNATURE 0x53053053
#define UNREGISTER 1
#define DEFAULT_ON 2
#define SLICE_PRCTL 79
#define SLICE_GET 1
#define SLICE_SET 2
#define SLICE_ENABLE 1
#define AVAILABLE 0x10
#define ENABLED 0x20
#define DEBUGFS "/debug/rseq/"

struct area {
	uint32_t cpu_id_start, cpu_id;
	uint64_t rseq_cs;
	uint32_t flags, node_id, mm_cid;
	volatile uint8_t request, granted;
	uint16_t reserved;
	uint8_t end[224];
} __attribute__((aligned(256)));

/* Of this thread, as it saw it. Every request ends in exactly one of the four below it. */
struct account {
	uint64_t requests, kept, yielded, late, taken_back;
};

enum { SLICE_BYTES = 33 };

static long area_register(struct area *area, unsigned bytes, unsigned flags)
{
	return syscall(__NR_rseq, area, bytes, flags, SIGNATURE) ? errno : 0;
}

/* As the kernel gave it: what libc made -1 and errno is a negative number again. */
static long answer(long result)
{
	return result == -1 ? -(long)errno : result;
}

static long slice_enable(void)
{
	return syscall(SYS_prctl, SLICE_PRCTL, SLICE_SET, SLICE_ENABLE, 0, 0) ? errno : 0;
}

__attribute__((noreturn, format(printf, 1, 2))) static void fail(const char *format, ...)
{
	char said[300];
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(said, sizeof said, format, arguments);
	va_end(arguments);
	guest_printf("{\"row\": \"failed\", \"reason\": \"%s\"}\n", said);
	guest_end();
}

static inline uint64_t ticks(void)
{
#if defined(__x86_64__)
	uint32_t low, high;

	__asm__ volatile("rdtsc" : "=a"(low), "=d"(high)::"memory");
	return (uint64_t)high << 32 | low;
#else
	uint64_t now;

	__asm__ volatile("isb\n\tmrs %0, cntvct_el0" : "=r"(now)::"memory");
	return now;
#endif
}

/* Two instructions a turn, whatever the compiler thinks. */
static inline void work(uint64_t turns)
{
#if defined(__x86_64__)
	__asm__ volatile("1: decq %0\n\tjnz 1b" : "+r"(turns)::"cc");
#else
	__asm__ volatile("1: subs %0, %0, #1\n\tb.ne 1b" : "+r"(turns)::"cc");
#endif
}

/* ---- sizes ---- */

static void size_row(const char *how, unsigned bytes, unsigned flags)
{
	static struct area area;
	long registered = -1, enabled;
	uint32_t before = 0, after = 0;

	memset(&area, 0, sizeof area);
	if (bytes) {
		registered = area_register(&area, bytes, flags);
		before = area.flags;
	}
	enabled = slice_enable();
	after = area.flags;
	guest_printf(
		"{\"row\": \"size\", \"how\": \"%s\", \"registered_bytes\": %u, \"register_errno\": %ld, "
		"\"flags_before\": %u, \"prctl_errno\": %ld, \"flags_after\": %u, \"get_result\": %ld, "
		"\"yield_result\": %ld, \"feature_bytes\": %lu, \"align_bytes\": %lu}\n",
		how, bytes, registered, before, enabled, after,
		answer(syscall(SYS_prctl, SLICE_PRCTL, SLICE_GET, 0, 0, 0)),
		answer(syscall(NR_SLICE_YIELD)), getauxval(27), getauxval(28));
	if (registered == 0 && area_register(&area, bytes, UNREGISTER))
		fail("unregistering %u bytes was refused", bytes);
}

static void sizes(void)
{
	size_row("unregistered", 0, 0);
	size_row("registered", 28, 0);
	size_row("registered", 32, 0);
	size_row("registered", 33, 0);
	size_row("registered", 64, 0);
	size_row("registered", 256, 0);
	size_row("registered, on by flag", 32, DEFAULT_ON);
	size_row("registered, on by flag", 33, DEFAULT_ON);
}

/* ---- lock ---- */

struct section {
	const char *name;
	uint64_t instructions;
	unsigned slice_ns;
	bool system_call;
};

static const struct section SECTIONS[] = {
	{ "fits", 2000, 5000, false },
	{ "too long", 20000, 5000, false },
	{ "long, longer slice", 20000, 50000, false },
	{ "with a system call", 2000, 5000, true },
};

enum way { WITHOUT, WITHOUT_AGAIN, ASKED_ONLY, WITH, WAYS };
static const char *const WAY[WAYS] = { "without", "without-again", "asked-only", "with" };

enum { SAMPLES = 1 << 15, BATCH_TICKS = 10000000 };

struct samples {
	uint64_t value[SAMPLES];
	size_t count;
};

struct thread {
	struct area area;
	struct account account;
	uint64_t sections, contended, disturbed, refused, random;
	struct samples hold, wait, late;
};

static struct thread holder, waiter, competitor;
static uint32_t lock_word;
static uint64_t counter;        /* plain: only the lock protects it */
static volatile uint64_t turns_taken; /* by the waiter and the competitor: somebody else ran */
static bool slices, enable;
static struct section now;
static uint64_t until;

static void keep(struct samples *samples, uint64_t value)
{
	if (samples->count == SAMPLES)
		fail("more than %d samples in one batch", SAMPLES);
	samples->value[samples->count++] = value;
}

static inline void slice_begin(struct thread *thread)
{
	if (!slices)
		return;
	thread->account.requests++;
	thread->area.request = 1;
	__asm__ volatile("" ::: "memory");
}

static inline void slice_end(struct thread *thread)
{
	bool kept;

	if (!slices)
		return;
	__asm__ volatile("" ::: "memory");
	kept = thread->area.request;
	thread->area.request = 0;
	if (thread->area.granted) {
		if (syscall(NR_SLICE_YIELD) == 1)
			thread->account.yielded++;
		else
			thread->account.late++;
	} else if (kept) {
		thread->account.kept++;
	} else {
		thread->account.taken_back++;
	}
}

static bool take(void)
{
	uint32_t free = 0;

	return __atomic_compare_exchange_n(&lock_word, &free, 1, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED);
}

/* The section itself: lock, read the counter, work, write it one higher, unlock. */
static void section(struct thread *thread, bool holds)
{
	uint64_t seen, wanted_at, start, end, others;

	wanted_at = ticks();
	slice_begin(thread);
	if (!take()) {
		slice_end(thread);
		thread->contended++;
		while (__atomic_exchange_n(&lock_word, 2, __ATOMIC_ACQUIRE))
			syscall(SYS_futex, &lock_word, FUTEX_WAIT_PRIVATE, 2, NULL, NULL, 0);
		slice_begin(thread);
	}
	start = ticks();
	others = turns_taken;
	seen = *(volatile uint64_t *)&counter;
	if (now.system_call) {
		work(now.instructions / 4);
		syscall(SYS_getppid);
		work(now.instructions / 4);
	} else {
		work(now.instructions / 2);
	}
	*(volatile uint64_t *)&counter = seen + 1;
	thread->disturbed += others != turns_taken;
	end = ticks();
	bool wanted = __atomic_exchange_n(&lock_word, 0, __ATOMIC_RELEASE) == 2;
	slice_end(thread);
	if (wanted)
		syscall(SYS_futex, &lock_word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
	thread->sections++;
	if (holds)
		keep(&thread->hold, end - start);
	else
		keep(&thread->wait, start - wanted_at);
}

static uint64_t random_below(struct thread *thread, uint64_t limit)
{
	thread->random ^= thread->random << 13;
	thread->random ^= thread->random >> 7;
	thread->random ^= thread->random << 17;
	return thread->random % limit;
}

static uint64_t clock_ns(void)
{
	struct timespec now_ts;

	clock_gettime(CLOCK_MONOTONIC, &now_ts);
	return (uint64_t)now_ts.tv_sec * 1000000000 + now_ts.tv_nsec;
}

static void start_thread(struct thread *thread)
{
	prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0); /* the default lets a nap end 50 microseconds late */
	thread->refused = area_register(&thread->area, SLICE_BYTES, 0);
	if (!thread->refused && enable)
		thread->refused = slice_enable();
}

/* Sleeps a pseudo-random while, whose mean is `mean_ns`, and says how late it woke. */
static uint64_t nap(struct thread *thread, uint64_t mean_ns)
{
	uint64_t at = clock_ns() + mean_ns / 2 + random_below(thread, mean_ns);
	struct timespec then = { .tv_sec = at / 1000000000, .tv_nsec = at % 1000000000 };

	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &then, NULL))
		;
	turns_taken++;
	return clock_ns() - at;
}

static void *hold(void *unused)
{
	(void)unused;
	start_thread(&holder);
	while (ticks() < until) {
		section(&holder, true);
		work(now.instructions / 4 + random_below(&holder, now.instructions / 2));
	}
	return NULL;
}

static void *wait_for_it(void *unused)
{
	(void)unused;
	start_thread(&waiter);
	while (ticks() < until) {
		nap(&waiter, 100000);
		section(&waiter, false);
	}
	return NULL;
}

static void *compete(void *unused)
{
	(void)unused;
	start_thread(&competitor);
	while (ticks() < until) {
		keep(&competitor.late, nap(&competitor, 300000));
		work(30000);
	}
	return NULL;
}

struct kernel_account {
	uint64_t granted, expired, revoked, yielded, aborted;
	bool read;
};

static struct kernel_account kernel_now(void)
{
	struct kernel_account account = { .read = true };
	struct {
		const char *name;
		uint64_t *to;
	} fields[] = { { "sgrant:", &account.granted },
		       { "sexpir:", &account.expired },
		       { "srevok:", &account.revoked },
		       { "syield:", &account.yielded },
		       { "sabort:", &account.aborted } };
	char name[32];
	unsigned long value;
	size_t found = 0;
	FILE *file = fopen(DEBUGFS "stats", "r");

	while (file && fscanf(file, "%31s %lu", name, &value) == 2)
		for (size_t i = 0; i < 5; i++)
			if (!strcmp(name, fields[i].name)) {
				*fields[i].to = value;
				found++;
			}
	if (file)
		fclose(file);
	account.read = found == 5;
	return account;
}

static bool write_number(const char *path, unsigned value)
{
	FILE *file = fopen(path, "w");
	bool fine = file && fprintf(file, "%u\n", value) > 0;

	return file && !fclose(file) && fine;
}

static int by_size(const void *left, const void *right)
{
	uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;

	return (a > b) - (a < b);
}

static void print_samples(const char *name, struct samples *samples)
{
	static const struct {
		const char *name;
		double share;
	} QUANTILES[] = { { "p50", 0.5 }, { "p90", 0.9 }, { "p99", 0.99 }, { "max", 1 } };
	uint64_t sum = 0;

	if (!samples->count)
		fail("no sample of %s", name);
	for (size_t i = 0; i < samples->count; i++)
		sum += samples->value[i];
	guest_printf(", \"%s_mean\": %" PRIu64, name, sum / samples->count);
	qsort(samples->value, samples->count, sizeof *samples->value, by_size);
	for (size_t i = 0; i < sizeof QUANTILES / sizeof *QUANTILES; i++)
		guest_printf(", \"%s_%s\": %" PRIu64, name, QUANTILES[i].name,
			samples->value[(size_t)(QUANTILES[i].share * (samples->count - 1))]);
}

static void batch(unsigned round, unsigned position, const struct section *which, enum way way, uint64_t seed)
{
	struct thread *all[] = { &holder, &waiter, &competitor };
	void *(*body[])(void *) = { hold, wait_for_it, compete };
	pthread_t ids[3];
	struct kernel_account before, after;
	uint64_t alone = UINT64_MAX;

	for (int i = 0; i < 3; i++) {
		memset(all[i], 0, sizeof **all);
		all[i]->random = seed * 6364136223846793005u + i * 1442695040888963407u + round * 2654435761u + 1;
	}
	now = *which;
	slices = way == ASKED_ONLY || way == WITH;
	enable = way == WITH;
	counter = lock_word = 0;
	turns_taken = 0;
	if (!write_number(DEBUGFS "slice_ext_nsec", now.slice_ns) && enable)
		fail("debugfs rseq/slice_ext_nsec could not be set to %u", now.slice_ns);
	for (int i = 0; i < 5; i++) { /* the least: a tick of the kernel's clock may fall into one of them */
		uint64_t start = ticks();

		work(now.instructions / 2);
		start = ticks() - start;
		alone = start < alone ? start : alone;
	}
	before = kernel_now();
	until = ticks() + BATCH_TICKS;
	for (int i = 0; i < 3; i++)
		if (pthread_create(&ids[i], NULL, body[i], NULL))
			fail("a thread could not be created");
	for (int i = 0; i < 3; i++)
		pthread_join(ids[i], NULL);
	after = kernel_now();
	for (int i = 0; i < 3; i++)
		if (all[i]->refused)
			fail("way %s: registration or prctl was refused: errno %" PRIu64, WAY[way], all[i]->refused);
	if (counter != holder.sections + waiter.sections)
		fail("way %s: the lock let two in: %" PRIu64 " sections, counter %" PRIu64, WAY[way],
		     holder.sections + waiter.sections, counter);
	guest_printf(
		"{\"row\": \"lock\", \"round\": %u, \"position\": %u, \"section\": \"%s\", \"way\": \"%s\", "
		"\"section_instructions\": %" PRIu64 ", \"slice_ns\": %u, \"alone\": %" PRIu64
		", \"sections\": %" PRIu64 ", \"disturbed\": %" PRIu64 ", \"waits\": %" PRIu64
		", \"contended\": %" PRIu64,
		round, position, now.name, WAY[way], now.instructions, now.slice_ns, alone, holder.sections,
		holder.disturbed, waiter.sections, waiter.contended);
	print_samples("hold", &holder.hold);
	print_samples("wait", &waiter.wait);
	print_samples("late", &competitor.late);
	guest_printf(
		", \"requests\": %" PRIu64 ", \"kept\": %" PRIu64 ", \"yielded\": %" PRIu64 ", \"late_yields\": %" PRIu64
		", \"taken_back\": %" PRIu64 ", \"kernel_counts\": %s, \"kernel_granted\": %" PRIu64
		", \"kernel_expired\": %" PRIu64 ", \"kernel_revoked\": %" PRIu64 ", \"kernel_yielded\": %" PRIu64
		", \"kernel_aborted\": %" PRIu64 "}\n",
		holder.account.requests + waiter.account.requests, holder.account.kept + waiter.account.kept,
		holder.account.yielded + waiter.account.yielded, holder.account.late + waiter.account.late,
		holder.account.taken_back + waiter.account.taken_back, after.read ? "true" : "false",
		after.granted - before.granted, after.expired - before.expired, after.revoked - before.revoked,
		after.yielded - before.yielded, after.aborted - before.aborted);
}

/* Every way once a round, one after another in an order that differs from round to round. */
static void locks(uint64_t seed, unsigned rounds)
{
	unsigned batches = sizeof SECTIONS / sizeof *SECTIONS * WAYS;

	for (unsigned round = 0; round < rounds; round++)
		for (unsigned position = 0; position < batches; position++) {
			unsigned which = position / WAYS;
			unsigned way = (position + round + seed) % WAYS;

			batch(round, position, &SECTIONS[which], way, seed);
		}
}

int main(void)
{
	const char *what = getenv("RSEQLAB_SLICE"), *checked = getenv("RSEQLAB_CHECKED");
	unsigned long seed;
	unsigned rounds;

	guest_begin();
	mkdir("/debug", 0700);
	if (mount("debugfs", "/debug", "debugfs", 0, NULL))
		fail("debugfs could not be mounted: errno %d", errno);
	if (checked && !write_number(DEBUGFS "debug", atoi(checked)))
		fail("debugfs rseq/debug could not be written");
	if (what && !strcmp(what, "sizes"))
		sizes();
	else if (what && sscanf(what, "lock,%lu,%u", &seed, &rounds) == 2)
		locks(seed, rounds);
	else
		fail("RSEQLAB_SLICE must be sizes or lock,SEED,ROUNDS");
	guest_end();
}
