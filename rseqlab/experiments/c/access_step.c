/* SPDX-License-Identifier: MIT */
/* Counting the instructions of one read by stepping a copy of the process; see access.h. */
#define _GNU_SOURCE
#include "access.h"

#include <elf.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#define MOST_STEPS 1000000

struct stepped {
	const struct rl_access *access;
	int warm;
	void (*enter)(struct large_area *);
	int error;
	uint64_t sum;
};

static void *read_stepped(void *argument)
{
	struct stepped *stepped = argument;
	struct large_area *extended = aligned_alloc(LARGE_BYTES, sizeof(*extended));

	if (!extended)
		_exit(1);
	stepped->enter(extended);
	if (stepped->warm)
		stepped->access->loop(RL_MARKED, 1, &stepped->sum);
	stepped->sum = 0;
	if (ptrace(PTRACE_TRACEME, 0, NULL, NULL)) {
		stepped->error = -errno;
		_exit(1);
	}
	syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), SIGSTOP);
	stepped->access->loop(RL_MARKED, 1, &stepped->sum);
	_exit(0);
}

/* Whether the thread is about to execute a mark; -errno where it cannot be seen. */
static int at_mark(pid_t thread)
{
	struct user_regs_struct registers;
	struct iovec all = { &registers, sizeof(registers) };
	long code;

	if (ptrace(PTRACE_GETREGSET, thread, NT_PRSTATUS, &all))
		return -errno;
	errno = 0;
	code = ptrace(PTRACE_PEEKTEXT, thread, (void *)registers.PROGRAM_COUNTER, NULL);
	return errno ? -errno : (code & MARK_BITS) == MARK_CODE;
}

/* Returns 0 once the thread has executed one instruction more, or -errno. */
static int step(pid_t thread)
{
	int status;

	if (ptrace(PTRACE_SINGLESTEP, thread, NULL, NULL))
		return -errno;
	if (waitpid(thread, &status, __WALL) != thread)
		return -errno;
	return WIFSTOPPED(status) && WSTOPSIG(status) == SIGTRAP ? 0 : -EPROTO;
}

static int64_t count_between_marks(pid_t thread)
{
	int64_t count = 0;
	int marked, error = 0;

	for (int steps = 0; !(marked = at_mark(thread)) && steps < MOST_STEPS; steps++)
		if ((error = step(thread)))
			return error;
	if (marked < 0 || (error = step(thread)))
		return marked < 0 ? marked : error;
	while (!(marked = at_mark(thread)) && count < MOST_STEPS) {
		if ((error = step(thread)))
			return error;
		count++;
	}
	return marked < 0 ? marked : count;
}

int64_t rl_count_instructions(const struct rl_access *access, int warm, void (*enter)(struct large_area *),
			      uint64_t *sum)
{
	struct stepped *stepped = mmap(NULL, sizeof(*stepped), PROT_READ | PROT_WRITE,
				       MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pthread_t reader;
	pid_t copy, seen;
	int64_t count;
	int status;

	if (stepped == MAP_FAILED)
		return -errno;
	*stepped = (struct stepped){ access, warm, enter, 0, 0 };
	copy = fork();
	if (copy == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (pthread_create(&reader, NULL, read_stepped, stepped) == 0)
			pthread_join(reader, NULL);
		_exit(1);
	}
	count = copy < 0 ? -errno : 0;
	if (copy > 0) {
		seen = waitpid(-1, &status, __WALL);	/* the reader as it stops, or the copy as it gives up */
		if (seen > 0 && seen != copy && WIFSTOPPED(status)) {
			count = count_between_marks(seen);
			ptrace(PTRACE_DETACH, seen, NULL, NULL);
			if (count < 0)
				kill(copy, SIGKILL);
			waitpid(copy, &status, 0);
		} else {
			count = stepped->error ? stepped->error : -EPROTO;
			kill(copy, SIGKILL);
			if (seen != copy)
				waitpid(copy, &status, 0);
		}
	}
	*sum = stepped->sum;
	munmap(stepped, sizeof(*stepped));
	return count;
}
