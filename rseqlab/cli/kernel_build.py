"""kernels build: a kernel of one's own, with slice extension, rseq statistics and debugging compiled in."""

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from rseqlab.cli.base import Json, err, out, print_json
from rseqlab.cli.kernels import kernels_app


@kernels_app.command()
def build(
    archs: Annotated[
        list[str] | None,
        typer.Option("--arch", metavar="ARCH", help="x86_64 (the default) or aarch64; may be repeated."),
    ] = None,
    patches: Annotated[
        list[Path] | None,
        typer.Option(
            "--patch", metavar="FILE", help="Applied with patch -p1, in this order; may be repeated."
        ),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "--source", metavar="DIR", help="A tree of your own instead of the distribution's; only read."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Build a kernel with slice extension, rseq statistics and debugging: minutes, once; then it is cached.

    The last one that was built or asked for here is the one that the slice experiments boot.
    """
    from rseqlab.progress import progress
    from rseqlab.vm import own_kernel

    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM)
    )  # so that gigabytes are cleaned up
    records = []
    for arch in archs or ["x86_64"]:
        with progress(own_kernel.STEPS) as show:
            built = own_kernel.build(arch, patches or (), source, show)
        records.append(_record(built))
        if not as_json:
            _say(built)
    if as_json:
        print_json({"schema": "rseqlab/kernels-build", "version": 1, "kernels": records})


def _record(built) -> dict:
    kernel = built.kernel
    return {
        "release": kernel.release,
        "arch": kernel.arch,
        "image": str(kernel.image),
        "sha256": kernel.sha256,
        "source": built.source,
        "patches": list(built.patches),
        "compiler": built.compiler,
        "options": list(built.options),
        "dropped": list(built.dropped),
        "slice_extension": built.has_slices,
        "build_seconds": built.seconds,
    }


def _say(built) -> None:
    kernel = built.kernel
    patched = f", patched: {', '.join(built.patches)}" if built.patches else ""
    err.print(
        f"{kernel.release} for {kernel.arch}, of {escape(built.source + patched)}; compiled in {built.seconds:.0f} s",
        highlight=False,
        soft_wrap=True,
    )
    if built.dropped:
        err.print(
            f"Not in it, as this source does not allow it for {kernel.arch}: {', '.join(built.dropped)}",
            highlight=False,
            soft_wrap=True,
        )
    out.print(escape(str(kernel.image)), highlight=False, soft_wrap=True)
