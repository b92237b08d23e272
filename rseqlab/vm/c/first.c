#include "guest.h"
#include <sys/auxv.h>
#include <sys/prctl.h>
#include <sys/utsname.h>

#ifndef AT_RSEQ_FEATURE_SIZE
#define AT_RSEQ_FEATURE_SIZE 27
#define AT_RSEQ_ALIGN 28
#endif

/* The first look at a kernel: does init run, is the system call there, what does the kernel say of its area. */
int main(void) {
    struct utsname name;
    guest_begin();
    uname(&name);
    int known = syscall(__NR_rseq, NULL, 0, 0, 0) < 0 ? errno : 0;
    guest_printf("{\"release\": \"%s\", \"machine\": \"%s\", \"call_errno\": %d, \"feature_size_bytes\": %lu, "
                 "\"align_bytes\": %lu}\n",
                 name.release, name.machine, known, getauxval(AT_RSEQ_FEATURE_SIZE), getauxval(AT_RSEQ_ALIGN));
    guest_end();
}
