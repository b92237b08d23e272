"""C libraries for guests: those of the distribution's releases, by package, and the user's own.

Each lies in a guest below /libc/NAME, with its loader; a program is run under it as
``LOADER --library-path /libc/NAME PROGRAM``, so that one image holds all of them side by side.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rseqlab.errors import LabError, UsageError
from rseqlab.vm import cache, packages
from rseqlab.vm.kernels import ARCHS
from rseqlab.vm.packages import Package, Progress, quiet

VERSIONS = ("glibc-2.31", "glibc-2.36", "glibc-2.41", "glibc-newest", "musl-newest")
"""The default set: before rseq; one that registers; one that registers extended areas; the newest; one that does not."""

CHOSEN_LIBCS = "RSEQLAB_VM_LIBCS"
"""Environment variable through which the user's choice reaches the experiments' plans."""

LOADERS = {
    ("glibc", "x86_64"): "ld-linux-x86-64.so.2",
    ("glibc", "aarch64"): "ld-linux-aarch64.so.1",
    ("musl", "x86_64"): "ld-musl-x86_64.so.1",
    ("musl", "aarch64"): "ld-musl-aarch64.so.1",
}
GLIBC_FILES = ("libc.so.6", "libm.so.6", "libpthread.so.0", "librt.so.1", "libdl.so.2", "libgcc_s.so.1")
ELF_MACHINES = {62: "x86_64", 183: "aarch64"}
FILE_LIMIT_BYTES = 64 << 20


class LibcError(LabError):
    """No C library can be made of what was given; the sentence says why."""


@dataclass(frozen=True)
class Libc:
    """One C library. ``loader`` and the keys of ``files`` are paths in the guest."""

    name: str
    kind: str
    version: str
    arch: str
    loader: str
    files: Mapping[str, Path] = field(hash=False)
    origin: str = "distribution"
    """distribution or user."""
    package: str | None = None
    sysroot: Path | None = None
    """On the host: headers and start files to build programs with (include/, lib/), where a package brought them."""

    @property
    def folder(self) -> str:
        """Where its files lie in the guest."""
        return self.loader.rpartition("/")[0]

    def command(self, program: str, *arguments: str) -> list[str]:
        """What runs a guest's program under this libc."""
        return [self.loader, "--library-path", self.folder, program, *arguments]


def _upstream(version: str) -> str:
    return re.match(r"(?:\d+:)?([0-9.]+)", version)[1]


def name_of(package: Package) -> str:
    """The libc's name, as in glibc-2.41, of its package."""
    version = _upstream(package.version)
    return f"glibc-{'.'.join(version.split('.')[:2])}" if package.name == "libc6" else f"musl-{version}"


def _order(name: str) -> tuple:
    kind, _, version = name.partition("-")
    return kind, *(int(part) for part in re.findall(r"\d+", version))


def offered(fresh: bool = False) -> list[Package]:
    """The newest package of each libc and architecture that the package source has."""
    newest: dict[tuple[str, str], Package] = {}
    for one in packages.offered(fresh):
        if one.name in ("libc6", "musl"):
            key = (name_of(one), one.arch)
            if key not in newest or packages.newer(one.version, newest[key].version):
                newest[key] = one
    return sorted(newest.values(), key=lambda one: (_order(name_of(one)), one.arch))


def cached() -> list[Libc]:
    """The distribution's libcs that are here already."""
    found = []
    for record in cache.top().glob("libcs/*/*/libc.json"):
        try:
            values = json.loads(record.read_text())
        except (OSError, ValueError):
            continue
        found.append(_libc(record.parent, **values))
    return sorted(found, key=lambda libc: (_order(libc.name), libc.arch))


def _libc(
    home: Path, name: str, kind: str, version: str, arch: str, origin: str, package: str | None
) -> Libc:
    inside = f"/libc/{name}"
    files = {f"{inside}/{path.name}": path for path in sorted((home / "lib").iterdir())}
    sysroot = home / "sysroot"
    loader = f"{inside}/{LOADERS[kind, arch]}"
    return Libc(
        name, kind, version, arch, loader, files, origin, package, sysroot if sysroot.is_dir() else None
    )


def find(name: str, arch: str) -> Libc | None:
    """The cached libc of this name; of ``glibc-newest`` the newest that the package source had, if it is cached."""
    cached_here = [one for one in cached() if one.arch == arch]
    kind, _, version = name.partition("-")
    if version == "newest":
        alike = [one for one in cached_here if one.kind == kind]
        known = [_order(name_of(one)) for one in offered() if one.arch == arch] if packages.offer() else []
        known = [order for order in known if order[0] == kind] or [_order(one.name) for one in alike]
        return next((one for one in reversed(alike) if _order(one.name) >= max(known)), None)
    return next((one for one in cached_here if one.name == name), None)


def package(name: str, arch: str) -> Package:
    """The package of a libc by name. Raises UsageError where the package source has none."""
    kind, _, version = name.partition("-")
    there = offered()
    choice = [
        one
        for one in there
        if one.arch == arch
        and (name_of(one) == name or (version == "newest" and name_of(one).startswith(f"{kind}-")))
    ]
    if not choice:
        known = ", ".join(dict.fromkeys(name_of(one) for one in there))
        raise UsageError(
            f"The package source has no {name} for {arch}; it has {known or 'no C library at all'}."
        )
    return choice[-1]


def here(wanted: Package) -> Libc | None:
    """The cached libc of this very package."""
    known = f"{wanted.name} {wanted.version}"
    return next((one for one in cached() if (one.package, one.arch) == (known, wanted.arch)), None)


def needed(wanted: Package) -> list[Package]:
    """What to download for a libc: for musl also what programs are built with."""
    key = ("musl-dev", wanted.version, wanted.arch)
    beside = [one for one in packages.offered() if (one.name, one.version, one.arch) == key]
    return [wanted, *(beside[:1] if wanted.name == "musl" else [])]


def keep(wanted: Package, debs: Mapping[Package, Path]) -> Libc:
    """Takes the libraries out of the downloaded packages into the cache; all else is dropped."""
    home = cache.folder(f"libcs/{wanted.arch}") / name_of(wanted)
    with cache.scratch() as space:
        for one in needed(wanted):
            packages.unpack(debs[one], space / "files")
        _gather(
            space / "files", space / "made", f"{wanted.name} {wanted.version}", "distribution", wanted.arch
        )
        cache.into_place(space / "made", home)
    return find(name_of(wanted), wanted.arch)


def fetch(name: str, arch: str, progress: Progress = quiet) -> Libc:
    """A libc from the cache, or from the package source. Raises LabError in one sentence."""
    if found := find(name, arch):
        return found
    from rseqlab.vm import stock  # it knows how to fetch anything, so it rests on this

    stock.fetch([], [(name, arch)], progress)
    return find(name, arch)


def _gather(files: Path, made: Path, package: str | None, origin: str, expected: str | None = None) -> None:
    """Collects what a guest needs of an unpacked package or a folder into ``made``, with a record of what it is."""
    library, kind = _library(files)
    arch = _arch(library)
    if expected and arch != expected:
        raise LibcError(f"{package or files} is a C library for {arch}, not for {expected}.")
    version = _version(library, kind)
    (made / "lib").mkdir(parents=True)
    loader = LOADERS[kind, arch]
    if kind == "musl":
        shutil.copyfile(library, made / "lib" / loader)
    else:
        for name in (loader, *GLIBC_FILES):
            source = _inside(files, name)
            if source:
                shutil.copyfile(source, made / "lib" / name)
        if not (made / "lib" / loader).exists():
            raise LibcError(f"{package or files} has a libc.so.6 for {arch} but not its loader {loader}.")
    for headers in files.glob("usr/include/*-linux-musl"):
        libraries = files / "usr" / "lib" / headers.name
        shutil.copytree(headers, made / "sysroot" / "include")
        shutil.copytree(libraries, made / "sysroot" / "lib", ignore_dangling_symlinks=True, symlinks=True)
    short = ".".join(version.split(".")[:2]) if kind == "glibc" else version
    record = {"name": f"{kind}-{short}", "kind": kind, "version": version, "arch": arch, "origin": origin}
    (made / "libc.json").write_text(json.dumps(record | {"package": package}, indent=1))


def _inside(files: Path, name: str) -> Path | None:
    """The regular file of this name; in packages of old releases the name is a link to it."""
    for path in sorted(files.rglob(name)):
        here = path
        if path.is_symlink():
            here = path.parent / os.path.basename(os.readlink(path))
            if not here.exists():  # an absolute link of the package: into the package
                here = files / os.readlink(path).lstrip("/")
        if here.is_file() and files.resolve() in here.resolve().parents:
            return here
    return None


def _library(files: Path) -> tuple[Path, str]:
    if found := _inside(files, "libc.so.6"):
        return found, "glibc"
    for name in ("ld-musl-*.so.1", "libc.musl-*.so.1", "libc.so"):
        for path in sorted(files.rglob(name)):
            if path.is_file() and not path.is_symlink() and path.read_bytes()[:4] == b"\x7fELF":
                return path, "musl"
    raise LibcError(f"There is no C library in {files}: neither a libc.so.6 nor a loader of musl's.")


def _arch(library: Path) -> str:
    data = library.read_bytes()[:20]
    machine = int.from_bytes(data[18:20], "little")
    if data[:4] != b"\x7fELF" or machine not in ELF_MACHINES:
        raise LibcError(f"{library.name} is no shared object for {' or '.join(ARCHS)}.")
    return ELF_MACHINES[machine]


def _version(library: Path, kind: str) -> str:
    if library.stat().st_size > FILE_LIMIT_BYTES:
        raise LibcError(f"{library} has {library.stat().st_size:,} bytes, which is more than any C library.")
    data = library.read_bytes()
    pattern = rb"release version (\d+\.\d+[.\d]*\d)" if kind == "glibc" else rb"\0(1\.\d+\.\d+)[^\0]{0,20}\0"
    found = re.search(pattern, data)
    return found[1].decode() if found else "0.unknown"


def given(value: str, offline: bool = False) -> Libc:
    """The user's own: a folder that holds a libc and its loader, a .deb, or a package (NAME or NAME=VERSION:ARCH).

    It is copied into the cache, so that a run sees one state of it. Raises LibcError or UsageError.
    """
    path = Path(value)
    if path.is_dir() or path.suffix == ".deb":
        return _kept(path.resolve())
    found = re.fullmatch(r"([a-z0-9][a-z0-9.+-]+)(?:=([^:\s]+))?(?::(x86_64|aarch64))?", value)
    if not found:
        raise UsageError(f"--libc {value!r} is neither a folder, nor a .deb, nor the name of a package.")
    if offline:
        raise UsageError(
            f"--libc {value} is a package, which --offline does not fetch; give a folder or a .deb."
        )
    if re.match(r"(glibc|musl)-[0-9n]", value):
        return fetch(found[1], found[3] or ARCHS[0])
    name, version, arch = found.groups()
    arch = arch or ARCHS[0]
    packages.offered()
    there = packages.candidates([f"{name}:{packages.DEBIAN_ARCH[arch]}"])
    choice = [one for one in packages.by_version(there) if version in (None, one.version)]
    if not choice:
        known = ", ".join(one.version for one in there)
        raise UsageError(
            f"The package source has no {name}{'=' + version if version else ''} for {arch}"
            + (f"; it has {known}." if known else ".")
        )
    with cache.scratch() as space:
        return _kept(packages.download([choice[-1]], space)[choice[-1]])


def _kept(path: Path) -> Libc:
    with cache.scratch() as space:
        files = path
        if path.is_file():
            files = space / "files"
            packages.unpack(path, files)
        made = space / "made"
        _gather(files, made, path.name if path.is_file() else None, "user")
        total = hashlib.sha256()
        for one in sorted((made / "lib").iterdir()):
            total.update(one.name.encode() + b"\0" + one.read_bytes())
        home = cache.folder("given") / total.hexdigest()[:16]
        cache.into_place(made, home)
    return _libc(home, **json.loads((home / "libc.json").read_text()))


def choose(values: list[str] = (), offline: bool = False) -> None:
    """Hand the command line's choice to the experiments' plans. Each is checked (and fetched) now."""
    if not values:
        os.environ.pop(CHOSEN_LIBCS, None)
        return
    homes = [str(next(iter(given(value, offline).files.values())).parent.parent) for value in values]
    os.environ[CHOSEN_LIBCS] = os.pathsep.join(homes)


def chosen_libcs(arch: str) -> list[Libc]:
    """The libcs that an experiment's plan goes through: the user's of this architecture, or the cached default set."""
    if homes := list(filter(None, os.environ.get(CHOSEN_LIBCS, "").split(os.pathsep))):
        all_of_them = [
            _libc(Path(home), **json.loads((Path(home) / "libc.json").read_text())) for home in homes
        ]
        return [one for one in all_of_them if one.arch == arch]
    found = [find(name, arch) for name in VERSIONS]
    return list({one.name: one for one in found if one}.values())


def not_here() -> list[tuple[str, str]]:
    """The (name, architecture) of the default set that are not cached; none where the user chose libcs."""
    if os.environ.get(CHOSEN_LIBCS):
        return []
    return [(name, arch) for name in VERSIONS for arch in ARCHS if not find(name, arch)]
