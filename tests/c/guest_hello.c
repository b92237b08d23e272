#include "guest.h"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/utsname.h>

/* From here on the kernel answers as one that was built without rseq. */
static void forget_rseq(void) {
    struct sock_filter rules[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_rseq, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {4, rules};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
        exit(9);
}

/* Says which kernel it runs on; a word of the kernel's command line (MISDEED) makes it misbehave. */
int main(void) {
    const char *misdeed = getenv("MISDEED");
    struct utsname name;
    if (misdeed && !strcmp(misdeed, "no-rseq"))
        forget_rseq();
    guest_begin();
    uname(&name);
    guest_printf("{\"release\": \"%s\", \"machine\": \"%s\"}\n", name.release, name.machine);
    if (!misdeed)
        guest_end();
    if (!strcmp(misdeed, "panic"))
        return 7; /* init ends */
    if (!strcmp(misdeed, "flood"))
        for (;;)
            guest_printf("%0512d\n", 0);
    if (!strcmp(misdeed, "console"))
        for (int i = 0; i < 100000; i++)
            printf("\033]0;owned\007\033[2J%0100d\n", i);
    if (!strcmp(misdeed, "garbage"))
        for (int i = 0; i < 4096; i++) {
            char byte = (char)(i * 37);
            guest_write(&byte, 1);
        }
    if (!strcmp(misdeed, "checksum"))
        guest_crc ^= 1;
    if (!strcmp(misdeed, "off"))
        reboot(RB_POWER_OFF);
    if (!strcmp(misdeed, "hang"))
        for (;;)
            pause();
    guest_end();
}
