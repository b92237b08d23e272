/* SPDX-License-Identifier: MIT */
/*
 * Init of a guest that runs the probe under every libc and in every mode that /plan names, one a line:
 * NAME MODE LOADER FOLDER. Before each run goes a line that says which it is, after it one that says how it ended.
 */
#define _GNU_SOURCE
#include "guest.h"

#include <poll.h>
#include <signal.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>

enum { PATIENCE_S = 60 };

static long long now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000ll + now.tv_nsec / 1000000;
}

static void run(const char *name, const char *mode, const char *loader, const char *folder)
{
	const long long end = now_ms() + PATIENCE_S * 1000;
	const char *arguments[] = { loader, "--library-path", folder, "/probe", mode, loader, folder, "/probe", NULL };
	/* "registered" is what the program that replaces a registered one is asked; it must meet the same libc. */
	const char *plain[] = { NULL }, *off[] = { "GLIBC_TUNABLES=glibc.pthread.rseq=0", NULL };
	int ends[2], status = 0, in_time = 1;
	char data[8192];
	pid_t child;

	guest_printf("{\"run\":\"%s\",\"mode\":\"%s\"}\n", name, mode);
	if (pipe(ends))
		return;
	child = fork();
	if (child == 0) {
		dup2(ends[1], 1);
		close(ends[0]);
		close(ends[1]);
		execve(loader, (char **)arguments, (char **)(strcmp(mode, "libc") ? off : plain));
		_exit(127);
	}
	close(ends[1]);
	for (;;) {
		struct pollfd poll_for = { ends[0], POLLIN, 0 };
		const long long left = end - now_ms();
		ssize_t count;

		if (left <= 0 || poll(&poll_for, 1, (int)left) <= 0) {
			in_time = 0;
			kill(child, SIGKILL);
			break;
		}
		count = read(ends[0], data, sizeof(data));
		if (count <= 0)
			break;
		guest_write(data, (size_t)count);
	}
	close(ends[0]);
	waitpid(child, &status, 0);
	guest_printf("{\"ended\":%d,\"in_time\":%s,\"ms\":%lld}\n", status, in_time ? "true" : "false",
		     now_ms() + PATIENCE_S * 1000 - end);
}

int main(void)
{
	char name[64], mode[32], loader[256], folder[256];
	struct utsname kernel;
	FILE *plan;

	guest_begin();
	uname(&kernel);
	guest_printf("{\"kernel\":\"%s\",\"machine\":\"%s\",\"cpus\":%ld}\n", kernel.release, kernel.machine,
		     sysconf(_SC_NPROCESSORS_ONLN));
	plan = fopen("/plan", "r");
	while (plan && fscanf(plan, "%63s %31s %255s %255s", name, mode, loader, folder) == 4)
		run(name, mode, loader, folder);
	guest_end();
}
