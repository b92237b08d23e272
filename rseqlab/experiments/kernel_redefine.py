"""kernel-redefine: the definitions of option-redefine under several libcs, on both architectures, in guests.

One guest for each architecture, with the newest kernel that is here (or those that the user chose). In it each
definition's program is started by the loader of each glibc that exports the names, 2.35 and newer.
"""

import re
import signal
from collections.abc import Iterator, Mapping, Sequence

from rseqlab.lab import counted
from rseqlab.lab.child import Failed
from rseqlab.lab.experiment import LINUX, Column, Experiment, Need, Part, Task
from rseqlab.options import redefine
from rseqlab.vm import boot, guests, image, libcs, matrix, programs
from rseqlab.vm.guests import GuestError
from rseqlab.vm.kernels import Kernel
from rseqlab.vm.libcs import Libc

TIMEOUT_S, GUEST_TIMEOUT_S = 1800, 400
LARGEST_BYTES = 4 << 20
LARGEST_NUMBER = 1 << 62
LONGEST_WORDS = 120
EXPORTS_SINCE = (2, 35)


def exports(libc: Libc) -> bool:
    """Whether this libc exports the names at all."""
    version = libc.version.split(".")
    return libc.kind == "glibc" and tuple(map(int, version[:2])) >= EXPORTS_SINCE


def plan(_: str) -> list[Part]:
    """One child boots every guest; what is not here is a skipped part. Both profiles ask the same."""
    usable, skipped = guests.usable("plan")
    usable = newest_of_each(usable)
    there = {kernel.arch for kernel in usable}
    skipped = [part for part in skipped if not any(part.id.endswith(f"-{_word(arch)}") for arch in there)]
    of_arch = {arch: [one for one in libcs.chosen_libcs(arch) if exports(one)] for arch in guests.ARCHS}
    skipped += [
        Part(
            guests.part_id(name, arch),
            0,
            1,
            skip=f"{name} for {arch} is not here; get it with: rseqlab kernels fetch",
        )
        for name, arch in libcs.not_here()
        if name.startswith("glibc") and name != "glibc-2.31"
    ]
    usable = [kernel for kernel in usable if of_arch[kernel.arch]]
    if not usable:
        return skipped
    each = len(redefine.cases()) * len(redefine.THREADS)
    return [
        Part(
            "guests",
            sum(each * len(of_arch[kernel.arch]) for kernel in usable),
            TIMEOUT_S,
            arguments={
                "kernels": [guests.argument(kernel) for kernel in usable],
                "libcs": {
                    arch: [matrix.libc_argument(one) for one in found] for arch, found in of_arch.items()
                },
            },
        ),
        *skipped,
    ]


def newest_of_each(usable: Sequence[Kernel]) -> list[Kernel]:
    """The user's own kernels, and otherwise the newest of each architecture."""
    own = [kernel for kernel in usable if kernel.origin == "user"]
    by_age = sorted(usable, key=lambda kernel: tuple(map(int, kernel.series.split("."))))
    return own or list({kernel.arch: kernel for kernel in by_age}.values())


def _word(arch: str) -> str:
    return guests.part_id(arch)


Run = tuple[Libc, redefine.Case]


def runs(chosen: Sequence[Libc]) -> list[Run]:
    """What one guest runs, in this order: a run's number is its place."""
    return [(libc, case) for libc in chosen for case in redefine.cases()]


def guest(kernel: Kernel, chosen: Sequence[Libc]) -> boot.Guest:
    """One guest with two CPUs that runs every case under each libc."""
    compiler = counted.compiler(kernel.arch)
    files: dict[str, object] = {name: path for libc in chosen for name, path in libc.files.items()}
    folders, lines = {}, []
    for number, case in enumerate(redefine.cases()):
        built = redefine.build(case, compiler)
        folders[case] = f"/case/{number}"
        files[f"{folders[case]}/{redefine.PROGRAM}"] = built.program
        if built.library:
            files[f"{folders[case]}/{redefine.LIBRARY}"] = built.library
    for number, (libc, case) in enumerate(runs(chosen)):
        folder = folders[case]
        arguments, environment = redefine.start(case, folder)
        variables = [f"{name}={value}" for name, value in environment.items()]
        command = [libc.loader, "--library-path", f"{folder}:{libc.folder}", f"{folder}/{redefine.PROGRAM}"]
        lines.append(" ".join([str(number), *variables, "--", *command, *arguments]))
    files |= {"/init": programs.init("plan", kernel.arch), "/plan": "".join(f"{line}\n" for line in lines)}
    return boot.Guest(
        kernel,
        image.root(kernel.arch, files, "/init"),
        cpus=2,
        busy_cpus=1,
        append=guests.STEADY_CLOCK[kernel.arch],
        timeout_s=GUEST_TIMEOUT_S,
        results_limit_bytes=LARGEST_BYTES,
    )


def rows(kernel: Kernel, outcome: boot.Outcome, wanted: Sequence[Run]) -> Iterator[dict]:
    """The rows of a guest that is done. Raises GuestError or RowsError where it said what its programs cannot say."""
    told: dict[int, list[dict]] = {}
    ended: dict[int, str] = {}
    current = None
    for line in boot.rows(outcome):
        if "run" in line:
            current = guests.whole(line, "run", 0, len(wanted) - 1)
            if current in told:
                raise GuestError(f"A guest ran its command {current} twice.")
            told[current] = []
        elif current is None:
            raise GuestError(f"A guest said something before its first run: {str(line)[:80]!r}.")
        elif "ended" in line:
            ended[current] = how_it_ended(line)
        else:
            told[current].append(checked(line))
    same = guests.about(kernel)
    for number, (libc, case) in enumerate(wanted):
        if number not in ended:
            raise GuestError(f"A guest handed over no end of its command {number}.")
        for row in redefine.rows(case, told[number], ended[number], None):
            yield same | row | {"libc_file": libc.name}


OFFSET, SIZE, ERRNO, COUNT = (
    (-LARGEST_NUMBER, LARGEST_NUMBER),
    (0, 0xFFFFFFFF),
    (0, 4095),
    (0, 64),
)
NUMBERS = {
    "thread": {
        "names_found": (0, 1),
        "names_offset": OFFSET,
        "names_size": SIZE,
        "libc_offset": OFFSET,
        "libc_size": SIZE,
        "ptrace_error": ERRNO,
        "registered": (0, 1),
        "registered_offset": OFFSET,
        "registered_bytes": SIZE,
        "again": ERRNO,
        "at_libc": ERRNO,
        "at_names": ERRNO,
    },
    "read": dict.fromkeys(
        ("readings", "libc_wrong", "libc_no_cpu", "reader_wrong", "reader_told", "reader_died"), COUNT
    ),
    "step": {},
    "libc": {},
}
"""What a program's lines hold beside the word that they begin with, and what is allowed of it."""
VERSION = re.compile(r"\d{1,3}\.\d{1,3}")


def checked(line: Mapping) -> dict:
    """A program's line, if it is whole and each of its values is one that the program can say. Raises GuestError."""
    kind = next((name for name in NUMBERS if name in line), None)
    if kind is None or set(line) != {kind, *NUMBERS[kind]}:
        raise GuestError(f"A guest's line is of no known kind: {str(line)[:80]!r}.")
    found: dict[str, object] = {
        name: guests.whole(line, name, *bounds) for name, bounds in NUMBERS[kind].items()
    }
    if kind in ("thread", "read"):
        return found | {kind: guests.word(line, kind, redefine.THREADS)}
    words = guests.printable(str(line[kind]), LONGEST_WORDS)
    if kind == "libc" and not VERSION.fullmatch(words):
        raise GuestError(f"A guest's libc is {words!r:.60}; allowed is a version such as 2.41.")
    return found | {kind: words}


def how_it_ended(line: Mapping) -> str:
    """As :func:`parties.how_it_ended`, from a status of wait()."""
    status = guests.whole(line, "ended", 0, 0xFFFF)
    if line.get("in_time") is not True:
        return "hung"
    if number := status & 0x7F:
        return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    return f"exit {status >> 8}"


def measure(task: Task) -> Iterator[dict]:
    """Rows of every guest that a resumed run does not have yet; a guest that did not finish ends the part."""
    kernels = [guests.kernel(values) for values in task.arguments["kernels"]]
    of_arch = {
        arch: [matrix.libc_of(values) for values in found] for arch, found in task.arguments["libcs"].items()
    }
    wanted = [guest(kernel, of_arch[kernel.arch]) for kernel in kernels]
    lost = []
    for one, outcome in guests.boot_all(wanted):
        kernel = one.kernel
        if outcome.status != "done":
            lost.append(f"{kernel.release} {kernel.arch}: {guests.why(outcome)}")
            continue
        try:
            found = list(rows(kernel, outcome, runs(of_arch[kernel.arch])))
        except (GuestError, boot.RowsError) as error:
            lost.append(f"{kernel.release} {kernel.arch}: {guests.printable(f'bad results: {error}', 300)}")
            continue
        yield from (row for row in found if task.pending(*(row[name] for name in KEY)))
    if lost:
        raise Failed("; ".join(lost))


KEY = ("release", "arch", "libc_file", *redefine.KEY)

EXPERIMENT = Experiment(
    name="kernel-redefine",
    question="Who else defines __rseq_offset and __rseq_size: where do glibc 2.36, 2.41 and the newest register threads?",
    serves="offset-size: interposition of the names that libc itself exports, by libc and architecture",
    columns=(
        *guests.COLUMNS,
        Column("libc_file", "text", "the libc whose loader started the program, by its package"),
        *redefine.COLUMNS,
    ),
    key=KEY,
    needs=(LINUX, Need("QEMU", boot.missing)),
    seconds={"quick": 60, "full": 60},
    plan=plan,
    measure=measure,
    group="kernels",
)
