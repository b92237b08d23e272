"""Packages of the Debian archive that this machine is configured with, fetched without root.

apt runs on a state directory of its own below the cache: the machine's package lists, its installed
packages and its hooks are neither read nor touched. What is taken over from the machine is which mirror
it uses and how it reaches it (proxy, credentials). Signatures are checked by apt with the archive's keyring.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rseqlab.errors import LabError
from rseqlab.lab import child
from rseqlab.vm import cache

SUITES = ("bullseye", "bookworm", "trixie", "trixie-backports", "forky")
"""Releases of the archive that between them carry each change of the ABI. What exists is asked, not assumed."""

DEBIAN_ARCH = {"x86_64": "amd64", "aarch64": "arm64"}
MIRROR = "RSEQLAB_MIRROR"
"""Environment variable: the address of a Debian archive, where the machine is not configured with one."""

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
TICK_S = 1.0
UPDATE_TIMEOUT_S = 600
DOWNLOAD_TIMEOUT_S = 600
ASK_TIMEOUT_S = 120
WANTED = r"^linux-(image|binary)-[0-9].*-cloud-(amd64|arm64)$|^linux-base-[0-9].*-cloud-(amd64|arm64)$|^libc6$|^musl(-dev)?$"
"""The packages whose versions are remembered: kernels (and where newer ones keep their configuration), libcs."""


class PackageError(LabError):
    """apt could not do what was asked; the sentence says what it was and what apt said."""


@dataclass(frozen=True)
class Package:
    """One version of a package for one architecture, in one suite of the archive."""

    name: str
    version: str
    arch: str
    """As this lab spells it: x86_64 or aarch64."""
    suite: str


Progress = Callable[[str, int, int], None]
"""Called with what is done, how much of it, and of how much."""


def quiet(name: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


def missing() -> str | None:
    """Why no package can be fetched here, or None."""
    absent = [tool for tool in ("apt-get", "apt-cache", "dpkg-deb") if not shutil.which(tool)]
    if absent:
        return (
            f"Packages cannot be fetched: {', '.join(absent)} was not found. On a machine without apt give "
            "kernels and libcs yourself (--kernel PATH, --libc PATH)."
        )
    return None


def mirror() -> str:
    """The Debian archive that this machine uses. Raises PackageError where it uses none."""
    if given := os.environ.get(MIRROR):
        return given.rstrip("/")
    wanted = "$(SITE)|$(RELEASE)|$(COMPONENT)"
    said = _run(
        ["apt-get", "indextargets", "--format", wanted, "Created-By: Packages"], ASK_TIMEOUT_S, host=True
    )
    for line in said.splitlines():
        site, release, component = line.split("|")
        known = {*SUITES, "buster", "sid", "stable", "oldstable", "oldoldstable", "testing", "unstable"}
        if component == "main" and release.removesuffix("-updates") in known and "security" not in site:
            return site.rstrip("/")
    raise PackageError(
        f"This machine's package sources name no Debian archive. Set {MIRROR} to the address of one, or give "
        "kernels and libcs yourself (--kernel PATH, --libc PATH)."
    )


def _configuration(site: str) -> Path:
    """Writes apt's configuration and sources below the cache; returns the configuration's path."""
    home = cache.folder("apt")
    for name in ("lists/partial", "archives/partial", "none"):
        (home / name).mkdir(parents=True, exist_ok=True)
    (home / "status").touch()
    signed = f"Signed-By: {KEYRING}\n" if KEYRING.exists() else ""
    (home / "archive.sources").write_text(
        f"Types: deb\nURIs: {site}\nSuites: {' '.join(SUITES)}\nComponents: main\n"
        f"Architectures: {' '.join(DEBIAN_ARCH.values())}\n{signed}"
    )
    kept = [
        line
        for line in _run(["apt-config", "dump"], ASK_TIMEOUT_S, host=True).splitlines()
        if line.startswith("Acquire::")
        and not line.startswith(("Acquire::IndexTargets", "Acquire::Languages"))
    ]
    if re.search(r"/\d{8}T\d{6}Z", site):  # a dated copy of the archive is old by intention
        kept.append('Acquire::Check-Valid-Until "false";')
    lines = {
        "Dir::State": home,
        "Dir::State::lists": home / "lists",
        "Dir::State::status": home / "status",
        "Dir::Cache": home,
        "Dir::Cache::srcpkgcache": "",  # as large as the other, and not needed beside it
        "Dir::Etc::sourcelist": home / "archive.sources",
        "Dir::Etc::sourceparts": home / "none",
        "Dir::Etc::preferences": home / "none" / "preferences",
        "Dir::Etc::preferencesparts": home / "none",
        "Dir::Etc::parts": home / "none",  # the machine's hooks act on the machine
        "Dir::Etc::main": home / "none" / "apt.conf",
        "APT::Sandbox::User": "root",  # it may not reach this folder as another user; without root no matter
        "APT::Get::AllowUnauthenticated": "false",
        "Acquire::AllowInsecureRepositories": "false",
        "Acquire::Languages": "none",
        "Acquire::GzipIndexes": "true",
        "Acquire::Retries": "2",
    }
    text = "\n".join([*kept, *(f'{name} "{value}";' for name, value in lines.items())])
    text += '\n#clear APT::Architectures;\nAPT::Architectures {"amd64";"arm64";};\n'
    path = home / "apt.conf"
    path.write_text(text)
    return path


def _run(
    command: Sequence[str],
    timeout_s: float,
    host: bool = False,
    folder: Path | None = None,
    tick: Callable[[], None] = lambda: None,
) -> str:
    """One apt command's output. It ends with this process, and with the deadline; ``tick`` is called now and then."""
    environment = os.environ | {"LC_ALL": "C.UTF-8"}
    if not host:
        environment["APT_CONFIG"] = str(cache.folder("apt") / "apt.conf")
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=environment,
        cwd=folder,
        start_new_session=True,
        preexec_fn=child.die_with_parent,
    )
    deadline = time.monotonic() + timeout_s
    try:
        while True:
            try:
                said, errors = process.communicate(timeout=TICK_S)
                break
            except subprocess.TimeoutExpired:
                if time.monotonic() > deadline:
                    raise PackageError(
                        f"{command[0]} {command[1]} gave no answer within {timeout_s:g} s."
                    ) from None
                tick()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.returncode:
        raise PackageError(f"{command[0]} {command[1]} failed: {_last_words(errors)}")
    return said


def _last_words(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.startswith(("E:", "W:"))]
    words = "; ".join(lines[:3]) or text.strip()[-300:] or "nothing was said"
    return "".join(character if character.isprintable() else " " for character in words)[:600]


def refresh() -> dict:
    """Ask the archive what it has. Returns the remembered answer: suites, packages, when and where.

    A suite that is not there is said in ``unreachable``; the others count. Raises PackageError where none is.
    """
    if reason := missing():
        raise PackageError(reason)
    with cache.lock():
        return _refresh(mirror())


def _refresh(site: str) -> dict:
    _configuration(site)
    trouble = None
    try:
        _run(["apt-get", "update"], UPDATE_TIMEOUT_S)
    except PackageError as error:
        trouble = str(error)
    there = set(
        _run(["apt-get", "indextargets", "--format", "$(RELEASE)|$(FILENAME)"], ASK_TIMEOUT_S).splitlines()
    )
    reached = {line.split("|")[0] for line in there if Path(line.split("|")[1]).exists()}
    if not reached:
        raise PackageError(
            f"The package source {site} could not be read: {trouble or 'it has none of ' + ', '.join(SUITES)}. "
            "What is cached still works (--offline)."
        )
    document = {
        "mirror": site,
        "asked_unix_s": int(time.time()),
        "unreachable": [suite for suite in SUITES if suite not in reached],
        "trouble": trouble,
        "packages": [asdict(package) for package in _found()],
    }
    output = cache.folder("apt") / "offer.json"
    with cache.writing(output) as partial:
        partial.write_text(json.dumps(document, indent=1))
    return document


def _found() -> list[Package]:
    names = []
    for line in _run(["apt-cache", "search", "--names-only", WANTED], ASK_TIMEOUT_S).splitlines():
        names.append(line.partition(" ")[0])
    spelled = [f"{name}:{arch}" for name in dict.fromkeys(names) for arch in DEBIAN_ARCH.values()]
    return candidates(spelled)


def candidates(names: Sequence[str]) -> list[Package]:
    """Every version of these packages ("name" or "name:arm64") in the suites that were reached."""
    found = []
    archs = {there: here for here, there in DEBIAN_ARCH.items()}
    for line in _run(["apt-cache", "madison", *names], ASK_TIMEOUT_S).splitlines():
        name, version, where = (part.strip() for part in line.split("|"))
        _, release, arch, _ = where.split(" ")
        if arch in archs:
            one = Package(name.partition(":")[0], version, archs[arch], release.partition("/")[0])
            if one not in found:
                found.append(one)
    return found


def offer() -> dict | None:
    """What the archive answered when it was asked last, or None where it never was."""
    try:
        return json.loads((cache.top() / "apt" / "offer.json").read_text())
    except (OSError, ValueError):
        return None


def offered(fresh: bool = False) -> list[Package]:
    """The kernels' and libcs' packages. Asks the archive where it was never asked, or where ``fresh``."""
    document = None if fresh else offer()
    if document is None:
        with cache.lock():  # where another process asks just now, its answer will do
            document = (None if fresh else offer()) or refresh()
    return [Package(**package) for package in document["packages"]]


def version_key(version: str) -> tuple:
    """A key that sorts versions as Debian does (deb-version(7)): "~" before the end, letters before the rest."""
    epoch, _, rest = version.rpartition(":")
    upstream, _, revision = rest.rpartition("-") if "-" in rest else (rest, "", "0")

    def parts(text: str) -> tuple:
        found = []
        for other, digits in re.findall(r"(\D*)(\d*)", text)[:-1] or [("", "")]:
            ranks = [-1 if one == "~" else ord(one) + (0 if one.isalpha() else 256) for one in other]
            found.append(((*ranks, 0), int(digits or 0)))
        return (*found, ((0,), 0))  # so that an end comes after "~" and before all else

    return int(epoch or 0), parts(upstream), parts(revision)


def newer(one: str, other: str) -> bool:
    """Whether version ``one`` is newer than ``other``, as Debian orders them."""
    return version_key(one) > version_key(other)


def by_version(packages: Sequence[Package]) -> list[Package]:
    """Oldest first."""
    return sorted(packages, key=lambda one: version_key(one.version))


def download(wanted: Sequence[Package], folder: Path, progress: Progress = quiet) -> dict[Package, Path]:
    """The packages' .deb files in ``folder``, their checksums verified by apt. Raises PackageError.

    One call of apt for all of them: reading its lists takes longer than most packages take to come.
    """
    home = cache.folder("apt")
    if not (home / "apt.conf").exists():
        refresh()
    names = [f"{one.name}:{DEBIAN_ARCH[one.arch]}={one.version}" for one in wanted]

    def tick() -> None:
        progress("download", sum(path.suffix == ".deb" for path in folder.iterdir()), len(names))

    try:
        _run(["apt-get", "download", *names], DOWNLOAD_TIMEOUT_S, folder=folder, tick=tick)
    except PackageError as error:
        if "No space left" in str(error) or "enough free space" in str(error):
            raise cache.CacheError(
                f"The disk of {cache.top()} is too full for {', '.join(names)}; nothing was kept. Free some space "
                "or set RSEQLAB_CACHE to another disk."
            ) from None
        raise PackageError(f"Could not download {', '.join(names)}: {error}") from None
    made = {}
    for one in wanted:
        epoch_free = one.version.replace(":", "%3a")
        for arch in (DEBIAN_ARCH[one.arch], "all"):
            path = folder / f"{one.name}_{epoch_free}_{arch}.deb"
            if path.exists():
                made[one] = path
        if one not in made:
            raise PackageError(
                f"Could not download {one.name} {one.version}: apt said that it did, but no file came."
            )
    return made


def unpack(package: Path, folder: Path) -> None:
    """The files of a .deb below ``folder``; nothing is installed and none of its scripts run."""
    done = subprocess.run(
        ["dpkg-deb", "--extract", str(package), str(folder)],
        capture_output=True,
        text=True,
        timeout=ASK_TIMEOUT_S,
        env=os.environ | {"LC_ALL": "C.UTF-8"},
    )
    if done.returncode:
        if "No space left" in done.stderr:
            raise cache.CacheError(f"The disk of {folder} is full; {package.name} was not kept.")
        raise PackageError(f"Could not unpack {package.name}: {_last_words(done.stderr)}")
