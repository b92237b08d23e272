/* What Python sees of own_tls.h in a library of its own (lab/builds.py). */

enum rl_order { RL_THROUGHPUT, RL_DEPENDENT, RL_FENCED, RL_ORDERS };
void *rl_own_tls_area(void);
int64_t rl_own_tls_read_loop(enum rl_order order, uint64_t iterations, uint64_t *sum);
