/* SPDX-License-Identifier: MIT */
/*
 * Init of a guest that runs the commands of /plan, one a line: NUMBER NAME=VALUE... -- PROGRAM ARGUMENT...
 * Before each goes a line that says its number, then what it writes to its standard output (JSON objects, one a
 * line), then how it ended. Words are separated by single spaces.
 */
#define _GNU_SOURCE
#include "guest.h"

#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <time.h>

enum { PATIENCE_S = 30, WORDS = 24 };

static long long now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000ll + now.tv_nsec / 1000000;
}

static void run(const char *number, char **environment, char **command)
{
	const long long end = now_ms() + PATIENCE_S * 1000;
	int ends[2], status = 0, in_time = 1, complete = 1;
	char data[8192];
	pid_t child;

	guest_printf("{\"run\":%s}\n", number);
	if (pipe(ends))
		return;
	child = fork();
	if (child == 0) {
		dup2(ends[1], 1);
		close(ends[0]);
		close(ends[1]);
		execve(command[0], command, environment);
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
		complete = data[count - 1] == '\n';
		guest_write(data, (size_t)count);
	}
	close(ends[0]);
	waitpid(child, &status, 0);
	guest_printf("%s{\"ended\":%d,\"in_time\":%s}\n", complete ? "" : "\n", status, in_time ? "true" : "false");
}

int main(void)
{
	static char line[4096];
	FILE *plan;

	guest_begin();
	plan = fopen("/plan", "r");
	while (plan && fgets(line, sizeof(line), plan)) {
		char *words[WORDS + 1] = { NULL }, **environment = words + 1, **command = words + 1;
		int count = 0;

		for (char *word = strtok(line, " \n"); word && count < WORDS; word = strtok(NULL, " \n"))
			words[count++] = word;
		while (*command && strcmp(*command, "--"))
			command++;
		if (!*command || !command[1])
			continue;
		*command++ = NULL;
		run(words[0], environment, command);
	}
	guest_end();
}
