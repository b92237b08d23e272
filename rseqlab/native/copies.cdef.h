/* What Python sees of copies.h in a library of its own (lab/builds.py). */

enum rl_copy_kind {
	RL_COPY_READ_THROUGHPUT, RL_COPY_READ_DEPENDENT, RL_COPY_SCHED_GETCPU, RL_COPY_COUNTER_RSEQ,
	RL_COPY_COUNTER_THREAD_LOCAL, RL_COPY_CHAIN, RL_COPY_CHAIN_PLUS_ONE, RL_COPY_KINDS
};
int64_t rl_copy_loop(enum rl_copy_kind kind, unsigned copy, ptrdiff_t offset_bytes, uint32_t indices,
		     uint64_t iterations, uint64_t *sum);
