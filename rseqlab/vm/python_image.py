"""A root image for aarch64 in which the package's own tests run: a distribution's Python, this package, its tests.

The Python comes by package from the archive and is unpacked, not installed: no root, no emulation, no script of
a package runs. The extensions and the C programs of the tests are cross-compiled here.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rseqlab.errors import LabError
from rseqlab.lab import compile, counted
from rseqlab.paths import PACKAGE, project_root
from rseqlab.vm import boot, cache, crossbuild, image, packages
from rseqlab.vm.image import Link
from rseqlab.vm.packages import Progress, quiet

ARCH = "aarch64"
SUITE = "trixie"
"""The release of the archive that gives the Python; its glibc (2.41) registers an area that the kernel may extend."""

WANTED = (
    "python3-minimal",
    "libpython3-stdlib",
    "python3-cffi-backend",
    "python3-fastjsonschema",
    "python3-pyelftools",
    "python3-pytest",
    "python3-pytest-xdist",
    "binutils",
)
UNUSED = ("dpkg", "tar", "debconf", "openssl-provider-legacy", "media-types", "netbase", "tzdata")
"""What Debian's packages ask for and no test needs."""

LEFT_OUT = re.compile(
    r"usr/share/(?!python3)|usr/lib/python3/dist-packages/.*/tests?/|usr/lib/python3[^/]*/(ensurepip|idlelib|turtledemo)/"
    r"|usr/lib/[^/]*/gconv/|etc/|var/|usr/include/|.*\.a$|.*/__pycache__/"
)
MERGED = ("bin", "lib", "sbin")
"""Folders that are links into /usr on this distribution; no package carries the links."""

PYTHON = re.compile(r"libpython(3\.\d+)-stdlib$")
INSTALL_TIMEOUT_S = 600
PROGRAMS_TIMEOUT_S = 300
TESTS = ("conftest.py", "percpu_check.py", "programs.py", "sandbox.py")
"""What the test files need beside them."""


class ImageError(LabError):
    """The image could not be built; the sentence says why."""


@dataclass(frozen=True)
class Python:
    """The unpacked packages, and the headers to compile against."""

    root: Path
    include: Path
    versions: Mapping[str, str]
    """Package to version, of all that was unpacked."""


def missing() -> str | None:
    """Why the image cannot be built here, or None."""
    if not (project_root() / "tests" / "programs.py").exists():
        return "the tests are not part of an installed package: run this in a checkout of the project"
    return crossbuild.missing(ARCH) or (None if _found() else packages.missing())


def python(progress: Progress = quiet, fresh: bool = False) -> Python:
    """The Python for the guest: what is cached, or what the archive has. Raises LabError."""
    if not fresh and (found := _found()):
        return found
    with cache.lock():  # the second of two processes finds what the first one fetched
        return (None if fresh else _found()) or _fetched(progress, fresh)


def _fetched(progress: Progress, fresh: bool) -> Python:
    progress("python image", 0, 4)
    packages.refresh() if fresh else packages.offered()  # asks the archive where it never was
    versions = _resolve(WANTED)
    minor = next((found[1] for name in versions if (found := PYTHON.match(name))), None)
    if minor is None:
        raise ImageError(f"The archive's {SUITE} gave no libpython3.*-stdlib: {', '.join(sorted(versions))}.")
    headers = f"libpython{minor}-dev"
    home = cache.folder(f"python/{ARCH}") / _digest(versions)
    if (home / "python.json").exists():
        return _read(home)
    with cache.writing(home) as partial, cache.scratch() as space:
        progress("python image", 1, 4)
        wanted = {"root": [f"{name}={version}" for name, version in versions.items()], "dev": [headers]}
        for part, names in wanted.items():
            debs, files = space / part, partial / part
            debs.mkdir()
            files.mkdir(parents=True)
            for deb in _download(names, debs):
                packages.unpack(deb, files)
        progress("python image", 2, 4)
        record = {"wanted": _wish(), "versions": versions}
        (partial / "python.json").write_text(json.dumps(record, indent=1))
    return _read(home)


def _wish() -> list[str]:
    return [SUITE, *WANTED, "without", *UNUSED]


def _digest(versions: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps([_wish(), sorted(versions.items())]).encode()).hexdigest()[:16]


def _read(home: Path) -> Python:
    return Python(
        home / "root", home / "dev/usr/include", json.loads((home / "python.json").read_text())["versions"]
    )


def _found() -> Python | None:
    """The newest one that was made of the packages that are wanted now."""
    made = cache.top().glob(f"python/{ARCH}/*/python.json")
    for record in sorted(made, key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            if json.loads(record.read_text())["wanted"] == _wish():
                return _read(record.parent)
        except (OSError, ValueError, KeyError):
            continue
    return None


def _apt(arguments: list[str], timeout_s: float, folder: Path | None = None) -> str:
    """apt-get on the private state, as if the machine were the guest."""
    debian = packages.DEBIAN_ARCH[ARCH]
    options = {
        "APT::Architecture": debian,
        "APT::Default-Release": SUITE,
        "APT::Install-Recommends": "false",
        "Debug::NoLocking": "true",
        "Dir::Cache::pkgcache": "",  # another architecture's view must not replace the one that is shared
        "Dir::Cache::srcpkgcache": "",
    }
    said = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    return packages._run(["apt-get", *arguments, *said], timeout_s, folder=folder)


def _resolve(names: tuple[str, ...]) -> dict[str, str]:
    """Every package that these need, themselves included, with its version."""
    said = _apt(["install", "--simulate", *names], packages.ASK_TIMEOUT_S)
    found = dict(re.findall(r"^Inst (\S+) \((\S+) ", said, re.M))
    return {name.partition(":")[0]: version for name, version in sorted(found.items()) if name not in UNUSED}


def _download(names: list[str], folder: Path) -> list[Path]:
    """Their .debs, their checksums verified by apt."""
    _apt(["download", *names], INSTALL_TIMEOUT_S, folder)
    found = sorted(folder.glob("*.deb"))
    if len(found) != len(names):
        raise ImageError(
            f"apt brought {len(found)} of {len(names)} packages for the guest's Python; try again."
        )
    return found


def _files_below(root: Path) -> dict[str, Path | Link]:
    """What of the unpacked packages goes into the image, by guest path."""
    found: dict[str, Path | Link] = {}
    for place, folders, names in os.walk(root):
        for name in (*names, *(one for one in folders if os.path.islink(os.path.join(place, one)))):
            path = Path(place) / name
            inside = path.relative_to(root).as_posix()
            if not LEFT_OUT.match(inside):
                found[inside] = Link(os.readlink(path)) if path.is_symlink() else path
    return found


def _programs(tests: Path) -> dict[str, Path]:
    """The tests' C programs, built by the cross compiler; file names are those of the guest's cache."""
    home = cache.folder("python/programs")
    command = [sys.executable, str(tests / "programs.py"), counted.compiler(ARCH)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=PROGRAMS_TIMEOUT_S,
        env=os.environ | {"RSEQLAB_CACHE": str(home), "PYTHONPATH": str(PACKAGE.parent)},
    )
    if done.returncode:
        raise ImageError(f"The tests' programs could not be built for {ARCH}: {done.stderr.strip()[-500:]}")
    return {name: home / name for name in done.stdout.split()}


def build(files: tuple[str, ...], progress: Progress = quiet, fresh: bool = False) -> Path:
    """The image with these files of tests/ in it (and what they need). Raises LabError."""
    found = python(progress, fresh)
    progress("python image", 3, 4)
    tests = project_root() / "tests"
    init = compile.build(
        compile.Target(
            f"suite_init-{ARCH}",
            (PACKAGE / "vm/c/suite_init.c",),
            ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-static"),
            counted.compiler(ARCH),
            (boot.GUEST_H,),
        )
    )
    content: dict[str, Path | bytes | str | Link] = {"init": init}
    content |= _files_below(found.root)
    content |= {name: Link(f"usr/{name}") for name in MERGED}
    content |= {
        f"lab/rseqlab/{path.relative_to(PACKAGE).as_posix()}": path
        for path in PACKAGE.rglob("*")
        if path.is_file() and path.suffix != ".so" and "__pycache__" not in path.parts
    }
    content |= {
        f"lab/rseqlab/native/{name}": path
        for name, path in crossbuild.extensions(ARCH, found.include).items()
    }
    content |= {f"lab/compiled/{name}": path for name, path in _programs(tests).items()}
    content |= {f"lab/tests/{name}": tests / name for name in (*TESTS, *files)}
    content |= {f"lab/tests/c/{path.name}": path for path in (tests / "c").glob("*.c")}
    content["lab/pyproject.toml"] = (
        project_root() / "pyproject.toml"
    )  # pytest's settings, and it marks a checkout
    made = image.root(ARCH, content, "init")
    progress("python image", 4, 4)
    return made
