/* SPDX-License-Identifier: MIT */
/* Registration, and what libc and the kernel say of it. */
#define _GNU_SOURCE
#include "rseqlab.h"

#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define GET_RSEQ_CONFIGURATION 0x420f	/* PTRACE_GET_RSEQ_CONFIGURATION, absent from older libc headers */

#if !RL_SUPPORTED
# undef SYS_rseq
#elif !defined(SYS_rseq)
# if defined(__x86_64__)
#  define SYS_rseq 334
# else
#  define SYS_rseq 293
# endif
#endif

const char *rl_arch(void)
{
	return RL_ARCH;
}

const char *rl_compiler(void)
{
#ifdef __clang__
	return "clang " __clang_version__;
#else
	return "gcc " __VERSION__;
#endif
}

uint32_t rl_signature(void)
{
	return RL_SIGNATURE;
}

int rl_rseq(void *area, uint32_t length_bytes, int flags, uint32_t signature)
{
#ifdef SYS_rseq
	return syscall(SYS_rseq, area, length_bytes, flags, signature) ? -errno : 0;
#else
	(void)area, (void)length_bytes, (void)flags, (void)signature;
	return -ENOSYS;
#endif
}

unsigned long rl_auxv(unsigned long type)
{
	return getauxval(type);
}

void *rl_thread_pointer_of_caller(void)
{
	return rl_thread_pointer();
}

uint32_t rl_load_u32(const void *address)
{
	return __atomic_load_n((const uint32_t *)address, __ATOMIC_RELAXED);
}

uint64_t rl_load_u64(const void *address)
{
	return __atomic_load_n((const uint64_t *)address, __ATOMIC_RELAXED);
}

void rl_store_u64(void *address, uint64_t value)
{
	__atomic_store_n((uint64_t *)address, value, __ATOMIC_RELAXED);
}

int rl_libc(ptrdiff_t *offset_bytes, uint32_t *size_bytes, uint32_t *flags)
{
	const ptrdiff_t *offset = dlsym(RTLD_DEFAULT, "__rseq_offset");
	const uint32_t *size = dlsym(RTLD_DEFAULT, "__rseq_size");
	const uint32_t *bits = dlsym(RTLD_DEFAULT, "__rseq_flags");

	if (!offset || !size || !bits)
		return -ENOENT;
	*offset_bytes = *offset;
	*size_bytes = *size;
	*flags = *bits;
	return 0;
}

int rl_enter(struct rl_thread *thread)
{
	uint32_t size_bytes, flags, length_bytes = rl_auxv(27), align_bytes = rl_auxv(28);
	ptrdiff_t offset_bytes;
	int error;

	memset(thread, 0, sizeof(*thread));
	if (!RL_SUPPORTED)
		return -ENOSYS;
	if (!rl_libc(&offset_bytes, &size_bytes, &flags) && size_bytes) {
		const struct rl_area *area = (void *)((char *)rl_thread_pointer() + offset_bytes);

		if ((int32_t)rl_load_u32(&area->cpu_id) >= 0) {
			thread->offset_bytes = offset_bytes;
			return 0;
		}
	}
	if (length_bytes < RL_ORIGINAL_SIZE_BYTES)
		length_bytes = RL_ORIGINAL_SIZE_BYTES;
	if (align_bytes < RL_ORIGINAL_SIZE_BYTES)
		align_bytes = RL_ORIGINAL_SIZE_BYTES;
	error = posix_memalign(&thread->own, align_bytes,
			       (length_bytes + align_bytes - 1) / align_bytes * align_bytes);
	if (error)
		return -error;
	memset(thread->own, 0, length_bytes);
	error = rl_rseq(thread->own, length_bytes, 0, RL_SIGNATURE);
	if (error) {
		free(thread->own);
		thread->own = NULL;
		return error;
	}
	thread->own_length_bytes = length_bytes;
	thread->offset_bytes = (char *)thread->own - (char *)rl_thread_pointer();
	return 0;
}

int rl_leave(struct rl_thread *thread)
{
	struct rl_area *area = (void *)((char *)rl_thread_pointer() + thread->offset_bytes);
	int error = 0;

	if (!RL_SUPPORTED)
		return -ENOSYS;
	rl_store_u64(&area->rseq_cs, 0);
	if (thread->own) {
		error = rl_rseq(thread->own, thread->own_length_bytes, RL_FLAG_UNREGISTER, RL_SIGNATURE);
		if (!error)	/* otherwise the kernel still writes there: better a leak than a corruption */
			free(thread->own);
	}
	return error;
}

int rl_configuration(struct rl_configuration *answer)
{
	int status, error = 0;
	pid_t copy = fork();

	if (copy < 0)
		return -errno;
	if (copy == 0) {	/* only async-signal-safe calls: other threads may have held locks */
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (ptrace(PTRACE_TRACEME, 0, NULL, NULL))
			_exit(errno & 0x7f);
		kill(getpid(), SIGSTOP);
		_exit(0);
	}
	while (waitpid(copy, &status, 0) < 0)
		if (errno != EINTR)
			return -errno;
	if (WIFEXITED(status))	/* gone already: ptrace was denied */
		return WEXITSTATUS(status) ? -WEXITSTATUS(status) : -EPROTO;
	if (!WIFSTOPPED(status))
		return -EPROTO;
	if (ptrace(GET_RSEQ_CONFIGURATION, copy, (void *)sizeof(*answer), answer) < 0)
		error = -errno;
	kill(copy, SIGKILL);
	while (waitpid(copy, &status, 0) < 0 && errno == EINTR)
		;
	return error;
}
