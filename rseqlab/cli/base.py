"""What every command shares: the application, its consoles, one JSON document, the ways to end."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

import rseqlab
from rseqlab.errors import LabError, UsageError

app = typer.Typer(
    help="Restartable sequences, answered by experiments on this machine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
Run = Annotated[
    Path | None,
    typer.Option(
        "--run",
        help="Exactly this run, or `shipped`; by default the newest rows of this machine, and shipped ones for the rest.",
    ),
]

out = Console()
err = Console(stderr=True)


def main() -> None:
    """Run the command line; every way to fail ends in one of the documented exit codes."""
    as_json = "--json" in sys.argv
    try:
        code = app(standalone_mode=False) or 0
        sys.stdout.flush()
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except UsageError as error:
        _fail(as_json, "usage", str(error), 2)
    except LabError as error:
        _fail(as_json, "failed", str(error), 1)
    except BrokenPipeError:
        # The reader of our output left; nothing remains to be said, also not by Python as it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except OSError as error:
        place = f" {error.filename}" if error.filename else ""
        _fail(as_json, "failed", f"Could not use{place}: {error.strerror}.", 1)
    except Exception as error:
        if hasattr(error, "format_message"):  # how typer reports wrong options
            _fail(as_json, "usage", error.format_message(), 2)
        if os.environ.get("RSEQLAB_DEBUG"):
            raise
        known = f"{type(error).__name__}: {error}"
        _fail(as_json, "failed", f"A fault of rseqlab itself: {known}. RSEQLAB_DEBUG=1 shows where.", 1)
    if code == 130:
        words = sys.argv[1:3] if sys.argv[1:2] == ["kernels"] else sys.argv[1:2]
        again = f"`rseqlab {' '.join(words)} --resume`"
        kept = f" What was measured is kept; {again} goes on." if words[-1:] == ["run"] else ""
        _fail(as_json, "interrupted", f"Interrupted.{kept}", code)
    sys.exit(code)


def _fail(as_json: bool, kind: str, message: str, code: int) -> None:
    try:
        if as_json:
            print_json({"schema": "rseqlab/error", "version": 1, "kind": kind, "message": message})
        sys.stdout.flush()
    except OSError:  # what it still holds must not be tried again by Python as it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if message:  # none where a bare `rseqlab` has printed its help
        err.print(f"rseqlab: {escape(message)}", highlight=False, soft_wrap=True)
    sys.exit(code)


def print_json(document: dict) -> None:
    from rseqlab.lab.bundle import validate

    validate(document, document["schema"].removeprefix("rseqlab/"), "this command's own output")
    print(json.dumps(document, indent=1, allow_nan=False))


def _version(wanted: bool) -> None:
    if wanted:
        print(f"rseqlab {rseqlab.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
):
    pass
