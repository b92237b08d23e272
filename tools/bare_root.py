"""The bare root of a distribution as a tar file, and the machine's way to the network for a root (elsewhere.py).

Standard library only.
"""

import configparser
import contextlib
import datetime
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

PACKAGES = ("ca-certificates", "git", "make", "python3")
UBUNTU = ("jammy", "noble", "plucky", "questing", "resolute")
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
FILE_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT", "GIT_SSL_CAINFO")
TOO_OLD = re.compile(r"Release file .* is (?:expired|not valid yet)")


class Failed(Exception):
    """What the reader has to know, in one line."""


def say(text: str) -> None:
    """Progress, on standard error."""
    print(text, file=sys.stderr, flush=True)


def cause(output: str) -> str:
    """What a tool said of its failure: its first line that names an error (later ones follow from it), else its last."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    full = [line for line in lines if "No space left on device" in line]
    errors = [line for line in lines if line.startswith(("E:", "error", "fatal", "tar:"))]
    return (full or errors or lines[-1:] or ["it printed nothing"])[0].rstrip(".")


# --- the base root --------------------------------------------------------------------------------


def apt_options() -> list[str]:
    """The machine's settings of how apt reaches its servers, as lines of apt.conf."""
    if shutil.which("apt-config") is None:
        return []
    dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True).stdout
    wanted = re.compile(r'Acquire::(?:https?|ftp|Retries|Proxy|ForceIPv4)\b.* "[^"]+";')
    return [line for line in dump.splitlines() if wanted.fullmatch(line)]


def own_mirror(suite: str) -> str | None:
    """Where this machine gets its own packages, if its distribution is also the suite's; None: mmdebstrap's own.

    mmdebstrap does not read the machine's sources, and they may be the only ones that can be reached.
    """
    with contextlib.suppress(OSError):
        release = dict(re.findall(r'^(\w+)="?([^"\n]*)', Path("/etc/os-release").read_text(), re.M))
        if (release.get("ID") == "ubuntu") != (suite in UBUNTU) or shutil.which("apt-get") is None:
            return None
        told = subprocess.run(
            ["apt-get", "indextargets", "--format", "$(CREATED_BY) $(RELEASE) $(COMPONENT) $(REPO_URI)"],
            capture_output=True,
            text=True,
        ).stdout
        for line in told.splitlines():
            kind, name, component, address = line.split(" ", 3)
            if (kind, name, component) == ("Packages", release.get("VERSION_CODENAME"), "main"):
                return address
    return None


def make_base(folder: Path, suite: str, mirror: str | None, keyring: str | None) -> Path:
    """The suite's bare root as a tar file: today's, or one that is made now."""
    base = folder / f"{suite}-{datetime.date.today().isoformat()}.tar"
    if base.exists():
        return base
    command = ["mmdebstrap", "--variant=apt", f"--include={','.join(PACKAGES)}", "--format=tar"]
    command += [f"--aptopt={option}" for option in apt_options()]
    command += [f"--keyring={keyring}"] if keyring else []
    partial = base.with_suffix(f".{os.getpid()}.partial")
    target = [suite, str(partial), *filter(None, [mirror])]
    if suite in UBUNTU:
        target = ["--components=main,universe", *target]
    say(f"Making a root of {suite} ...")
    try:
        made = subprocess.run([*command, *target], capture_output=True, text=True)
        if made.returncode != 0 and TOO_OLD.search(made.stderr):
            say("The package lists are older than they may be; they are taken as they are.")
            command.append('--aptopt=Acquire::Check-Valid-Until "false";')
            made = subprocess.run([*command, *target], capture_output=True, text=True)
        if made.returncode != 0:
            raise Failed(
                f"no root of {suite!r} could be made: mmdebstrap said: {cause(made.stderr)}. SUITE is a "
                "name that the mirror has, as bookworm, trixie or sid; MIRROR=ADDRESS names another mirror, and "
                "KEYRING=FILE its keys."
            )
        partial.replace(base)
    finally:
        partial.unlink(missing_ok=True)
    for old in folder.glob(f"{suite}-????-??-??.tar"):
        if old != base:
            old.unlink()
    return base


def run(command: list, failure: str, **options) -> None:
    """A command that must succeed."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)
    if done.returncode != 0:
        raise Failed(f"{failure}: {cause(done.stderr or done.stdout)}")


def pip_files() -> list[Path]:
    """The files that pip reads its settings from, for this user."""
    home = Path.home()
    named = os.environ.get("PIP_CONFIG_FILE")
    files = ["/etc/xdg/pip/pip.conf", "/etc/pip.conf", home / ".config/pip/pip.conf", home / ".pip/pip.conf"]
    return [path for path in map(Path, files + ([named] if named else [])) if path.is_file()]


def named_paths(text: str) -> list[Path]:
    """The local files and folders that a value of pip's settings names."""
    found = []
    for word in text.split():
        path = Path(word.removeprefix("file://"))
        if path.is_absolute() and path.exists():
            # The pages of an index on disk name files that lie beside them: /srv/pypi/simple, /srv/pypi/files.
            found.append(path.parent if path.name == "simple" and len(path.parts) > 3 else path)
    return found


def furnish(root: Path) -> list[Path]:
    """Give the root the machine's way to the network; return the folders that pip's settings name here."""
    for name in ("/etc/resolv.conf", "/etc/hosts", CERTIFICATES):
        if os.path.isfile(name):
            shutil.copyfile(name, root / str(name)[1:])
    extra = Path("/usr/local/share/ca-certificates")
    if extra.is_dir():
        shutil.copytree(extra, root / str(extra)[1:], dirs_exist_ok=True)
    if options := apt_options():
        (root / "etc/apt/apt.conf.d/90elsewhere").write_text("\n".join(options) + "\n")
    values = [value for name, value in os.environ.items() if name.startswith("PIP_")]
    values += [os.environ[name] for name in FILE_VARIABLES if name in os.environ]
    for path in pip_files():
        # What is the calling user's holds for every user of the root.
        inside = path if path.is_relative_to("/etc") else Path("/etc/pip.conf")
        (root / str(inside)[1:]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, root / str(inside)[1:])
        settings = configparser.RawConfigParser()
        settings.read(path)
        values += [value for section in settings.sections() for value in settings[section].values()]
    local = {path for value in values for path in named_paths(value)}
    return sorted(path for path in local if not (root / str(path)[1:]).exists())
