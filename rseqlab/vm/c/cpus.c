/* SPDX-License-Identifier: MIT */
/*
 * How far cpu_id spreads and how dense mm_cid stays: processes of 1 to 128 threads that sleep and wake for a
 * while, each thread with an area of its own, in a guest with many CPUs. A row is sent as soon as it is there.
 */
#define _GNU_SOURCE
#include "guest.h"
#include "rseqlab.h"

#include <pthread.h>
#include <sys/auxv.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>

enum { MOST_CPUS = 512, MOST_THREADS = 128, RUN_MS = 1200, UNREGISTER = 1, FEATURE_MM_CID = 28 };

struct seen { unsigned char cpu_id[MOST_CPUS], mm_cid[MOST_CPUS]; long wakes; };

struct worker {
	_Alignas(64) struct rl_area area;
	char more[64];
	struct seen seen;
	unsigned random;
	pthread_t thread;
};

static struct worker workers[MOST_THREADS] __attribute__((aligned(64)));
static int stop;

static void note(unsigned char *where, uint32_t value)
{
	where[value < MOST_CPUS ? value : MOST_CPUS - 1] = 1;
}

static void *work(void *argument)
{
	struct worker *self = argument;

	if (syscall(__NR_rseq, &self->area, 32, 0, RL_SIGNATURE))
		return NULL;
	while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
		struct timespec length = { 0, 0 };

		self->random = self->random * 1664525 + 1013904223;
		length.tv_nsec = 200000 + self->random % 2000000;
		nanosleep(&length, NULL);
		note(self->seen.cpu_id, rl_load_u32(&self->area.cpu_id));
		note(self->seen.mm_cid, rl_load_u32(&self->area.mm_cid));
		self->seen.wakes++;
	}
	syscall(__NR_rseq, &self->area, 32, UNREGISTER, RL_SIGNATURE);
	return NULL;
}

/* One process of `threads` workers, its row as text. */
static int run(int threads, char *row, size_t size)
{
	struct timespec length = { RUN_MS / 1000, RUN_MS % 1000 * 1000000 };
	struct seen all = { 0 };
	int cpu_ids = 0, mm_cids = 0, most_cpu = -1, most_cid = -1;
	pthread_attr_t small;

	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, 65536);
	for (int i = 0; i < threads; i++) {
		workers[i].random = (unsigned)(i + 1) * 2654435761u;
		if (pthread_create(&workers[i].thread, &small, work, &workers[i]))
			return snprintf(row, size, "{\"threads\":%d,\"refused\":%d}\n", threads, errno);
	}
	nanosleep(&length, NULL);
	__atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
	for (int i = 0; i < threads; i++) {
		pthread_join(workers[i].thread, NULL);
		all.wakes += workers[i].seen.wakes;
		for (int id = 0; id < MOST_CPUS; id++) {
			all.cpu_id[id] |= workers[i].seen.cpu_id[id];
			all.mm_cid[id] |= workers[i].seen.mm_cid[id];
		}
	}
	for (int id = 0; id < MOST_CPUS; id++) {
		if (all.cpu_id[id])
			cpu_ids++, most_cpu = id;
		if (all.mm_cid[id])
			mm_cids++, most_cid = id;
	}
	return snprintf(row, size, "{\"threads\":%d,\"wakes\":%ld,\"most_cpu_id\":%d,\"cpu_ids\":%d,\"most_mm_cid\":%d,"
			"\"mm_cids\":%d}\n", threads, all.wakes, most_cpu, cpu_ids, most_cid, mm_cids);
}

int main(void)
{
	struct utsname kernel;
	char row[512];

	guest_begin();
	uname(&kernel);
	guest_printf("{\"kernel\":\"%s\",\"cpus\":%ld,\"feature_size\":%lu}\n", kernel.release, sysconf(_SC_NPROCESSORS_ONLN),
		     getauxval(27));
	for (int threads = 1; threads <= MOST_THREADS; threads *= 2) {
		int ends[2];
		ssize_t count;
		pid_t child;

		if (pipe(ends))
			break;
		child = fork();	/* a process of its own: its ids begin anew */
		if (child == 0) {
			count = run(threads, row, sizeof(row));
			_exit(write(ends[1], row, (size_t)count) != count);
		}
		close(ends[1]);
		count = read(ends[0], row, sizeof(row));
		close(ends[0]);
		waitpid(child, NULL, 0);
		if (count > 0)
			guest_write(row, (size_t)count);
	}
	guest_end();
}
