"""The calling thread's rseq area: whose it is, what it holds, and how to register one of our own.

Everything here speaks of the thread that calls. Nothing is registered by importing.
"""

import errno
import html
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rseqlab import abi, native
from rseqlab.errors import LabError


class RegistrationError(LabError):
    """The kernel refused a registration. ``errno_name`` is its answer."""

    def __init__(self, message: str, errno_name: str | None = None):
        super().__init__(message)
        self.errno_name = errno_name


class AlreadyRegistered(RegistrationError):
    """This thread's area belongs to another owner (libc, or another library)."""


class SameAreaTwice(RegistrationError):
    """This area is registered for this thread already (EBUSY)."""


class WrongSize(RegistrationError):
    """The kernel does not accept this length."""


class WrongAlignment(RegistrationError):
    """The area lies at an address that the kernel does not accept."""


class WrongFlags(RegistrationError):
    """The kernel does not know these flags."""


class WrongSignature(RegistrationError):
    """The registered signature is another one (EPERM)."""


class WrongAddress(RegistrationError):
    """The area is not in user memory (EFAULT)."""


class NotRegistered(RegistrationError):
    """There is nothing to unregister for this thread, or it was registered with other values."""


class NoSuchCall(RegistrationError):
    """The kernel, or a sandbox that plays it, has no rseq system call (ENOSYS)."""


class DeniedBySandbox(RegistrationError):
    """A filter answered in the kernel's place."""


class WrongThread(RegistrationError):
    """The thread that leaves is not the one that registered."""


class FieldUnavailable(LabError, AttributeError):
    """The field lies beyond what the kernel keeps live in this area."""


@dataclass(frozen=True)
class Libc:
    """What libc exports: ``__rseq_offset``, ``__rseq_size``, ``__rseq_flags`` (glibc 2.35)."""

    offset_bytes: int
    size_bytes: int
    flags: int


@dataclass(frozen=True)
class Configuration:
    """What PTRACE_GET_RSEQ_CONFIGURATION says of a thread; ``address`` 0 is: not registered."""

    address: int
    size_bytes: int
    signature: int
    flags: int


@dataclass(frozen=True)
class Ownership:
    """Who registered the calling thread's area, and how that was found out.

    ``owner`` is ``libc``, ``self``, ``none``, or ``other`` where the kernel reports a registration at
    an address that is neither libc's nor ours.
    """

    owner: str
    rule: str


LARGEST_BYTES = 1 << 20
"""Of a length or an alignment that can be asked for here; the kernel's own limits are far below."""

_here = threading.local()
_kept: set["Area"] = set()
"""Areas that the kernel may still write to. Freeing one while it is registered corrupts memory."""


def auxv() -> tuple[int, int]:
    """(AT_RSEQ_FEATURE_SIZE, AT_RSEQ_ALIGN) in bytes; 0 where the kernel gives none (before 6.3)."""
    _, lib = native.core()
    return lib.rl_auxv(abi.AT_RSEQ_FEATURE_SIZE), lib.rl_auxv(abi.AT_RSEQ_ALIGN)


def libc() -> Libc | None:
    """What libc exports, looked up at run time; None before glibc 2.35 and in musl."""
    ffi, lib = native.core()
    offset, size, flags = ffi.new("ptrdiff_t *"), ffi.new("uint32_t *"), ffi.new("uint32_t *")
    if lib.rl_libc(offset, size, flags):
        return None
    return Libc(offset[0], size[0], flags[0])


def configuration() -> Configuration:
    """The kernel's own record of the calling thread, read from a stopped copy of it.

    Where that is not possible (before Linux 5.13, or a sandbox denies ptrace), the kernel is asked
    about the areas that are known, libc's and ours, by registering them again: EBUSY says that this
    very length is registered. Raises OSError where neither finds out.
    """
    ffi, lib = native.core()
    answer = ffi.new("struct rl_configuration *")
    error = -lib.rl_configuration(answer)
    if not error:
        return Configuration(answer.pointer, answer.size_bytes, answer.signature, answer.flags)
    found = _configuration_by_asking()
    if found is None:
        raise OSError(error, f"PTRACE_GET_RSEQ_CONFIGURATION: {os.strerror(error)}")
    return found


def _configuration_by_asking() -> Configuration | None:
    """By the kernel's answers to registering again; None where another owner cannot be excluded."""
    ffi, lib = native.core()
    signature, flag = lib.rl_signature(), abi.FLAG_UNREGISTER
    mine, exported = getattr(_here, "area", None), libc()
    known = [mine.address] if mine is not None and mine.registered else []
    known += [_thread_pointer() + exported.offset_bytes] if exported and exported.size_bytes else []
    for address in known:
        for length in range(abi.ORIGINAL_SIZE_BYTES, 257):
            answer = -lib.rl_rseq(_pointer(address), length, 0, signature)
            if answer in (errno.EBUSY, errno.EPERM):
                return Configuration(address, length, signature, 0)
            if answer == 0:  # nothing was registered: now it is, and must not stay
                lib.rl_rseq(_pointer(address), length, flag, signature)
                return Configuration(0, 0, 0, 0)
    memory = ffi.new("char[]", 128)
    spare = _pointer((int(ffi.cast("uintptr_t", memory)) + 63) // 64 * 64)
    if lib.rl_rseq(spare, abi.ORIGINAL_SIZE_BYTES, 0, signature) == 0:
        lib.rl_rseq(spare, abi.ORIGINAL_SIZE_BYTES, flag, signature)
        return Configuration(0, 0, 0, 0)
    return None


def owner() -> Ownership:
    """Who owns the calling thread's area."""
    mine = getattr(_here, "area", None)
    if mine is not None and mine.registered:
        return Ownership("self", f"registered by this lab at {mine.address:#x}")
    exported = libc()
    if exported is not None and exported.size_bytes:
        cpu_id = _signed(
            _load_u32(_thread_pointer() + exported.offset_bytes + abi.FIELD["cpu_id"].offset_bytes)
        )
        if cpu_id >= 0:
            return Ownership("libc", f"__rseq_size is {exported.size_bytes} and cpu_id is live ({cpu_id})")
    try:
        actual = configuration()
    except OSError as error:
        return Ownership("none", f"libc registered nothing here; another owner cannot be excluded ({error})")
    if actual.address:
        return Ownership(
            "other", f"the kernel has an area of {actual.size_bytes} bytes at {actual.address:#x}"
        )
    if exported is None:
        return Ownership("none", "libc exports no __rseq_size, and the kernel has no registration")
    if exported.size_bytes:
        return Ownership("none", f"__rseq_size is {exported.size_bytes}, but this thread is not registered")
    return Ownership("none", "__rseq_size is 0, and the kernel has no registration")


class Area:
    """A thread's struct rseq, read live. Show it in Jupyter for a table of its fields.

    Only the thread that it belongs to gets meaningful values from it: the kernel writes it when that
    thread returns to user space.
    """

    def __init__(
        self, address: int, owner: str, registered_bytes: int | None, active: abi.ActiveSize, memory=None
    ):
        self.address = address
        self.owner = owner
        self.registered_bytes = registered_bytes
        """Length given to the kernel; None where libc did it and does not say."""
        self.active = active
        """The live bytes and the rule that says so."""
        self.registered = True
        self.signature: int | None = None
        """What unregistering must repeat; None where it was libc that registered."""
        self._memory = memory

    @property
    def feature_bytes(self) -> int:
        """End of the last field that the kernel keeps live here."""
        return self.active.feature_bytes

    @property
    def offset_bytes(self) -> int:
        """From the calling thread's thread pointer to this area."""
        return self.address - _thread_pointer()

    def read(self, name: str) -> int:
        """One field, read now. Raises FieldUnavailable beyond the live bytes, with the reason."""
        field = abi.FIELD[name]
        if not self.registered:
            raise FieldUnavailable(f"{name} is not live: this area was unregistered")
        if field.end_bytes > self.feature_bytes:
            raise FieldUnavailable(
                f"{name} needs {field.end_bytes} live bytes, this area has {self.feature_bytes} "
                f"({self.active.rule}). The kernel has it since Linux {field.since}."
            )
        if field.size_bytes == 8:
            return native.core()[1].rl_load_u64(_pointer(self.address + field.offset_bytes))
        value = _load_u32(self.address + field.offset_bytes)
        return _signed(value) if name == "cpu_id" else value

    @property
    def cpu_id_start(self) -> int:
        """CPU number at the last return to user space."""
        return self.read("cpu_id_start")

    @property
    def cpu_id(self) -> int:
        """CPU number, or a negative abi.CPU_ID_* value."""
        return self.read("cpu_id")

    @property
    def flags(self) -> int:
        """Flag bits; since Linux 7.0 bits 4 and 5 say whether slice extension is offered and on."""
        return self.read("flags")

    @property
    def node_id(self) -> int:
        """NUMA node of the CPU (Linux 6.3)."""
        return self.read("node_id")

    @property
    def mm_cid(self) -> int:
        """Concurrency id within the process (Linux 6.3)."""
        return self.read("mm_cid")

    def rows(self) -> Iterator[dict]:
        """One dict per known field: name, offset_bytes, size_bytes, since, value (None beyond), reason."""
        for field in abi.FIELDS:
            row = {
                "field": field.name,
                "offset_bytes": field.offset_bytes,
                "size_bytes": field.size_bytes,
                "since": field.since,
                "value": None,
                "reason": "",
            }
            try:
                row["value"] = self.read(field.name)
            except FieldUnavailable as error:
                row["reason"] = str(error)
            yield row

    def __repr__(self) -> str:
        values = ", ".join(
            f"{row['field']}={row['value']}" for row in self.rows() if row["value"] is not None
        )
        state = "" if self.registered else ", unregistered"
        return f"<rseq area of {self.owner} at {self.address:#x}, {self.feature_bytes} live bytes{state}: {values}>"

    def _repr_html_(self) -> str:
        cells = "".join(
            f"<tr><td>{row['field']}</td><td>{row['offset_bytes']}</td><td>{row['size_bytes']}</td>"
            f"<td>{row['since']}</td><td>{html.escape(str(row['value']) if row['value'] is not None else row['reason'])}"
            "</td></tr>"
            for row in self.rows()
        )
        return (
            f"<table class='rl-table'><caption>rseq area of {html.escape(self.owner)}: "
            f"{html.escape(self.active.rule)}</caption>"
            "<thead><tr><th scope='col'>field</th><th scope='col'>offset_bytes</th>"
            "<th scope='col'>size_bytes</th><th scope='col'>since Linux</th><th scope='col'>live value</th></tr>"
            f"</thead><tbody>{cells}</tbody></table>"
        )


def attach() -> Area:
    """libc's area of the calling thread. Raises NotRegistered, saying why, where libc has none."""
    state, exported = owner(), libc()
    if state.owner != "libc" or exported is None:
        raise NotRegistered(
            f"attach() wants libc's area; the owner here is {state.owner}: {state.rule}. "
            "Start the process with GLIBC_TUNABLES=glibc.pthread.rseq=1, or use register()."
        )
    active = abi.active_size_of_libc(exported.size_bytes, auxv()[0])
    return Area(_thread_pointer() + exported.offset_bytes, "libc", None, active)


def here() -> Area:
    """The calling thread's area: ours where it registered one, else libc's. Raises NotRegistered, saying why."""
    mine = getattr(_here, "area", None)
    return mine if mine is not None and mine.registered else attach()


def geometry() -> tuple[int, int]:
    """(length, alignment) in bytes that the kernel asks for; the original 32 where it says nothing."""
    feature_bytes, align_bytes = auxv()
    return max(feature_bytes, abi.ORIGINAL_SIZE_BYTES), max(align_bytes, abi.ORIGINAL_SIZE_BYTES)


@contextmanager
def register(
    length_bytes: int | None = None,
    align_bytes: int | None = None,
    flags: int = 0,
    signature: int | None = None,
) -> Iterator[Area]:
    """Register an area of our own for the calling thread, and unregister it on the way out.

    The defaults are :func:`geometry` and the architecture's signature. Raises a RegistrationError of
    the kind that the kernel's answer means; WrongThread where another thread leaves the block (the
    area then stays registered and its memory is kept).
    """
    area = _register(length_bytes, align_bytes, flags, signature)
    try:
        yield area
    finally:
        _unregister(area)


def _register(length_bytes, align_bytes, flags, signature) -> Area:
    ffi, lib = native.core()
    default_length, default_align = geometry()
    length_bytes = default_length if length_bytes is None else length_bytes
    align_bytes = default_align if align_bytes is None else align_bytes
    signature = lib.rl_signature() if signature is None else signature
    if not 0 <= length_bytes <= LARGEST_BYTES:
        raise WrongSize(f"register: length_bytes is {length_bytes}; allowed are 0 to {LARGEST_BYTES}")
    if not 1 <= align_bytes <= LARGEST_BYTES:
        raise WrongAlignment(f"register: align_bytes is {align_bytes}; allowed are 1 to {LARGEST_BYTES}")
    if not 0 <= flags < 1 << 31:
        raise WrongFlags(f"register: flags is {flags}; allowed are 0 to {(1 << 31) - 1}")
    if not 0 <= signature < 1 << 32:
        raise WrongSignature(f"register: signature is {signature}; allowed are 0 to {(1 << 32) - 1}")
    # Exactly this alignment and no more, so that what is asked for is what is tried.
    spare = 2 * align_bytes
    memory = ffi.new("char[]", length_bytes + 2 * spare + abi.ORIGINAL_SIZE_BYTES)
    start = int(ffi.cast("uintptr_t", memory))
    address = (start + spare - 1) // spare * spare + align_bytes
    answer = lib.rl_rseq(_pointer(address), length_bytes, flags, signature)
    if answer:
        raise refusal(-answer, address, length_bytes, flags)
    area = Area(
        address, "self", length_bytes, abi.active_size_of_registration(length_bytes, auxv()[0]), memory
    )
    area.signature = signature
    _kept.add(area)
    _here.area = area
    return area


def _unregister(area: Area) -> None:
    if getattr(_here, "area", None) is not area:
        raise WrongThread(
            f"The area at {area.address:#x} was registered by another thread; only that thread can "
            "unregister it. It stays registered until that thread ends, and its memory is kept."
        )
    _, lib = native.core()
    lib.rl_store_u64(_pointer(area.address + abi.FIELD["rseq_cs"].offset_bytes), 0)
    answer = lib.rl_rseq(_pointer(area.address), area.registered_bytes, abi.FLAG_UNREGISTER, area.signature)
    if answer:
        raise NotRegistered(
            f"unregister: the kernel answered {errno.errorcode.get(-answer, -answer)} for the area at "
            f"{area.address:#x}, {area.registered_bytes} bytes; its memory is kept.",
            errno.errorcode.get(-answer),
        )
    area.registered = False
    _here.area = None
    _kept.discard(area)


def refusal(error: int, address: int, length_bytes: int, flags: int = 0) -> RegistrationError:
    """The typed error for the kernel's answer to a registration by the calling thread.

    EINVAL means five things; which one follows from who owns the thread and from the documented rules
    for length and alignment, looked at in the order in which the kernel checks them (kernel/rseq.c).
    """
    name = errno.errorcode.get(error, str(error))
    asked = f"register({length_bytes} bytes at {address:#x}, flags {flags}): the kernel answered {name}"
    feature_bytes, auxv_align = auxv()
    if error == errno.EBUSY:
        return SameAreaTwice(f"{asked}: this very area is registered for this thread already.", name)
    if error == errno.EFAULT:
        return WrongAddress(f"{asked}: the area does not lie in user memory.", name)
    if error == errno.ENOSYS:
        return NoSuchCall(
            f"{asked}: this kernel was built without CONFIG_RSEQ, or a sandbox hides the call. "
            "`rseqlab doctor` says what else can run here.",
            name,
        )
    if error == errno.EPERM and owner().owner in ("libc", "self", "other"):
        return WrongSignature(f"{asked}: the area is registered with another signature.", name)
    if error in (errno.EPERM, errno.EACCES):
        return DeniedBySandbox(
            f"{asked}: a sandbox (seccomp) denies the call; allow `rseq` in its filter.", name
        )
    if error != errno.EINVAL:
        return RegistrationError(f"{asked}, which no rule of the lab explains.", name)
    if flags & ~(abi.FLAG_SLICE_EXT_DEFAULT_ON if feature_bytes > abi.ORIGINAL_SIZE_BYTES else 0):
        return WrongFlags(f"{asked}: only 0 is known to register with (and 2 since Linux 7.0).", name)
    state = owner()
    if state.owner != "none":
        return AlreadyRegistered(
            f"{asked}: a thread has one area, and it belongs to {state.owner} ({state.rule}). "
            "Start the process with GLIBC_TUNABLES=glibc.pthread.rseq=0 to own it.",
            name,
        )
    required = abi.required_alignment_bytes(length_bytes, auxv_align)
    if address % required:
        return WrongAlignment(f"{asked}: a length of {length_bytes} needs alignment {required}.", name)
    if not abi.accepted_length(length_bytes, feature_bytes):
        allowed = f"32, or {max(feature_bytes, 33)} and more" if feature_bytes else "32 only"
        return WrongSize(f"{asked}: this kernel accepts {allowed}.", name)
    return RegistrationError(f"{asked}, although owner, alignment and length are right ({state.rule}).", name)


def _signed(value: int) -> int:
    return value - (1 << 32) if value >= 1 << 31 else value


def _pointer(address: int):
    return native.core()[0].cast("void *", address)


def _load_u32(address: int) -> int:
    return native.core()[1].rl_load_u32(_pointer(address))


def _thread_pointer() -> int:
    ffi, lib = native.core()
    pointer = int(ffi.cast("uintptr_t", lib.rl_thread_pointer_of_caller()))
    if not pointer:
        raise NoSuchCall(f"rseq needs a port for this architecture. {native.unavailable()}")
    return pointer
