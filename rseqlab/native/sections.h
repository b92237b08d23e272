/* SPDX-License-Identifier: MIT */
/*
 * Critical sections, written once from the fragments of the architecture. What each does is said in
 * pseudo-code in rseqlab.h.
 *
 * Local labels: 1 start, 2 after the commit, 3 descriptor, 4 abort handler; fragments use 5 to 9. The
 * descriptor layout and the two section names are those that debuggers and checkpoint tools look for.
 */
#ifndef RSEQLAB_SECTIONS_H
#define RSEQLAB_SECTIONS_H

#include "rseqlab.h"

#if RL_SUPPORTED
# define RL_ASM_DESCRIPTOR					\
	".pushsection __rseq_cs, \"aw\"\n\t"			\
	".balign 32\n"						\
	"3:\n\t"						\
	".long 0, 0\n\t"		/* version, flags */	\
	".quad 1f, (2f - 1f), 4f\n\t"	/* start, length, abort */	\
	".popsection\n\t"					\
	".pushsection __rseq_cs_ptr_array, \"aw\"\n\t"		\
	".quad 3b\n\t"						\
	".popsection\n\t"
# define RL_ASM_END "2:\n\t"
#else
# define RL_ASM_DESCRIPTOR ""
# define RL_ASM_END ""
#endif

/* Numbered points inside a section at which an attack may strike; nothing in any other build. */
#ifdef RSEQLAB_ATTACK
# define RL_INJECT(site) RL_ASM_INJECT_AT(site)
#else
# define RL_INJECT(site) ""
#endif

/*
 * Mutants: sections with one thing wrong, which an attack must find out. They exist to show that the
 * attack tests bite.
 */
#if defined(RSEQLAB_MUTANT_NO_COMPARE)
# define RL_SECTION_BEGIN	RL_ASM_DESCRIPTOR RL_ASM_BEGIN
# define RL_SECTION_END		RL_ASM_END
#elif defined(RSEQLAB_MUTANT_NO_DESCRIPTOR)
# define RL_SECTION_BEGIN	RL_ASM_DESCRIPTOR "1:\n\t" RL_ASM_COMPARE_INDEX
# define RL_SECTION_END		RL_ASM_END
#elif defined(RSEQLAB_MUTANT_COMMIT_OUTSIDE)
# define RL_SECTION_BEGIN	RL_ASM_DESCRIPTOR RL_ASM_BEGIN RL_ASM_COMPARE_INDEX RL_ASM_END
# define RL_SECTION_END		""
#else
# define RL_SECTION_BEGIN	RL_ASM_DESCRIPTOR RL_ASM_BEGIN RL_ASM_COMPARE_INDEX
# define RL_SECTION_END		RL_ASM_END
#endif

/* The layout that the kernel reads through rseq_cs, as a C type for whoever inspects one. */
struct rl_descriptor {
	uint32_t version;
	uint32_t flags;
	uint64_t start_ip;
	uint64_t post_commit_offset_bytes;
	uint64_t abort_ip;
};
_Static_assert(sizeof(struct rl_descriptor) == 32, "ABI");
_Static_assert(offsetof(struct rl_descriptor, start_ip) == 8, "ABI");
_Static_assert(offsetof(struct rl_descriptor, abort_ip) == 24, "ABI");

/*
 * What follows a label that is reached after an abort only: gcc moves it away from the fast path. clang takes no such
 * word on a label, and lays out by what is declared cold.
 */
#if defined(__GNUC__) && !defined(__clang__)
# define RL_RARELY __attribute__((cold))
#else
# define RL_RARELY
#endif

#define RL_SECTION static inline __attribute__((always_inline)) enum rl_result

/*
 * Stands behind a section and at its labels, and is nothing. Without it clang cannot tell the ways out apart, since the
 * edges of an asm goto are not split: it puts the result into a register and tests it, four instructions on the fast
 * path. And gcc before 12.4 and 13.3 may lose a register that an asm goto writes (PR 113921).
 */
#define RL_ARRIVE() __asm__ volatile("")

/* What every section is given: where to announce itself, and the index that must still hold. */
#define RL_GUARD(at)							\
	[area] "r"(RL_AREA((at).offset_bytes)),				\
	[field] "m"(*(const uint32_t *)(RL_AREA((at).offset_bytes) + (ptrdiff_t)(at).by)),	\
	[index] "r"((at).index)

RL_SECTION rl_addv(struct rl_at at, intptr_t *v, intptr_t count)
{
	if (!RL_SUPPORTED)
		return RL_UNSUPPORTED;
	__asm__ volatile goto(
		RL_SECTION_BEGIN
		RL_INJECT(1)
		RL_ASM_ADD("v", "count")
		RL_SECTION_END
		RL_ASM_ABORT("aborted")
		: [v] RL_MEMORY(*v)
		: RL_GUARD(at), [count] RL_VALUE(count)
		: RL_CLOBBERS
		: aborted);
	RL_ARRIVE();
	return RL_COMMITTED;
aborted: RL_RARELY;
	RL_ARRIVE();
	return RL_ABORTED;
}

RL_SECTION rl_cmpeqv_storev(struct rl_at at, intptr_t *v, intptr_t expect, intptr_t value)
{
	if (!RL_SUPPORTED)
		return RL_UNSUPPORTED;
	__asm__ volatile goto(
		RL_SECTION_BEGIN
		RL_INJECT(1)
		RL_ASM_LEAVE_UNLESS_EQUAL("v", "expect", "differs")
		RL_INJECT(2)
		RL_ASM_STORE("v", "value")
		RL_SECTION_END
		RL_ASM_ABORT("aborted")
		: [v] RL_MEMORY(*v)
		: RL_GUARD(at), [expect] RL_VALUE(expect), [value] RL_VALUE(value)
		: RL_CLOBBERS
		: aborted, differs);
	RL_ARRIVE();
	return RL_COMMITTED;
differs:
	RL_ARRIVE();
	return RL_COMPARE_FAILED;
aborted: RL_RARELY;
	RL_ARRIVE();
	return RL_ABORTED;
}

/*
 * A distance that an instruction can hold as a constant takes no register and no instruction to get there: where the
 * compiler knows it, the section is stamped out with it. 255 is what any load of either architecture takes.
 */
#define RL_IS_SHORT(bytes) (__builtin_constant_p(bytes) && (bytes) >= 0 && (bytes) <= 255)

#define RL_TAKE_HEAD(FOLLOW, constraint)								\
	__asm__ volatile goto(									\
		RL_SECTION_BEGIN								\
		RL_INJECT(1)									\
		RL_ASM_LOAD_INTO("head", "v")							\
		RL_ASM_LEAVE_IF("head", "expect_not", "differs")				\
		FOLLOW("head", "next_bytes")							\
		RL_ASM_STORE_SCRATCH("v")							\
		RL_SECTION_END									\
		RL_ASM_ABORT("aborted")								\
		: [v] RL_MEMORY(*v), [head] "=&r"(head)						\
		: RL_GUARD(at), [expect_not] RL_VALUE(expect_not), [next_bytes] constraint(next_bytes)	\
		: RL_CLOBBERS									\
		: aborted, differs)

/* What was taken stays in a register: through memory it would come back only after a store was forwarded. */
RL_SECTION rl_cmpnev_storeoffp_load(struct rl_at at, intptr_t *v, intptr_t expect_not, ptrdiff_t next_bytes,
				    intptr_t *load)
{
	intptr_t head;

	if (!RL_SUPPORTED)
		return RL_UNSUPPORTED;
	if (RL_IS_SHORT(next_bytes))
		RL_TAKE_HEAD(RL_ASM_FOLLOW_BY, "i");
	else
		RL_TAKE_HEAD(RL_ASM_FOLLOW, "r");
	RL_ARRIVE();
	*load = head;
	return RL_COMMITTED;
differs:
	RL_ARRIVE();
	return RL_COMPARE_FAILED;
aborted: RL_RARELY;
	RL_ARRIVE();
	return RL_ABORTED;
}

RL_SECTION rl_offset_deref_addv(struct rl_at at, intptr_t *v, ptrdiff_t offset_bytes, intptr_t count)
{
	if (!RL_SUPPORTED)
		return RL_UNSUPPORTED;
	__asm__ volatile goto(
		RL_SECTION_BEGIN
		RL_INJECT(1)
		RL_ASM_LOAD("v")
		RL_ASM_FOLLOW_SCRATCH_AT("offset_bytes")
		RL_ASM_ADD_TO_SCRATCH("count")
		RL_SECTION_END
		RL_ASM_ABORT("aborted")
		: [v] RL_MEMORY(*v)
		: RL_GUARD(at), [offset_bytes] "r"(offset_bytes), [count] RL_VALUE(count)
		: RL_CLOBBERS
		: aborted);
	RL_ARRIVE();
	return RL_COMMITTED;
aborted: RL_RARELY;
	RL_ARRIVE();
	return RL_ABORTED;
}

RL_SECTION rl_deref_cmpeqv_storev(struct rl_at at, intptr_t **v, intptr_t expect, intptr_t value)
{
	if (!RL_SUPPORTED)
		return RL_UNSUPPORTED;
	__asm__ volatile goto(
		RL_SECTION_BEGIN
		RL_INJECT(1)
		RL_ASM_LOAD_BOX("v")
		RL_INJECT(2)
		RL_ASM_LEAVE_UNLESS_BOX_HOLDS("expect", "differs")
		RL_INJECT(3)
		RL_ASM_STORE_TO_BOX("value")
		RL_SECTION_END
		RL_ASM_ABORT("aborted")
		: [v] RL_MEMORY(*v)
		: RL_GUARD(at), [expect] RL_VALUE(expect), [value] RL_VALUE(value)
		: RL_CLOBBERS_BOX
		: aborted, differs);
	RL_ARRIVE();
	return RL_COMMITTED;
differs:
	RL_ARRIVE();
	return RL_COMPARE_FAILED;
aborted: RL_RARELY;
	RL_ARRIVE();
	return RL_ABORTED;
}

#define RL_TAKE_HEAD_OF_BOX(FOLLOW, constraint)							\
	__asm__ volatile goto(									\
		RL_SECTION_BEGIN								\
		RL_INJECT(1)									\
		RL_ASM_LOAD_BOX("v")								\
		RL_INJECT(2)									\
		RL_ASM_LOAD_FROM_BOX_INTO("head")						\
		RL_ASM_LEAVE_IF("head", "expect_not", "differs")				\
		FOLLOW("head", "next_bytes")							\
		RL_ASM_STORE_SCRATCH_TO_BOX							\
		RL_SECTION_END									\
		RL_ASM_ABORT("aborted")								\
		: [v] RL_MEMORY(*v), [head] "=&r"(head)						\
		: RL_GUARD(at), [expect_not] RL_VALUE(expect_not), [next_bytes] constraint(next_bytes)	\
		: RL_CLOBBERS_BOX								\
		: aborted, differs)

RL_SECTION rl_deref_cmpnev_storeoffp_load(struct rl_at at, intptr_t **v, intptr_t expect_not, ptrdiff_t next_bytes,
					  intptr_t *load)
{
	intptr_t head;

	if (!RL_SUPPORTED)
		return RL_UNSUPPORTED;
	if (RL_IS_SHORT(next_bytes))
		RL_TAKE_HEAD_OF_BOX(RL_ASM_FOLLOW_BY, "i");
	else
		RL_TAKE_HEAD_OF_BOX(RL_ASM_FOLLOW, "r");
	RL_ARRIVE();
	*load = head;
	return RL_COMMITTED;
differs:
	RL_ARRIVE();
	return RL_COMPARE_FAILED;
aborted: RL_RARELY;
	RL_ARRIVE();
	return RL_ABORTED;
}

/* Two orders of the last store, stamped out: relaxed, and release for readers on other CPUs. */
#define RL_DEFINE_STORING_SECTIONS(suffix, STORE_LAST)						\
RL_SECTION rl_cmpeqv_trystorev_storev##suffix(struct rl_at at, intptr_t *v, intptr_t expect,	\
					      intptr_t *v2, intptr_t value2, intptr_t value)	\
{												\
	if (!RL_SUPPORTED)									\
		return RL_UNSUPPORTED;								\
	__asm__ volatile goto(									\
		RL_SECTION_BEGIN								\
		RL_INJECT(1)									\
		RL_ASM_LEAVE_UNLESS_EQUAL("v", "expect", "differs")				\
		RL_INJECT(2)									\
		RL_ASM_STORE("v2", "value2")							\
		RL_INJECT(3)									\
		STORE_LAST("v", "value")							\
		RL_SECTION_END									\
		RL_ASM_ABORT("aborted")								\
		: [v] RL_MEMORY(*v), [v2] RL_MEMORY(*v2)					\
		: RL_GUARD(at), [expect] RL_VALUE(expect),					\
		  [value2] RL_VALUE(value2), [value] RL_VALUE(value)				\
		: RL_CLOBBERS									\
		: aborted, differs);								\
	RL_ARRIVE();										\
	return RL_COMMITTED;									\
differs:											\
	RL_ARRIVE();										\
	return RL_COMPARE_FAILED;								\
aborted: RL_RARELY;										\
	RL_ARRIVE();										\
	return RL_ABORTED;									\
}												\
												\
RL_SECTION rl_cmpeqv_trymemcpy_storev##suffix(struct rl_at at, intptr_t *v, intptr_t expect,	\
					      void *to, const void *from, size_t length_bytes,	\
					      intptr_t value)					\
{												\
	if (!RL_SUPPORTED)									\
		return RL_UNSUPPORTED;								\
	__asm__ volatile goto(									\
		RL_SECTION_BEGIN								\
		RL_INJECT(1)									\
		RL_ASM_LEAVE_UNLESS_EQUAL("v", "expect", "differs")				\
		RL_INJECT(2)									\
		RL_ASM_COPY("to", "from", "length_bytes")					\
		RL_INJECT(3)									\
		STORE_LAST("v", "value")							\
		RL_SECTION_END									\
		RL_ASM_ABORT("aborted")								\
		: [v] RL_MEMORY(*v)								\
		: RL_GUARD(at), [expect] RL_VALUE(expect), [to] "r"(to), [from] "r"(from),	\
		  [length_bytes] RL_LENGTH(length_bytes), [value] RL_VALUE(value)			\
		: RL_CLOBBERS_COPY								\
		: aborted, differs);								\
	RL_ARRIVE();										\
	return RL_COMMITTED;									\
differs:											\
	RL_ARRIVE();										\
	return RL_COMPARE_FAILED;								\
aborted: RL_RARELY;										\
	RL_ARRIVE();										\
	return RL_ABORTED;									\
}

RL_DEFINE_STORING_SECTIONS(, RL_ASM_STORE)
RL_DEFINE_STORING_SECTIONS(_release, RL_ASM_STORE_RELEASE)

RL_SECTION rl_cmpeqv_cmpeqv_storev(struct rl_at at, intptr_t *v, intptr_t expect, intptr_t *v2,
				   intptr_t expect2, intptr_t value)
{
	if (!RL_SUPPORTED)
		return RL_UNSUPPORTED;
	__asm__ volatile goto(
		RL_SECTION_BEGIN
		RL_INJECT(1)
		RL_ASM_LEAVE_UNLESS_EQUAL("v", "expect", "differs")
		RL_INJECT(2)
		RL_ASM_LEAVE_UNLESS_EQUAL("v2", "expect2", "differs")
		RL_INJECT(3)
		RL_ASM_STORE("v", "value")
		RL_SECTION_END
		RL_ASM_ABORT("aborted")
		: [v] RL_MEMORY(*v), [v2] RL_MEMORY(*v2)
		: RL_GUARD(at), [expect] RL_VALUE(expect), [expect2] RL_VALUE(expect2), [value] RL_VALUE(value)
		: RL_CLOBBERS
		: aborted, differs);
	RL_ARRIVE();
	return RL_COMMITTED;
differs:
	RL_ARRIVE();
	return RL_COMPARE_FAILED;
aborted: RL_RARELY;
	RL_ARRIVE();
	return RL_ABORTED;
}

#endif
