/* Usage: traced EVENTS. Emits that many events of LTTng-UST and prints `operations=... elapsed_ns=...`. */
#define LTTNG_UST_TRACEPOINT_CREATE_PROBES
#define LTTNG_UST_TRACEPOINT_DEFINE
#include "traced.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static long long now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000LL + now.tv_nsec;
}

int main(int count, char **words)
{
	unsigned long events = count == 2 ? strtoul(words[1], NULL, 10) : 0;
	long long start = now_ns();

	for (unsigned long i = 0; i < events; i++)
		lttng_ust_tracepoint(rseqlab_traced, number, i);
	printf("operations=%lu elapsed_ns=%lld\n", events, now_ns() - start);
	return 0;
}
