/* SPDX-License-Identifier: MIT */
/* A process to be looked at: `self` registers its own area, `vfork` waits for a child that sleeps. */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static char area[256] __attribute__((aligned(256)));

int main(int count, char **words)
{
	if (count < 3)
		return 2;
	prctl(PR_SET_NAME, words[2]);
	if (!strcmp(words[1], "self") && syscall(SYS_rseq, area, 32, 0, RSEQLAB_SIGNATURE)) {
		perror("rseq");
		return 1;
	}
	puts("ready");
	fflush(stdout);
	if (!strcmp(words[1], "vfork") && !vfork()) {
		for (;;)
			syscall(SYS_nanosleep, &(struct timespec){ 60 }, NULL);
	}
	for (;;)
		pause();
}
