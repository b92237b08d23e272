/* What a program that runs as init of a guest includes to hand its results to the host.

   guest_begin()    once, first: mounts proc, sysfs and devtmpfs, opens the result port, says that init runs
   guest_printf()   as often as wanted: the results (UTF-8; by convention one JSON object per line)
   guest_end()      once, last: length and CRC-32 of the results, then power-off; does not return

   The port is a serial port of its own, named on the kernel's command line (RSEQLAB_PORT, which the kernel hands
   to init as an environment variable). The console is not it: what the kernel or a program prints there
   never mixes with results. Only one process may write; a child hands its rows to init through a pipe. */
#ifndef RSEQLAB_GUEST_H
#define RSEQLAB_GUEST_H

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <termios.h>
#include <unistd.h>

#ifndef __NR_rseq
#if defined(__x86_64__)
#define __NR_rseq 334
#else
#define __NR_rseq 293
#endif
#endif

static int guest_port = -1;
static uint32_t guest_crc = 0xffffffffu;
static unsigned long guest_bytes;

__attribute__((unused)) static void guest_raw(const char *data, size_t size) {
    while (size) {
        ssize_t written = write(guest_port, data, size);
        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0)
            return; /* the host sees that the end is missing */
        data += written;
        size -= (size_t)written;
    }
}

__attribute__((unused)) static void guest_write(const char *data, size_t size) {
    for (size_t i = 0; i < size; i++) {
        guest_crc ^= (unsigned char)data[i];
        for (int bit = 0; bit < 8; bit++)
            guest_crc = guest_crc >> 1 ^ (guest_crc & 1 ? 0xedb88320u : 0);
    }
    guest_bytes += size;
    guest_raw(data, size);
}

__attribute__((unused, format(printf, 1, 2))) static void guest_printf(const char *format, ...) {
    static char line[65536];
    va_list arguments;
    va_start(arguments, format);
    int size = vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    if (size > 0)
        guest_write(line, (size_t)size < sizeof line ? (size_t)size : sizeof line - 1);
}

__attribute__((unused)) static void guest_begin(void) {
    char begin[64];
    struct termios raw;
    const char *port = getenv("RSEQLAB_PORT");
    mkdir("/proc", 0755);
    mkdir("/sys", 0755);
    mkdir("/tmp", 01777);
    mount("proc", "/proc", "proc", 0, NULL);
    mount("sysfs", "/sys", "sysfs", 0, NULL);
    mount("devtmpfs", "/dev", "devtmpfs", 0, NULL); /* a kernel without it has the nodes of the image */
    guest_port = open(port ? port : "/dev/ttyS1", O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (guest_port < 0) {
        fprintf(stderr, "rseqlab: could not open the result port %s: %s\n", port ? port : "/dev/ttyS1",
                strerror(errno));
        return;
    }
    if (!tcgetattr(guest_port, &raw)) {
        cfmakeraw(&raw);
        cfsetspeed(&raw, B115200);
        tcsetattr(guest_port, TCSANOW, &raw);
    }
    /* No area, no length: EINVAL from any kernel that has the call, ENOSYS from one built without. */
    int known = syscall(__NR_rseq, NULL, 0, 0, 0) < 0 ? errno : 0;
    guest_raw(begin, (size_t)snprintf(begin, sizeof begin, "RSEQLAB-BEGIN %d\n", known));
}

__attribute__((unused, noreturn)) static void guest_end(void) {
    char end[64];
    guest_raw(end, (size_t)snprintf(end, sizeof end, "\nRSEQLAB-END %lu %08x\n", guest_bytes, ~guest_crc));
    tcdrain(guest_port);
    sync();
    reboot(RB_POWER_OFF);
    reboot(RB_AUTOBOOT); /* a kernel that cannot power off: QEMU ends at a reboot, too */
    for (;;)
        pause();
}
#endif
