/* SPDX-License-Identifier: MIT */
/*
 * How much memory THREADS waiting threads hold, each with the thread-local areas and the separately
 * allocated extension that the build says. Prints one line of numbers; see experiments/thread_memory.py.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <malloc.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if AREA_BYTES
static __thread __attribute__((aligned(AREA_ALIGN), used)) char area[AREA_BYTES];
# define AREA_SIZE (long)sizeof(area)
#else
# define AREA_SIZE 0L
#endif
#if SECOND_BYTES
static __thread __attribute__((aligned(SECOND_ALIGN), used)) char second[SECOND_BYTES];
# define SECOND_SIZE (long)sizeof(second)
#else
# define SECOND_SIZE 0L
#endif

static pthread_barrier_t all_there, all_leave;

/* As a kernel and a user would: the first and the last byte are written. */
static void touch(volatile char *memory, size_t size)
{
	memory[0] = 1;
	memory[size - 1] = 1;
}

static void *wait_with_areas(void *extension)
{
#if AREA_BYTES
	touch(area, sizeof(area));
#endif
#if SECOND_BYTES
	touch(second, sizeof(second));
#endif
	if (extension)
		touch(extension, EXTENSION_BYTES);
	pthread_barrier_wait(&all_there);
	pthread_barrier_wait(&all_leave);
	return NULL;
}

/* Bytes, or -1 where this kernel has no such file or line. */
static long from_rollup(const char *name)
{
	FILE *file = fopen("/proc/self/smaps_rollup", "r");
	char line[256];
	long kilobytes = -1;

	while (file && fgets(line, sizeof(line), file))
		if (!strncmp(line, name, strlen(name)))
			kilobytes = atol(line + strlen(name));
	if (file)
		fclose(file);
	return kilobytes < 0 ? -1 : kilobytes * 1024;
}

/* What libc asks for a stack at least: its thread-local block is in it. -1 where libc does not say. */
static long least_stack(void)
{
	size_t (*ask)(const pthread_attr_t *) = (size_t (*)(const pthread_attr_t *))
		dlsym(RTLD_DEFAULT, "__pthread_get_minstack");
	pthread_attr_t attributes;
	long size;

	if (!ask || pthread_attr_init(&attributes))
		return -1;
	size = ask(&attributes);
	pthread_attr_destroy(&attributes);
	return size;
}

int main(int argc, char **argv)
{
	const int threads = argc > 1 ? atoi(argv[1]) : 0;
	pthread_t *ids = calloc(threads + 1, sizeof(*ids));
	long heap_bytes = 0, rss, pss;

	if (threads < 1 || !ids || pthread_barrier_init(&all_there, NULL, threads + 1) ||
	    pthread_barrier_init(&all_leave, NULL, threads + 1))
		return 1;
	from_rollup("Rss:");	/* what reading needs is there before it is read for good */
	rss = from_rollup("Rss:");
	pss = from_rollup("Pss:");
	for (int i = 0; i < threads; i++) {
		void *extension = NULL;
#if EXTENSION_BYTES
		heap_bytes -= mallinfo2().uordblks;
		if (posix_memalign(&extension, EXTENSION_ALIGN, EXTENSION_BYTES))
			return 1;
		heap_bytes += mallinfo2().uordblks;
#endif
		if (pthread_create(&ids[i], NULL, wait_with_areas, extension)) {
			fprintf(stderr, "no more than %d threads could be started\n", i);
			return 1;
		}
	}
	pthread_barrier_wait(&all_there);
	rss = from_rollup("Rss:") - rss;
	pss = from_rollup("Pss:") - pss;
	printf("%d %ld %ld %ld %ld %ld %ld\n", threads, rss, pss, AREA_SIZE, SECOND_SIZE, heap_bytes, least_stack());
	fflush(stdout);
	_Exit(0);	/* the threads still wait; the kernel ends them faster than they would each other */
}
