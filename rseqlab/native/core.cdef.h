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
const char *rl_compile_flags(void);
int rl_cpuid(uint32_t leaf, uint32_t subleaf, uint32_t registers[4]);
uint32_t rl_signature(void);

int rl_rseq(void *area, uint32_t length_bytes, int flags, uint32_t signature);
unsigned long rl_auxv(unsigned long type);
void *rl_thread_pointer_of_caller(void);
uint32_t rl_load_u32(const void *address);
uint64_t rl_load_u64(const void *address);
void rl_store_u64(void *address, uint64_t value);
int rl_libc(ptrdiff_t *offset_bytes, uint32_t *size_bytes, uint32_t *flags);
int rl_configuration(struct rl_configuration *answer);

struct rl_inspection {
	struct rl_configuration configuration;
	uint64_t thread_pointer;
	int64_t stopped_ns;
	...;
};
int rl_inspect(int tid, int timeout_ms, struct rl_inspection *answer);
int rl_let_go(int tid);

enum rl_reader {
	RL_READ_NOTHING, RL_READ_FIELD, RL_READ_FIELD_AGAIN, RL_READ_FIELD_EXPORTED, RL_READ_FIELD_HOISTED,
	RL_READ_SCHED_GETCPU, RL_READ_VDSO, RL_READ_SYSCALL, ...
};
enum rl_order { RL_THROUGHPUT, RL_DEPENDENT, RL_FENCED, ... };
int64_t rl_read_loop(enum rl_reader reader, enum rl_order order, ptrdiff_t offset_bytes,
		     uint64_t iterations, uint64_t *sum);

#define RL_UNROLL ...

enum rl_result {
	RL_COMMITTED, RL_COMPARE_FAILED, RL_ABORTED, RL_UNSUPPORTED, RL_FULL, RL_EMPTY, RL_TOO_LARGE, ...
};
enum rl_by { RL_BY_CPU_ID, RL_BY_NODE_ID, RL_BY_MM_CID, ... };
struct rl_percpu {
	char *base;
	size_t stride_bytes;
	uint32_t shift;
	uint32_t indices;
	enum rl_by by;
	intptr_t capacity;
	size_t mapped_bytes;
};
int rl_percpu_create(struct rl_percpu *memory, size_t bytes_per_index, size_t stride_bytes, uint32_t indices,
		     enum rl_by by);
void rl_percpu_destroy(struct rl_percpu *memory);

struct rl_aborts { uint64_t moved; uint64_t migrated; uint64_t interrupted; };
struct rl_here { ptrdiff_t offset_bytes; struct rl_aborts *aborts; };
struct rl_node { struct rl_node *next; };
struct rl_record { uint64_t payload_bytes; char payload[]; };
struct rl_pool { struct rl_percpu lists; char *objects; size_t object_bytes; size_t mapped_bytes; uint64_t total; ...; };

int rl_takeable_init(struct rl_percpu *memory);
int rl_ring_create(struct rl_percpu *memory, uint32_t capacity, uint32_t indices, enum rl_by by);
int rl_bytes_create(struct rl_percpu *memory, uint32_t capacity_bytes, uint32_t indices, enum rl_by by);
int rl_pool_create(struct rl_pool *pool, size_t object_bytes, uint64_t objects, uint32_t indices, enum rl_by by);
void rl_pool_destroy(struct rl_pool *pool);

int rl_fence_register(void);
int rl_fence(int cpu);
enum rl_take { RL_TAKE_FENCE_CPU, RL_TAKE_FENCE_ALL, RL_TAKE_MOVE, ... };
int rl_takeable_take(const struct rl_percpu *memory, const struct rl_here *here, uint32_t index,
		     enum rl_take how, struct rl_node **chain);

enum rl_result rl_call_counter_add(const struct rl_percpu *memory, const struct rl_here *here, intptr_t count);
void rl_call_node_counter_add(const struct rl_percpu *memory, const struct rl_here *here, intptr_t count);
enum rl_result rl_call_lock_try(const struct rl_percpu *memory, const struct rl_here *here, uint32_t *index);
enum rl_result rl_call_lock_take(const struct rl_percpu *memory, const struct rl_here *here, uint32_t *index);
void rl_call_lock_release(const struct rl_percpu *memory, uint32_t index);
enum rl_result rl_call_list_push(const struct rl_percpu *memory, const struct rl_here *here, struct rl_node *node);
struct rl_node *rl_call_list_pop(const struct rl_percpu *memory, const struct rl_here *here);
enum rl_result rl_call_takeable_push(const struct rl_percpu *memory, const struct rl_here *here, struct rl_node *node);
struct rl_node *rl_call_takeable_pop(const struct rl_percpu *memory, const struct rl_here *here);
enum rl_result rl_call_ring_push(const struct rl_percpu *memory, const struct rl_here *here, intptr_t value);
enum rl_result rl_call_ring_pop(const struct rl_percpu *memory, const struct rl_here *here, intptr_t *value);
enum rl_result rl_call_bytes_write(const struct rl_percpu *memory, const struct rl_here *here,
				   const struct rl_record *record);
enum rl_result rl_call_bytes_read(const struct rl_percpu *memory, const struct rl_here *here,
				  struct rl_record *record, uint64_t room_bytes);
void *rl_call_pool_alloc(struct rl_pool *pool, const struct rl_here *here);
enum rl_result rl_call_pool_free(struct rl_pool *pool, const struct rl_here *here, void *object);
intptr_t rl_peek(const struct rl_percpu *memory, uint32_t index);

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
	RL_EVENT_COMMIT, RL_EVENT_OTHER_INDEX, RL_EVENT_TRAP, RL_EVENT_TRAP_AGAIN, RL_EVENT_TRAP_ANNOUNCED, RL_EVENT_TRAP_INSIDE, ...
};
int64_t rl_event_loop(enum rl_event event, uint64_t iterations, ptrdiff_t offset_bytes, uint64_t *signals,
		      uint64_t *aborted);

enum rl_taker { RL_TAKER_FENCE_CPU, RL_TAKER_FENCE_ALL, RL_TAKER_MOVE, RL_TAKER_MUTEX, ... };
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

#define RL_MAX_WORDS ...
struct rl_word {
	uint32_t value, mask;
};
struct rl_found {
	uint64_t offset_bytes;
	uint64_t word;
};
size_t rl_find(const uint8_t *bytes, size_t length_bytes, const struct rl_word *words, size_t count,
	       struct rl_found *found, size_t capacity);
