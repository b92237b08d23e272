/*
 * Runs every section on an area that nobody registered, whose fields are set by hand. That is enough to
 * see commit, compare and abort, on any architecture, also under a user-mode emulator without rseq.
 */
#include "rseqlab.h"
#include "sections.h"

#include <stdio.h>
#include <string.h>

static _Alignas(64) struct rl_area area;

struct node {
	intptr_t payload;
	struct node *next;
};

enum { LONGEST = 50 };	/* bytes: every combination of the steps in which a section copies */

static const char *const names[] = { "committed", "compare failed", "aborted", "unsupported" };

#define SHOW(what, section) printf("%s %s: %s\n", by_name, what, names[section])

/* Nothing else sees this copy, so only what the section says of its operands keeps the compiler from guessing. */
static int copied_in_registers(struct rl_at at, intptr_t *v, char first, char last)
{
	char from[16] = { [0] = first, [15] = last }, to[16] = { 0 };

	rl_cmpeqv_trymemcpy_storev(at, v, *v, to, from, sizeof(from), *v);
	return to[0] == first && to[15] == last;
}

static void run(const char *by_name, struct rl_at at)
{
	struct node second = { 2, NULL }, first = { 1, &second };
	intptr_t v = 40, v2 = 0, load = 0, head = (intptr_t)&first;
	intptr_t *leads_to_v = &v, **box = &leads_to_v, *leads_to_head = &head;
	char from[LONGEST] = "payload", to[LONGEST + 1] = "";
	char copied[sizeof("payload")];
	int length_bytes, right = 0;
	struct rl_at elsewhere = at;

	elsewhere.index++;
	SHOW("addv", rl_addv(at, &v, 2));
	SHOW("addv elsewhere", rl_addv(elsewhere, &v, 2));
	SHOW("cmpeqv_storev", rl_cmpeqv_storev(at, &v, 42, 50));
	SHOW("cmpeqv_storev other", rl_cmpeqv_storev(at, &v, 42, 51));
	SHOW("cmpeqv_storev elsewhere", rl_cmpeqv_storev(elsewhere, &v, 50, 51));
	SHOW("cmpnev_storeoffp_load", rl_cmpnev_storeoffp_load(at, &head, 0, offsetof(struct node, next), &load));
	printf("head is second %d, loaded first %d\n", head == (intptr_t)&second, load == (intptr_t)&first);
	head = 0;
	SHOW("cmpnev_storeoffp_load empty", rl_cmpnev_storeoffp_load(at, &head, 0, offsetof(struct node, next), &load));
	SHOW("cmpeqv_trystorev_storev", rl_cmpeqv_trystorev_storev(at, &v, 50, &v2, 7, 60));
	SHOW("cmpeqv_trystorev_storev_release", rl_cmpeqv_trystorev_storev_release(at, &v, 60, &v2, 8, 61));
	SHOW("cmpeqv_trystorev_storev other", rl_cmpeqv_trystorev_storev(at, &v, 50, &v2, 9, 60));
	SHOW("cmpeqv_cmpeqv_storev", rl_cmpeqv_cmpeqv_storev(at, &v, 61, &v2, 8, 70));
	SHOW("cmpeqv_cmpeqv_storev other", rl_cmpeqv_cmpeqv_storev(at, &v, 70, &v2, 9, 71));
	SHOW("cmpeqv_trymemcpy_storev", rl_cmpeqv_trymemcpy_storev(at, &v, 70, to, from, sizeof("payload"), 80));
	SHOW("cmpeqv_trymemcpy_storev_release", rl_cmpeqv_trymemcpy_storev_release(at, &v, 80, to, from, 0, 81));
	SHOW("cmpeqv_trymemcpy_storev other", rl_cmpeqv_trymemcpy_storev(at, &v, 80, from, to, 4, 0));
	SHOW("offset_deref_addv", rl_offset_deref_addv(at, (intptr_t *)&box, 0, 5));
	SHOW("deref_cmpeqv_storev", rl_deref_cmpeqv_storev(at, &leads_to_v, 86, 90));
	SHOW("deref_cmpeqv_storev other", rl_deref_cmpeqv_storev(at, &leads_to_v, 86, 91));
	SHOW("deref_cmpeqv_storev elsewhere", rl_deref_cmpeqv_storev(elsewhere, &leads_to_v, 90, 91));
	head = (intptr_t)&first;
	SHOW("deref_cmpnev_storeoffp_load",
	     rl_deref_cmpnev_storeoffp_load(at, &leads_to_head, 0, offsetof(struct node, next), &load));
	printf("head is second %d, loaded first %d\n", head == (intptr_t)&second, load == (intptr_t)&first);
	head = 0;
	SHOW("deref_cmpnev_storeoffp_load empty",
	     rl_deref_cmpnev_storeoffp_load(at, &leads_to_head, 0, offsetof(struct node, next), &load));
	memcpy(copied, to, sizeof(copied));
	for (unsigned i = 0; i < LONGEST; i++)
		from[i] = 'A' + i;
	for (length_bytes = 0; length_bytes <= LONGEST; length_bytes++) {
		memset(to, '-', sizeof(to));
		right += rl_cmpeqv_trymemcpy_storev(at, &v, 90, to, from, length_bytes, 90) == RL_COMMITTED
			 && !memcmp(to, from, length_bytes) && to[length_bytes] == '-';
	}
	printf("%d lengths copied, no byte too many\n", right);
	printf("private copy %s\n", copied_in_registers(at, &v, by_name[0], by_name[1]) ? "seen" : "not seen");
	printf("v %ld, v2 %ld, copied %s\n", (long)v, (long)v2, copied);
}

int main(void)
{
	const ptrdiff_t offset_bytes = (char *)&area - (char *)rl_thread_pointer_of_caller();
	uint64_t sum = 0;

	area.cpu_id = 3;
	area.node_id = 5;
	area.mm_cid = 1;
	printf("arch %s\n", rl_arch());
	run("cpu_id", (struct rl_at){ offset_bytes, RL_BY_CPU_ID, 3 });
	run("node_id", (struct rl_at){ offset_bytes, RL_BY_NODE_ID, 5 });
	run("mm_cid", (struct rl_at){ offset_bytes, RL_BY_MM_CID, 1 });
	printf("rseq_cs %s\n", area.rseq_cs ? "set" : "not set");
	for (int order = 0; order < RL_ORDERS; order++) {
		const int64_t elapsed_ns = rl_read_loop(RL_READ_FIELD, order, offset_bytes, 8, &sum);
		printf("read %s, sum %d\n", elapsed_ns >= 0 ? "done" : "refused", (int)sum);
	}
	printf("wrong count %d\n", (int)rl_read_loop(RL_READ_FIELD, RL_THROUGHPUT, offset_bytes, 7, &sum));
	return 0;
}
