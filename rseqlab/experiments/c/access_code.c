/* SPDX-License-Identifier: MIT */
/*
 * The reads of option-access-cost as a compiler writes them, one function each. TLS_MODEL is the build's;
 * "global-dynamic" gives descriptors where the dialect says so.
 */
#include <stddef.h>
#include <stdint.h>

#define FIELD_BYTES 64

struct small_area { char original[28]; uint32_t field; } __attribute__((aligned(32)));
struct large_area { char earlier[60]; uint32_t field; } __attribute__((aligned(64)));
struct pointer_area { char original[24]; struct large_area *extended; } __attribute__((aligned(32)));
struct handshake_area {
	char original[20];
	uint16_t user_size, kernel_size;
	char later[36];
	uint32_t field;
} __attribute__((aligned(64)));

#ifdef TLS_MODEL
# define AREA extern __thread __attribute__((tls_model(TLS_MODEL)))
AREA struct large_area own_area, grow_abi, version_abi;
AREA struct small_area padding_abi;
AREA struct pointer_area pointer_abi;
AREA struct handshake_area handshake_abi;
extern uint32_t feature_bytes __attribute__((visibility("hidden")));

uint32_t read_private_none(void) { return own_area.field; }
uint32_t read_grow_symbol_none(void) { return grow_abi.field; }
uint32_t read_version_symbol_none(void) { return version_abi.field; }
uint32_t read_padding_none(void) { return padding_abi.field; }
uint32_t read_pointer_none(void) { return pointer_abi.extended->field; }
uint32_t read_handshake_none(void) { return handshake_abi.field; }
uint32_t read_grow_symbol_each(void) { return feature_bytes >= FIELD_BYTES ? grow_abi.field : 0; }
uint32_t read_handshake_each(void)
{
	return handshake_abi.kernel_size >= FIELD_BYTES ? handshake_abi.field : 0;
}
uint32_t read_pointer_each(void) { return pointer_abi.extended ? pointer_abi.extended->field : 0; }
#else
# if KEPT
#  define OURS __attribute__((visibility("hidden")))
# else
#  define OURS
# endif
extern ptrdiff_t area_offset OURS;
extern uint32_t area_size OURS;

static inline const struct large_area *area(void)
{
	return (const struct large_area *)((char *)__builtin_thread_pointer() + area_offset);
}

uint32_t read_offset_size_none(void) { return area()->field; }
uint32_t read_offset_size_each(void) { return area_size >= FIELD_BYTES ? area()->field : 0; }
#endif
