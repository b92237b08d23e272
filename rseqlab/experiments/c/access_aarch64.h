/* SPDX-License-Identifier: MIT */
/*
 * aarch64: the instructions by which compilers find a thread's variable, spelt out, because a compiler
 * takes an address that stays the same out of the loop. Included by access.h only.
 */
/* A hint that no processor knows does nothing, and no compiler writes it. */
#define MARK		"hint #42"
#define MARK_CODE	0xd503255f
#define MARK_BITS	0xffffffff
#define PROGRAM_COUNTER	pc	/* in struct user_regs_struct */

#define ADDRESS_LOAD(type, mnemonic, register_)						\
	static inline type load_at_##type(uintptr_t address, long displacement)		\
	{										\
		register_ value;							\
											\
		__asm__ volatile(mnemonic ", [%1, %2]"					\
				 : "=r"(value) : "r"(address), "i"(displacement));	\
		return value;								\
	}

ADDRESS_LOAD(uint16_t, "ldrh %w0", uint32_t)
ADDRESS_LOAD(uint32_t, "ldr %w0", uint32_t)
ADDRESS_LOAD(uint64_t, "ldr %0", uint64_t)

#define load32_at(address, displacement) load_at_uint32_t(address, displacement)
#define load32_from_thread_pointer(offset_bytes, displacement)				\
	load_at_uint32_t((uintptr_t)rl_thread_pointer() + (offset_bytes), displacement)

/* initial-exec: the offset from the GOT. */
#define PLACE_INITIAL_EXEC(symbol)	((uintptr_t)rl_thread_pointer() + RL_LOAD_TLS_OFFSET(symbol))
#define LOAD16_INITIAL_EXEC(symbol, place, displacement)	load_at_uint16_t(place, displacement)
#define LOAD32_INITIAL_EXEC(symbol, place, displacement)	load_at_uint32_t(place, displacement)
#define LOAD64_INITIAL_EXEC(symbol, place, displacement)	load_at_uint64_t(place, displacement)

/* Descriptor: a call that keeps every register but x0, x1 and x30. */
#define PLACE_DESCRIPTOR(symbol)							\
	({ register uintptr_t offset_ __asm__("x0");					\
	   __asm__ volatile("adrp x0, :tlsdesc:" #symbol "\n\t"				\
			    "ldr x1, [x0, :tlsdesc_lo12:" #symbol "]\n\t"		\
			    "add x0, x0, :tlsdesc_lo12:" #symbol "\n\t"			\
			    ".tlsdesccall " #symbol "\n\t"				\
			    "blr x1"							\
			    : "=r"(offset_) : : "x1", "x30", "cc", "memory");		\
	   (uintptr_t)rl_thread_pointer() + offset_; })
#define LOAD16_DESCRIPTOR(symbol, place, displacement)	load_at_uint16_t(place, displacement)
#define LOAD32_DESCRIPTOR(symbol, place, displacement)	load_at_uint32_t(place, displacement)
#define LOAD64_DESCRIPTOR(symbol, place, displacement)	load_at_uint64_t(place, displacement)

/* Traditional global-dynamic: an ordinary call, in the form that linkers know. */
#define PLACE_GLOBAL_DYNAMIC(symbol)							\
	({ register uintptr_t address_ __asm__("x0");					\
	   __asm__ volatile("adrp x0, :tlsgd:" #symbol "\n\t"				\
			    "add x0, x0, :tlsgd_lo12:" #symbol "\n\t"			\
			    "bl __tls_get_addr\n\t"					\
			    "nop"							\
			    : "=r"(address_) : : "x1", "x2", "x3", "x4", "x5", "x6", "x7", "x8", "x9",	\
			      "x10", "x11", "x12", "x13", "x14", "x15", "x16", "x17", "x18", "x30",	\
			      "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v16", "v17", "v18",	\
			      "v19", "v20", "v21", "v22", "v23", "v24", "v25", "v26", "v27", "v28",	\
			      "v29", "v30", "v31", "cc", "memory");			\
	   address_; })
#define LOAD16_GLOBAL_DYNAMIC(symbol, place, displacement)	load_at_uint16_t(place, displacement)
#define LOAD32_GLOBAL_DYNAMIC(symbol, place, displacement)	load_at_uint32_t(place, displacement)
#define LOAD64_GLOBAL_DYNAMIC(symbol, place, displacement)	load_at_uint64_t(place, displacement)

/* local-exec: the offset is part of two instructions. */
#define PLACE_LOCAL_EXEC(symbol)							\
	({ uintptr_t address_;								\
	   __asm__ volatile("add %0, %1, #:tprel_hi12:" #symbol ", lsl #12\n\t"		\
			    "add %0, %0, #:tprel_lo12_nc:" #symbol			\
			    : "=r"(address_) : "r"(rl_thread_pointer()));		\
	   address_; })
#define LOAD16_LOCAL_EXEC(symbol, place, displacement)	load_at_uint16_t(place, displacement)
#define LOAD32_LOCAL_EXEC(symbol, place, displacement)	load_at_uint32_t(place, displacement)
#define LOAD64_LOCAL_EXEC(symbol, place, displacement)	load_at_uint64_t(place, displacement)

/* An exported 32-bit variable of another library, through the GOT. */
#define LOAD32_EXPORTED(symbol)								\
	({ uint32_t value_;								\
	   uintptr_t at_;								\
	   __asm__ volatile("adrp %1, :got:" #symbol "\n\t"				\
			    "ldr %1, [%1, :got_lo12:" #symbol "]\n\t"			\
			    "ldr %w0, [%1]" : "=r"(value_), "=&r"(at_));		\
	   value_; })
