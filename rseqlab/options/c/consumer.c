/* Plays an unrelated library: finds the area by the option's own rule, decides what it may read, reads it.
 *
 * NAME: the prefix of its functions, so that several fit into one process. TLS_MODEL: how it reaches the area.
 * DEFINES: globl or weak where it defines the object itself, as an early adopter of rseq does: it takes the area
 * as it is where its thread is registered already, and registers it otherwise.
 * AUDIT: it is also an audit module of the dynamic loader.
 */
#include "scheme.h"
#include <link.h>
#include <signal.h>

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
#elif OPTION == OFFSET_SIZE && !defined(DEFINES)
extern const ptrdiff_t RSEQ_OFFSET;
extern const unsigned RSEQ_SIZE;
#define AREA ((union area *)((char *)thread_pointer() + RSEQ_OFFSET))
#else
extern __thread union area __rseq_abi __attribute__((tls_model(TLS_MODEL)));
#define AREA (&__rseq_abi)
#endif

#if defined(DEFINES) && OPTION != PRIVATE
static __thread struct guarded guarded __attribute__((used, tls_model("initial-exec"))) = INITIAL_GUARDED;
NAME_AREA("__rseq_abi", DEFINES, OBJECT_BYTES);
#endif

/* Not thread-local, so that this library has no TLS but its area: every thread finds the same. */
static int extended;

/* Whether the newest field that this party knows may be read, as the option lets it find out. */
static int may_read_newest(void)
{
#if FIELDS <= 20
	return 0;
#elif OPTION == POINTER
	return AREA->extension && AREA->extension->bytes >= BYTES;
#elif OPTION == HANDSHAKE
	return (AREA->flags & SIZES_ARE_AGREED) && AREA->kernel_bytes >= NEWEST_END;
#elif OPTION == PADDING || (OPTION == PRIVATE && !NEWEST_IS_MAGIC)
	return getauxval(AUX_FEATURE_SIZE) >= NEWEST_END;
#elif OPTION == OFFSET_SIZE && !defined(DEFINES)
	return RSEQ_SIZE >= NEWEST_END;
#else
	return 1; /* grow-symbol, version-symbol: the header says so, nothing at run time says otherwise */
#endif
}

#if OPTION == PRIVATE
static int own_registration(int flags)
{
	return rseq(AREA, BYTES > 32 ? BYTES : LENGTH_EVERY_KERNEL_TAKES, flags);
}

static void set_up(void)
{
	AREA->cpu_id = UNINITIALIZED;
	AREA->rseq_cs = 0;
	AREA->flags = 0;
#if NEWEST_IS_MAGIC
	uint32_t value = MAGIC | NEWEST;
	memcpy(&AREA->bytes[NEWEST], &value, 4);
#endif
}
#endif

int FUNCTION(_attach)(void)
{
	int answer = 0;
#if OPTION == PRIVATE
	set_up();
	answer = own_registration(0);
#elif defined(DEFINES)
	if (AREA->cpu_id == UNINITIALIZED) {
		AREA->rseq_cs = 0;
		AREA->flags = 0;
#if KERNEL == PLAYED
		answer = EINVAL; /* as the real one says to a thread that libc has registered elsewhere */
#else
		answer = rseq(AREA, LENGTH_EVERY_KERNEL_TAKES, 0);
#endif
	}
#endif
#if OPTION == OFFSET_SIZE && !defined(DEFINES)
	if (!RSEQ_SIZE)
		answer = ENOSYS; /* libc's own word for `registered nothing` */
#endif
	extended = !answer && may_read_newest();
	dprintf(1, ME " attach answer=%d knows=%d extended=%d align=%u seen_align=%u\n", answer, FIELDS > 20, extended,
	       (unsigned)_Alignof(union area), alignment_of(AREA));
	return answer;
}

void FUNCTION(_read)(void)
{
	volatile union area *area = AREA;
	uint32_t start = area->cpu_id_start, cpu = area->cpu_id, newest = 0;
	int right = -1;

	if (extended && (int)cpu >= 0) {
#if OPTION == POINTER && FIELDS > 20
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
	/* cpu_id_start is an index that must always be in range, registered or not. */
	dprintf(1, ME " read cpu_right=%d cpu=%d start_right=%d newest_right=%d newest=%#x\n", cpu == cpu_now(), (int)cpu,
	       start < 4096, right, newest);
}

void *FUNCTION(_area)(void)
{
	return AREA;
}

/* What a user does who takes cpu_id_start for a cache of its own: TCMalloc keeps a tagged word there. */
void FUNCTION(_scribble)(void)
{
	((volatile union area *)AREA)->cpu_id_start = 0x80000000u | 0x1234;
}

void FUNCTION(_ground)(const char *when)
{
#if defined(DEFINES) || OPTION == PRIVATE
	ground(ME, when, &guarded);
#else
	(void)when;
#endif
}

/* Registration at first use, interrupted at its two delicate places by a handler that uses rseq as well.
 * CAREFUL: EBUSY to one's own area means that it is registered already.
 */
static __attribute__((unused)) volatile sig_atomic_t lazy_state;

int FUNCTION(_lazily)(int interrupt_at)
{
#if OPTION == PRIVATE
	int answer;
	if (lazy_state)
		return lazy_state;
	AREA->rseq_cs = 0; /* and nothing that the kernel may have written already */
	AREA->flags = 0;
	if (interrupt_at == 1)
		raise(SIGUSR1);
	answer = own_registration(0);
	if (interrupt_at == 2)
		raise(SIGUSR1);
#ifdef CAREFUL
	if (answer == EBUSY)
		answer = 0;
#endif
	lazy_state = answer ? 2 : 1;
	dprintf(1, ME " lazily interrupted=%d answer=%d\n", interrupt_at, answer);
	return lazy_state;
#else
	(void)interrupt_at;
	return (int)AREA->cpu_id < 0 ? 2 : 1;
#endif
}

#ifdef AUDIT
unsigned la_version(unsigned version)
{
	return version;
}

/* The program opens a library of this name once everything is registered: then this module looks at the area. */
unsigned la_objopen(struct link_map *map, long namespace, uintptr_t *cookie)
{
	(void)namespace, (void)cookie;
	if (strstr(map->l_name, "libfiller.so")) {
		FUNCTION(_attach)();
		FUNCTION(_read)();
	}
	return 0;
}
#endif
