/* SPDX-License-Identifier: MIT */
/*
 * A library that reads the provider's areas, and one of its own, by one TLS model: MODEL and MODEL_NAME are
 * the build's. One model a library, because a linker that sees two for a symbol turns one into the other.
 * The library for initial-exec also has what needs no TLS symbol, and the size checks.
 */
#include "access.h"

#define PASTE(a, b) a##b
#define EXPAND(a, b) PASTE(a, b)

__thread struct large_area rl_consumer_own = SMALL_INITIAL;

extern __thread struct small_area rl_padding_abi;
extern __thread struct large_area rl_grow_abi, rl_version_abi;
extern __thread struct pointer_area rl_pointer_abi;
extern __thread struct handshake_area rl_handshake_abi;
extern ptrdiff_t rl_provider_offset;
extern uint32_t rl_provider_size;

DEFINE_ACCESS(private, 1, READ_PLAIN_BY(MODEL, rl_consumer_own, LARGE_FIELD))
DEFINE_ACCESS(grow, 1, READ_PLAIN_BY(MODEL, rl_grow_abi, LARGE_FIELD))
DEFINE_ACCESS(version, 1, READ_PLAIN_BY(MODEL, rl_version_abi, LARGE_FIELD))
DEFINE_ACCESS(pointer, 1, READ_BEHIND_POINTER_BY(MODEL, rl_pointer_abi))
DEFINE_ACCESS(handshake, 1, READ_PLAIN_BY(MODEL, rl_handshake_abi, LARGE_FIELD))
DEFINE_ACCESS(padding, 1, READ_PLAIN_BY(MODEL, rl_padding_abi, PADDING_FIELD))

#if WITH_CHECKS
/* What a library keeps from its start: libc's offset and size, or the kernel's feature size. */
static volatile ptrdiff_t kept_offset;
static volatile uint32_t kept_size;

__attribute__((constructor)) static void keep(void)
{
	kept_offset = rl_provider_offset;
	kept_size = rl_provider_size;
}

DEFINE_ACCESS(nothing, 1, rl_read_nothing(offset_bytes + after))
DEFINE_ACCESS(offset_exported, 1, READ_AT_OFFSET(RL_LOAD_EXPORTED(rl_provider_offset)))
DEFINE_ACCESS(offset_kept, 1, READ_AT_OFFSET(kept_offset))
DEFINE_ACCESS(offset_kept_again, 1, READ_AT_OFFSET(kept_offset))	/* the same code at another place */

DEFINE_ACCESS(grow_hoisted, kept_size >= LARGE_BYTES, READ_PLAIN(INITIAL_EXEC, rl_grow_abi, LARGE_FIELD))
DEFINE_ACCESS(grow_each, 1, READ_IF(kept_size, READ_PLAIN(INITIAL_EXEC, rl_grow_abi, LARGE_FIELD)))
DEFINE_ACCESS(pointer_each, 1, READ_BEHIND_POINTER_IF_SET(INITIAL_EXEC, rl_pointer_abi))
DEFINE_ACCESS(handshake_hoisted, LOAD16_INITIAL_EXEC(_, PLACE_INITIAL_EXEC(rl_handshake_abi), KERNEL_SIZE_AT) >=
				 LARGE_BYTES, READ_PLAIN(INITIAL_EXEC, rl_handshake_abi, LARGE_FIELD))
DEFINE_ACCESS(handshake_each, 1, READ_IF_AGREED(INITIAL_EXEC, rl_handshake_abi))
DEFINE_ACCESS(offset_exported_each, 1,
	      READ_IF(LOAD32_EXPORTED(rl_provider_size), READ_AT_OFFSET(RL_LOAD_EXPORTED(rl_provider_offset))))
DEFINE_ACCESS(offset_kept_hoisted, kept_size >= LARGE_BYTES, READ_AT_OFFSET(kept_offset))
DEFINE_ACCESS(offset_kept_each, 1, READ_IF(kept_size, READ_AT_OFFSET(kept_offset)))

#endif

#define LABEL(option) option " " MODEL_NAME " at-start none"

static const struct rl_access accesses[] = {
	{ LABEL("private"), private },
	{ LABEL("grow-symbol"), grow },
	{ LABEL("version-symbol"), version },
	{ LABEL("pointer"), pointer },
	{ LABEL("handshake"), handshake },
	{ LABEL("padding"), padding },
#if WITH_CHECKS
	{ "nothing", nothing },
	{ "offset-size offset-exported at-start none", offset_exported },
	{ "offset-size offset-kept at-start none", offset_kept },
	{ "offset-size offset-kept at-start none again", offset_kept_again },
	{ "grow-symbol initial-exec at-start hoisted", grow_hoisted },
	{ "grow-symbol initial-exec at-start each", grow_each },
	{ "pointer initial-exec at-start each", pointer_each },
	{ "handshake initial-exec at-start hoisted", handshake_hoisted },
	{ "handshake initial-exec at-start each", handshake_each },
	{ "offset-size offset-exported at-start each", offset_exported_each },
	{ "offset-size offset-kept at-start hoisted", offset_kept_hoisted },
	{ "offset-size offset-kept at-start each", offset_kept_each },
#endif
};

const struct rl_access_table EXPAND(rl_table_, MODEL) = { accesses, sizeof(accesses) / sizeof(*accesses) };
