"""Files that register an area themselves: the number of the system call on its way to the call, and the signature."""

import itertools
import re
import struct
from functools import cache

import capstone
from capstone import arm64_const, x86_const

from rseqlab.census.descriptors import SIGNATURES
from rseqlab.census.elf import ET_REL, Elf
from rseqlab.census.evidence import Findings
from rseqlab.census.words import Places

NUMBERS = {"x86_64": 334, "aarch64": 293}
WINDOW_BYTES = 256
"""As far before and behind the number's load the signature may be loaded."""

MAX_INSTRUCTIONS = 24
MAX_SIGNATURES = 4096

# mov imm32 into eax or edi: the number's register, or the first argument of syscall()
X86_LOADS = re.compile(rb"(?:\xb8|\xbf|\xc7\xc0|\xc7\xc7)" + struct.pack("<I", NUMBERS["x86_64"]))
# movz of the number into w8, x8, w0 or x0
ARM_LOADS = {
    base | NUMBERS["aarch64"] << 5 | register for base in (0x52800000, 0xD2800000) for register in (0, 8)
}

SYSCALL_BODY = re.compile(rb"\x48\x89\xf8.{0,40}?\x0f\x05", re.DOTALL)
"""How a static syscall() of x86_64 begins: the first argument becomes the number."""

ARM_MOVE_NUMBER = 0xAA0003E8  # mov x8, x0
ARM_CALL_KERNEL = 0xD4000001  # svc #0


@cache
def _decoder(machine: str) -> capstone.Cs:
    if machine == "x86_64":
        decoder = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    else:
        decoder = capstone.Cs(capstone.CS_ARCH_ARM64, capstone.CS_MODE_LITTLE_ENDIAN)
    decoder.detail = True
    return decoder


def examine(elf: Elf, places: Places, found: Findings) -> None:
    if elf.header.kind == ET_REL:
        return
    if elf.machine == "x86_64":
        signatures = places.offsets["signature"]
    else:
        signatures = sorted(places.offsets["signature"] + places.offsets["upper half"])
    calls = _Calls(elf)
    seen = set()
    for signature in signatures[:MAX_SIGNATURES]:
        if not elf.code_at_offset(signature):
            continue
        low = max(0, signature - WINDOW_BYTES)
        window = elf.source.read(low, 2 * WINDOW_BYTES + 16)
        for offset in _loads(elf.machine, low, window):
            if offset in seen or not elf.code_at_offset(offset):
                continue
            way = calls.reached(offset)
            if way is None:
                continue
            seen.add(offset)
            how, mnemonics = way
            near, argument = _signature(
                elf.machine, how, elf.source.read(max(0, offset - WINDOW_BYTES), 2 * WINDOW_BYTES)
            )
            if not near:
                continue
            rule = "call-with-signature" if argument else "call-near-signature"
            found.add(rule, offset, f"{how}: {mnemonics}")


def _loads(machine: str, low: int, window: bytes):
    if machine == "x86_64":
        for hit in X86_LOADS.finditer(window):
            yield low + hit.start()
        return
    skip = -low % 4
    for at in range(skip, len(window) - 3, 4):
        if struct.unpack_from("<I", window, at)[0] in ARM_LOADS:
            yield low + at


def _signature(machine: str, how: str, window: bytes) -> tuple[bool, bool]:
    """Whether the signature is in the window, and whether as an immediate of the argument's register."""
    if machine == "x86_64":
        value = struct.pack("<I", SIGNATURES["x86_64"])
        register = b"\x41\xba" if how == "syscall instruction" else b"\x41\xb8"  # r10d, r8d
        return value in window, register + value in window
    register = 3 if how == "syscall instruction" else 4
    near = argument = False
    for at in range(0, len(window) - 3, 4):
        (word,) = struct.unpack_from("<I", window, at)
        half = word & 0x5FFFFFE0 == 0x52BA8500  # movz or movk, of 32 or 64 bits
        near |= half or word == SIGNATURES["aarch64"]
        argument |= half and word & 31 == register
    return near, argument


class _Calls:
    """Where a loaded number goes."""

    def __init__(self, elf: Elf):
        self.elf = elf
        self.decoder = _decoder(elf.machine)
        self._slots: set[int] | None = None
        self._starts: set[int] | None = None

    def reached(self, offset: int) -> tuple[str, str] | None:
        """How the kernel is reached from the load at this place, with the instructions on the way."""
        address = self.elf.address_of(offset)
        code = self.elf.bytes_at(address, MAX_INSTRUCTIONS * 15) if address is not None else b""
        x86 = self.elf.machine == "x86_64"
        watched, names, said = None, None, []
        for instruction in self.decoder.disasm(code, address or 0, MAX_INSTRUCTIONS):
            said.append(f"{instruction.mnemonic} {instruction.op_str}".strip())
            if watched is None:
                names = self._names(instruction.op_str.split(",")[0].strip())
                watched = names[0] if names else ""
                if not watched:
                    return None
                continue
            groups = instruction.groups
            if (x86 and instruction.mnemonic == "syscall") or (not x86 and instruction.mnemonic == "svc"):
                return ("syscall instruction", _shown(said)) if watched in ("rax", "x8") else None
            if capstone.CS_GRP_CALL in groups or instruction.mnemonic in ("bl", "blr"):
                if watched in ("rdi", "x0") and self._is_syscall(instruction):
                    return "call of syscall()", _shown(said)
                return None
            if capstone.CS_GRP_RET in groups or instruction.mnemonic in (
                "jmp",
                "b",
                "br",
                "ret",
                "hlt",
                "ud2",
            ):
                # a tail call of syscall() is a jump
                if (
                    instruction.mnemonic in ("jmp", "b")
                    and watched in ("rdi", "x0")
                    and self._is_syscall(instruction)
                ):
                    return "call of syscall()", _shown(said)
                return None
            written = {instruction.reg_name(one) for one in instruction.regs_access()[1]}
            if written & set(names):
                return None
        return None

    def _names(self, register: str) -> tuple[str, ...]:
        """All names of the register, the widest first."""
        for names in (("rax", "eax", "ax", "al"), ("rdi", "edi", "di", "dil"), ("x8", "w8"), ("x0", "w0")):
            if register in names:
                return names
        return ()

    def _is_syscall(self, instruction) -> bool:
        """Whether a call's target is libc's syscall(): its GOT slot, a PLT entry that jumps there, or its body."""
        operand = instruction.operands[0] if instruction.operands else None
        if operand is None:
            return False
        if self.elf.machine == "x86_64":
            if operand.type == x86_const.X86_OP_MEM and operand.mem.base == x86_const.X86_REG_RIP:
                return instruction.address + instruction.size + operand.mem.disp in self.slots
            if operand.type != x86_const.X86_OP_IMM:
                return False
        elif operand.type != arm64_const.ARM64_OP_IMM:
            return False
        target = operand.imm
        if target in self.starts:
            return True
        code = self.elf.bytes_at(target, 64)
        if self.elf.machine == "x86_64":
            stub = re.match(rb"(?:\xf3\x0f\x1e\xfa)?(?:\xf2)?\xff\x25(....)", code, re.DOTALL)
            if stub:
                return target + stub.end() + struct.unpack("<i", stub[1])[0] in self.slots
            return bool(SYSCALL_BODY.match(code.removeprefix(b"\xf3\x0f\x1e\xfa")))
        words = [one for (one,) in struct.iter_unpack("<I", code[: len(code) // 4 * 4])]
        for page, load in itertools.pairwise(words):
            if (
                page & 0x9F00001F == 0x90000010 and load & 0xFFC003FF == 0xF9400211
            ):  # adrp x16; ldr x17, [x16, n]
                high = (page >> 5 & 0x7FFFF) << 2 | page >> 29 & 3
                high -= (high >> 20 & 1) << 21
                at = target + 4 * words.index(page)
                return (at & ~0xFFF) + (high << 12) + (load >> 10 & 0xFFF) * 8 in self.slots
        return ARM_MOVE_NUMBER in words[:3] and ARM_CALL_KERNEL in words[:12]

    @property
    def slots(self) -> set[int]:
        if self._slots is None:
            self._slots = self.elf.slots_of("syscall")
        return self._slots

    @property
    def starts(self) -> set[int]:
        if self._starts is None:
            both = self.elf.dynamic_symbols(["syscall"]) + self.elf.static_symbols(["syscall"])
            self._starts = {one.value for one in both if one.defined}
        return self._starts


def _shown(said: list[str]) -> str:
    return "; ".join(said if len(said) <= 8 else [*said[:4], "...", *said[-3:]])
