/* SPDX-License-Identifier: MIT */
/*
 * System calls and little else: a program that includes this needs no libc, so the same file runs under any
 * libc's loader and says what that libc did before it. Every call returns its value or -errno.
 */
#ifndef RSEQLAB_BARE_H
#define RSEQLAB_BARE_H

#include <asm/unistd.h>
#include <stddef.h>
#include <stdint.h>

#ifndef __NR_rseq	/* headers older than the call */
# if defined(__x86_64__)
#  define __NR_rseq 334
# else
#  define __NR_rseq 293
# endif
#endif

#if defined(__x86_64__)
static inline long call6(long number, long a, long b, long c, long d, long e, long f)
{
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;
	long answer;

	__asm__ volatile("syscall" : "=a"(answer)
			 : "0"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return answer;
}

static inline char *thread_pointer(void)
{
	char *pointer;

	__asm__("movq %%fs:0, %0" : "=r"(pointer));
	return pointer;
}

# define SIGNATURE 0x53053053u
/* The stack as the kernel or the loader left it goes to begin(). */
__asm__(".globl _start\n_start:\n\txorl %ebp, %ebp\n\tmovq %rsp, %rdi\n\tandq $-16, %rsp\n\tcall begin\n\thlt\n");
/* A new thread starts here with its function and argument on its stack. */
__asm__("thread_entry:\n\tpopq %rax\n\tpopq %rdi\n\tcall *%rax\n\txorl %edi, %edi\n\tmovl $60, %eax\n\tsyscall\n");
__asm__("restorer:\n\tmovl $15, %eax\n\tsyscall\n");
#elif defined(__aarch64__)
static inline long call6(long number, long a, long b, long c, long d, long e, long f)
{
	register long x8 __asm__("x8") = number;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d;
	register long x4 __asm__("x4") = e;
	register long x5 __asm__("x5") = f;

	__asm__ volatile("svc #0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
	return x0;
}

static inline char *thread_pointer(void)
{
	char *pointer;

	__asm__("mrs %0, tpidr_el0" : "=r"(pointer));
	return pointer;
}

# define SIGNATURE 0xd428bc00u
__asm__(".globl _start\n_start:\n\tmov x29, #0\n\tmov x0, sp\n\tbl begin\n");
__asm__("thread_entry:\n\tldp x1, x0, [sp], #16\n\tblr x1\n\tmov x0, #0\n\tmov x8, #93\n\tsvc #0\n");
__asm__("restorer:\n\tmov x8, #139\n\tsvc #0\n");
#else
# error "no port for this architecture"
#endif

#define CALL(name, a, b, c, d, e, f) \
	call6(__NR_##name, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))
#define CALL4(name, a, b, c, d) CALL(name, a, b, c, d, 0, 0)
#define CALL3(name, a, b, c) CALL(name, a, b, c, 0, 0, 0)
#define CALL2(name, a, b) CALL(name, a, b, 0, 0, 0, 0)
#define CALL1(name, a) CALL(name, a, 0, 0, 0, 0, 0)
#define CALL0(name) CALL(name, 0, 0, 0, 0, 0, 0)

/* The numbers of the ABI that this needs, so that no libc header is. */
enum { SIGHUP_ = 1, SIGKILL_ = 9, SIGUSR1_ = 10, SIGSEGV_ = 11, SIGALRM_ = 14, SIGCHLD_ = 17, SIGSTOP_ = 19, SIGVTALRM_ = 26 };
enum { MAP_SHARED_ = 1, MAP_PRIVATE_ = 2, MAP_ANONYMOUS_ = 0x20, PROT_READ_ = 1, PROT_WRITE_ = 2 };
enum { PAGE = 4096 };

struct time { int64_t seconds, nanoseconds; };

/* The compiler may ask for these by name. */
__attribute__((visibility("hidden"))) void *memset(void *to, int byte, size_t length)
{
	char *place = to;

	while (length--) {
		*place++ = (char)byte;
		__asm__ volatile("" ::: "memory");	/* or it becomes a call of itself */
	}
	return to;
}

__attribute__((visibility("hidden"))) void *memcpy(void *to, const void *from, size_t length)
{
	char *place = to;
	const char *source = from;

	while (length--) {
		*place++ = *source++;
		__asm__ volatile("" ::: "memory");
	}
	return to;
}

static inline size_t length_of(const char *text)
{
	size_t length = 0;

	while (text[length])
		length++;
	return length;
}

static inline int same(const char *a, const char *b)
{
	while (*a && *a == *b)
		a++, b++;
	return *a == *b;
}

static inline void *map(size_t bytes, int protection, int shared)
{
	const long answer = CALL(mmap, 0, bytes, protection,
				 (shared ? MAP_SHARED_ : MAP_PRIVATE_) | MAP_ANONYMOUS_, -1, 0);

	return answer < 0 && answer > -PAGE ? NULL : (void *)answer;
}

static inline void leave_program(int code)
{
	CALL1(exit_group, code);
	__builtin_unreachable();
}

static inline long fork_process(void)
{
	return CALL(clone, SIGCHLD_, 0, 0, 0, 0, 0);
}

static inline long wait_for(long pid, int *status, int options)
{
	return CALL4(wait4, pid, status, options, 0);
}

static inline void sleep_ns(int64_t ns)
{
	struct time length = { ns / 1000000000, ns % 1000000000 };

	CALL2(nanosleep, &length, 0);
}

static inline long use_cpu(int cpu)
{
	unsigned long mask[16] = { 0 };

	mask[cpu / 64] = 1ul << cpu % 64;
	return CALL3(sched_setaffinity, 0, sizeof(mask), mask);
}

static inline long own_id(void)
{
	return CALL0(getpid);
}

extern void restorer(void) __attribute__((visibility("hidden")));

static inline long on_signal(int number, void (*handler)(int))
{
	struct { void (*handler)(int); unsigned long flags; void (*restorer)(void); unsigned long mask; } action = {
		handler, 0x04000000ul /* SA_RESTORER */, restorer, 0
	};

	return CALL4(rt_sigaction, number, &action, 0, sizeof(action.mask));
}

extern void thread_entry(void) __attribute__((visibility("hidden")));

/* Starts a thread on a stack of 64 KiB; `gone` is 1 until it has ended. Its thread pointer is its creator's. */
static inline long start_thread(void (*function)(void *), void *argument, int *gone)
{
	enum { STACK = 65536 };
	char *stack = map(STACK, PROT_READ_ | PROT_WRITE_, 0);
	void **top = (void **)(stack + STACK - 16);
	long answer;

	if (!stack)
		return -12;
	top[0] = (void *)function;
	top[1] = argument;
	__atomic_store_n(gone, 1, __ATOMIC_SEQ_CST);
	/* VM, FS, FILES, SIGHAND, THREAD, SYSVSEM, CHILD_CLEARTID */
# if defined(__x86_64__)
	register long r10 __asm__("r10") = (long)gone;
	register long r8 __asm__("r8") = 0;

	__asm__ volatile("syscall\n\ttestq %%rax, %%rax\n\tjz thread_entry"
			 : "=a"(answer) : "0"(__NR_clone), "D"(0x00250f00l), "S"(top), "d"(0), "r"(r10), "r"(r8)
			 : "rcx", "r11", "memory");
# else
	register long x8 __asm__("x8") = __NR_clone;
	register long x0 __asm__("x0") = 0x00250f00l;
	register long x1 __asm__("x1") = (long)top;
	register long x2 __asm__("x2") = 0;
	register long x3 __asm__("x3") = 0;
	register long x4 __asm__("x4") = (long)gone;

	__asm__ volatile("svc #0\n\tcbnz x0, 1f\n\tb thread_entry\n1:"
			 : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4) : "memory");
	answer = x0;
# endif
	return answer < 0 ? answer : 0;
}

static inline void join_thread(int *gone)
{
	while (__atomic_load_n(gone, __ATOMIC_SEQ_CST))
		sleep_ns(200000);
}

#endif
