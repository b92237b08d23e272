/* Plays libc: owns the area, sets it up at each thread's start, registers it.
 *
 * LIBC=1: owns nothing; this process's real libc does, and this only describes what it did.
 * private: owns nothing either, because there each library helps itself. PLAIN: without the ground.
 * BINDING: globl, weak or local. VISIBILITY: default, protected or hidden. OLD_NAME: version-symbol keeps
 * the old version's name as the first 32 bytes of the new object (ALIAS) or as an object of its own (SEPARATE).
 */
#include "scheme.h"
#include <stdlib.h>

#define ALIAS 1
#define SEPARATE 2

#ifndef BINDING
#define BINDING "globl"
#endif
#define EXPORTED __attribute__((visibility("default")))

#if PLAIN && OPTION == VERSION_SYMBOL
__thread union area area_now __attribute__((tls_model("initial-exec"))) = { .cpu_id = UNINITIALIZED };
#define OWN (&area_now)
#if NEWER
extern __thread union area area_then __attribute__((alias("area_now")));
__asm__(".symver area_then, __rseq_abi@RSEQ_1");
__asm__(".symver area_now, __rseq_abi@@@RSEQ_2");
#else
__asm__(".symver area_now, __rseq_abi@@@RSEQ_1");
#endif

#elif PLAIN
/* As a header would have it, for tools that read debug information: no ground, no tricks. */
__thread union area __rseq_abi __attribute__((tls_model("initial-exec"))) = { .cpu_id = UNINITIALIZED };
#define OWN (&__rseq_abi)

#elif OPTION == PRIVATE

static struct guarded guarded = INITIAL_GUARDED; /* no thread's: it only stands for an area that is never used */
#define OWN (&guarded.area)

#elif OPTION == OFFSET_SIZE

#if !LIBC
static __thread struct guarded guarded __attribute__((tls_model("initial-exec"))) = INITIAL_GUARDED;
#define OWN (&guarded.area)
#endif

#elif OPTION == VERSION_SYMBOL

static __thread struct guarded guarded __attribute__((used, tls_model("initial-exec"))) = INITIAL_GUARDED;
NAME_AREA("area_now", BINDING, OBJECT_BYTES);
#ifdef VISIBILITY
__asm__("." VISIBILITY " area_now");
#endif
extern __thread union area area_now __attribute__((tls_model("initial-exec")));
#define OWN (&area_now)
#if NEWER
__asm__(".symver area_now, __rseq_abi@@@RSEQ_2");
#if OLD_NAME == SEPARATE
__thread uint32_t area_then[8] __attribute__((aligned(32), used)) = { 0, UNINITIALIZED };
#else
NAME_AREA("area_then", BINDING, 32);
#endif
__asm__(".symver area_then, __rseq_abi@RSEQ_1");
#else
__asm__(".symver area_now, __rseq_abi@@@RSEQ_1");
#endif

#else

static __thread struct guarded guarded __attribute__((used, tls_model("initial-exec"))) = INITIAL_GUARDED;
NAME_AREA("__rseq_abi", BINDING, OBJECT_BYTES);
#ifdef VISIBILITY
__asm__("." VISIBILITY " __rseq_abi");
#endif
extern __thread union area __rseq_abi __attribute__((tls_model("initial-exec")));
#define OWN (&__rseq_abi)

#endif

#if OPTION == OFFSET_SIZE && !LIBC
EXPORTED ptrdiff_t RSEQ_OFFSET;
EXPORTED unsigned RSEQ_SIZE;
EXPORTED unsigned provider_rseq_flags;
#endif

#if LIBC
extern const ptrdiff_t RSEQ_OFFSET;
extern const unsigned RSEQ_SIZE;
#define OWN ((union area *)((char *)thread_pointer() + RSEQ_OFFSET))
#endif

#if OPTION == POINTER
/* Where the extended fields lie; nothing outside this file knows its size. */
static __thread struct extension extension __attribute__((tls_model("initial-exec")));
#endif

/* Fields that no kernel has yet, up to this object's end, so that users of all times find theirs. */
__attribute__((unused)) static void fill_future(void *base, unsigned limit)
{
	static const unsigned ends[] = { 64, 128, 256 };
	for (unsigned place = 0; place < sizeof ends / sizeof *ends; place++)
		if (ends[place] <= BYTES && ends[place] <= limit) {
			uint32_t value = MAGIC | (ends[place] - 4);
			memcpy((char *)base + ends[place] - 4, &value, 4);
		}
}

__attribute__((unused)) static void fill_new(void *base, unsigned limit)
{
	uint32_t id = 0;
	if (FIELDS >= 28 && limit >= 28)
		memcpy((char *)base + 24, &id, 4);
	fill_future(base, limit);
}

/* What user space stores before the kernel is asked. */
EXPORTED void provider_init(void)
{
#if !LIBC
	OWN->cpu_id = UNINITIALIZED;
	OWN->rseq_cs = 0;
#if OPTION != HANDSHAKE
	OWN->flags = 0;
#endif
#if OPTION == POINTER && FIELDS > 20
	extension.bytes = BYTES;
	OWN->extension = &extension;
#endif
#if OPTION == POINTER
	fill_new(extension.fields, BYTES);
#elif NEWEST_IS_MAGIC && OPTION != HANDSHAKE
	fill_future(OWN, BYTES);
#endif
#endif
}

/* The kernel's part where no kernel ever did it: what it would write as a thread returns to user space. */
EXPORTED void provider_resume(void)
{
#if KERNEL == PLAYED
	if (OWN->cpu_id == UNINITIALIZED)
		return;
	OWN->cpu_id_start = OWN->cpu_id = cpu_now();
#if OPTION == HANDSHAKE
	if (OWN->flags & SIZES_ARE_AGREED)
		fill_new(OWN, OWN->kernel_bytes);
#elif OPTION == POINTER
	fill_new(extension.fields, BYTES);
#endif
#endif
}

/* The bytes that the registration names. */
__attribute__((unused)) static unsigned length(void)
{
#if OPTION == POINTER || OPTION == HANDSHAKE || OPTION == PADDING
	return LENGTH_EVERY_KERNEL_TAKES;
#else
	return BYTES > 32 ? BYTES : LENGTH_EVERY_KERNEL_TAKES;
#endif
}

EXPORTED int provider_register(void)
{
#if OPTION == PRIVATE
	return 0;
#elif LIBC
	return OWN->cpu_id < 4096 ? 0 : ENOSYS;
#elif KERNEL == PLAYED
	OWN->cpu_id = 0;
#if OPTION == HANDSHAKE
	/* The July 2020 proposal: the kernel knows how far it can fill, and answers with the smaller one. */
	if (OWN->flags & SIZES_ARE_AGREED)
		OWN->kernel_bytes = OWN->user_bytes < NEWEST_END ? OWN->user_bytes : NEWEST_END;
#endif
	provider_resume();
	return 0;
#else
	int answer = rseq(OWN, length(), 0);
#if OPTION == OFFSET_SIZE
	RSEQ_OFFSET = (char *)OWN - (char *)thread_pointer();
	if (!answer) {
		unsigned long feature_bytes = getauxval(AUX_FEATURE_SIZE);
		/* libc gives what it registered and the kernel keeps; a played field beyond counts as the kernel's. */
		RSEQ_SIZE = BYTES > 32 ? BYTES : FIELDS > 20 && feature_bytes >= FIELDS ? FIELDS : 20;
	}
#endif
	return answer;
#endif
}

EXPORTED int provider_unregister(void)
{
#if OPTION == PRIVATE || LIBC || KERNEL == PLAYED
	return 0;
#else
	return rseq(OWN, length(), UNREGISTER);
#endif
}

EXPORTED void *provider_area(void)
{
	return OWN;
}

#if PLAIN
#define OWN_IS_OWN 1
#elif !LIBC
#define OWN_IS_OWN same_place(OWN, &guarded.area)
#endif

EXPORTED void provider_describe(void)
{
#if OPTION == POINTER && FIELDS > 20
	dprintf(1, "provider pointer intact=%d\n", OWN->extension == &extension);
#endif
#if OPTION == PRIVATE
#elif LIBC
	dprintf(1, "provider describe bytes=%u align=%u seen_align=%u own=1\n", RSEQ_SIZE, 32u, alignment_of(OWN));
#else
	dprintf(1, "provider describe bytes=%u align=%u seen_align=%u own=%d\n", (unsigned)sizeof(union area),
	       (unsigned)_Alignof(union area), alignment_of(OWN), OWN_IS_OWN);
#endif
}

EXPORTED void provider_ground(const char *when)
{
#if !LIBC && !PLAIN
	ground("provider", when, &guarded);
#else
	(void)when;
#endif
}
