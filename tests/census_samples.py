"""Files that the census is tried on: small ELF files built here in every form, and archives of them."""

import bz2
import gzip
import io
import lzma
import shutil
import struct
import subprocess
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

SECTION = {
    "x86_64": r"""
static int counter;
void own_section(void)
{
	__asm__ volatile(
		".pushsection __rseq_cs, \"aw\"\n.balign 32\n3: .long 0, 0\n.quad 1f, (2f - 1f), 4f\n.popsection\n"
		".pushsection __rseq_cs_ptr_array, \"aw\"\n.quad 3b\n.popsection\n"
		"1: incl %0\n2:\n"
		".pushsection __rseq_failure, \"ax\"\n.byte 0x0f, 0xb9, 0x3d\n.long 0x53053053\n4: jmp 2b\n.popsection\n"
		: "+m"(counter));
}
""",
    "aarch64": r"""
void own_section(void)
{
	__asm__ volatile(
		".pushsection __rseq_cs, \"aw\"\n.balign 32\n3: .word 0, 0\n.quad 1f, (2f - 1f), 4f\n.popsection\n"
		".pushsection __rseq_cs_ptr_array, \"aw\"\n.quad 3b\n.popsection\n"
		"1: nop\n2: b 5f\n.inst 0xd428bc00\n4: b 5f\n5:\n");
}
""",
}
REGISTER = {
    "x86_64": r"""
long registers(void *area)
{
	register long number __asm__("rax") = 334;
	register void *first __asm__("rdi") = area;
	register long length __asm__("rsi") = 32, flags __asm__("rdx") = 0, signature __asm__("r10") = 0x53053053;
	__asm__ volatile("syscall" : "+r"(number) : "r"(first), "r"(length), "r"(flags), "r"(signature) : "rcx", "r11");
	return number;
}
""",
    "aarch64": r"""
long registers(void *area)
{
	register long number __asm__("x8") = 293;
	register void *first __asm__("x0") = area;
	register long length __asm__("x1") = 32, flags __asm__("x2") = 0, signature __asm__("x3") = 0xd428bc00;
	__asm__ volatile("svc 0" : "+r"(first) : "r"(number), "r"(length), "r"(flags), "r"(signature) : "memory");
	return (long)first;
}
""",
}
BY_SYSCALL = r"""
#include <unistd.h>
#include <sys/syscall.h>
long registers(void *area) { return syscall(%d, area, 32, 0, %s); }
"""
READS = r"""
extern const long __rseq_offset;
extern const unsigned __rseq_size;
long reads(void) { return __rseq_size ? __rseq_offset : 0; }
"""
LOOKS_UP = r"""
#include <dlfcn.h>
void *looks_up(void) { return dlsym((void *)0, "__rseq_offset"); }
"""
ASKS = r"""
int sched_getcpu(void);
int asks(void) { return sched_getcpu(); }
"""
SAYS = r"""
const char *says(void) { return "no rseq here"; }
"""
NOTHING = r"""
const char *sequences(void) { return "parseq, rseqs of none, reverseq"; }
/* the number without the signature, and the signature without the number */
long other(long a) { return a == 334 ? 335 : a; }
unsigned signature(void) { return 0x53053053; }
"""
COMPILERS = {"x86_64": "x86_64-linux-gnu-gcc", "aarch64": "aarch64-linux-gnu-gcc"}
SHARED = ("-shared", "-fPIC")


@dataclass(frozen=True)
class Sample:
    name: str
    source: str
    flags: tuple[str, ...]
    expected: str | None
    rule: str | None
    """The rule that must have found it."""
    main: bool = False


def samples(machine: str) -> list[Sample]:
    number, signature = {"x86_64": (334, "0x53053053"), "aarch64": (293, "0xd428bc00")}[machine]
    section, by_syscall = SECTION[machine], BY_SYSCALL % (number, signature)
    in_section, by_shape = "descriptor-in-section", "descriptor-by-shape"
    return [
        Sample("section.so", section, SHARED, "own-sections", in_section),
        Sample("section-stripped.so", section, (*SHARED, "-s"), "own-sections", in_section),
        Sample("section-bare.so", section, (*SHARED, "-s"), "own-sections", by_shape),
        Sample("section-pie", section, ("-pie", "-fPIE"), "own-sections", in_section, True),
        Sample("section-fixed", section, ("-no-pie", "-fno-pie"), "own-sections", in_section, True),
        Sample("section-bare-fixed", section, ("-no-pie", "-fno-pie", "-s"), "own-sections", by_shape, True),
        Sample(
            "section-relr.so", section, (*SHARED, "-Wl,-z,pack-relative-relocs"), "own-sections", in_section
        ),
        Sample(
            "section-bare-relr.so",
            section,
            (*SHARED, "-Wl,-z,pack-relative-relocs"),
            "own-sections",
            by_shape,
        ),
        Sample("section.o", section, ("-c", "-fPIC"), "own-sections", "section-unverified"),
        Sample("registers.so", REGISTER[machine], SHARED, "registers", "call-with-signature"),
        Sample("registers-bare.so", REGISTER[machine], (*SHARED, "-s"), "registers", "call-with-signature"),
        Sample("registers-syscall.so", by_syscall, SHARED, "registers", "call-with-signature"),
        Sample("registers-syscall-got.so", by_syscall, (*SHARED, "-fno-plt"), "registers", None),
        Sample(
            "registers-syscall-pie", by_syscall, ("-pie", "-fPIE"), "registers", "call-with-signature", True
        ),
        Sample("reads.so", READS, SHARED, "reads-area", "area-symbol-imported"),
        Sample("reads-bare.so", READS, (*SHARED, "-s"), "reads-area", "area-symbol-imported"),
        Sample("looks-up.so", LOOKS_UP, SHARED, "reads-area", "area-symbol-looked-up"),
        Sample("asks.so", ASKS, SHARED, "through-libc", "getcpu-imported"),
        Sample("asks-bare.so", ASKS, (*SHARED, "-s"), "through-libc", "getcpu-imported"),
        Sample("says.so", SAYS, SHARED, "mentions", "word"),
        Sample("nothing.so", NOTHING, SHARED, None, None),
    ]


def compiler(machine: str) -> str | None:
    return shutil.which(COMPILERS[machine])


def build(machine: str, sample: Sample, folder: Path) -> Path | None:
    """The file, or None where this linker cannot make one of its kind (RELR on aarch64 is young)."""
    source = folder / f"{machine}-{sample.name}.c"
    source.write_text(sample.source + ("int main(void) { return 0; }\n" if sample.main else ""))
    made = folder / f"{machine}-{sample.name}"
    command = [COMPILERS[machine], "-O2", "-w", *sample.flags, str(source), "-o", str(made)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    source.unlink()
    if done.returncode or "pack-relative-relocs ignored" in done.stderr:
        assert "relative-relocs" in done.stderr, done.stderr
        made.unlink(missing_ok=True)
        return None
    if "bare" in sample.name:
        made.write_bytes(without_section_headers(made.read_bytes()))
    return made


def without_section_headers(data: bytes) -> bytes:
    """As sstrip leaves a file: the loader never looked at them."""
    data = bytearray(data)
    (offset,) = struct.unpack_from("<Q", data, 40)
    struct.pack_into("<Q", data, 40, 0)
    struct.pack_into("<HHH", data, 58, 0, 0, 0)
    return bytes(data[:offset])


def tar(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def ar(members: dict[str, bytes]) -> bytes:
    out = b"!<arch>\n"
    for name, data in members.items():
        out += f"{name + '/':<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n".encode() + data
        out += b"\n" * (len(data) % 2)
    return out


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return out.getvalue()


def cpio(members: dict[str, bytes]) -> bytes:
    out = b""
    for name, data in [*members.items(), ("TRAILER!!!", b"")]:
        path = name.encode() + b"\0"
        fields = (1, 0o100644, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(path), 0)
        out += b"070701" + b"".join(b"%08x" % one for one in fields) + path
        out += b"\0" * (-len(out) % 4)
        out += data + b"\0" * (-len(data) % 4)
    return out


def rpm(members: dict[str, bytes]) -> bytes:
    """Lead, two headers without a tag that matters, and a compressed payload."""
    lead = struct.pack(">4sBBHH66sHH16s", b"\xed\xab\xee\xdb", 3, 0, 0, 1, b"sample", 1, 5, b"")
    header = b"\x8e\xad\xe8\x01\0\0\0\0" + struct.pack(">II", 0, 0)
    return lead + header + header + gzip.compress(cpio(members), mtime=0)


def zstd(data: bytes) -> bytes:
    return subprocess.run(["zstd", "-q", "-c"], input=data, capture_output=True, check=True).stdout


def archives(members: dict[str, bytes]) -> dict[str, bytes]:
    """The same members in everything that the census reads, by file name."""
    plain = tar(members)
    made = {
        "sample.tar": plain,
        "sample.tar.gz": gzip.compress(plain, mtime=0),
        "sample.tar.xz": lzma.compress(plain),
        "sample.tar.bz2": bz2.compress(plain),
        "sample.whl": zipped(members),
        "sample-stored.zip": zipped(members, zipfile.ZIP_STORED),
        "sample.deb": ar(
            {
                "debian-binary": b"2.0\n",
                "control.tar.gz": gzip.compress(tar({})),
                "data.tar.xz": lzma.compress(plain),
            }
        ),
        "sample.rpm": rpm(members),
        "libsample.a": ar(members),
        "docker-save.tar": tar({"0" * 64 + "/layer.tar": plain, "manifest.json": b"[]"}),
        "oci.tar": tar({"blobs/sha256/" + "1" * 64: gzip.compress(plain, mtime=0), "index.json": b"{}"}),
    }
    if shutil.which("zstd"):
        made["sample.tar.zst"] = zstd(plain)
    return made
