"""`%rseqlab ...` in IPython and Jupyter: the command line in a child process, its words as they come, completion.

After `%load_ext rseqlab`. An interrupt ends the child as Ctrl-C does in a terminal, so what was measured is kept and
no process stays; the notebook's kernel only waits, and nothing that a measurement does can harm it.
"""

import codecs
import contextlib
import os
import selectors
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterable

import typer
from IPython.core.completer import CompletionContext, SimpleCompletion, context_matcher
from IPython.core.error import UsageError as NotRun

from rseqlab.cli import app

ENTRY = (
    "from rseqlab.lab.child import die_with_parent; die_with_parent(); from rseqlab.cli import main; main()"
)
COLUMNS = "110"
"""As wide as a cell's output is on a small screen; a terminal says its width, a pipe cannot."""
ENDING_S = 20
"""How long an interrupted command may take to put away what it has measured."""


def load(ipython) -> None:
    """What `%load_ext rseqlab` does."""
    ipython.register_magic_function(run_line, magic_kind="line", magic_name="rseqlab")
    if complete not in ipython.Completer.custom_matchers:
        ipython.Completer.custom_matchers.append(complete)


def run_line(line: str) -> None:
    """Run `rseqlab` with these words, in a process of its own. Tab completes commands, options and names."""
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise NotRun(f"rseqlab cannot read these words: {error}. Close every quotation mark.") from None
    code = run_words(words or ["--help"])
    if code:
        raise NotRun(f"`rseqlab {line.strip()}` ended with exit code {code}; what it said stands above.")


def run_words(words: list[str]) -> int:
    """The exit code of `rseqlab` with these words. What it says goes to this cell's output as it comes."""
    process = subprocess.Popen(
        [sys.executable, "-c", ENTRY, *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"COLUMNS": os.environ.get("COLUMNS", COLUMNS), "PYTHONUNBUFFERED": "1"},
        start_new_session=True,  # an interrupt of the kernel must reach it in one way only: ours
    )
    with process.stdout, process.stderr:
        try:
            _tell(process, None)
            return process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
            _tell(process, time.monotonic() + ENDING_S)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(1)
            raise
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _tell(process: subprocess.Popen, deadline: float | None) -> None:
    """Pass on what the child says, until it closes both its ends or the deadline is there."""
    with selectors.DefaultSelector() as selector:
        for pipe, stream in ((process.stdout, sys.stdout), (process.stderr, sys.stderr)):
            decoder = codecs.getincrementaldecoder("utf-8")("replace")
            selector.register(pipe, selectors.EVENT_READ, (stream, decoder))
        while selector.get_map():
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return
            for key, _ in selector.select(left):
                stream, decoder = key.data
                data = os.read(key.fd, 1 << 16)
                stream.write(decoder.decode(data, final=not data))
                stream.flush()
                if not data:
                    selector.unregister(key.fileobj)


# ---- completion ----


@context_matcher(identifier="rseqlab")
def complete(context: CompletionContext) -> dict:
    """What may stand where the cursor is: commands, options, or names that the command knows; and no Python there."""
    line = context.text_until_cursor.lstrip()
    if not line.startswith(("%rseqlab ", "%rseqlab\t")):
        return {"completions": []}
    begun = "" if line[-1].isspace() else line.split()[-1]
    found = [SimpleCompletion(text=word, type="keyword") for word in candidates(line, begun)]
    return {"completions": found, "matched_fragment": begun, "suppress": True}


def candidates(line: str, begun: str) -> list[str]:
    """The words that may follow in ``line`` and begin as ``begun`` does."""
    words = line.split()[1:]
    if begun and words:
        words = words[:-1]
    command, path = typer.main.get_command(app), []
    while words and words[0] in _below(command):
        path.append(words[0])
        command = _below(command)[words.pop(0)]
    if _below(command):
        return _beginning(begun, _below(command)) if not words else []
    if before := _option(command, words[-1] if words else ""):
        return _beginning(begun, _values(before))
    if begun.startswith("-"):
        return _beginning(
            begun, [*(word for one in command.params for word in one.opts if word[0] == "-"), "--help"]
        )
    return _beginning(begun, [name for name in _names(path) if name not in words])


def _beginning(begun: str, words: Iterable[str]) -> list[str]:
    return [word for word in words if word.startswith(begun)]


def _below(command) -> dict:
    """The commands of a group of commands; a command has none."""
    return getattr(command, "commands", {})


def _option(command, word: str) -> str | None:
    """The option that takes the next word as its value, if this word is one."""
    taking = (one for one in command.params if word in one.opts and not getattr(one, "is_flag", False))
    return next((one.name for one in taking if word.startswith("-")), None)


def _values(option: str) -> Iterable[str]:
    """What an option of this name takes, where that can be told; Python's name of it."""
    from rseqlab.lab.experiment import PROFILES
    from rseqlab.lab.runner import runs_folder
    from rseqlab.study.claims import VERDICTS

    known = {"profile": PROFILES, "verdict": VERDICTS}
    if option in ("run_folder", "compare"):
        return sorted((str(path.parent) for path in runs_folder().glob("*/run.json")), reverse=True)
    return known.get(option, ())


def _names(path: list[str]) -> Iterable[str]:
    """What a command's arguments are called."""
    from rseqlab.experiments import catalogue
    from rseqlab.options.criteria import CRITERIA
    from rseqlab.options.schemes import SCHEMES
    from rseqlab.study.claims import claims

    if path == ["run"]:
        return catalogue()
    if path == ["claims"]:
        return [claim.id for claim in claims()]
    if path == ["options"]:
        return [f"{scheme.id}/{criterion.id}" for scheme in SCHEMES for criterion in CRITERIA]
    return ()
