/* SPDX-License-Identifier: MIT */
/* The bare system call, for experiments that must make it themselves. */
#ifndef RSEQLAB_RSEQ_CALL_H
#define RSEQLAB_RSEQ_CALL_H

#include <errno.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#ifndef SYS_rseq	/* headers older than the call */
# if defined(__x86_64__)
#  define SYS_rseq 334
# elif defined(__aarch64__)
#  define SYS_rseq 293
# else
#  error "no port for this architecture"
# endif
#endif

#define UNREGISTER 1

/* Every kernel's fields; an extended area is more of the same memory. */
struct area {
	uint32_t cpu_id_start;
	uint32_t cpu_id;
	char rest[248];
} __attribute__((aligned(256)));

/* 0 or -errno. */
static inline int call_rseq(struct area *area, uint32_t length_bytes, int flags, uint32_t signature)
{
	return syscall(SYS_rseq, area, length_bytes, flags, signature) ? -errno : 0;
}

static inline int64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

#endif
