/* SPDX-License-Identifier: MIT */
/*
 * The same operations by librseq's own headers, which the reader has and this project does not: RSEQLAB_PEER
 * is the header to include. They come with the names that librseq has since 2024 (RSEQLAB_PEER_NAMES_2024) or
 * with those that it had before and that the copy among the Linux kernel's selftests has.
 */
#ifndef RSEQLAB_PEER_LOOPS_H
#define RSEQLAB_PEER_LOOPS_H

#include RSEQLAB_PEER

#ifdef RSEQLAB_PEER_NAMES_2024
# define PEER_ADD			rseq_load_add_store__ptr
# define PEER_COMPARE_STORE		rseq_load_cbne_store__ptr
# define PEER_TAKE			rseq_load_cbeq_store_add_load_store__ptr
# define PEER_COMPARE_STORE_STORE	rseq_load_cbne_store_store__ptr
# define PEER_COMPARE_COMPARE_STORE	rseq_load_cbne_load_cbne_store__ptr
# define PEER_COMPARE_COPY_STORE	rseq_load_cbne_memcpy_store__ptr
# define PEER_ADD_THROUGH		rseq_load_add_load_load_add_store__ptr
#else
# define PEER_ADD			rseq_addv
# define PEER_COMPARE_STORE		rseq_cmpeqv_storev
# define PEER_TAKE			rseq_cmpnev_storeoffp_load
# define PEER_COMPARE_STORE_STORE	rseq_cmpeqv_trystorev_storev
# define PEER_COMPARE_COMPARE_STORE	rseq_cmpeqv_cmpeqv_storev
# define PEER_COMPARE_COPY_STORE	rseq_cmpeqv_trymemcpy_storev
# define PEER_ADD_THROUGH		rseq_offset_deref_addv
#endif
#if defined(RSEQ_ARCH_HAS_OFFSET_DEREF_ADDV) || defined(rseq_arch_has_load_add_load_load_add_store)
# define PEER_HAS_ADD_THROUGH		/* not on every architecture */
#endif

/* What their library would define; here, so that the compiler reaches it without a detour by the GOT. */
ptrdiff_t rseq_offset;
unsigned int rseq_size, rseq_flags, rseq_feature_size;

/* They read cpu_id_start where these loops read cpu_id: on a registered thread both hold the same. */
#define PEER_AT ((struct rl_at){ 0, RL_BY_CPU_ID, rseq_cpu_start() })

/* 0 committed, 1 compare failed, -1 aborted */
#define PEER_RESULT(answer)							\
	({ const int answer_ = (answer);					\
	   !answer_ ? RL_COMMITTED : answer_ > 0 ? RL_COMPARE_FAILED : RL_ABORTED; })
#define PEER(operation, order, ...)						\
	PEER_RESULT(operation(RSEQ_MO_##order, RSEQ_PERCPU_CPU_ID, __VA_ARGS__, (int)at.index))
#define PEER_COPY_OF(order, bytes)						\
	PEER(PEER_COMPARE_COPY_STORE, order, &slot->value, i, slot->to, bench->from, bytes, next)

/* As SECTIONS in section_loops.h, under our names. */
#define PEER_SECTIONS(X, ...)									\
	X(addv, 0, COUNTS, nothing, PEER(PEER_ADD, RELAXED, &slot->value, 1), __VA_ARGS__)	\
	X(cmpeqv_storev, 0, COUNTS, turns, PEER(PEER_COMPARE_STORE, RELAXED, &slot->value, i, next), __VA_ARGS__)	\
	X(cmpnev_storeoffp_load, 0, TAKES, nothing,						\
	  PEER(PEER_TAKE, RELAXED, &slot->value, 0, offsetof(struct node, next), &bench->loaded), __VA_ARGS__)	\
	X(cmpeqv_trystorev_storev, 0, COUNTS_AND_STORES, turns,					\
	  PEER(PEER_COMPARE_STORE_STORE, RELAXED, &slot->value, i, &slot->second, i, next), __VA_ARGS__)	\
	X(cmpeqv_trystorev_storev_release, 0, COUNTS_AND_STORES, turns,				\
	  PEER(PEER_COMPARE_STORE_STORE, RELEASE, &slot->value, i, &slot->second, i, next), __VA_ARGS__)	\
	X(cmpeqv_cmpeqv_storev, 0, COUNTS, turns,						\
	  PEER(PEER_COMPARE_COMPARE_STORE, RELAXED, &slot->value, i, &slot->second, 0, next), __VA_ARGS__)	\
	X(cmpeqv_trymemcpy_storev, 8, COUNTS_AND_COPIES, turns, PEER_COPY_OF(RELAXED, 8), __VA_ARGS__)	\
	X(cmpeqv_trymemcpy_storev, 16, COUNTS_AND_COPIES, turns, PEER_COPY_OF(RELAXED, 16), __VA_ARGS__)	\
	X(cmpeqv_trymemcpy_storev, 64, COUNTS_AND_COPIES, turns, PEER_COPY_OF(RELAXED, 64), __VA_ARGS__)	\
	X(cmpeqv_trymemcpy_storev, 256, COUNTS_AND_COPIES, turns, PEER_COPY_OF(RELAXED, 256), __VA_ARGS__)	\
	X(cmpeqv_trymemcpy_storev_release, 8, COUNTS_AND_COPIES, turns, PEER_COPY_OF(RELEASE, 8), __VA_ARGS__)	\
	X(cmpeqv_trymemcpy_storev_release, 16, COUNTS_AND_COPIES, turns, PEER_COPY_OF(RELEASE, 16), __VA_ARGS__)	\
	X(cmpeqv_trymemcpy_storev_release, 64, COUNTS_AND_COPIES, turns, PEER_COPY_OF(RELEASE, 64), __VA_ARGS__)	\
	X(cmpeqv_trymemcpy_storev_release, 256, COUNTS_AND_COPIES, turns, PEER_COPY_OF(RELEASE, 256), __VA_ARGS__)	\
	PEER_ADD_THROUGH_SECTION(X, __VA_ARGS__)

#ifdef PEER_HAS_ADD_THROUGH
# define PEER_ADD_THROUGH_SECTION(X, ...)							\
	X(offset_deref_addv, 0, COUNTS_THROUGH, nothing,					\
	  PEER(PEER_ADD_THROUGH, RELAXED, &slot->second, offsetof(struct slot, target), 1), __VA_ARGS__)
#else
# define PEER_ADD_THROUGH_SECTION(X, ...)
#endif

#endif
