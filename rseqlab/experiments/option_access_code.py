"""option-access-code: which instructions read one field, under each option and TLS model?

The reads of option-access-cost, as the system's compiler writes them, one function each, and as the cross
compiler writes them for the other architecture. What a called function executes is not counted: the row of
the call shows that it is one.
"""

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

from rseqlab import host
from rseqlab.lab.compile import COMPILER, PACKAGE, CompileError, Target, build, compiler_id
from rseqlab.lab.experiment import LINUX, NATIVE, REGISTRATION, Column, Experiment, Need, Part, Task

ARCHITECTURES = ("x86_64", "aarch64")
TLS_MODELS = ("initial-exec", "global-dynamic", "descriptor", "local-exec")
OFFSETS = ("offset-exported", "offset-kept")
OPTIONS = ("private", "grow-symbol", "version-symbol", "pointer", "handshake", "padding", "offset-size")
CHECKS = ("none", "each")

DIALECT = {
    ("x86_64", "global-dynamic"): "-mtls-dialect=gnu",
    ("x86_64", "descriptor"): "-mtls-dialect=gnu2",
    ("aarch64", "global-dynamic"): "-mtls-dialect=trad",
    ("aarch64", "descriptor"): "-mtls-dialect=desc",
}
"""How GCC is told which of the two global-dynamic sequences to write."""

CALLS = {"x86_64": re.compile(r"\bcall\b"), "aarch64": re.compile(r"^blr?\b")}

_SOURCE = PACKAGE / "experiments" / "c" / "access_code.c"


@dataclass(frozen=True)
class Instruction:
    """One line of a disassembly, with the relocation that a linker fills in."""

    text: str
    relocation: str | None = None


def _tools(arch: str) -> tuple[str, str]:
    """(compiler, disassembler) for an architecture."""
    prefix = "" if arch == host.arch() else f"{arch}-linux-gnu-"
    return (prefix and f"{prefix}gcc") or "cc", f"{prefix}objdump"


def _no_disassembler() -> str | None:
    return (
        None
        if shutil.which("objdump")
        else "No objdump was found; it comes with binutils, as the linker does."
    )


def _target(arch: str, model: str) -> Target:
    flags = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-c", "-fcf-protection=none" * (arch == "x86_64")]
    flags.append("-fPIE" if model == "local-exec" else "-fPIC")
    if model in OFFSETS:
        flags.append(f"-DKEPT={int(model == 'offset-kept')}")
    else:
        asked = "global-dynamic" if model == "descriptor" else model
        flags += [f'-DTLS_MODEL="{asked}"', DIALECT.get((arch, model), "")]
    name = f"access_code_{arch}_{model}.o"
    return Target(name, (_SOURCE,), tuple(filter(None, flags)), _tools(arch)[0])


def compiled(arch: str, model: str) -> str:
    """The path of the built reads. Raises CompileError, also where nothing could take them apart."""
    if not shutil.which(_tools(arch)[1]):
        raise CompileError(f"No {_tools(arch)[1]} was found; `make deps` installs it.")
    return str(build(_target(arch, model)))


def disassembled(arch: str, made: str) -> dict[tuple[str, str], list[Instruction]]:
    """(option, check) to its instructions."""
    command = [_tools(arch)[1], "-dr", "--no-show-raw-insn", made]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    return {_option_and_check(name): code for name, code in functions(said).items()}


def _option_and_check(name: str) -> tuple[str, str]:
    option, _, check = name.removeprefix("read_").rpartition("_")
    return option.replace("_", "-"), check


def functions(listing: str) -> dict[str, list[Instruction]]:
    """objdump's text by function, without what pads a function after its last return."""
    found: dict[str, list[Instruction]] = {}
    code: list[Instruction] = []
    for line in listing.splitlines():
        if header := re.match(r"[0-9a-f]+ <(read_\w+)>:", line):
            code = found[header[1]] = []
        elif relocation := re.match(r"\t+[0-9a-f]+: (R_\S+)\s+(\S+)", line):
            symbol = re.sub(r"-0x[45]$", "", relocation[2])  # from the field to the instruction's end
            code[-1] = Instruction(code[-1].text, f"{relocation[1]} {symbol}")
        elif instruction := re.match(r"\s+[0-9a-f]+:\t(.*)", line):
            text = re.sub(r"\s+(#|//) .*", "", instruction[1])
            code.append(Instruction(" ".join(re.sub(r"<(read_\w+)(\+0x[0-9a-f]+)?>", "", text).split())))
    for code in found.values():
        last = max(number for number, one in enumerate(code) if one.text.split()[0] in ("ret", "repz", "jmp"))
        del code[last + 1 :]
    return found


def plan(_: str) -> list[Part]:
    """One part per architecture and way to find the area; the profile changes nothing."""
    parts = []
    for arch in ARCHITECTURES:
        for model in (*TLS_MODELS, *OFFSETS):
            try:
                made, refusal = compiled(arch, model), None
                rows = sum(map(len, disassembled(arch, made).values()))
            except CompileError as error:
                made, rows, refusal = "", 0, str(error)
            arguments = {"arch": arch, "model": model, "object": made}
            parts.append(Part(f"{arch}-{model}".replace("_", "-"), rows, 60, {}, arguments, refusal))
    return parts


def measure(task: Task) -> Iterator[dict]:
    """One row per instruction."""
    arch, model = task.arguments["arch"], task.arguments["model"]
    for (option, check), code in disassembled(arch, task.arguments["object"]).items():
        for number, one in enumerate(code):
            if task.pending(option, check, number):
                yield {
                    "option": option,
                    "tls_model": model,
                    "check": check,
                    "arch": arch,
                    "compiler": compiler_id(_tools(arch)[0]),
                    "number": number,
                    "text": one.text,
                    "relocation": one.relocation,
                    "function_instructions": len(code) - 1,
                    "function_calls": sum(bool(CALLS[arch].search(line.text)) for line in code),
                }


EXPERIMENT = Experiment(
    name="option-access-code",
    question="Which instructions read one field, under each option and TLS model?",
    serves="access cost of every option, in instructions, on both architectures",
    columns=(
        Column("option", "text", "the option whose area is read", choices=OPTIONS),
        Column("tls_model", "text", "how the area is found", choices=(*TLS_MODELS, *OFFSETS)),
        Column("check", "text", "when the size (pointer: that it is set) is looked at", choices=CHECKS),
        Column("arch", "text", "the architecture compiled for", choices=ARCHITECTURES),
        Column("compiler", "text", "the compiler's own name of itself"),
        Column("number", "int", "place of the instruction in its function"),
        Column("text", "text", "the instruction, as objdump writes it"),
        Column("relocation", "text", "what a linker fills in", nullable=True),
        Column("function_instructions", "int", "of the function, its return not counted"),
        Column("function_calls", "int", "of these, calls of other functions"),
    ),
    key=("option", "check", "number"),
    needs=(LINUX, NATIVE, REGISTRATION, COMPILER, Need("objdump", _no_disassembler)),
    seconds={"quick": 2, "full": 2},
    plan=plan,
    measure=measure,
)
