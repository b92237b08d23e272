#!/usr/bin/env python3
"""Run this project's commands on a bare system of another distribution (`make elsewhere SUITE=trixie`).

A root with nothing but git, make, Python and certificates is made with mmdebstrap, once a day and suite
(build/elsewhere/SUITE-DATE.tar). Each use unpacks it, clones the commit that is checked out, and enters it
with chroot in a mount and a PID namespace of its own, so that all mounts and processes end with the namespace.
A janitor process removes the root when this process ends, however it ends.

As a plain user, `make setup` must name one command that installs what is missing. The tool runs this command
as root, as a reader would with sudo, and then the user's commands.

Standard library only. Exit codes: 0 every command passed, 1 something failed, 2 wrong use, 130 interrupted.
"""

import argparse
import contextlib
import ctypes
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from bare_root import FILE_VARIABLES, Failed, furnish, make_base, own_mirror, run, say

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "elsewhere"
SUITE = re.compile(r"[a-z][a-z0-9-]*")
USER = re.compile(r"[a-z_][a-z0-9_-]*")
NEEDED_BYTES = 4 * 1024**3
"""A root with the locked packages, and a study, takes about 2 GB; the base and a margin come on top."""
CHECKOUT = "rseqlab"
USER_ID = 1000
ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""The signals that ask a process to end."""
PASSED_ON = re.compile(
    r"PIP_\w+|(?:https?|no|all|ftp)_proxy|SSL_CERT_DIR|TERM|PYTEST_ADDOPTS|RSEQLAB_TEST_\w+", re.IGNORECASE
)
DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


# --- what there must be ---------------------------------------------------------------------------


def check_machine(folder: Path) -> None:
    """Name the first thing that is missing."""
    if not sys.platform.startswith("linux"):
        raise Failed(f"chroot and namespaces are Linux's; this is {sys.platform}. Run it on a Linux machine.")
    for program, package in (("mmdebstrap", "mmdebstrap"), ("unshare", "util-linux"), ("git", "git")):
        if shutil.which(program) is None:
            raise Failed(
                f"{program} was not found. Install it: sudo apt-get install -y --no-install-recommends {package}"
            )
    if os.geteuid() != 0:
        raise Failed(
            f"making a root needs root; this is user id {os.geteuid()}. Run it again with sudo, or as root."
        )
    folder.mkdir(parents=True, exist_ok=True)
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < NEEDED_BYTES:
        raise Failed(
            f"the file system of {folder} has {free_bytes / 1024**3:.1f} GB free, and a root needs "
            f"{NEEDED_BYTES / 1024**3:.0f} GB. Make room there, for instance with make clean."
        )


# --- a root for one use ---------------------------------------------------------------------------


def mounted_below(folder: Path) -> list[str]:
    """The mount points of this namespace in the folder."""
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [point for point in points if point.startswith(f"{folder}/")]


def clean_up(root: Path) -> int:
    """The janitor: wait until standard input is closed, then remove the root unless it was told to keep it."""
    for number in ENDINGS:
        signal.signal(number, signal.SIG_IGN)
    if sys.stdin.read().strip() == "keep":
        return 0
    for _ in range(100):  # the namespace's processes may still be dying
        if not mounted_below(root):
            shutil.rmtree(root, ignore_errors=True)
        if not root.exists():
            return 0
        time.sleep(0.1)
    print(
        f"elsewhere: {root} could not be removed; look for mounts below it, then remove it.", file=sys.stderr
    )
    return 1


@contextlib.contextmanager
def root_for_one_use(base: Path, suite: str, keep: bool) -> Iterator[Path]:
    """The base, unpacked; removed afterwards by the janitor, even if this process is killed."""
    root = FOLDER / f"{suite}-{os.getpid()}.root"
    root.mkdir()
    janitor = subprocess.Popen(
        [sys.executable, __file__, "--clean-up", str(root)],
        stdin=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that Ctrl-C does not reach it
    )
    try:
        run(["tar", "--extract", "--file", base, "--directory", root], f"{base} could not be unpacked")
        yield root
    finally:
        for number in ENDINGS:  # a second one must not leave while the janitor is at work
            signal.signal(number, signal.SIG_IGN)
        if keep:
            janitor.stdin.write("keep")
            say(f"Kept: {root} (remove it with rm -r; nothing is mounted in it)")
        else:
            say("Removing the root ...")
        janitor.stdin.close()
        janitor.wait()


def home(user: str) -> str:
    """Where the user's files lie in the root."""
    return "/root" if user == "root" else f"/home/{user}"


def environment(user: str) -> dict[str, str]:
    """A plain environment, and what leads to the network."""
    own = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": home(user),
        "USER": user,
        "LOGNAME": user,
        "LANG": "C.UTF-8",
        "DEBIAN_FRONTEND": "noninteractive",
    }
    passed = {name: value for name, value in os.environ.items() if PASSED_ON.fullmatch(name)}
    passed |= {name: os.environ[name] for name in FILE_VARIABLES if name in os.environ}
    passed.pop("PIP_CONFIG_FILE", None)  # its text is in the root's /etc/pip.conf
    return passed | own


def add_user(root: Path, user: str) -> None:
    """A plain user with a home. By hand, since a bare root need not have useradd."""
    passwd = root / "etc" / "passwd"
    if re.search(rf"^{user}:", passwd.read_text(), re.M):
        raise Failed(f"USER is {user!r}, which is one of the system's own users; choose another name")
    with passwd.open("a") as file:
        file.write(f"{user}:x:{USER_ID}:{USER_ID}::/home/{user}:/bin/sh\n")
    with (root / "etc" / "group").open("a") as file:
        file.write(f"{user}:x:{USER_ID}:\n")
    (root / "home" / user).mkdir(parents=True)


def prepare(root: Path, user: str) -> list[Path]:
    """Network, user and checkout; returns the folders to mount."""
    mounts = furnish(root)
    folder = root / home(user)[1:]
    if user != "root":
        add_user(root, user)
    run(
        ["git", "clone", "--quiet", "--no-hardlinks", ROOT, folder / CHECKOUT],
        "the commit could not be cloned into the root",
    )
    run(["git", "-C", folder / CHECKOUT, "remote", "remove", "origin"], "git remote remove")
    if user != "root":
        run(["chown", "-R", f"{USER_ID}:{USER_ID}", folder], "chown")
    return mounts


# --- commands in the root -------------------------------------------------------------------------

ENTER = r"""
set -e
root=$1 user=$2 checkout=$3 command=$4
shift 4
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
for path; do
	if [ -d "$path" ]; then mkdir -p "$root$path"; else mkdir -p "$(dirname "$root$path")"; : > "$root$path"; fi
	mount --bind -o ro "$path" "$root$path"
done
# Without exec: this shell is the namespace's first process, and waits for those whose parents ended.
chroot --userspec="$user" --groups= "$root" /bin/sh -c 'cd "$0" && eval "$1"' "$checkout" "$command" || exit $?
exit 0
"""


NAMESPACES = (
    *("unshare", "--mount", "--propagation", "private", "--pid", "--fork"),
    "--kill-child=SIGKILL",
)


def die_with_parent() -> None:
    """Before exec: this process gets SIGKILL when the one that started it ends."""
    ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)


class Entry:
    """Commands in one root, their whole output in log files beside it."""

    def __init__(self, root: Path, checkout: str, mounts: list[Path], options: argparse.Namespace) -> None:
        self.root, self.checkout, self.mounts = root, checkout, mounts
        self.suite, self.quiet, self.limit_s = options.suite, options.quiet, options.limit_s
        self.count = 0

    def command(self, words: str, user: str) -> dict:
        """Run one command; its record; status is None where it was not done in time.

        `seconds` is elapsed time; `cpu_seconds` is the processor time of all processes that were waited for.
        """
        self.count += 1
        name = re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")[:40]
        log = FOLDER / f"{self.suite}-{user}-{self.count}-{name}.log"
        say(f"== {self.suite}, {user}: {words}")
        began, used = time.monotonic(), os.times()
        with log.open("w") as file:
            process = subprocess.Popen(
                [*NAMESPACES, "sh", "-c", ENTER, "sh", self.root, user, self.checkout, words, *self.mounts],
                env=environment(user),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                preexec_fn=die_with_parent,
                start_new_session=True,  # Ctrl-C ends it through this process, as every other ending does
            )
            try:
                status = self.follow(process, log, began)
            finally:
                process.kill()
                process.wait()
        lines = log.read_text(errors="replace").splitlines()
        last = next((line for line in reversed(lines) if line.strip()), "")
        seconds = round(time.monotonic() - began, 1)
        if status != 0 and self.quiet:
            say("\n".join(lines[-60:]))
        say(f"== {self.suite}, {user}: {words}: {ending(status)} after {seconds:.0f} s (log: {log})")
        return {
            "command": words,
            "user": user,
            "status": status,
            "seconds": seconds,
            "cpu_seconds": round(sum(os.times()[2:4]) - sum(used[2:4]), 1),
            "last_line": last.strip("= "),
            "log": str(log),
        }

    def follow(self, process: subprocess.Popen, log: Path, began: float) -> int | None:
        """Show what is written until the process ends; None where it was not done in time."""
        with log.open(errors="replace") as written:
            while True:
                status = process.poll()
                text = written.read()
                if text and not self.quiet:
                    print(text, end="", file=sys.stderr, flush=True)
                if status is not None:
                    return status
                if time.monotonic() - began > self.limit_s:
                    return None
                time.sleep(0.2)


def ending(status: int | None) -> str:
    """How a command ended, in words."""
    if status is None:
        return "stopped: it was not done in time"
    return "passed" if status == 0 else f"failed with exit code {status}"


def told_to_install(log: str) -> str:
    """The one command that `make setup` tells a plain user to run; Failed where it is none or several."""
    told = re.findall(r"^ +sudo (.*)$", Path(log).read_text(), re.M)
    if len(told) != 1:
        raise Failed(
            f"make setup told {len(told)} commands that install what is missing; it must tell one ({log})"
        )
    return told[0].replace("sudo ", "")


def go_through(entry: Entry, commands: list[str], user: str) -> Iterator[dict]:
    """Run the commands in order; a plain user first learns what to install."""
    if user != "root":
        asked = entry.command("make setup", user)
        asked["expected"] = "it may fail and name one command"
        yield asked
        if asked["status"] != 0:
            yield entry.command(told_to_install(asked["log"]), "root")
    for target in commands:
        yield entry.command(f"make {target}", user)


# --- the command line -----------------------------------------------------------------------------


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line; wrong use ends with exit code 2."""
    parser = argparse.ArgumentParser(prog="elsewhere", description=__doc__.splitlines()[0])
    parser.add_argument("suite", help="the distribution's name: bookworm, trixie, sid, noble, ...")
    parser.add_argument(
        "--commands",
        default="report test",
        help="make targets, quoted where one has arguments (default: report test)",
    )
    parser.add_argument("--user", default="root", help="who runs them (default: root)")
    parser.add_argument(
        "--mirror", help="address of the packages (default: this machine's, else mmdebstrap's)"
    )
    parser.add_argument("--keyring", help="file with the keys of the packages (default: mmdebstrap's own)")
    parser.add_argument("--keep", action="store_true", help="keep the root and print its path")
    parser.add_argument("--quiet", action="store_true", help="show a command's output only if it fails")
    parser.add_argument(
        "--limit-s", type=int, default=3600, help="of each command, in seconds (default: 3600)"
    )
    parser.add_argument("--json", action="store_true", help="print a summary as JSON on standard output")
    parsed = parser.parse_args(arguments)
    if not SUITE.fullmatch(parsed.suite):
        parser.error(f"SUITE is {parsed.suite!r}; a suite is named like bookworm, trixie or sid")
    if not USER.fullmatch(parsed.user):
        parser.error(f"USER is {parsed.user!r}; a user is named with small letters, digits, - and _")
    if parsed.limit_s <= 0:
        parser.error(f"--limit-s is {parsed.limit_s}; it must be above 0")
    try:
        parsed.commands = shlex.split(parsed.commands)
    except ValueError as error:
        parser.error(f"COMMANDS is {parsed.commands!r}: {error}")
    if not parsed.commands:
        parser.error('COMMANDS is empty; say for instance COMMANDS="report test"')
    return parsed


def elsewhere(options: argparse.Namespace) -> dict:
    """Make the root, run the commands; the summary that --json prints."""
    check_machine(FOLDER)
    commit = subprocess.run(
        ["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    dirty = subprocess.run(
        ["git", "-C", ROOT, "status", "--porcelain"], capture_output=True, text=True
    ).stdout.splitlines()
    if dirty:
        say(f"Not committed, so not part of it: {len(dirty)} files (git status names them).")
    base = make_base(FOLDER, options.suite, options.mirror or own_mirror(options.suite), options.keyring)
    steps = []
    with root_for_one_use(base, options.suite, options.keep) as root:
        mounts = prepare(root, options.user)
        entry = Entry(root, f"{home(options.user)}/{CHECKOUT}", mounts, options)
        for step in go_through(entry, options.commands, options.user):
            steps.append(step)
    say("".join(f"{step['seconds']:7.0f} s  {step['command']}: {ending(step['status'])}\n" for step in steps))
    return {
        "schema": "rseqlab-elsewhere",
        "version": 1,
        "suite": options.suite,
        "user": options.user,
        "commit": commit,
        "uncommitted_files": len(dirty),
        "kept_root": str(root) if options.keep else None,
        "passed": all(step["status"] == 0 or "expected" in step for step in steps),
        "steps": steps,
    }


def main(arguments: list[str]) -> int:
    """The exit code."""
    if arguments[:1] == ["--clean-up"]:
        return clean_up(Path(arguments[1]))
    options = parse(arguments)

    def interrupted(number, frame):
        raise KeyboardInterrupt

    for number in ENDINGS:
        signal.signal(number, interrupted)
    try:
        summary = elsewhere(options)
    except Failed as error:
        print(f"elsewhere: {error}", file=sys.stderr)
        return 1
    except OSError as error:  # a full disk, for instance
        print(
            f"elsewhere: {error.filename or FOLDER}: {error.strerror}; the root is removed.", file=sys.stderr
        )
        return 1
    except KeyboardInterrupt:
        print(
            f"elsewhere: interrupted; the root is {'kept' if options.keep else 'removed'}.", file=sys.stderr
        )
        return 130
    if options.json:
        print(json.dumps(summary, indent=1))
    return 0 if summary["passed"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
