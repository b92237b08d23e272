/* SPDX-License-Identifier: MIT */
/*
 * Finds short words at any alignment, as fast as the bytes can be read: the census of files looks through
 * every byte of every ELF file, and whatever this costs beyond reading them is what the reader waits for.
 *
 * A block is looked at closely only where the second and the fourth byte of a word occur at their distance:
 * the same two places for all words, so that two loads serve them all. The compiler's own vectors carry this
 * to every architecture; on x86 it is built for AVX2 as well and chosen as the program is loaded.
 */
#include <string.h>

#include "rseqlab.h"

#define VECTOR_BYTES 32
#define BLOCK_BYTES (2 * VECTOR_BYTES)

typedef uint8_t vector __attribute__((vector_size(VECTOR_BYTES)));
typedef uint64_t lanes __attribute__((vector_size(VECTOR_BYTES)));

#if defined(__x86_64__) && defined(__GLIBC__) && defined(__has_attribute)
# if __has_attribute(target_clones)
#  define FOR_EACH_CPU __attribute__((target_clones("avx2", "default")))
# endif
#endif
#ifndef FOR_EACH_CPU
# define FOR_EACH_CPU
#endif

static uint32_t load(const uint8_t *at)
{
	return (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

/* How many words are looked for is known to the compiler, so that their bytes stay in registers. */
static inline __attribute__((always_inline)) size_t find(const uint8_t *bytes, size_t length_bytes,
							  const struct rl_word *words, size_t count,
							  struct rl_found *found, size_t capacity)
{
	vector second[RL_MAX_WORDS], fourth[RL_MAX_WORDS];
	size_t hits = 0, at = 0;

	for (size_t i = 0; i < count; i++) {
		second[i] = (vector){ 0 } + (uint8_t)(words[i].value >> 8);
		fourth[i] = (vector){ 0 } + (uint8_t)(words[i].value >> 24);
	}
	while (at + 4 <= length_bytes) {
		size_t end = at + BLOCK_BYTES;

		if (end + 4 <= length_bytes) {
			vector any = { 0 };
			lanes bits;

			for (size_t part = 0; part < BLOCK_BYTES; part += VECTOR_BYTES) {
				vector a, b;

				memcpy(&a, bytes + at + part + 1, VECTOR_BYTES);
				memcpy(&b, bytes + at + part + 3, VECTOR_BYTES);
				for (size_t i = 0; i < count; i++)
					any |= (vector)(a == second[i]) & (vector)(b == fourth[i]);
			}
			bits = (lanes)any;
			if (!(bits[0] | bits[1] | bits[2] | bits[3])) {
				at = end;
				continue;
			}
		} else {
			end = length_bytes - 3;
		}
		for (; at < end; at++) {
			uint32_t here = load(bytes + at);

			for (size_t i = 0; i < count; i++) {
				if ((here & words[i].mask) != words[i].value)
					continue;
				if (hits < capacity)
					found[hits] = (struct rl_found){ .offset_bytes = at, .word = i };
				hits++;
			}
		}
	}
	return hits;
}

FOR_EACH_CPU
size_t rl_find(const uint8_t *bytes, size_t length_bytes, const struct rl_word *words, size_t count,
	       struct rl_found *found, size_t capacity)
{
	switch (count) {
	case 3:		/* what x86_64 needs */
		return find(bytes, length_bytes, words, 3, found, capacity);
	case 7:		/* what aarch64 needs */
		return find(bytes, length_bytes, words, 7, found, capacity);
	default:
		return count > RL_MAX_WORDS ? 0 : find(bytes, length_bytes, words, count, found, capacity);
	}
}
