/* SPDX-License-Identifier: MIT */
/*
 * The program whose memory all ways of reading share. It has areas of its own for local-exec, is linked
 * with provider and consumer, and opens the libraries that it is given. It lists the labels, then answers
 * each line `number order iterations` with `elapsed_ns sum`, or `-errno 0`. For RL_MARKED the first number
 * is one of instructions; `iterations` is then 1 for the only read of a thread, and 2 for its second.
 */
#define _GNU_SOURCE
#include "access.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

static __thread struct large_area here_private __asm__("here_private") __attribute__((used)) = SMALL_INITIAL;
static __thread struct large_area here_grow __asm__("here_grow") __attribute__((used)) = SMALL_INITIAL;
static __thread struct large_area here_version __asm__("here_version") __attribute__((used)) = SMALL_INITIAL;
static __thread struct small_area here_padding __asm__("here_padding") __attribute__((used)) = SMALL_INITIAL;
static __thread struct pointer_area here_pointer __asm__("here_pointer") __attribute__((used));
static __thread struct handshake_area here_handshake __asm__("here_handshake") __attribute__((used)) =
	HANDSHAKE_INITIAL;

DEFINE_ACCESS(private_here, 1, READ_PLAIN(LOCAL_EXEC, here_private, LARGE_FIELD))
DEFINE_ACCESS(grow_here, 1, READ_PLAIN(LOCAL_EXEC, here_grow, LARGE_FIELD))
DEFINE_ACCESS(version_here, 1, READ_PLAIN(LOCAL_EXEC, here_version, LARGE_FIELD))
DEFINE_ACCESS(padding_here, 1, READ_PLAIN(LOCAL_EXEC, here_padding, PADDING_FIELD))
DEFINE_ACCESS(pointer_here, 1, READ_BEHIND_POINTER(LOCAL_EXEC, here_pointer))
DEFINE_ACCESS(handshake_here, 1, READ_PLAIN(LOCAL_EXEC, here_handshake, LARGE_FIELD))

static const struct rl_access own[] = {
	{ "private local-exec at-start none", private_here },
	{ "grow-symbol local-exec at-start none", grow_here },
	{ "version-symbol local-exec at-start none", version_here },
	{ "pointer local-exec at-start none", pointer_here },
	{ "handshake local-exec at-start none", handshake_here },
	{ "padding local-exec at-start none", padding_here },
};

extern const struct rl_access_table rl_table_INITIAL_EXEC, rl_table_GLOBAL_DYNAMIC, rl_table_DESCRIPTOR;

#define MOST_ACCESSES 256
static struct rl_access all[MOST_ACCESSES];
static unsigned count;

static void add(const struct rl_access_table *table)
{
	for (unsigned i = 0; i < table->count && count < MOST_ACCESSES; i++) {
		all[count++] = table->accesses[i];
		puts(table->accesses[i].label);
	}
}

static void enter(struct large_area *extended)
{
	extended->field = FIELD_VALUE;
	here_pointer.extended = extended;
	rl_provider_thread(extended);
}

struct question {
	const struct rl_access *access;
	int64_t elapsed_ns;
	uint64_t sum;
};

static void *first_use(void *argument)
{
	struct question *question = argument;
	struct large_area *extended = aligned_alloc(LARGE_BYTES, sizeof(*extended));

	if (extended) {
		enter(extended);
		question->elapsed_ns = question->access->loop(RL_FIRST_USE, 1, &question->sum);
	}
	free(extended);
	return NULL;
}

int main(int argc, char **argv)
{
	static struct large_area extended;
	unsigned number;
	int order;
	unsigned long long iterations;

	enter(&extended);
	add(&(struct rl_access_table){ own, sizeof(own) / sizeof(*own) });
	add(&rl_table_INITIAL_EXEC);
	add(&rl_table_GLOBAL_DYNAMIC);
	add(&rl_table_DESCRIPTOR);
	for (int i = 1; i < argc; i++) {
		void *library = dlopen(argv[i], RTLD_NOW | RTLD_LOCAL);
		const struct rl_access_table *table = library ? dlsym(library, "rl_access_table") : NULL;

		if (!table) {
			fprintf(stderr, "%s\n", dlerror());
			return 1;
		}
		add(table);
	}
	puts("");
	fflush(stdout);
	while (scanf("%u %d %llu", &number, &order, &iterations) == 3 && number < count) {
		struct question question = { &all[number], -ENOMEM, 0 };

		if (order == RL_FIRST_USE) {
			pthread_t thread;

			if (pthread_create(&thread, NULL, first_use, &question) == 0)
				pthread_join(thread, NULL);
		} else if (order == RL_MARKED) {
			question.elapsed_ns = rl_count_instructions(question.access, iterations > 1, enter,
								    &question.sum);
		} else {
			question.elapsed_ns = question.access->loop(order, iterations, &question.sum);
		}
		printf("%lld %llu\n", (long long)question.elapsed_ns, (unsigned long long)question.sum);
		fflush(stdout);
	}
	return 0;
}
