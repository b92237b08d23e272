/* SPDX-License-Identifier: MIT */
/*
 * What this kernel does with rseq, asked from a program that some libc's loader has just started.
 *
 *	probe MODE [LOADER FOLDER PROBE]
 *
 * MODE is `libc` (the area that libc registered), `self-32` or `self-extended` (this program registers one of
 * 32 bytes, or of the feature size rounded up and more than 32), `none` (nobody has registered the thread), or
 * `registered`, which only says whether somebody has. The rest says how to start this program again.
 *
 * One JSON object a line. What may kill runs in a fork of its own, so each meets a thread in the stated state.
 * Questions and attempts are called as in the experiment registration-rules where it asks them too.
 */
#include "bare.h"

extern const ptrdiff_t __rseq_offset __attribute__((weak));
extern const unsigned int __rseq_size __attribute__((weak)), __rseq_flags __attribute__((weak));
extern int pthread_create(unsigned long *, void *, void *(*)(void *), void *) __attribute__((weak));
extern int pthread_join(unsigned long, void **) __attribute__((weak));

enum {
	UNREGISTER = 1, ORIGINAL = 32, OTHER_SIGNATURE = 0x12345678, PATTERN = 0x5a5a5a5a,
	PR_SET_PDEATHSIG_ = 1, PR_SLICE = 79, SLICE_GET = 1, SLICE_SET = 2,
	PTRACE_TRACEME_ = 0, PTRACE_CONFIGURATION = 0x420f, NR_SLICE_YIELD = 471,
	MEMBARRIER_QUERY = 0, MEMBARRIER_FENCE = 128, MEMBARRIER_REGISTER = 256, ONE_CPU = 1,
	PATIENCE_S = 5, WAIT_UNTRACED = 2,
};

enum kind { NOTHING, NUMBER, WORDS };

/* An attempt's answer, in memory that its fork shares. */
struct answer {
	enum kind kind;
	long number;		/* 0, or -errno */
	char words[200];
};

struct configuration {
	uint64_t pointer;
	uint32_t size, signature, flags, pad;
};

static struct answer *answer;
static char *base;		/* two pages: an area, and room for what else is registered */
static char *area;		/* what is or will be registered for this thread */
static uint32_t length;		/* of the registration that this mode is about; 0: none */
static int by_libc;
static const char *const *again;	/* loader, folder, probe */
static unsigned long feature_size, feature_align;
static struct configuration theirs;

/* ---- saying things ---- */

static char line[8192];
static size_t used;

static void put(const char *text)
{
	while (*text && used < sizeof(line) - 2)
		line[used++] = *text++;
}

static void put_number(long value, int sixteen)
{
	const unsigned long radix = sixteen ? 16 : 10;
	unsigned long rest = value < 0 && !sixteen ? -(unsigned long)value : (unsigned long)value;
	char digits[24];
	int count = 0;

	do
		digits[count++] = "0123456789abcdef"[rest % radix];
	while (rest /= radix);
	if (value < 0 && !sixteen)
		put("-");
	if (sixteen)
		put("0x");
	while (count--) {
		char one[2] = { digits[count], 0 };

		put(one);
	}
}

static void put_all(const char *text, size_t left)
{
	while (left) {
		const long written = CALL3(write, 1, text, left);

		if (written <= 0)
			leave_program(1);
		text += written;
		left -= written;
	}
}

static void end_line(void)
{
	line[used++] = '\n';
	put_all(line, used);
	used = 0;
}

static void begin_row(const char *question, const char *attempt)
{
	put("{\"question\":\"");
	put(question);
	put("\",\"attempt\":\"");
	put(attempt);
	put("\",");
}

static void row_words(const char *question, const char *attempt, const char *words)
{
	begin_row(question, attempt);
	put("\"words\":\"");
	put(words);
	put("\"}");
	end_line();
}

/* A number that is an answer by itself, or what a call answered: 0 or -errno. */
static void row_number(const char *question, const char *attempt, const char *name, long value)
{
	begin_row(question, attempt);
	put("\"");
	put(name);
	put("\":");
	put_number(value, 0);
	put("}");
	end_line();
}

/* Words of an answer, put together in the line and taken from there. */
static void say(size_t from)
{
	size_t count = used - from;

	if (count >= sizeof(answer->words))
		count = sizeof(answer->words) - 1;
	memcpy(answer->words, line + from, count);
	answer->words[count] = 0;
	answer->kind = WORDS;
	used = from;
}

static void say_words(const char *words)
{
	const size_t from = used;

	put(words);
	say(from);
}

static void say_number(long number)
{
	answer->number = number;
	answer->kind = NUMBER;
}

/* ---- asking ---- */

static long rseq_at(void *place, unsigned bytes, int flags, unsigned signature)
{
	return CALL4(rseq, place, bytes, flags, signature);
}

static uint32_t load(const char *place, int offset)
{
	return __atomic_load_n((const uint32_t *)(place + offset), __ATOMIC_SEQ_CST);
}

static void store(char *place, int offset, uint32_t value)
{
	__atomic_store_n((uint32_t *)(place + offset), value, __ATOMIC_SEQ_CST);
}

/* The first registration of an attempt that is about what follows it. Where libc made it there is nothing to do. */
static int enter(void)
{
	const long error = by_libc ? 0 : rseq_at(area, length, 0, SIGNATURE);

	if (error) {
		const size_t from = used;

		put("registering answered ");
		put_number(-error, 0);
		say(from);
	}
	return error == 0;
}

/* Switches of this thread: the last number of struct rusage counts those it was made to do, the one before the rest. */
static long switched(int involuntarily)
{
	long usage[18] = { 0 };

	CALL2(getrusage, 1, usage);
	return usage[16 + involuntarily];
}

/* On a busy host the time is over before the thread has gone to sleep: then it never left its CPU. */
static int really_sleep(void)
{
	const long before = switched(0);
	int tries = 50;

	while (tries-- && switched(0) == before)
		sleep_ns(3000000);
	return tries > 0;
}

/* Runs a function in a fork; what it said becomes a row, and so does what killed it. */
static void attempt(const char *question, const char *name, void (*function)(long), long argument)
{
	int status = 0;
	long pid;

	memset(answer, 0, sizeof(*answer));
	pid = fork_process();
	if (pid == 0) {
		CALL2(prctl, PR_SET_PDEATHSIG_, SIGKILL_);
		struct { struct time interval, value; } timer = { { 0, 0 }, { PATIENCE_S, 0 } };

		CALL3(setitimer, 0, &timer, 0);
		used = 0;
		function(argument);
		leave_program(0);
	}
	wait_for(pid, &status, 0);
	if ((status & 0x7f) == SIGALRM_)
		row_words(question, name, "hung");
	else if (status & 0x7f)
		row_number(question, name, "signal", status & 0x7f);
	else if (answer->kind == WORDS)
		row_words(question, name, answer->words);
	else if (answer->kind == NUMBER)
		row_number(question, name, "error", -answer->number);
	else
		row_words(question, name, "no answer");
}

/* ---- threads: libc's own where it registers them, otherwise bare ones ---- */

struct job {
	void (*function)(long);
	long argument;
	int gone;
};

static void bare_body(void *argument)
{
	struct job *job = argument;

	job->function(job->argument);
}

static void *libc_body(void *argument)
{
	bare_body(argument);
	return 0;
}

struct running {
	struct job job;
	unsigned long thread;
};

static int start(struct running *running, void (*function)(long), long argument)
{
	running->job = (struct job){ function, argument, 0 };
	if (by_libc && &pthread_create)
		return pthread_create(&running->thread, 0, libc_body, &running->job);
	return (int)start_thread(bare_body, &running->job, &running->job.gone);
}

static void join(struct running *running)
{
	if (by_libc && &pthread_create)
		pthread_join(running->thread, 0);
	else
		join_thread(&running->job.gone);
}

static void in_thread(void (*function)(long), long argument)
{
	struct running running;

	if (start(&running, function, argument))
		say_words("no thread could be started");
	else
		join(&running);
}

/* ---- the registration itself ---- */

/* Only a thread that has no area may register another. */
static int is_registered(void)
{
	if (rseq_at(base + 2048, ORIGINAL, 0, SIGNATURE))
		return 1;
	rseq_at(base + 2048, ORIGINAL, UNREGISTER, SIGNATURE);
	return 0;
}

static void say_registered(long unused)
{
	(void)unused;
	say_words(is_registered() ? "registered" : "unregistered");
}

/* Of a copy of this thread, which is stopped and asked. 0 or -errno. */
static long ask_configuration(struct configuration *found)
{
	int status = 0;
	long pid = fork_process(), error;

	if (pid == 0) {
		CALL4(ptrace, PTRACE_TRACEME_, 0, 0, 0);
		CALL2(kill, own_id(), SIGSTOP_);
		leave_program(0);
	}
	wait_for(pid, &status, WAIT_UNTRACED);
	error = CALL4(ptrace, PTRACE_CONFIGURATION, pid, sizeof(*found), found);
	CALL2(kill, pid, SIGKILL_);
	wait_for(pid, &status, 0);
	return error < 0 ? error : 0;
}

static void say_configuration(long unused)
{
	struct configuration found = { 0 };
	const size_t from = used;
	long error;

	(void)unused;
	if (length && !enter())
		return;
	error = ask_configuration(&found);
	if (error) {
		say_number(error);
		return;
	}
	if (!found.pointer) {
		say_words("no registration");
		return;
	}
	put("length ");
	put_number(found.size, 0);
	put(", flags ");
	put_number(found.flags, 0);
	put(found.signature == SIGNATURE ? ", the usual signature" : ", another signature");
	put(found.pointer == (uint64_t)(uintptr_t)area ? "" : ", another address");
	say(from);
}

static void put_run(long code, int count)
{
	put_number(code, 0);
	if (count > 1) {
		put("*");
		put_number(count, 0);
	}
}

/*
 * Every length or place of an area, each taken back at once: nothing here can kill. The answers are errno, run by
 * run: "22*32,0,22" is 32 times EINVAL, once accepted, once EINVAL.
 */
static void codes(const char *question, const char *name, int from, int to, uint32_t bytes)
{
	long before = 0;
	int count = 0;

	begin_row(question, name);
	put("\"from\":");
	put_number(from, 0);
	put(",\"codes\":\"");
	for (int i = from; i <= to; i++) {
		char *place = bytes ? base + i : base;
		const uint32_t asked = bytes ? bytes : (uint32_t)i;
		const long error = -rseq_at(place, asked, 0, SIGNATURE);

		if (!error)
			rseq_at(place, asked, UNREGISTER, SIGNATURE);
		if (count && error != before) {
			put_run(before, count);
			put(",");
			count = 0;
		}
		before = error;
		count++;
	}
	put_run(before, count);
	put("\"}");
	end_line();
}

static void flag(long flags)
{
	say_number(rseq_at(base, ORIGINAL, (int)flags, SIGNATURE));
}

static void signature(long value)
{
	say_number(rseq_at(base, ORIGINAL, 0, (unsigned)value));
}

static void address(long place)
{
	say_number(rseq_at((void *)place, ORIGINAL, 0, SIGNATURE));
}

static void read_only_page(long unused)
{
	(void)unused;
	say_number(rseq_at(map(PAGE, PROT_READ_, 0), ORIGINAL, 0, SIGNATURE));
}

enum again { THE_SAME, ANOTHER_AREA, ANOTHER_LENGTH, ANOTHER_SIGNATURE };

static void twice(long how)
{
	const uint32_t bytes = by_libc ? theirs.size : length;

	if (enter())
		say_number(rseq_at(area + (how == ANOTHER_AREA ? 256 : 0), bytes + (how == ANOTHER_LENGTH ? 32 : 0), 0,
				   how == ANOTHER_SIGNATURE ? OTHER_SIGNATURE : SIGNATURE));
}

static long drop(int displacement, uint32_t bytes, unsigned sign)
{
	const uint32_t own = by_libc ? theirs.size : length;

	return rseq_at(area + displacement, bytes ? bytes : own, UNREGISTER, sign);
}

static void unregister_length(long bytes)
{
	if (enter())
		say_number(drop(0, (uint32_t)bytes, SIGNATURE));
}

static void unregister_signature(long unused)
{
	(void)unused;
	if (enter())
		say_number(drop(0, 0, OTHER_SIGNATURE));
}

static void unregister_address(long unused)
{
	(void)unused;
	if (enter())
		say_number(drop(256, 0, SIGNATURE));
}

static void unregister_and_read(long unused)
{
	const size_t from = used;

	(void)unused;
	if (!enter())
		return;
	if (drop(0, 0, SIGNATURE)) {
		say_words("unregistering was refused");
		return;
	}
	put_number((int32_t)load(area, 4), 0);
	say(from);
}

static void unregister_twice(long unused)
{
	(void)unused;
	if (!enter())
		return;
	if (drop(0, 0, SIGNATURE))
		say_words("the first time was refused");
	else
		say_number(drop(0, 0, SIGNATURE));
}

static void say_drop(long unused)
{
	(void)unused;
	say_number(drop(0, 0, SIGNATURE));
}

static void unregister_foreign(long unused)
{
	(void)unused;
	if (enter())
		in_thread(say_drop, 0);
}

static void unregister_nothing(long unused)
{
	(void)unused;
	say_number(rseq_at(base, ORIGINAL, UNREGISTER, SIGNATURE));
}

/* ---- section descriptors, read by the kernel as a signal is delivered ---- */

static volatile int handled;

static void handler(int number)
{
	(void)number;
	handled++;
}

/* A section of this page and the next is running when the signal comes. */
__attribute__((noinline, aligned(64))) static void raise_here(void)
{
	CALL2(kill, own_id(), SIGUSR1_);
}

/* The same for a signal that comes while the program computes. */
__attribute__((noinline, aligned(64))) static void compute_here(void)
{
	struct { struct time interval, value; } timer = { { 0, 0 }, { 0, 2000 /* microseconds of its own time */ } };

	CALL3(setitimer, 1, &timer, 0);
	while (!handled)
		__asm__ volatile("" ::: "memory");
}

struct descriptor {
	uint32_t version, flags;
	uint64_t start, bytes, abort;
} __attribute__((aligned(32)));

enum bad { NOT_RUNNING, NOT_RUNNING_UNSIGNED, UNMAPPED, VERSION, UNSIGNED, ABORT_INSIDE };

#define COMPUTING 16

static void interrupted_with(long what)
{
	const int computing = what >= COMPUTING;
	const enum bad which = (enum bad)(what % COMPUTING);
	void (*const here)(void) = computing ? compute_here : raise_here;
	struct descriptor *place = (struct descriptor *)(base + 1024);
	const uint64_t zeros = (uintptr_t)base + 2048, signed_ = (uintptr_t)base + 3072;
	const uint64_t code = (uintptr_t)here & -(uint64_t)PAGE;
	uint64_t pointer = (uintptr_t)place;

	if (!enter())
		return;
	store(base, 3068, SIGNATURE);
	switch (which) {
	case NOT_RUNNING:
		*place = (struct descriptor){ 0, 0, zeros, 16, signed_ };
		break;
	case NOT_RUNNING_UNSIGNED:
		*place = (struct descriptor){ 0, 0, zeros, 16, zeros + 64 };
		break;
	case UNMAPPED:
		pointer = 1 << 20;
		break;
	case VERSION:
		*place = (struct descriptor){ 1, 0, code, 2 * PAGE, zeros };
		break;
	case UNSIGNED:
		*place = (struct descriptor){ 0, 0, code, 2 * PAGE, zeros };
		break;
	case ABORT_INSIDE:
		*place = (struct descriptor){ 0, 0, code, 2 * PAGE, code + 64 };
		break;
	}
	on_signal(computing ? SIGVTALRM_ : SIGUSR1_, handler);
	__atomic_store_n((uint64_t *)(area + 8), pointer, __ATOMIC_SEQ_CST);
	here();
	say_words(handled ? "alive" : "no signal came");
}

/* ---- threads and processes ---- */

static void thread_starts(long unused)
{
	(void)unused;
	if (enter())
		in_thread(say_registered, 0);
}

static void registers_elsewhere(long unused)
{
	(void)unused;
	say_number(rseq_at(base + 512, length, 0, SIGNATURE));
}

static void thread_ends(long unused)
{
	(void)unused;
	if (by_libc) {
		in_thread(say_registered, 0);
		say_words("alive");
		return;
	}
	in_thread(registers_elsewhere, 0);
	if (answer->kind == NUMBER && answer->number)
		return;
	memset(base, 0xff, PAGE);
	say_words("alive");
}

static void registers_and_unmaps(long unused)
{
	char *page = map(PAGE, PROT_READ_ | PROT_WRITE_, 0);

	(void)unused;
	say_number(rseq_at(page, length, 0, SIGNATURE));
	CALL2(munmap, page, PAGE);
	really_sleep();	/* or the thread might end before the kernel has anything to write */
}

static void thread_loses_its_area(long unused)
{
	(void)unused;
	in_thread(registers_and_unmaps, 0);
	if (answer->kind == NUMBER && answer->number)
		return;
	say_words("alive");
}

static void fork_starts(long unused)
{
	int status;
	long pid;

	(void)unused;
	if (!enter())
		return;
	pid = fork_process();
	if (pid == 0) {
		say_registered(0);
		leave_program(0);
	}
	wait_for(pid, &status, 0);
}

static void fork_stays(long unused)
{
	int status;
	long pid;

	(void)unused;
	if (!enter())
		return;
	pid = fork_process();
	if (pid == 0)
		leave_program(0);
	wait_for(pid, &status, 0);
	say_registered(0);
}

static char **environment;

static void after_exec(long unused)
{
	char words[32] = { 0 };
	int ends[2], status = 0;
	long pid, count;

	(void)unused;
	if (!enter())
		return;
	if (CALL2(pipe2, ends, 0)) {
		say_words("no pipe");
		return;
	}
	pid = fork_process();
	if (pid == 0) {
		const char *arguments[] = { again[0], "--library-path", again[1], again[2], "registered", 0 };
		const char *plain[] = { again[2], "registered", 0 };

		CALL3(dup3, ends[1], 1, 0);
		if (*again[0])
			CALL3(execve, again[0], arguments, environment);
		else
			CALL3(execve, again[2], plain, environment);
		leave_program(9);
	}
	CALL1(close, ends[1]);
	count = CALL3(read, ends[0], words, sizeof(words) - 1);
	wait_for(pid, &status, 0);
	if (count > 0 && words[count - 1] == '\n')
		words[count - 1] = 0;
	say_words(count > 0 ? words : "exec failed");
}

/* ---- fields: which are live, and what becomes of what a user writes there ---- */

enum event { SYSTEM_CALL, SLEEP, PREEMPTION, MIGRATION, A_SIGNAL, A_SIGNAL_COMPUTING };

static int spin_in_child(void)
{
	const long pid = fork_process();

	if (pid == 0) {
		CALL2(prctl, PR_SET_PDEATHSIG_, SIGKILL_);
		for (;;)
			__asm__ volatile("" ::: "memory");
	}
	return (int)pid;
}

static int happens(enum event event)
{
	long before;
	int child, tries = 400, status;

	switch (event) {
	case SYSTEM_CALL:
		CALL0(getppid);
		return 1;
	case SLEEP:
		return really_sleep();
	case PREEMPTION:
		child = spin_in_child();
		before = switched(1);
		while (tries-- && switched(1) == before)
			for (volatile int i = 0; i < 200000; i++)
				;
		CALL2(kill, child, SIGKILL_);
		wait_for(child, &status, 0);
		return tries > 0;
	case MIGRATION:
		return use_cpu(1) == 0;
	case A_SIGNAL:
		on_signal(SIGUSR1_, handler);
		raise_here();
		return handled;
	case A_SIGNAL_COMPUTING:
		on_signal(SIGVTALRM_, handler);
		compute_here();
		return handled;
	}
	return 0;
}

#define SCRIBBLE(field, event) ((field) * 16L + (event))

/* A user writes where the kernel writes; after the event it is either as the user left it or not. */
static void scribble(long what)
{
	const int field = (int)(what / 16);
	const size_t from = used;

	use_cpu(0);
	if (!enter())
		return;
	store(area, field, PATTERN);
	if (!happens((enum event)(what % 16))) {
		say_words("the event did not happen");
		return;
	}
	if (load(area, field) == PATTERN) {
		say_words("kept");
		return;
	}
	put("rewritten");
	say(from);
}

/* Memory that held something else is registered: which words does the kernel write before the program runs on? */
static void at_registration(long field)
{
	memset(area, PATTERN & 0xff, 256);
	memset(area + 8, 0, 8);
	if (!enter())
		return;
	say_words(load(area, (int)field) == (uint32_t)PATTERN ? "left alone" : "written");
}

static void value_after_registration(long field)
{
	const size_t from = used;

	if (!enter())
		return;
	put_number(load(area, (int)field), 1);
	say(from);
}

static void cpu_id_follows(long field)
{
	const size_t from = used;
	unsigned cpu[2] = { 9, 9 }, read[2];

	use_cpu(0);
	if (!enter())
		return;
	for (int i = 0; i < 2; i++) {
		use_cpu(i);
		CALL3(getcpu, &cpu[i], 0, 0);
		read[i] = load(area, (int)field);
	}
	if (cpu[0] != 0 || cpu[1] != 1) {
		say_words("the thread did not move");
		return;
	}
	if (read[0] == 0 && read[1] == 1) {
		say_words("live");
		return;
	}
	put("reads ");
	put_number((int32_t)read[0], 0);
	put(" and ");
	put_number((int32_t)read[1], 0);
	say(from);
}

static void node_follows(long unused)
{
	unsigned node = 9;
	const size_t from = used;

	(void)unused;
	if (!by_libc)	/* zero would be the answer as well as the memory */
		store(area, 20, PATTERN);
	if (!enter())
		return;
	use_cpu(1);
	CALL3(getcpu, 0, &node, 0);
	if (load(area, 20) == node) {
		say_words(by_libc && node == 0 ? "reads the node, which is 0 here as memory is" : "live");
		return;
	}
	put(load(area, 20) == (uint32_t)PATTERN ? "never written" : "another value");
	say(from);
}

static volatile uint32_t other_id;
static volatile int other_ready, may_end;

static void other_thread(long unused)
{
	char *its = by_libc ? thread_pointer() + __rseq_offset : base + 1024;

	(void)unused;
	use_cpu(1);
	if (!by_libc) {
		store(its, 24, PATTERN);
		if (rseq_at(its, length, 0, SIGNATURE)) {
			other_ready = 2;
			return;
		}
	}
	sleep_ns(2000000);
	other_id = load(its, 24);
	other_ready = 1;
	while (!may_end)
		__asm__ volatile("" ::: "memory");
	other_id = load(its, 24);
}

/* Two threads run at the same time on two CPUs: their ids differ, and both are small. */
static void mm_cid_of_two(long unused)
{
	const size_t from = used;
	struct running running;
	uint32_t own;

	(void)unused;
	use_cpu(0);
	if (!by_libc)
		store(area, 24, PATTERN);
	if (!enter())
		return;
	if (start(&running, other_thread, 0)) {
		say_words("no thread could be started");
		return;
	}
	while (!other_ready)
		sleep_ns(500000);
	sleep_ns(1000000);
	own = load(area, 24);
	may_end = 1;
	join(&running);
	if (other_ready == 2)
		say_words("the second thread could not register");
	else if (own == (uint32_t)PATTERN || other_id == (uint32_t)PATTERN)
		say_words("never written");
	else if (own != other_id && own < 2 && other_id < 2)
		say_words("live");
	else {
		put("reads ");
		put_number(own, 0);
		put(" and ");
		put_number(other_id, 0);
		say(from);
	}
}

/* ---- what lies beside: slices, barriers ---- */

static void slice_control(long command)
{
	long answered;

	if (length && !enter())
		return;
	answered = CALL(prctl, PR_SLICE, command, command == SLICE_SET ? 1 : 0, 0, 0, 0);
	if (answered > 0) {
		const size_t from = used;

		put("answers ");
		put_number(answered, 0);
		say(from);
	} else {
		say_number(answered);
	}
}

static void slice_yield(long unused)
{
	const long answered = call6(NR_SLICE_YIELD, 0, 0, 0, 0, 0, 0);

	(void)unused;
	if (length && !enter())
		return;
	say_number(answered > 0 ? 0 : answered);
}

static void barrier(long how)
{
	if (length && !enter())
		return;
	if (how > 0) {
		const long error = CALL3(membarrier, MEMBARRIER_REGISTER, 0, 0);

		if (error || how == 1) {
			say_number(error);
			return;
		}
	}
	say_number(CALL3(membarrier, MEMBARRIER_FENCE, how == 3 ? ONE_CPU : 0, 0));
}

/* ---- what others' code does, as their sources say, and the right way beside it ---- */

static void librseq_first_thread(long right)
{
	const uint32_t later = feature_size > ORIGINAL ? (uint32_t)feature_size : ORIGINAL;
	const long error = rseq_at(base, ORIGINAL, 0, SIGNATURE);	/* its rseq_size is still 0 */

	say_number(error ? error : rseq_at(base, right ? ORIGINAL : later, UNREGISTER, SIGNATURE));
}

static void firedancer(long right)
{
	const uint32_t rounded = (__rseq_size + 31) & ~31u;

	say_number(rseq_at(area, right ? theirs.size : rounded, UNREGISTER, SIGNATURE));
}

/* ---- the order of questions ---- */

static void state(void)
{
	if (feature_size)
		row_number("state", "AT_RSEQ_FEATURE_SIZE", "number", (long)feature_size);
	else
		row_words("state", "AT_RSEQ_FEATURE_SIZE", "absent");
	if (feature_align)
		row_number("state", "AT_RSEQ_ALIGN", "number", (long)feature_align);
	else
		row_words("state", "AT_RSEQ_ALIGN", "absent");
	if (&__rseq_size) {
		row_number("state", "__rseq_offset", "number", __rseq_offset);
		row_number("state", "__rseq_size", "number", __rseq_size);
		row_number("state", "__rseq_flags", "number", __rseq_flags);
	} else {
		row_words("state", "__rseq_offset", "absent");
		row_words("state", "__rseq_size", "absent");
		row_words("state", "__rseq_flags", "absent");
	}
	row_words("state", "the thread at start", is_registered() ? "registered" : "unregistered");
	row_number("state", "membarrier commands", "number", CALL3(membarrier, MEMBARRIER_QUERY, 0, 0));
}

/* What a first registration may be; where libc was first, that nothing is. */
static void registering(void)
{
	const uint32_t extended = feature_size > ORIGINAL ? (uint32_t)feature_size : ORIGINAL + 1;
	char name[] = "bit   ";

	codes("length", "0 to 256", 0, 256, 0);
	codes("alignment", "32 bytes, 1 to 256 past a page", 1, 256, ORIGINAL);
	codes("alignment", "the smallest extended length, 1 to 256 past a page", 1, 256, extended);
	for (int bit = 1; bit < 32; bit++) {
		name[4] = bit < 10 ? (char)('0' + bit) : (char)('0' + bit / 10);
		name[5] = bit < 10 ? 0 : (char)('0' + bit % 10);
		attempt("flags", name, flag, (long)(1u << bit));
	}
	attempt("flags", "unregister and bit 1", flag, 3);
	attempt("signature", "zero", signature, 0);
	attempt("signature", "all ones", signature, 0xffffffffl);
	attempt("signature", "another", signature, OTHER_SIGNATURE);
	attempt("address", "NULL", address, 0);
	attempt("address", "unmapped, at 1 MiB", address, 1 << 20);
	attempt("address", "kernel half", address, (long)(1ul << 63));
	attempt("address", "read-only page", read_only_page, 0);
}

static void unregistered_thread(void)
{
	attempt("unregister", "nothing registered", unregister_nothing, 0);
	attempt("deduced", "librseq's first thread: registers 32, unregisters what later threads register",
		librseq_first_thread, 0);
	attempt("deduced", "librseq's first thread: registers 32, unregisters 32", librseq_first_thread, 1);
}

static const struct { const char *name; int offset; } fields[] = {
	{ "cpu_id_start", 0 }, { "cpu_id", 4 }, { "flags", 16 }, { "node_id", 20 }, { "mm_cid", 24 }, { "slice_ctrl", 28 },
};
enum { FIELDS = sizeof(fields) / sizeof(*fields) };

static void registered_thread(void)
{
	if (by_libc) {
		attempt("twice", "libc's own area, the same values", twice, THE_SAME);
		attempt("twice", "libc's own area, another length", twice, ANOTHER_LENGTH);
		attempt("twice", "libc's own area, another signature", twice, ANOTHER_SIGNATURE);
	} else {
		attempt("twice", "the same area", twice, THE_SAME);
		attempt("twice", "another area", twice, ANOTHER_AREA);
		attempt("twice", "the same area, another length", twice, ANOTHER_LENGTH);
		attempt("twice", "the same area, another signature", twice, ANOTHER_SIGNATURE);
	}
	attempt("unregister", "the same values", unregister_length, 0);
	attempt("unregister", "then cpu_id reads", unregister_and_read, 0);
	attempt("unregister", "the same values, a second time", unregister_twice, 0);
	attempt("unregister", "length 20", unregister_length, 20);
	attempt("unregister", "length 28", unregister_length, 28);
	attempt("unregister", "length 33", unregister_length, 33);
	attempt("unregister", "length 64", unregister_length, 64);
	attempt("unregister", "another signature", unregister_signature, 0);
	attempt("unregister", "another address", unregister_address, 0);
	attempt("unregister", "another thread's area", unregister_foreign, 0);
	for (int computing = 0; computing <= COMPUTING; computing += COMPUTING) {
		const char *question = computing ? "descriptor, while it computes" : "descriptor";

		attempt(question, "of a section that does not run", interrupted_with, NOT_RUNNING + computing);
		attempt(question, "of one that does not run, without signature", interrupted_with,
			NOT_RUNNING_UNSIGNED + computing);
		attempt(question, "in unmapped memory", interrupted_with, UNMAPPED + computing);
		attempt(question, "of another version", interrupted_with, VERSION + computing);
		attempt(question, "whose abort handler has no signature", interrupted_with, UNSIGNED + computing);
		attempt(question, "whose abort handler lies inside its section", interrupted_with, ABORT_INSIDE + computing);
	}
	attempt("thread", "a new thread of a registered one starts", thread_starts, 0);
	attempt("thread", by_libc ? "ends while registered" : "ends while registered; its memory is reused", thread_ends, 0);
	if (!by_libc)
		attempt("thread", "its memory is unmapped while registered", thread_loses_its_area, 0);
	attempt("process", "a fork of a registered thread starts", fork_starts, 0);
	attempt("process", "after exec by a registered thread", after_exec, 0);
	attempt("process", "the forking thread stays", fork_stays, 0);
	attempt("live", "cpu_id_start on two CPUs", cpu_id_follows, 0);
	attempt("live", "cpu_id on two CPUs", cpu_id_follows, 4);
	attempt("live", "node_id", node_follows, 0);
	attempt("live", "mm_cid of two threads at once", mm_cid_of_two, 0);
	attempt("live", "flags reads", value_after_registration, 16);
	attempt("live", "slice_ctrl reads", value_after_registration, 28);
	for (int i = 0; i < FIELDS && !by_libc; i++)
		attempt("at registration", fields[i].name, at_registration, fields[i].offset);
	attempt("user writes cpu_id_start", "a system call", scribble, SCRIBBLE(0, SYSTEM_CALL));
	attempt("user writes cpu_id_start", "sleep", scribble, SCRIBBLE(0, SLEEP));
	attempt("user writes cpu_id_start", "preemption", scribble, SCRIBBLE(0, PREEMPTION));
	attempt("user writes cpu_id_start", "migration", scribble, SCRIBBLE(0, MIGRATION));
	attempt("user writes cpu_id_start", "a signal", scribble, SCRIBBLE(0, A_SIGNAL));
	attempt("user writes cpu_id_start", "a signal while it computes", scribble, SCRIBBLE(0, A_SIGNAL_COMPUTING));
	for (int i = 1; i < FIELDS; i++) {
		attempt("user writes, then sleeps", fields[i].name, scribble, SCRIBBLE(fields[i].offset, SLEEP));
		attempt("user writes, then migrates", fields[i].name, scribble, SCRIBBLE(fields[i].offset, MIGRATION));
	}
	if (by_libc && theirs.pointer) {
		attempt("deduced", "Firedancer: unregisters __rseq_size rounded up to 32", firedancer, 0);
		attempt("deduced", "Firedancer: unregisters the length that libc registered", firedancer, 1);
	}
}

static void any_thread(void)
{
	attempt("ptrace", "configuration", say_configuration, 0);
	attempt("slice", "prctl get", slice_control, SLICE_GET);
	attempt("slice", "prctl set", slice_control, SLICE_SET);
	attempt("slice", "rseq_slice_yield", slice_yield, 0);
	attempt("membarrier", "rseq fence, not announced", barrier, 0);
	attempt("membarrier", "announcing", barrier, 1);
	attempt("membarrier", "rseq fence of all CPUs", barrier, 2);
	attempt("membarrier", "rseq fence of one CPU", barrier, 3);
}

__attribute__((used, visibility("hidden"))) void begin(long *stack)
{
	static const char *const nobody[] = { "", "", "/proc/self/exe" };
	const long count = stack[0];
	char **arguments = (char **)(stack + 1);
	const char *mode = count > 1 ? arguments[1] : "";
	long *entry;

	environment = arguments + count + 1;
	for (entry = (long *)environment; *entry; entry++)
		;
	for (entry++; entry[0]; entry += 2) {
		if (entry[0] == 27)
			feature_size = (unsigned long)entry[1];
		if (entry[0] == 28)
			feature_align = (unsigned long)entry[1];
	}
	answer = map(PAGE, PROT_READ_ | PROT_WRITE_, 1);
	base = map(2 * PAGE, PROT_READ_ | PROT_WRITE_, 0);
	if (!answer || !base)
		leave_program(1);
	area = base;
	if (same(mode, "registered")) {
		put(is_registered() ? "registered" : "unregistered");
		end_line();
		leave_program(0);
	}
	again = count > 4 ? (const char *const *)arguments + 2 : nobody;
	state();
	if (same(mode, "libc")) {
		if (!&__rseq_size || !__rseq_size)
			leave_program(0);	/* libc does not register: said above */
		by_libc = 1;
		area = thread_pointer() + __rseq_offset;
		length = __rseq_size;
		if (ask_configuration(&theirs))		/* a kernel that cannot be asked has one length only */
			theirs = (struct configuration){ 0, ORIGINAL, SIGNATURE, 0, 0 };
	} else if (same(mode, "self-32")) {
		length = ORIGINAL;
	} else if (same(mode, "self-extended")) {
		length = (uint32_t)((feature_size + 31) & ~31ul);
		if (length <= ORIGINAL)
			length = 64;
	} else if (!same(mode, "none")) {
		leave_program(2);
	}
	any_thread();
	if (!length || by_libc)
		registering();
	if (length)
		registered_thread();
	else
		unregistered_thread();
	put("{\"end\":true}");
	end_line();
	leave_program(0);
}
