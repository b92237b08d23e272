/* Plays an unrelated library: finds the area by the option's own rule, decides what it may read, reads it.
 *
 * NAME: the prefix of its functions, so that several fit into one process. TLS_MODEL: how it reaches the area.
 */
#include "scheme.h"

#ifndef TLS_MODEL
#define TLS_MODEL "initial-exec"
#endif
#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define FUNCTION(suffix) JOIN(NAME, suffix)
#define ME TEXT(NAME)

#if OPTION == PRIVATE
static __thread struct guarded guarded __attribute__((tls_model(TLS_MODEL))) = INITIAL_GUARDED;
#define AREA (&guarded.area)
#elif OPTION == OFFSET_SIZE
extern const ptrdiff_t __rseq_offset;
extern const unsigned __rseq_size;
#define AREA ((union area *)((char *)thread_pointer() + __rseq_offset))
#else
extern __thread union area __rseq_abi __attribute__((tls_model(TLS_MODEL)));
#define AREA (&__rseq_abi)
#endif

static __thread int extended __attribute__((tls_model(TLS_MODEL)));

/* Whether the newest field that this party knows may be read, as the option lets it find out. */
static int may_read_newest(void)
{
#if FIELDS <= 20
	return 0;
#elif OPTION == POINTER
	return AREA->extension && AREA->extension->bytes >= BYTES;
#elif OPTION == HANDSHAKE
	return (AREA->flags & SIZES_ARE_AGREED) && AREA->kernel_bytes >= NEWEST_END;
#elif OPTION == PADDING || OPTION == PRIVATE
	return getauxval(AUX_FEATURE_SIZE) >= NEWEST_END;
#elif OPTION == OFFSET_SIZE
	return __rseq_size >= NEWEST_END;
#else
	return 1; /* grow-symbol, version-symbol: the header says so, nothing at run time says otherwise */
#endif
}

int FUNCTION(_attach)(void)
{
	int answer = 0;
#if OPTION == PRIVATE
	AREA->cpu_id = UNINITIALIZED;
	AREA->rseq_cs = 0;
	AREA->flags = 0;
	answer = rseq(AREA, BYTES > 32 ? BYTES : LENGTH_EVERY_KERNEL_TAKES, 0);
#if NEWEST_IS_MAGIC
	uint32_t value = MAGIC | NEWEST;
	memcpy(&AREA->bytes[NEWEST], &value, 4);
#endif
#endif
	extended = may_read_newest();
#if OPTION == PRIVATE && NEWEST_IS_MAGIC
	extended = !answer;
#endif
	printf(ME " attach answer=%d knows=%d extended=%d align=%u seen_align=%u\n", answer, FIELDS > 20, extended,
	       (unsigned)_Alignof(union area), alignment_of(AREA));
	return answer;
}

void FUNCTION(_read)(void)
{
	uint32_t cpu, newest = 0;
	unsigned now = cpu_now();
	int right = -1;

	cpu = ((volatile union area *)AREA)->cpu_id;
	if (extended) {
#if OPTION == POINTER
		newest = word_at(AREA->extension->fields, NEWEST);
#elif FIELDS > 20
		newest = word_at(AREA, NEWEST);
#endif
#if NEWEST_IS_MAGIC
		right = newest == (MAGIC | NEWEST);
#else
		right = newest < 4096; /* a concurrency id; the poison and the canaries are not */
#endif
	}
	printf(ME " read cpu_right=%d cpu=%d newest_right=%d newest=%#x\n", cpu == now, (int)cpu, right, newest);
}

void *FUNCTION(_area)(void)
{
	return AREA;
}
