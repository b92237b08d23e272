/* SPDX-License-Identifier: MIT */
/*
 * Whether libc registered this process's threads, and where, as somebody defines the names that it exports.
 *
 *	program [open=LIBRARY]
 *
 * One JSON object a line, first of all which libc it is. A line with "step" comes before each action that may kill,
 * so that the last one says which did. For the main thread and for a thread that pthread_create() starts, a line with "thread" says: what
 * the names mean to a library that looks them up, what libc's loader exports, where the kernel has the thread
 * registered (offsets from the thread pointer), and what it answers to more registrations; one with "read" says how
 * often libc's sched_getcpu() and a reader of the area tell another CPU than the kernel does.
 * Only functions that glibc has had since 2.34, so that each later one runs it.
 */
#define _GNU_SOURCE
#include "redefine.h"
#include "rseq_call.h"
#include <errno.h>
#include <gnu/libc-version.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/wait.h>

#ifdef __x86_64__
#define SIGNATURE 0x53053053
#else
#define SIGNATURE 0xd428bc00
#endif

enum { CONFIGURATION = 0x420f, LEGACY_BYTES = 32, CHILD_DEADLINE_S = 5, CPUS = 2, MOST_CPUS = 8192 };

static cpu_set_t allowed;
static __thread unsigned char fresh[LEGACY_BYTES] __attribute__((aligned(64)));

struct configuration {
	uint64_t address;
	uint32_t bytes, signature, flags, reserved;
};

static void say(const char *text)
{
	size_t left = strlen(text);

	while (left) {
		const ssize_t written = write(1, text, left);

		if (written <= 0)
			_exit(3);
		text += written;
		left -= written;
	}
}

static void step(const char *thread, const char *what)
{
	char line[160];

	snprintf(line, sizeof(line), "{\"step\":\"%s thread: %s\"}\n", thread, what);
	say(line);
}

#ifdef REFERS
/* A reference that no position-independent code makes: the linker copies libc's objects into the program. */
extern const ptrdiff_t __rseq_offset;
extern const unsigned __rseq_size;
static struct exported looked_up(void)
{
	return (struct exported){ __rseq_offset, __rseq_size, 1 };
}
#else
static struct exported looked_up(void)
{
	const ptrdiff_t *offset = dlsym(RTLD_DEFAULT, "__rseq_offset");
	const unsigned *size = dlsym(RTLD_DEFAULT, "__rseq_size");

	return (struct exported){ offset ? *offset : 0, size ? *size : 0, offset && size };
}
#endif

/* A copy of this thread, registered as it is; libc has no part in making it. */
static pid_t copy_of_this_thread(void)
{
	const pid_t child = syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);

	if (!child) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		alarm(CHILD_DEADLINE_S);
	}
	return child;
}

static struct configuration registered(int *error)
{
	struct configuration found = { 0 };
	int status = 0;
	const pid_t child = copy_of_this_thread();

	if (!child) {
		syscall(SYS_ptrace, PTRACE_TRACEME, 0, 0, 0);
		syscall(SYS_kill, syscall(SYS_getpid), SIGSTOP);
		_exit(0);
	}
	syscall(SYS_wait4, child, &status, 0, NULL);
	*error = ECHILD;
	if (child > 0 && WIFSTOPPED(status))
		*error = syscall(SYS_ptrace, CONFIGURATION, child, sizeof(found), &found) < 0 ? errno : 0;
	syscall(SYS_kill, child, SIGKILL);
	syscall(SYS_wait4, child, &status, __WALL, NULL);
	return found;
}

/* What the kernel answers to a registration of this thread: 0, or the errno. 255: it died of asking. */
static int registering(const void *area, unsigned bytes)
{
	int status = 0;
	const pid_t child = copy_of_this_thread();

	if (!child)
		_exit(-call_rseq((void *)area, bytes, 0, SIGNATURE));
	syscall(SYS_wait4, child, &status, 0, NULL);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 255;
}

static unsigned area_bytes(unsigned size)
{
	return size < LEGACY_BYTES ? LEGACY_BYTES : size;
}

/* Readings on two CPUs: by libc, and by a reader who goes where the names say. */
struct readings {
	int all, libc_wrong, libc_no_cpu, reader_wrong, reader_told, reader_died;
};

static int on_cpu(int cpu)
{
	cpu_set_t one;
	unsigned now = ~0u;

	CPU_ZERO(&one);
	CPU_SET(cpu, &one);
	sched_setaffinity(0, sizeof(one), &one);
	syscall(SYS_getcpu, &now, NULL, NULL);
	return now;
}

/* In a copy of this thread, because a reader may die where libc lives on. */
static void read_where_names_say(const struct exported *names, int cpu, struct readings *told)
{
	enum { RIGHT, WRONG, TOLD };
	int status = 0;
	const pid_t child = copy_of_this_thread();

	if (!child) {
		const int said = *(volatile int *)((char *)thread_pointer() + names->offset + 4);

		_exit(said < 0 ? TOLD : said == cpu ? RIGHT : WRONG);
	}
	syscall(SYS_wait4, child, &status, 0, NULL);
	told->reader_wrong += WIFEXITED(status) && WEXITSTATUS(status) == WRONG;
	told->reader_told += WIFEXITED(status) && WEXITSTATUS(status) == TOLD;
	told->reader_died += !WIFEXITED(status);
}

static struct readings read_cpus(const char *thread, const struct exported *names)
{
	struct readings told = { 0 };

	step(thread, "sched_getcpu()");
	for (int cpu = 0; cpu < CPU_SETSIZE && told.all < CPUS; cpu++) {
		if (!CPU_ISSET(cpu, &allowed))
			continue;
		const int now = on_cpu(cpu), said = sched_getcpu();

		told.all++;
		told.libc_wrong += said != now;
		told.libc_no_cpu += said != now && said >= MOST_CPUS;
		if (names->found && names->size)
			read_where_names_say(names, now, &told);
		else
			told.reader_told++;
	}
	sched_setaffinity(0, sizeof(allowed), &allowed);
	return told;
}

static void observe(const char *thread)
{
	static char line[1024];
	char *const pointer = thread_pointer();
	const struct exported libc = exported_by_libc(), names = looked_up();
	struct configuration area;
	struct readings told;
	int error;

	step(thread, "asking the kernel");
	area = registered(&error);
	snprintf(line, sizeof(line),
		 "{\"thread\":\"%s\",\"names_found\":%u,\"names_offset\":%td,\"names_size\":%u,\"libc_offset\":%td,"
		 "\"libc_size\":%u,\"ptrace_error\":%d,\"registered\":%d,\"registered_offset\":%td,\"registered_bytes\":%u,"
		 "\"again\":%d,\"at_libc\":%d,\"at_names\":%d}\n",
		 thread, names.found, names.offset, names.size, libc.offset, libc.size, error, area.address != 0,
		 area.address ? (char *)area.address - pointer : 0, area.bytes, registering(fresh, LEGACY_BYTES),
		 registering(pointer + libc.offset, area_bytes(libc.size)),
		 registering(pointer + names.offset, area_bytes(names.size)));
	say(line);
	told = read_cpus(thread, &names);
	snprintf(line, sizeof(line),
		 "{\"read\":\"%s\",\"readings\":%d,\"libc_wrong\":%d,\"libc_no_cpu\":%d,\"reader_wrong\":%d,"
		 "\"reader_told\":%d,\"reader_died\":%d}\n",
		 thread, told.all, told.libc_wrong, told.libc_no_cpu, told.reader_wrong, told.reader_told, told.reader_died);
	say(line);
}

static void *in_new_thread(void *unused)
{
	observe("new");
	return unused;
}

int main(int count, char **argument)
{
	char line[64];
	pthread_t thread;
	int answer;

	snprintf(line, sizeof(line), "{\"libc\":\"%s\"}\n", gnu_get_libc_version());
	say(line);
	sched_getaffinity(0, sizeof(allowed), &allowed);
	if (count > 1 && !strncmp(argument[1], "open=", 5) && !dlopen(argument[1] + 5, RTLD_NOW | RTLD_GLOBAL)) {
		fprintf(stderr, "%s\n", dlerror());
		return 4;
	}
	observe("main");
	step("main", "pthread_create()");
	answer = pthread_create(&thread, NULL, in_new_thread, NULL);
	if (answer)
		return 5;
	pthread_join(thread, NULL);
	step("main", "leaving");
	return 0;
}
