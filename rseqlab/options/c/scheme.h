/* One option's struct as one party believes it to be, and the calls that every party makes.
 *
 * A party is compiled with: OPTION (below), FIELDS (end of the last field that it knows), BYTES (size of
 * the whole object), ALIGN, KERNEL (REAL, or PLAYED where no kernel ever did it), and LIBC=1 where the process's
 * real libc provides and not a stand-in.
 */
#ifndef RSEQLAB_SCHEME_H
#define RSEQLAB_SCHEME_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <sched.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PRIVATE 1
#define GROW_SYMBOL 2
#define VERSION_SYMBOL 3
#define POINTER 4
#define HANDSHAKE 5
#define PADDING 6
#define OFFSET_SIZE 7

#define REAL 1
#define PLAYED 2

/* offset-size: under which names its users find what libc exports. A stand-in must not take the names that the
 * real libc of its process uses: from glibc 2.41 on libc itself would read the stand-in's. LIBC: the real one provides.
 */
#if LIBC
#define RSEQ_OFFSET __rseq_offset
#define RSEQ_SIZE __rseq_size
#else
#define RSEQ_OFFSET provider_rseq_offset
#define RSEQ_SIZE provider_rseq_size
#endif

#ifndef __NR_rseq
#ifdef __x86_64__
#define __NR_rseq 334
#else
#define __NR_rseq 293
#endif
#endif
#ifdef __x86_64__
#define SIGNATURE 0x53053053
#else
#define SIGNATURE 0xd428bc00
#endif
#define LENGTH_EVERY_KERNEL_TAKES 32
#define AUX_FEATURE_SIZE 27
#define UNREGISTER 1
#define UNINITIALIZED ((uint32_t)-1)

/* What memory holds before anybody wrote it: a value that no kernel writes. */
#define POISON 0xa5
#define CANARY 0xc5
/* A field beyond those of this kernel: libc sets it in the kernel's place, so that it can be looked for. */
#define MAGIC 0x5eed0000u

#if BYTES > 32
#define NEWEST (BYTES - 4)
#define NEWEST_IS_MAGIC 1
#elif FIELDS >= 28
#define NEWEST 24 /* mm_cid */
#define NEWEST_IS_MAGIC 0
#else
#define NEWEST 4 /* cpu_id: nothing newer than the original */
#define NEWEST_IS_MAGIC 0
#endif
#define NEWEST_END ((NEWEST) + 4)

/* pointer: the last 8 of the fixed 32 bytes. handshake: 2 bytes each, before the new fields. */
struct extension {
	uint32_t bytes;
	uint32_t reserved;
	unsigned char fields[BYTES];
};
#define SIZES_ARE_AGREED (1u << 16)

#if (OPTION == POINTER || OPTION == PADDING) && BYTES >= 32
#define OBJECT_BYTES 32
#define OBJECT_ALIGN 32
#else
#define OBJECT_BYTES BYTES
#define OBJECT_ALIGN ALIGN
#endif

union area {
	struct {
		uint32_t cpu_id_start;
		uint32_t cpu_id;
		uint64_t rseq_cs;
		uint32_t flags;
#if OBJECT_BYTES >= 32
		uint16_t user_bytes;
		uint16_t kernel_bytes;
		struct extension *extension;
#endif
	};
	unsigned char bytes[OBJECT_BYTES];
} __attribute__((aligned(OBJECT_ALIGN)));

_Static_assert(OPTION == POINTER || NEWEST_END <= OBJECT_BYTES, "the newest field lies within the object");

/* An object with ground around it, so that a write that misses it is seen. NO_GROUND: without, where a scene is
 * about how much room a library takes.
 */
#if NO_GROUND
#define GROUND_BEFORE 0
#define GROUND_AFTER 0
#else
#define GROUND_BEFORE 256
#define GROUND_AFTER 512
#endif
struct guarded {
	unsigned char before[GROUND_BEFORE];
	union area area;
	unsigned char after[GROUND_AFTER];
} __attribute__((aligned(32))); /* as the kernel asks, also where the definition does not */

#if OPTION == HANDSHAKE && FIELDS > 20
/* Whoever defines the object says in it how far it goes, and in `flags` that it says so. */
#define INITIAL_AREA { .cpu_id = UNINITIALIZED, .flags = SIZES_ARE_AGREED, .user_bytes = NEWEST_END }
#elif OPTION == POINTER || OPTION == HANDSHAKE
/* Zero is what tells their users that there is nothing more: C's own initial value. */
#define INITIAL_AREA { .cpu_id = UNINITIALIZED }
#else
#define INITIAL_AREA \
	{ .bytes = { [0 ... 3] = 0, [4 ... 7] = 0xff, [8 ... OBJECT_BYTES - 1] = POISON } }
#endif
#if NO_GROUND
#define INITIAL_GUARDED { .area = INITIAL_AREA }
#else
#define INITIAL_GUARDED                                         \
	{                                                       \
		.before = { [0 ... GROUND_BEFORE - 1] = CANARY }, \
		.area = INITIAL_AREA,                           \
		.after = { [0 ... GROUND_AFTER - 1] = CANARY }, \
	}
#endif

/* Gives the middle of `guarded` a name of its own, with the size and binding that it would have alone. */
#define TEXT_(x) #x
#define TEXT(x) TEXT_(x)
#define NAME_AREA(symbol, binding, bytes)                                         \
	__asm__("." binding " " symbol "\n\t.type " symbol ", %tls_object\n\t.size " \
		symbol ", " TEXT(bytes) "\n\t.set " symbol ", guarded + " TEXT(GROUND_BEFORE))

static inline void *thread_pointer(void)
{
#if defined(__x86_64__)
	void *found;
	__asm__("mov %%fs:0, %0" : "=r"(found));
	return found;
#else
	return __builtin_thread_pointer();
#endif
}

/* 0 or the errno. */
static inline int rseq(void *area, unsigned length, int flags)
{
	return syscall(__NR_rseq, area, length, flags, SIGNATURE) ? errno : 0;
}

/* The CPU by the system call: neither libc's area nor the vDSO has a part in it. */
static inline unsigned cpu_now(void)
{
	unsigned cpu = ~0u;
	syscall(SYS_getcpu, &cpu, NULL, NULL);
	return cpu;
}

static inline uint32_t word_at(const void *base, unsigned offset)
{
	uint32_t found;
	__builtin_memcpy(&found, (const char *)base + offset, 4);
	return found;
}

/* Compared at run time: a compiler may take two names for two objects. */
static inline int same_place(const void *one, const void *other)
{
	__asm__("" : "+r"(one));
	return one == other;
}

/* The largest power of two up to 4096 that divides an address. */
static inline unsigned alignment_of(const void *address)
{
	uintptr_t place = (uintptr_t)address | 4096;
	return (unsigned)(place & -place);
}

static inline void ground(const char *who, const char *when, const struct guarded *object)
{
	int first = 0, last = 0, count = 0;
	for (int place = -GROUND_BEFORE; place < (int)sizeof(union area) + GROUND_AFTER; place++) {
		if (place >= 0 && place < (int)sizeof(union area))
			continue;
		if (((const unsigned char *)&object->area)[place] != CANARY) {
			if (!count++)
				first = place;
			last = place;
		}
	}
	dprintf(1, "%s ground when=%s overwritten=%d first=%d last=%d\n", who, when, count, first, last);
}

#endif
