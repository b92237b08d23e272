/* One section as a user of sections.h has it: nothing of the attack may be in what the compiler makes of it. */
#include "sections.h"

int f(struct rl_at at, intptr_t *v) { return rl_addv(at, v, 1); }
