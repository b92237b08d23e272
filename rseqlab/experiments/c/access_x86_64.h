/* SPDX-License-Identifier: MIT */
/*
 * x86_64: the instructions by which compilers find a thread's variable, spelt out, because a compiler
 * takes an address that stays the same out of the loop. Included by access.h only.
 */
/* An instruction that does nothing and that no compiler writes: 66 87 db. */
#define MARK		"xchgw %%bx, %%bx"
#define MARK_CODE	0xdb8766
#define MARK_BITS	0xffffff
#define PROGRAM_COUNTER	rip	/* in struct user_regs_struct */

#define THREAD_LOADS(type, mnemonic, register_)					\
	static inline type load_tp_##type(uintptr_t offset_bytes, long displacement)	\
	{										\
		register_ value;							\
											\
		__asm__ volatile(mnemonic " %%fs:%c2(%1), %0"				\
				 : "=r"(value) : "r"(offset_bytes), "i"(displacement));	\
		return value;								\
	}										\
	static inline type load_at_##type(uintptr_t address, long displacement)		\
	{										\
		register_ value;							\
											\
		__asm__ volatile(mnemonic " %c2(%1), %0"				\
				 : "=r"(value) : "r"(address), "i"(displacement));	\
		return value;								\
	}

THREAD_LOADS(uint16_t, "movzwl", uint32_t)
THREAD_LOADS(uint32_t, "movl", uint32_t)
THREAD_LOADS(uint64_t, "movq", uint64_t)

#define load32_at(address, displacement) load_at_uint32_t(address, displacement)
#define load32_from_thread_pointer(offset_bytes, displacement) load_tp_uint32_t(offset_bytes, displacement)

/* initial-exec: the offset from the GOT. */
#define PLACE_INITIAL_EXEC(symbol)	((uintptr_t)RL_LOAD_TLS_OFFSET(symbol))
#define LOAD16_INITIAL_EXEC(symbol, place, displacement)	load_tp_uint16_t(place, displacement)
#define LOAD32_INITIAL_EXEC(symbol, place, displacement)	load_tp_uint32_t(place, displacement)
#define LOAD64_INITIAL_EXEC(symbol, place, displacement)	load_tp_uint64_t(place, displacement)

/* Descriptor: a call that keeps every register but its result. */
#define PLACE_DESCRIPTOR(symbol)							\
	({ uintptr_t offset_;								\
	   __asm__ volatile("leaq " #symbol "@tlsdesc(%%rip), %%rax\n\t"		\
			    "call *" #symbol "@tlscall(%%rax)"				\
			    : "=a"(offset_) : : "cc", "memory");			\
	   offset_; })
#define LOAD16_DESCRIPTOR(symbol, place, displacement)	load_tp_uint16_t(place, displacement)
#define LOAD32_DESCRIPTOR(symbol, place, displacement)	load_tp_uint32_t(place, displacement)
#define LOAD64_DESCRIPTOR(symbol, place, displacement)	load_tp_uint64_t(place, displacement)

/* Traditional global-dynamic: an ordinary call, in the form that linkers know. */
#define PLACE_GLOBAL_DYNAMIC(symbol)							\
	({ uintptr_t address_;								\
	   __asm__ volatile(".byte 0x66\n\t"						\
			    "leaq " #symbol "@tlsgd(%%rip), %%rdi\n\t"			\
			    ".value 0x6666\n\t"						\
			    "rex64\n\t"							\
			    "call __tls_get_addr@PLT"					\
			    : "=a"(address_) : : "rdi", "rsi", "rdx", "rcx", "r8", "r9", "r10", "r11",	\
			      "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8",	\
			      "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15",	\
			      "cc", "memory");						\
	   address_; })
#define LOAD16_GLOBAL_DYNAMIC(symbol, place, displacement)	load_at_uint16_t(place, displacement)
#define LOAD32_GLOBAL_DYNAMIC(symbol, place, displacement)	load_at_uint32_t(place, displacement)
#define LOAD64_GLOBAL_DYNAMIC(symbol, place, displacement)	load_at_uint64_t(place, displacement)

/* local-exec: the offset is part of the instruction. */
#define PLACE_LOCAL_EXEC(symbol)	((uintptr_t)0)
#define LOCAL_EXEC_LOAD(register_, mnemonic, symbol, place, displacement)		\
	({ register_ value_;								\
	   __asm__ volatile(mnemonic " %%fs:" #symbol "@tpoff+%c2(%1), %0"		\
			    : "=r"(value_) : "r"(place), "i"(displacement));		\
	   value_; })
#define LOAD16_LOCAL_EXEC(symbol, place, displacement)	\
	LOCAL_EXEC_LOAD(uint32_t, "movzwl", symbol, place, displacement)
#define LOAD32_LOCAL_EXEC(symbol, place, displacement)	\
	LOCAL_EXEC_LOAD(uint32_t, "movl", symbol, place, displacement)
#define LOAD64_LOCAL_EXEC(symbol, place, displacement)	\
	LOCAL_EXEC_LOAD(uint64_t, "movq", symbol, place, displacement)

/* An exported 32-bit variable of another library, through the GOT. */
#define LOAD32_EXPORTED(symbol)								\
	({ uint32_t value_;								\
	   uintptr_t at_;								\
	   __asm__ volatile("movq " #symbol "@GOTPCREL(%%rip), %1\n\t"			\
			    "movl (%1), %0" : "=r"(value_), "=&r"(at_));		\
	   value_; })
