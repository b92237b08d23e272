/* What Python sees of rseqlab.h. "..." is filled in by the compiler. */

#define RL_FLAG_UNREGISTER ...
#define RL_CPU_ID_UNINITIALIZED ...
#define RL_CPU_ID_REGISTRATION_FAILED ...
#define RL_ORIGINAL_SIZE_BYTES ...
#define RL_SLOT_BYTES ...

struct rl_configuration {
	uint64_t pointer;
	uint32_t size_bytes;
	uint32_t signature;
	uint32_t flags;
	...;
};

const char *rl_arch(void);
const char *rl_compiler(void);
uint32_t rl_signature(void);

int rl_rseq(void *area, uint32_t length_bytes, int flags, uint32_t signature);
unsigned long rl_auxv(unsigned long type);
void *rl_thread_pointer_of_caller(void);
uint32_t rl_load_u32(const void *address);
uint64_t rl_load_u64(const void *address);
void rl_store_u64(void *address, uint64_t value);
int rl_libc(ptrdiff_t *offset_bytes, uint32_t *size_bytes, uint32_t *flags);
int rl_configuration(struct rl_configuration *answer);

enum rl_reader {
	RL_READ_NOTHING, RL_READ_FIELD, RL_READ_FIELD_EXPORTED, RL_READ_FIELD_HOISTED,
	RL_READ_SCHED_GETCPU, RL_READ_VDSO, RL_READ_SYSCALL, ...
};
enum rl_order { RL_THROUGHPUT, RL_DEPENDENT, RL_FENCED, ... };
int64_t rl_read_loop(enum rl_reader reader, enum rl_order order, ptrdiff_t offset_bytes,
		     uint64_t iterations, uint64_t *sum);

enum rl_counter {
	RL_COUNT_RSEQ, RL_COUNT_THREAD_LOCAL, RL_COUNT_ATOMIC_OWN_LINE,
	RL_COUNT_ATOMIC_SHARED, RL_COUNT_MUTEX, RL_COUNT_GETCPU_ATOMIC, ...
};
struct rl_counter_job {
	enum rl_counter technique;
	uint32_t threads;
	uint64_t iterations;
	const int32_t *cpus;
	uint32_t slots;
};
struct rl_counter_outcome {
	int64_t elapsed_ns;
	int64_t cpu_ns;
	int64_t sum;
	uint64_t aborts;
	uint64_t switches;
};
int rl_counter_run(const struct rl_counter_job *job, struct rl_counter_outcome *outcome);
