/* The stage: starts the provider, lets consumers attach and read on two CPUs, and plays one scene.
 *
 * Arguments, in order: NAME (a consumer that is linked in), load=FILE NAME (by dlopen), isolate=FILE NAME (by
 * dlmopen), fill (use the static TLS reserve up), open=FILE, scene=WHAT. A program that is a consumer itself, or
 * that defines the object, has consumer.c linked in. STATIC: one consumer, `program`, is linked in for good.
 * This file knows no layout: it is the same object file in every scene.
 */
#include "scheme.h"
#include <dlfcn.h>
#include <gnu/libc-version.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/wait.h>

#define MOST 4
#define ENDING_THREADS 32
#define CONFIGURATION 0x420f /* PTRACE_GET_RSEQ_CONFIGURATION */

static struct {
	const char *name;
	void *handle;
	int (*attach)(void), (*lazily)(int);
	void (*read)(void), (*scribble)(void), (*ground)(const char *);
	void *(*area)(void);
} party[MOST];
static int parties;
static cpu_set_t allowed;

#ifdef STATIC
#define HAS(function) 1
#else
#define HAS(function) (&function != NULL)
/* Weak, because another libc that this program is run by may have neither. */
extern __typeof__(gnu_get_libc_version) gnu_get_libc_version __attribute__((weak));
extern __typeof__(dlmopen) dlmopen __attribute__((weak));
#endif

extern void provider_init(void), provider_resume(void), provider_describe(void), provider_ground(const char *);
extern int provider_register(void), provider_unregister(void);
extern void *provider_area(void);

static void look(const char *when)
{
	provider_ground(when);
	for (int place = 0; place < parties; place++)
		party[place].ground(when);
}

static void move_to(int nth)
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
}

static void on_cpu(int nth)
{
	move_to(nth);
	provider_resume();
}

static void read_on_two_cpus(void)
{
	for (int nth = 0; nth < 2; nth++) {
		on_cpu(nth);
		for (int place = 0; place < parties; place++)
			party[place].read();
	}
}

static void start_thread(const char *thread)
{
	printf("scene thread=%s\n", thread);
	look("start");
	provider_init();
	look("provider");
	printf("provider register answer=%d\n", provider_register());
	provider_describe();
}

static void attach_all(void)
{
	for (int place = 0; place < parties; place++)
		party[place].attach();
}

static void *plain(void *thread)
{
	start_thread(thread);
	attach_all();
	read_on_two_cpus();
	look("kernel");
	printf("end thread=%s\n", (char *)thread);
	return NULL;
}

static int in_thread(void *(*body)(void *), void *value, size_t stack_bytes)
{
	pthread_attr_t attributes;
	pthread_t thread;
	int answer;
	pthread_attr_init(&attributes);
	if (stack_bytes)
		pthread_attr_setstacksize(&attributes, stack_bytes);
	answer = pthread_create(&thread, &attributes, body, value);
	if (!answer)
		pthread_join(thread, NULL);
	return answer;
}

/* ---- fork, vfork, exec, the end of threads and of libraries ---- */

static int ended(pid_t child)
{
	int status = 0;
	waitpid(child, &status, 0);
	if (WIFSIGNALED(status))
		printf("program child signal=%d\n", WTERMSIG(status));
	return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

static int scene_fork(void)
{
	start_thread("main");
	attach_all();
	pid_t child = fork();
	if (!child) {
		read_on_two_cpus();
		_exit(0);
	}
	int code = ended(child);
	read_on_two_cpus();
	return code;
}

static int scene_vfork(void)
{
	start_thread("main");
	attach_all();
	on_cpu(0);
	pid_t child = vfork();
	if (!child) {
		/* Its memory is its parent's, its registration is gone: what does the area tell it? No kernel plays. */
		move_to(1);
		for (int place = 0; place < parties; place++)
			party[place].read();
		_exit(0);
	}
	return ended(child);
}

static void *cancelled(void *unused)
{
	(void)unused;
	start_thread("cancelled");
	attach_all();
	for (;;)
		pause();
	return NULL;
}

static int scene_cancel(void)
{
	pthread_t thread;
	plain("main");
	if (pthread_create(&thread, NULL, cancelled, NULL))
		return 4;
	usleep(20000);
	pthread_cancel(thread);
	pthread_join(thread, NULL);
	in_thread(plain, "after", 0);
	read_on_two_cpus();
	return 0;
}

static int scene_threads_end(void)
{
	plain("main");
	for (int count = 0; count < ENDING_THREADS; count++)
		if (in_thread(plain, "one of many", 0))
			return 4;
	read_on_two_cpus();
	return 0;
}

#define PIECES 256
#define PIECE_BYTES 1024
static unsigned char *piece[PIECES];

static void take_heap(void)
{
	for (int place = 0; place < PIECES; place++) {
		piece[place] = malloc(PIECE_BYTES);
		memset(piece[place], CANARY, PIECE_BYTES);
	}
}

static void look_at_heap(void)
{
	int count = 0;
	for (int place = 0; place < PIECES; place++)
		for (int byte = 0; byte < PIECE_BYTES; byte++)
			count += piece[place][byte] != CANARY;
	printf("heap ground when=kernel overwritten=%d first=0 last=0\n", count);
}

/* A library with a registered thread goes; another one gets its room. */
static int scene_unload(void)
{
	void (*filler_ground)(const char *);
	void *filler;

	start_thread("main");
	attach_all();
	for (int place = 0; place < parties; place++)
		if (party[place].handle)
			dlclose(party[place].handle);
	filler = dlopen("libfiller.so", RTLD_NOW);
	if (!filler) {
		printf("program refused said=%s\n", dlerror());
		return 3;
	}
	filler_ground = (void (*)(const char *))dlsym(filler, "filler_ground");
	filler_ground("start");
	take_heap();
	for (int nth = 0; nth < 20; nth++)
		on_cpu(nth & 1);
	filler_ground("kernel");
	look_at_heap();
	return 0;
}

/* ---- signal handlers ---- */

static void handler(int number)
{
	(void)number;
	for (int place = 0; place < parties; place++)
		party[place].lazily(0);
}

static int scene_lazily(int interrupt_at)
{
	signal(SIGUSR1, handler);
	start_thread("main");
	for (int place = 0; place < parties; place++) {
		int state = party[place].lazily(interrupt_at);
		printf("%s attach answer=%d knows=0 extended=0 align=1 seen_align=1\n", party[place].name,
		       state == 1 ? 0 : EBUSY);
	}
	read_on_two_cpus();
	return 0;
}

static volatile sig_atomic_t in_handler, allocated_in_handler;

#ifdef COUNTS_ALLOCATIONS
extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_memalign(size_t, size_t);
void *malloc(size_t bytes)
{
	allocated_in_handler += in_handler;
	return __libc_malloc(bytes);
}
void *calloc(size_t count, size_t bytes)
{
	allocated_in_handler += in_handler;
	return __libc_calloc(count, bytes);
}
void *aligned_alloc(size_t align, size_t bytes)
{
	allocated_in_handler += in_handler;
	return __libc_memalign(align, bytes);
}
#endif

static void touching_handler(int number)
{
	(void)number;
	in_handler = 1;
	for (int place = 0; place < parties; place++)
		*(volatile char *)party[place].area();
	in_handler = 0;
}

static void *first_touch(void *thread)
{
	signal(SIGUSR1, touching_handler);
	printf("scene thread=%s\n", (char *)thread);
	provider_init();
	printf("provider register answer=%d\n", provider_register());
	raise(SIGUSR1); /* nobody has looked at a consumer's area yet: looking is a touch */
	printf("program allocated count=%d\n", (int)allocated_in_handler);
	attach_all();
	read_on_two_cpus();
	return NULL;
}

/* ---- who else looks at, or writes to, the area ---- */

static int scene_legacy(void)
{
	start_thread("main");
	attach_all();
	on_cpu(0);
	party[0].scribble();
	/* The next switch of this thread may mend it; what stands here until then is what others read. */
	for (int place = 1; place < parties; place++)
		party[place].read();
	on_cpu(1);
	read_on_two_cpus();
	return 0;
}

struct configuration {
	uint64_t address;
	uint32_t bytes, signature, flags, reserved;
};

static int scene_ptrace(void)
{
	struct configuration found = { 0 };
	void *area = parties && party[0].handle ? party[0].area() : provider_area();
	int ready[2], status;
	char byte;

	if (pipe(ready))
		return 4;
	pid_t child = fork();
	if (!child) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		plain("main");
		if (write(ready[1], "", 1) == 1)
			for (;;)
				pause();
		_exit(1);
	}
	if (read(ready[0], &byte, 1) != 1)
		return 4;
	if (ptrace(PTRACE_SEIZE, child, 0, 0) || ptrace(PTRACE_INTERRUPT, child, 0, 0))
		printf("program ptrace answer=%d\n", errno);
	else {
		waitpid(child, &status, 0);
		int size = ptrace(CONFIGURATION, child, sizeof found, &found);
		printf("program ptrace answer=%d bytes=%u address_right=%d\n", size < 0 ? errno : 0, found.bytes,
		       found.address == (uintptr_t)area);
	}
	kill(child, SIGKILL);
	waitpid(child, &status, 0);
	return 0;
}

/* ---- sandboxes ---- */

static void forbid(unsigned answer)
{
	struct sock_filter filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_rseq, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, answer),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog code = { sizeof filter / sizeof *filter, filter };
	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &code))
		printf("program seccomp answer=%d\n", errno);
}

static unsigned verdict(const char *word)
{
	return !strcmp(word, "kill")   ? SECCOMP_RET_KILL_PROCESS :
	       !strcmp(word, "EPERM") ? SECCOMP_RET_ERRNO | EPERM :
					SECCOMP_RET_ERRNO | ENOSYS;
}

static int scene_sandboxed_later(const char *word)
{
	plain("main");
	forbid(verdict(word));
	return in_thread(plain, "second", 0) ? 4 : 0;
}

/* ---- loading ---- */

#ifdef STATIC
extern int program_attach(void), program_lazily(int);
extern void program_read(void), program_scribble(void), program_ground(const char *);
extern void *program_area(void);
#endif

static void *find(void *where, const char *name, const char *suffix)
{
	char text[64];
	snprintf(text, sizeof text, "%s%s", name, suffix);
	return dlsym(where, text);
}

static void take(const char *name, void *where)
{
	if (parties == MOST)
		return;
	party[parties].name = name;
	party[parties].handle = where == RTLD_DEFAULT ? NULL : where;
#ifdef STATIC
	if (!strcmp(name, "program")) {
		party[parties].attach = program_attach;
		party[parties].lazily = program_lazily;
		party[parties].read = program_read;
		party[parties].scribble = program_scribble;
		party[parties].ground = program_ground;
		party[parties].area = program_area;
		parties++;
		return;
	}
#endif
	party[parties].attach = (int (*)(void))find(where, name, "_attach");
	party[parties].lazily = (int (*)(int))find(where, name, "_lazily");
	party[parties].read = (void (*)(void))find(where, name, "_read");
	party[parties].scribble = (void (*)(void))find(where, name, "_scribble");
	party[parties].ground = (void (*)(const char *))find(where, name, "_ground");
	party[parties].area = (void *(*)(void))find(where, name, "_area");
	if (party[parties].attach && party[parties].read && party[parties].ground && party[parties].area)
		parties++;
	else
		printf("program missing name=%s\n", name);
}

/* Take the largest pieces first: what is left is smaller than the smallest. */
static void fill(void)
{
	int taken = 0;
	for (int bytes = 8192; bytes >= 16; bytes /= 2) {
		char name[64];
		snprintf(name, sizeof name, "libfill%d.so", bytes);
		if (dlopen(name, RTLD_NOW))
			taken += bytes;
	}
	printf("program filled bytes=%d\n", taken);
}

static int refused(void)
{
	printf("program refused said=%s\n", dlerror());
	return 3;
}

/* Replace this process by one that plays the plain scene: by the loader that this one was run by, if one was named. */
static int again(char **step)
{
	char *command[MOST * 2 + 8], *via = getenv("SCENE_LOADER");
	int count = 0;
	for (char *word = via ? strtok(via, "\x1f") : NULL; word && count < 4; word = strtok(NULL, "\x1f"))
		command[count++] = word;
	while (*step)
		command[count++] = *step++;
	command[count] = NULL;
	execv(via ? command[0] : "/proc/self/exe", command);
	return 4;
}

static int play(const char *what, char **self)
{
	char *value = strchr(what, ':');
	if (value)
		*value++ = 0;
	if (!strcmp(what, "main"))
		plain("main");
	else if (!strcmp(what, "plain")) {
		plain("main");
		return in_thread(plain, "second", 0);
	} else if (!strcmp(what, "small-stack")) {
		plain("main");
		return in_thread(plain, "second", 32768);
	} else if (!strcmp(what, "audit")) {
		plain("main");
		if (!dlopen("libfiller.so", RTLD_NOW))
			return refused();
	} else if (!strcmp(what, "fork"))
		return scene_fork();
	else if (!strcmp(what, "vfork"))
		return scene_vfork();
	else if (!strcmp(what, "exec")) {
		start_thread("main");
		attach_all();
		return again(self);
	} else if (!strcmp(what, "cancel"))
		return scene_cancel();
	else if (!strcmp(what, "threads-end"))
		return scene_threads_end();
	else if (!strcmp(what, "unload"))
		return scene_unload();
	else if (!strcmp(what, "lazily"))
		return scene_lazily(atoi(value));
	else if (!strcmp(what, "first-touch")) {
		first_touch("main");
		return in_thread(first_touch, "second", 0);
	} else if (!strcmp(what, "legacy"))
		return scene_legacy();
	else if (!strcmp(what, "ptrace"))
		return scene_ptrace();
	else if (!strcmp(what, "sandbox")) {
		forbid(verdict(value));
		return again(self);
	} else if (!strcmp(what, "sandbox-later"))
		return scene_sandboxed_later(value);
	else
		return 5;
	return 0;
}

int main(int count, char **argument)
{
	char *kept_step[MOST * 2 + 2] = { argument[0] };
	char what[64] = "plain";
	int kept = 1;

	setvbuf(stdout, NULL, _IOLBF, 0);
	sched_getaffinity(0, sizeof allowed, &allowed);
	printf("program start libc=%s\n", HAS(gnu_get_libc_version) ? gnu_get_libc_version() : "unknown");
	for (int place = 1; place < count; place++) {
		char step[256], *value;
		void *handle;
		snprintf(step, sizeof step, "%s", argument[place]);
		value = strchr(step, '=');
		if (value)
			*value++ = 0;
		if (!strcmp(step, "scene")) {
			snprintf(what, sizeof what, "%s", value);
			continue;
		}
		if (kept < MOST * 2 + 1)
			kept_step[kept++] = argument[place];
		if (!strcmp(step, "fill"))
			fill();
		else if (!value)
			take(argument[place], RTLD_DEFAULT);
		else if (!strcmp(step, "open")) {
			if (!dlopen(value, RTLD_NOW | RTLD_LOCAL))
				return refused();
		} else if (!strcmp(step, "isolate") && !HAS(dlmopen)) {
			printf("program refused said=this libc has no dlmopen\n");
			return 3;
		} else {
			handle = !strcmp(step, "load") ? dlopen(value, RTLD_NOW | RTLD_LOCAL) :
							 dlmopen(LM_ID_NEWLM, value, RTLD_NOW | RTLD_LOCAL);
			if (!handle)
				return refused();
			if (place + 1 < count) {
				if (kept < MOST * 2 + 1)
					kept_step[kept++] = argument[place + 1];
				take(argument[++place], handle);
			}
		}
	}
	return play(what, kept_step);
}
