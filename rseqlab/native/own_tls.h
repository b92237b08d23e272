/* SPDX-License-Identifier: MIT */
/*
 * An area of our own in initial-exec TLS: the `__rseq_abi` of the July 2020 thread, under another name.
 * It is a library of its own because a loader may refuse it (static TLS used up, or an alignment that
 * the threads do not have), and that must not keep the rest from loading.
 */
#ifndef RSEQLAB_OWN_TLS_H
#define RSEQLAB_OWN_TLS_H

#include "rseqlab.h"

void *rl_own_tls_area(void);		/* the calling thread's: 32 bytes, aligned to 32 */

/* As rl_read_loop, with the offset loaded from the GOT each time, as initial-exec code does. */
int64_t rl_own_tls_read_loop(enum rl_order order, uint64_t iterations, uint64_t *sum);

#endif
