"""The compatibility matrix: one guest for each kernel and architecture, in which the probe runs under every libc and in
every mode; and what comes of its answers, which are not trusted."""

import errno
import re
import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rseqlab import abi
from rseqlab.vm import boot, guests, image, programs
from rseqlab.vm.guests import GuestError
from rseqlab.vm.kernels import Kernel
from rseqlab.vm.libcs import Libc

MODES = {
    "libc": "libc's own registration",
    "self-32": "the program registers 32 bytes",
    "self-extended": "the program registers the feature size rounded up, and more than 32 bytes",
    "none": "nobody has registered the thread",
}
QUESTIONS = (
    "state",
    "ptrace",
    "slice",
    "membarrier",
    "length",
    "alignment",
    "flags",
    "signature",
    "address",
    "twice",
    "unregister",
    "descriptor",
    "descriptor, while it computes",
    "thread",
    "process",
    "live",
    "at registration",
    "user writes cpu_id_start",
    "user writes, then sleeps",
    "user writes, then migrates",
    "deduced",
    "boot",
)
"""What is asked of each cell. Those of registration-rules are called as there, and so are their attempts."""

ROWS = {"libc": 111, "self-32": 75, "self-extended": 75, "none": 60, "no rseq": 7}
"""Answers of a run of the probe in each mode, and of one under a libc that registers nothing."""

PTRACE_SINCE = (5, 13)
"""Before, the kernel cannot be asked what libc registered, and two attempts that need it are not made."""

ENOTSUPP = 524
"""Linux' own, not of POSIX: what a kernel answers that knows a command and was built without it."""

LARGEST_BYTES = 4 << 20
TIMEOUT_S = 240
_ATTEMPT = re.compile(r"[A-Za-z_0-9][ -~]{0,119}")
_REFUSED = re.compile(r"(?<=^registering answered )\d{1,4}$")
_RUN = re.compile(r"(\d{1,4})(?:\*(\d{1,4}))?")


@dataclass(frozen=True)
class Answer:
    """One answer of one run of the probe."""

    libc: str
    mode: str
    question: str
    attempt: str
    answer: str
    predicted: str | None = None


def libc_argument(libc: Libc) -> dict:
    """The libc, as JSON, for a part's arguments."""
    values = asdict(libc)
    return values | {
        "files": {name: str(path) for name, path in libc.files.items()},
        "sysroot": libc.sysroot and str(libc.sysroot),
    }


def libc_of(values: Mapping) -> Libc:
    """The same back again."""
    return Libc(
        **(
            dict(values)
            | {
                "files": {name: Path(path) for name, path in values["files"].items()},
                "sysroot": Path(values["sysroot"]) if values["sysroot"] else None,
            }
        )
    )


def expected(kernel: Kernel, libcs: Sequence[Libc]) -> int:
    """How many rows a guest will hand over."""
    unasked = 2 if tuple(map(int, kernel.series.split("."))) < PTRACE_SINCE else 0
    return sum(
        ROWS["no rseq"]
        if mode == "libc" and not _registers(libc)
        else ROWS[mode] - (unasked if mode == "libc" else 0)
        for libc in libcs
        for mode in MODES
    )


def _registers(libc: Libc) -> bool:
    found = re.match(r"(\d+)\.(\d+)", libc.version)
    return libc.kind == "glibc" and bool(found) and (int(found[1]), int(found[2])) >= (2, 35)


def guest(kernel: Kernel, libcs: Sequence[Libc]) -> boot.Guest:
    """One guest with two CPUs that runs the probe under each libc and in every mode."""
    plan = [(libc, mode) for libc in libcs for mode in MODES]
    files = {name: path for libc in libcs for name, path in libc.files.items()}
    root = image.root(
        kernel.arch,
        files
        | {
            "/matrix": programs.init("matrix", kernel.arch),
            "/probe": programs.probe(kernel.arch),
            "/plan": "".join(f"{libc.name} {mode} {libc.loader} {libc.folder}\n" for libc, mode in plan),
        },
        "/matrix",
    )
    return boot.Guest(
        kernel,
        root,
        cpus=2,
        busy_cpus=1,
        append=guests.STEADY_CLOCK[kernel.arch],
        timeout_s=TIMEOUT_S,
        results_limit_bytes=LARGEST_BYTES,
    )


def answers(outcome: boot.Outcome, libcs: Sequence[str]) -> list[Answer]:
    """What the probe answered, checked: only runs that were asked for, known questions, one answer to each.

    Raises GuestError, or RowsError where it is no rows at all; then nothing of that guest is kept.
    """
    found: dict[tuple, Answer] = {}
    current: tuple[str, str] | None = None
    complete = set()
    feature = 0
    for row in boot.rows(outcome):
        if "run" in row:
            current = (guests.word(row, "run", libcs), guests.word(row, "mode", tuple(MODES)))
        elif "question" in row and current:
            one, feature = _answer(row, current, feature)
            key = (*current, one.question, one.attempt)
            if key in found:
                raise GuestError(f"A guest answered {one.question!r}, {one.attempt!r} twice in one run.")
            found[key] = one
        elif "ended" in row and current:
            if row["ended"] != 0 or row.get("in_time") is not True:
                one = Answer(*current, "boot", "the probe's end", _end(row))
                found[(*current, one.question, one.attempt)] = one
            complete.add(current)
        elif not ({"kernel", "end"} & set(row)):
            raise GuestError(f"A guest's row is of no known kind: {str(row)[:80]!r}.")
    if missing := [f"{libc}, {mode}" for libc in libcs for mode in MODES if (libc, mode) not in complete]:
        raise GuestError(f"A guest handed over no answers of {len(missing)} runs, first of {missing[0]}.")
    return list(found.values())


def _end(row: Mapping) -> str:
    status = guests.whole(row, "ended", 0, 0xFFFF)
    if row.get("in_time") is not True:
        return "it was still running and was killed"
    return _signal(status & 0x7F) if status & 0x7F else f"exit code {status >> 8}"


def _answer(row: Mapping, run: tuple[str, str], feature: int) -> tuple[Answer, int]:
    """The answer in words, and the feature size of this run as far as it is known."""
    question = guests.word(row, "question", QUESTIONS[:-1])
    attempt = row.get("attempt")
    if not isinstance(attempt, str) or not _ATTEMPT.fullmatch(attempt):
        raise GuestError(
            f"A guest's attempt is {attempt!r:.60}; allowed is printable text of at most 120 characters."
        )
    given = [name for name in ("error", "number", "signal", "words", "codes") if name in row]
    if len(given) != 1:
        raise GuestError(f"A guest's row about {attempt!r} has {len(given)} answers instead of one.")
    predicted = None
    match given[0]:
        case "error":
            said = errno_name(guests.whole(row, "error", 0, 4095))
        case "number":
            number = guests.whole(row, "number", -(1 << 40), 1 << 40)
            said = str(number)
            if attempt == "AT_RSEQ_FEATURE_SIZE":
                feature = number
        case "signal":
            said = _signal(guests.whole(row, "signal", 1, 64))
        case "words":
            said = _REFUSED.sub(lambda match: errno_name(int(match[0])), guests.printable(str(row["words"])))
        case _:
            start = guests.whole(row, "from", 0, 1)
            codes = unpacked(row["codes"], start)
            said = in_ranges(codes)
            if question == "length" and run[1] == "none":
                predicted = in_ranges(
                    {length: 0 if abi.accepted_length(length, feature) else errno.EINVAL for length in codes}
                )
    return Answer(*run, question, attempt, said, predicted), feature


def errno_name(number: int) -> str:
    """``accepted``, or the errno's name."""
    if number == ENOTSUPP:
        return "ENOTSUPP"
    return "accepted" if number == 0 else errno.errorcode.get(number, f"errno {number}")


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def unpacked(text: object, start: int) -> dict[int, int]:
    """Value to errno, from "22*32,0,22": 32 times 22, once 0, once 22. Raises GuestError."""
    codes: list[int] = []
    for part in str(text).split(","):
        match = _RUN.fullmatch(part)
        times = int(match[2] or 1) if match else 0
        if not match or not times or len(codes) + times > 1024:
            raise GuestError(
                f"A guest's list of answers is {text!r:.60}, which is not errno*count, by commas."
            )
        codes += [int(match[1])] * times
    return dict(enumerate(codes, start))


def in_ranges(codes: Mapping[int, int]) -> str:
    """Each answer with the values that got it; the most frequent one, last, with ``otherwise``."""
    by: dict[int, list[int]] = {}
    for value, code in codes.items():
        by.setdefault(code, []).append(value)
    ordered = sorted(by, key=lambda code: len(by[code]))
    parts = [f"{errno_name(code)}: {_stepped(by[code])}" for code in ordered[:-1]]
    return "; ".join([*parts, f"{errno_name(ordered[-1])}{' otherwise' if parts else ': always'}"])


def _stepped(values: Iterable[int]) -> str:
    """Equally spaced whole numbers as ranges: 32, 36 to 256 by 4."""
    rest, parts = list(values), []
    while rest:
        step = rest[1] - rest[0] if len(rest) > 1 else 0
        count = 1
        while count < len(rest) and rest[count] - rest[count - 1] == step:
            count += 1
        if count < 3:
            parts.append(str(rest.pop(0)))
            continue
        parts.append(f"{rest[0]} to {rest[count - 1]}" + (f" by {step}" if step > 1 else ""))
        del rest[:count]
    return ", ".join(parts)


def rows(kernels: Sequence[Kernel], libcs: Mapping[str, Sequence[Libc]]) -> Iterator[dict]:
    """Every answer of every guest as a row; a guest that did not finish is a row that says how it ended."""
    for one, outcome in guests.boot_all([guest(kernel, libcs[kernel.arch]) for kernel in kernels]):
        yield from guest_rows(one.kernel, outcome, libcs[one.kernel.arch])


def guest_rows(kernel: Kernel, outcome: boot.Outcome, libcs: Sequence[Libc]) -> Iterator[dict]:
    """The rows of one guest."""
    same = guests.about(kernel) | {"qemu": guests.printable(outcome.qemu), "accel": outcome.accel}
    versions = {libc.name: libc.version for libc in libcs}
    reason = None
    if outcome.status != "done":
        reason = guests.why(outcome)
    else:
        try:
            found = answers(outcome, [libc.name for libc in libcs])
        except (GuestError, boot.RowsError) as error:
            reason = guests.printable(f"bad results: {error}", 300)
    if reason:
        yield same | {
            "libc": "none",
            "libc_version": None,
            "mode": "none",
            "question": "boot",
            "attempt": "the guest's end",
            "answer": reason,
            "predicted": None,
        }
        return
    for one in found:
        yield same | asdict(one) | {"libc_version": versions[one.libc]}
