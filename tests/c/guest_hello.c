#include "guest.h"
#include <sys/utsname.h>

/* Says which kernel it runs on; a word of the kernel's command line (MISDEED) makes it misbehave. */
int main(void) {
    const char *misdeed = getenv("MISDEED");
    struct utsname name;
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
    if (!strcmp(misdeed, "length"))
        guest_bytes += 1;
    if (!strcmp(misdeed, "off"))
        reboot(RB_POWER_OFF);
    if (!strcmp(misdeed, "hang"))
        for (;;)
            pause();
    guest_end();
}
