"""slice-registration: which registrations may use the slice extension, and how do the others hear that they may not?

Each length of registration on a kernel that has the extension: what ``flags`` says before and after the prctl,
what the prctl answers, and the same where the kernel was booted with the extension switched off.
"""

from collections.abc import Iterator

from rseqlab.experiments.slice_extension import SLICE_KERNEL
from rseqlab.lab.experiment import LINUX, Column, Experiment, Part, Task
from rseqlab.vm import own_kernel, slices

BOOTS = {"default": (), "rseq_slice_ext=0": ("rseq_slice_ext=0",)}
"""What is added to the kernel's command line."""

HOW = ("unregistered", "registered", "registered, on by flag")
ROWS = 8
AVAILABLE, ENABLED = 0x10, 0x20


def plan(profile: str) -> list[Part]:
    """One boot for each command line; every profile is the same."""
    del profile
    parts = []
    for arch in own_kernel.ARCHITECTURES:
        refusal = own_kernel.no_slices(arch) or slices.missing(arch)
        for number, name in enumerate(BOOTS if not refusal else ("default",)):
            arguments = {"arch": arch, "boot": name}
            parts.append(Part(f"{arch}-{number}", ROWS, 300, arguments=arguments, skip=refusal))
    return parts


def measure(task: Task) -> Iterator[dict]:
    """One row per length."""
    boot = task.arguments["boot"]
    built, lines = slices.run(task.arguments["arch"], ("sizes",), append=BOOTS[boot])
    rows = [row for row in lines if row["row"] == "size"]
    slices.expect(len(rows) == ROWS, f"{len(rows)} rows came from the guest")
    for row in rows:
        if task.pending(boot, row["how"], row["registered_bytes"]):
            yield {
                "arch": built.kernel.arch,
                "kernel": built.kernel.release,
                "boot": boot,
                "how": row["how"],
                "registered_bytes": row["registered_bytes"],
                "feature_bytes": row["feature_bytes"],
                "register_errno": row["register_errno"] if row["registered_bytes"] else None,
                "available": int(bool(row["flags_before"] & AVAILABLE)),
                "enabled_before": int(bool(row["flags_before"] & ENABLED)),
                "prctl_errno": row["prctl_errno"],
                "enabled_after": int(bool(row["flags_after"] & ENABLED)),
                "get_result": row["get_result"],
                "yield_result": row["yield_result"],
            }


EXPERIMENT = Experiment(
    name="slice-registration",
    question="Which registrations may use the slice extension, and how do the others hear that they may not?",
    serves="what a length of registration opens and closes",
    columns=(
        Column("arch", "text", "of the guest", choices=own_kernel.ARCHITECTURES),
        Column("kernel", "text", "its release, as it says it"),
        Column("boot", "text", "what was added to its command line", choices=tuple(BOOTS)),
        Column("how", "text", "with which flag, if at all", choices=HOW),
        Column("registered_bytes", "int", "length of the registration; 0 for none"),
        Column("feature_bytes", "int", "AT_RSEQ_FEATURE_SIZE of this kernel"),
        Column(
            "register_errno",
            "int",
            "of rseq(2); 0 where it succeeded, empty where it was not called",
            nullable=True,
        ),
        Column("available", "int", "whether flags said so after the registration"),
        Column("enabled_before", "int", "whether flags said so after the registration"),
        Column(
            "prctl_errno", "int", "of prctl(PR_RSEQ_SLICE_EXTENSION, ..._SET, ..._ENABLE); 0: it succeeded"
        ),
        Column("enabled_after", "int", "whether flags say so after it"),
        Column("get_result", "int", "of ..._GET: 1 enabled, 0 not; a negative errno", minimum=-4095),
        Column("yield_result", "int", "of rseq_slice_yield(2) with nothing granted", minimum=-4095),
    ),
    key=("boot", "how", "registered_bytes"),
    needs=(LINUX, SLICE_KERNEL),
    seconds={"quick": 8, "full": 8},
    plan=plan,
    measure=measure,
    group="kernels",
)
