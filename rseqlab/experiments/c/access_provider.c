/* SPDX-License-Identifier: MIT */
/* Plays libc: owns an area per option, and exports what each option lets a library see. */
#include "access.h"

__thread struct small_area rl_padding_abi = SMALL_INITIAL;
__thread struct large_area rl_grow_abi = SMALL_INITIAL;
__thread struct pointer_area rl_pointer_abi;
__thread struct handshake_area rl_handshake_abi = HANDSHAKE_INITIAL;

/* Two versions of one name, as a libc that grows its object under a new version would have to keep. */
__thread struct small_area rl_version_old = SMALL_INITIAL;
__thread struct large_area rl_version_new = SMALL_INITIAL;
__asm__(".symver rl_version_old, rl_version_abi@RL_1");
__asm__(".symver rl_version_new, rl_version_abi@@RL_2");

/* offset-size: nobody else names the area. */
static __thread struct large_area area = SMALL_INITIAL;
ptrdiff_t rl_provider_offset;
uint32_t rl_provider_size = LARGE_BYTES;

__attribute__((constructor)) static void find_offset(void)
{
	rl_provider_offset = (char *)&area - (char *)rl_thread_pointer();
}

void rl_provider_thread(struct large_area *extended)
{
	rl_pointer_abi.extended = extended;
}
