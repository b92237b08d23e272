/* The stage: starts the provider, lets the named consumers attach and read, on two CPUs and in two threads.
 *
 * Arguments: names of consumers (their functions are found by name), or steps with a value:
 * load=FILE dlopens it, isolate=FILE loads it into a namespace of its own; NAME before it. See steps().
 * DEFINES: globl or weak where this program defines the object itself, with OBJECT_BYTES of its own belief.
 */
#include "scheme.h"
#include <dlfcn.h>
#include <gnu/libc-version.h>
#include <pthread.h>
#include <stdlib.h>

#ifdef DEFINES
static __thread struct guarded guarded __attribute__((used)) = INITIAL_GUARDED;
NAME_AREA("__rseq_abi", DEFINES, OBJECT_BYTES);
#endif

#define MOST 4
static struct {
	const char *name;
	int (*attach)(void);
	void (*read)(void);
} party[MOST];
static int parties;
static cpu_set_t allowed;

extern void provider_init(void), provider_resume(void), provider_describe(void), provider_ground(const char *);
extern int provider_register(void), provider_unregister(void);
extern void *provider_area(void);

static void look(const char *when)
{
	provider_ground(when);
#ifdef DEFINES
	ground("program", when, &guarded);
#endif
}

static void on_cpu(int nth)
{
	cpu_set_t one;
	int wanted = -1;
	CPU_ZERO(&one);
	for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
		if (CPU_ISSET(cpu, &allowed)) {
			wanted = cpu;
			if (!nth--)
				break;
		}
	CPU_SET(wanted, &one);
	sched_setaffinity(0, sizeof one, &one);
	provider_resume();
}

static void *scene(void *thread)
{
	printf("scene thread=%s\n", (char *)thread);
	look("start");
	provider_init();
	look("provider");
	printf("provider register answer=%d\n", provider_register());
	provider_describe();
	for (int place = 0; place < parties; place++)
		party[place].attach();
	for (int nth = 0; nth < 2; nth++) {
		on_cpu(nth);
		for (int place = 0; place < parties; place++)
			party[place].read();
	}
	look("kernel");
	printf("end thread=%s\n", (char *)thread);
	return NULL;
}

static void *find(void *where, const char *name, const char *suffix)
{
	char text[64];
	snprintf(text, sizeof text, "%s%s", name, suffix);
	return dlsym(where, text);
}

static int take(const char *name, void *where)
{
	if (parties == MOST || !name)
		return 0;
	party[parties].name = name;
	party[parties].attach = (int (*)(void))find(where, name, "_attach");
	party[parties].read = (void (*)(void))find(where, name, "_read");
	if (!party[parties].attach || !party[parties].read) {
		printf("program missing name=%s\n", name);
		return 0;
	}
	parties++;
	return 1;
}

static int steps(int count, char **step)
{
	for (int place = 0; place < count; place++) {
		char *value = strchr(step[place], '=');
		void *handle = NULL;
		if (!value) {
			take(step[place], RTLD_DEFAULT);
			continue;
		}
		*value++ = 0;
		if (!strcmp(step[place], "load"))
			handle = dlopen(value, RTLD_NOW | RTLD_LOCAL);
		else if (!strcmp(step[place], "isolate"))
			handle = dlmopen(LM_ID_NEWLM, value, RTLD_NOW | RTLD_LOCAL);
		if (!handle) {
			printf("program refused said=%s\n", dlerror());
			return 3;
		}
		if (place + 1 < count)
			take(step[++place], handle);
	}
	return 0;
}

int main(int count, char **argument)
{
	pthread_t thread;
	int code;

	setvbuf(stdout, NULL, _IOLBF, 0);
	sched_getaffinity(0, sizeof allowed, &allowed);
	printf("program start libc=%s\n", gnu_get_libc_version());
	code = steps(count - 1, argument + 1);
	if (code)
		return code;
	scene("main");
	if (pthread_create(&thread, NULL, scene, "second"))
		return 4;
	pthread_join(thread, NULL);
	return 0;
}
