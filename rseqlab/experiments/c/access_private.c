/* SPDX-License-Identifier: MIT */
/*
 * A library with an area of its own, for dlopen. MODEL, LABEL and BALLAST_BYTES (other thread-local data
 * of the library) are the build's. Where the loader has static TLS to spare it may place a small one
 * there, if only descriptors ask for it; a large one it cannot.
 */
#include "access.h"

__thread struct large_area rl_dlopened_own = SMALL_INITIAL;
#if BALLAST_BYTES
__thread char rl_dlopened_ballast[BALLAST_BYTES] = { 1 };
#endif

DEFINE_ACCESS(own, 1, READ_PLAIN_BY(MODEL, rl_dlopened_own, LARGE_FIELD))

static const struct rl_access accesses[] = { { LABEL, own } };
const struct rl_access_table rl_access_table = { accesses, 1 };
