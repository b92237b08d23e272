/* What Python sees of the timed loops in a library of their own (lab/builds.py), which is opened without a compiler. */

enum rl_reader {
	RL_READ_NOTHING, RL_READ_FIELD, RL_READ_FIELD_AGAIN, RL_READ_FIELD_EXPORTED, RL_READ_FIELD_HOISTED,
	RL_READ_SCHED_GETCPU, RL_READ_VDSO, RL_READ_SYSCALL, RL_READERS
};
enum rl_order { RL_THROUGHPUT, RL_DEPENDENT, RL_FENCED, RL_ORDERS };
int64_t rl_read_loop(enum rl_reader reader, enum rl_order order, ptrdiff_t offset_bytes,
		     uint64_t iterations, uint64_t *sum);

struct rl_aborts { uint64_t moved; uint64_t migrated; uint64_t interrupted; };

struct rl_ops_job {
	int technique;
	uint32_t threads;
	uint64_t iterations;
	const int32_t *cpus;
	uint32_t indices;
	uint32_t stride_bytes;
	uint32_t storm_hz;
	uint32_t moves;
};
struct rl_ops_outcome {
	int64_t elapsed_ns;
	int64_t cpu_ns;
	uint64_t done;
	uint64_t handled;
	struct rl_aborts aborts;
	uint64_t switches;
	uint32_t slots_used;
	uint64_t resident_bytes;
};
const char *rl_ops_name(int technique);
int rl_ops_find(const char *name);
int rl_ops_run(const struct rl_ops_job *job, struct rl_ops_outcome *outcome);

enum rl_event {
	RL_EVENT_COMMIT, RL_EVENT_OTHER_INDEX, RL_EVENT_TRAP, RL_EVENT_TRAP_AGAIN, RL_EVENT_TRAP_ANNOUNCED,
	RL_EVENT_TRAP_INSIDE, RL_EVENTS
};
int64_t rl_event_loop(enum rl_event event, uint64_t iterations, ptrdiff_t offset_bytes, uint64_t *signals,
		      uint64_t *aborted);

enum rl_taker {
	RL_TAKER_FENCE_CPU, RL_TAKER_FENCE_ALL, RL_TAKER_MOVE, RL_TAKER_MUTEX, RL_TAKERS
};
struct rl_takeover_job {
	enum rl_taker how;
	uint32_t takeovers;
	uint32_t pause_ns;
	int32_t owner_cpu;
	int32_t taker_cpu;
	uint32_t indices;
	int32_t busy;
};
struct rl_takeover_outcome {
	int64_t taking_ns;
	int64_t owner_cpu_ns;
	uint64_t owner_pairs;
	uint64_t taken;
	struct rl_aborts aborts;
	uint64_t lost;
};
int rl_takeover_run(const struct rl_takeover_job *job, struct rl_takeover_outcome *outcome);
int rl_takeover_run_again(const struct rl_takeover_job *job, struct rl_takeover_outcome *outcome);
