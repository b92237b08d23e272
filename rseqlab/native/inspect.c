/* SPDX-License-Identifier: MIT */
/* Another process's thread: what the kernel has registered for it, asked while it stands still. */
#define _GNU_SOURCE
#include "rseqlab.h"

#include <elf.h>
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>

#define GET_RSEQ_CONFIGURATION 0x420f	/* absent from older libc headers */

static int64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* Of a stopped thread; 0 where it is not known: a 32-bit program. */
static uint64_t thread_pointer_of(pid_t tid)
{
#if defined(__x86_64__)
	struct user_regs_struct registers;
	struct iovec part = { &registers, sizeof(registers) };

	if (ptrace(PTRACE_GETREGSET, tid, (void *)NT_PRSTATUS, &part) || part.iov_len != sizeof(registers))
		return 0;
	return registers.fs_base;
#elif defined(__aarch64__)
	uint64_t pointer = 0;
	struct iovec part = { &pointer, sizeof(pointer) };

	if (ptrace(PTRACE_GETREGSET, tid, (void *)NT_ARM_TLS, &part) || part.iov_len < sizeof(pointer))
		return 0;
	return pointer;
#else
	(void)tid;
	return 0;
#endif
}

/* The signal that a stop has caught, and that must be given back; 0 for a stop that only we asked for. */
static int caught(int status)
{
	return status >> 16 == PTRACE_EVENT_STOP ? 0 : WSTOPSIG(status);
}

int rl_inspect(int tid, int timeout_ms, struct rl_inspection *answer)
{
	sigset_t child, before;
	int64_t asked_ns, left_ns;
	int status, error = 0;
	pid_t found;

	memset(answer, 0, sizeof(*answer));
	/* Blocked, a SIGCHLD stays pending even by default: sigtimedwait() then ends with the stop. */
	sigemptyset(&child);
	sigaddset(&child, SIGCHLD);
	sigprocmask(SIG_BLOCK, &child, &before);
	if (ptrace(PTRACE_SEIZE, tid, NULL, NULL)) {
		error = -errno;
		goto done;
	}
	asked_ns = now_ns();
	if (ptrace(PTRACE_INTERRUPT, tid, NULL, NULL)) {
		error = -errno;	/* only ESRCH: it has ended, and so has the tracing */
		goto done;
	}
	while ((found = waitpid(tid, &status, __WALL | WNOHANG)) == 0) {
		left_ns = asked_ns + timeout_ms * (int64_t)1000000 - now_ns();
		if (left_ns <= 0) {
			error = -ETIMEDOUT;
			goto done;
		}
		struct timespec left = { left_ns / 1000000000, left_ns % 1000000000 };

		sigtimedwait(&child, NULL, &left);
	}
	if (found < 0 || !WIFSTOPPED(status)) {
		error = -ESRCH;
		goto done;
	}
	if (ptrace(GET_RSEQ_CONFIGURATION, tid, (void *)sizeof(answer->configuration),
		   &answer->configuration) < 0)
		error = -errno;
	answer->thread_pointer = thread_pointer_of(tid);
	ptrace(PTRACE_DETACH, tid, NULL, (void *)(intptr_t)caught(status));
	answer->stopped_ns = now_ns() - asked_ns;
done:
	sigprocmask(SIG_SETMASK, &before, NULL);
	return error;
}

int rl_let_go(int tid)
{
	int status;
	pid_t found = waitpid(tid, &status, __WALL | WNOHANG);

	if (found == 0)
		return -EAGAIN;
	if (found == tid && WIFSTOPPED(status))
		ptrace(PTRACE_DETACH, tid, NULL, (void *)(intptr_t)caught(status));
	return 0;
}
