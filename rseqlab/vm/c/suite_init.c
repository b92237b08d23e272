/* Init of the Python guest: runs the program that its arguments name, passes on what that writes to descriptor 3.

   A program that dies or hangs leaves the rows that it wrote; the host sees in the last one how it ended. */
#include "guest.h"

#include <sys/wait.h>

enum { ROWS_FD = 3 };

int main(int argc, char **argv)
{
	static char *const command[] = { "/usr/bin/python3", "/lab/rseqlab/vm/guest_suite.py", NULL };
	char block[4096];
	int ends[2], status = -1;
	ssize_t size;

	(void)argc, (void)argv;
	guest_begin();
	mkdir("/dev/shm", 01777);
	mount("tmpfs", "/dev/shm", "tmpfs", 0, NULL);
	setenv("PATH", "/usr/bin", 1);
	setenv("HOME", "/tmp", 1);
	setenv("LC_ALL", "C.UTF-8", 1);
	setenv("PYTHONPATH", "/lab", 1);
	setenv("RSEQLAB_CACHE", "/lab/compiled", 1);
	if (pipe(ends) || chdir("/lab"))
		guest_end();

	pid_t child = fork();
	if (child == 0) {
		close(ends[0]);
		if (ends[1] != ROWS_FD) {
			dup2(ends[1], ROWS_FD);
			close(ends[1]);
		}
		execv(command[0], command);
		_exit(127);
	}
	close(ends[1]);
	while ((size = read(ends[0], block, sizeof block)) > 0 || (size < 0 && errno == EINTR))
		if (size > 0)
			guest_write(block, (size_t)size);
	while (child > 0 && waitpid(child, &status, 0) < 0 && errno == EINTR)
		;
	guest_printf("{\"kind\": \"end\", \"status\": %d}\n", WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status));
	guest_end();
}
