/* A library with BYTES of static TLS, or none, and nothing else: takes room, or shows who writes
 * into its room. FILL: what its room holds.
 */
#include <stdio.h>
#include <string.h>

#ifndef FILL
#define FILL 0xc5
#endif
#if BYTES
static __thread unsigned char room[BYTES] __attribute__((aligned(16), tls_model("initial-exec"))) = {
	[0 ... BYTES - 1] = FILL
};

void *filler_room(void)
{
	return room;
}

void filler_ground(const char *when)
{
	int first = 0, last = 0, count = 0;
	for (int place = 0; place < BYTES; place++)
		if (room[place] != FILL) {
			if (!count++)
				first = place;
			last = place;
		}
	dprintf(1, "filler ground when=%s overwritten=%d first=%d last=%d\n", when, count, first, last);
}
#endif
