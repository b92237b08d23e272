"""Kernels for guests: those of the distribution, fetched by release, and the user's own images."""

import gzip
import hashlib
import json
import os
import re
import shutil
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rseqlab.errors import LabError, UsageError
from rseqlab.vm import cache, packages
from rseqlab.vm.packages import Package, Progress, quiet

ARCHS = ("x86_64", "aarch64")
SERIES = ("5.10", "6.1", "6.12", "newest")
"""The default set: before and after each change of the ABI (the size that the kernel tells came with 6.3), and now."""

CHOSEN_KERNELS = "RSEQLAB_VM_KERNELS"
CHOSEN_SERIES = "RSEQLAB_VM_SERIES"
CHOSEN_ARCHS = "RSEQLAB_VM_ARCHS"
"""Environment variables through which the user's choice reaches the experiments' plans."""

NAME = re.compile(r"linux-(image|binary)-(?P<release>[0-9].*-cloud-(?:amd64|arm64))$")
BANNER = re.compile(rb"Linux version ([0-9][ -~]{0,120}?) \(")
HEAD_BYTES = 4096
IMAGE_LIMIT_BYTES = 512 << 20


class KernelError(LabError):
    """No kernel can be made of what was given; the sentence says why."""


@dataclass(frozen=True)
class Kernel:
    """One kernel image that a guest can boot."""

    series: str
    """The release up to its second number, as in 6.12."""
    release: str
    arch: str
    image: Path
    origin: str
    """distribution, user or built."""
    package: str | None
    sha256: str


def _series(version: str) -> str:
    found = re.match(r"(\d+\.\d+)", version)
    if not found:
        raise KernelError(f"{version!r} is no release of a kernel.")
    return found[1]


def _number(series: str) -> tuple[int, ...]:
    return tuple(int(part) for part in series.split("."))


def offered(fresh: bool = False) -> list[Package]:
    """The newest kernel package of each series and architecture that the package source has."""
    found = [package for package in packages.offered(fresh) if NAME.match(package.name)]
    binaries = {(NAME.match(one.name)["release"], one.arch) for one in found if "binary" in one.name}
    newest: dict[tuple[str, str], Package] = {}
    for one in found:
        release = NAME.match(one.name)["release"]
        foreign = not release.endswith(packages.DEBIAN_ARCH[one.arch])
        if foreign or "~rc" in one.version or ("image" in one.name and (release, one.arch) in binaries):
            continue  # where there is a linux-binary the linux-image of that release is an empty shell
        key = (series_of(one), one.arch)
        if key not in newest or packages.newer(one.version, newest[key].version):
            newest[key] = one
    return sorted(newest.values(), key=lambda one: (_number(series_of(one)), one.arch))


def series_of(package: Package) -> str:
    """The series of a kernel's package."""
    return _series(package.version)


def cached() -> list[Kernel]:
    """The distribution's kernels that are here already, oldest series first."""
    found = []
    for record in cache.top().glob("kernels/*/*/kernel.json"):
        try:
            values = json.loads(record.read_text())
        except (OSError, ValueError):
            continue
        image = record.parent / "image"
        if image.exists() and image.stat().st_size == values.pop("image_bytes"):
            found.append(Kernel(image=image, **values))
    return sorted(found, key=lambda kernel: (_number(kernel.series), kernel.release, kernel.arch))


def find(series: str, arch: str) -> Kernel | None:
    """The cached kernel of a series; of ``newest`` that of the newest series that the package source had, if cached."""
    cached_here = [kernel for kernel in cached() if kernel.arch == arch]
    if series == "newest":
        known = [_number(series_of(one)) for one in offered() if one.arch == arch] if packages.offer() else []
        known = known or [_number(kernel.series) for kernel in cached_here]
        return next((one for one in reversed(cached_here) if _number(one.series) >= max(known)), None)
    return next((one for one in reversed(cached_here) if one.series == series), None)


def package(series: str, arch: str) -> Package:
    """The package of the series' newest kernel. Raises UsageError where the package source has none."""
    if arch not in ARCHS:
        raise UsageError(f"No guest has the architecture {arch!r}; there are {' and '.join(ARCHS)}.")
    there = offered()
    choice = [one for one in there if one.arch == arch and series in ("newest", series_of(one))]
    if not choice:
        known = ", ".join(dict.fromkeys(series_of(one) for one in there))
        raise UsageError(
            f"The package source has no kernel of series {series!r} for {arch}; it has {known or 'none at all'}."
        )
    return choice[-1]


def here(wanted: Package) -> Kernel | None:
    """The cached kernel of this very package."""
    release = NAME.match(wanted.name)["release"]
    return next((one for one in cached() if (one.release, one.arch) == (release, wanted.arch)), None)


def needed(wanted: Package) -> list[Package]:
    """What to download for a kernel: newer ones keep their configuration in a package of its own."""
    name = f"linux-base-{NAME.match(wanted.name)['release']}"
    key = (name, wanted.version, wanted.arch)
    beside = [one for one in packages.offered() if (one.name, one.version, one.arch) == key]
    return [wanted, *(beside[:1] if "binary" in wanted.name else [])]


def keep(wanted: Package, debs: Mapping[Package, Path]) -> Kernel:
    """Takes image and configuration out of the downloaded packages into the cache; all else is dropped."""
    release = NAME.match(wanted.name)["release"]
    home = cache.folder(f"kernels/{wanted.arch}") / release
    with cache.scratch() as space:
        files, made = space / "files", space / release
        made.mkdir()
        for one in needed(wanted):
            packages.unpack(debs[one], files)
        images = [*files.glob("boot/vmlinuz-*"), *files.glob("usr/lib/modules/*/vmlinuz")]
        if len(images) != 1:
            raise KernelError(f"The package {wanted.name} holds {len(images)} kernel images instead of one.")
        shutil.move(images[0], made / "image")
        for config in [*files.glob("boot/config-*"), *files.glob("usr/lib/modules/*/config")][:1]:
            shutil.move(config, made / "config")
        values = {
            "series": series_of(wanted),
            "release": release,
            "arch": wanted.arch,
            "origin": "distribution",
            "package": f"{wanted.name} {wanted.version}",
            "sha256": _sha256(made / "image"),
            "image_bytes": (made / "image").stat().st_size,
        }
        (made / "kernel.json").write_text(json.dumps(values, indent=1))
        cache.into_place(made, home)
    return here(wanted)


def fetch(series: str, arch: str, progress: Progress = quiet) -> Kernel:
    """The series' kernel from the cache, or from the package source. Raises LabError in one sentence."""
    if found := find(series, arch):
        return found
    from rseqlab.vm import stock  # it knows how to fetch anything, so it rests on this

    stock.fetch([(series, arch)], [], progress)
    return find(series, arch)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- images that a user gives ----------------------------------------------------------------------

MACHINES = {
    3: "x86 (32 bit)",
    8: "MIPS",
    20: "PowerPC",
    21: "PowerPC (64 bit)",
    22: "s390",
    40: "ARM (32 bit)",
}
MACHINES |= {62: "x86_64", 183: "aarch64", 243: "RISC-V", 258: "LoongArch"}


def of_image(path: Path, arch: str | None = None) -> Kernel:
    """A user's own bzImage or Image. Architecture and release are read from it, not from its name.

    Raises KernelError that says what the file is where it is no kernel that a guest here can boot.
    """
    try:
        if path.stat().st_size > IMAGE_LIMIT_BYTES:
            raise KernelError(
                f"{path} has {path.stat().st_size:,} bytes, which is more than any kernel image."
            )
        data = path.read_bytes()
    except OSError as error:
        raise KernelError(f"Could not read the kernel image {path}: {error.strerror}.") from None
    found, release = _identified(path, data)
    if arch and found != arch:
        raise KernelError(f"{path} is a kernel for {found}, not for {arch}.")
    return Kernel(
        _series(release), release, found, path.resolve(), "user", None, hashlib.sha256(data).hexdigest()
    )


def _identified(path: Path, data: bytes) -> tuple[str, str]:
    if data[:2] == b"\x1f\x8b":
        data = _gunzipped(path, data)
    elif data[:2] == b"MZ" and data[4:8] == b"zimg":
        raise KernelError(
            f"{path} is a compressed EFI image (vmlinuz.efi), which QEMU cannot boot; give arch/arm64/boot/Image."
        )
    if data[0x202:0x206] == b"HdrS":
        return "x86_64", _x86_release(path, data)
    if data[0x38:0x3C] == b"ARM\x64":
        return "aarch64", _banner(path, data)
    if data[:4] == b"\x7fELF":
        machine = int.from_bytes(data[18:20], "little" if data[5] == 1 else "big")
        kind = MACHINES.get(machine, f"machine {machine}")
        if not BANNER.search(data):
            raise KernelError(f"{path} is no kernel image but an ELF file for {kind}.")
        remedy = {"x86_64": "arch/x86/boot/bzImage", "aarch64": "arch/arm64/boot/Image"}.get(kind)
        if remedy:
            raise KernelError(
                f"{path} is a vmlinux for {kind}, which QEMU cannot boot; give {remedy} of the same build."
            )
        raise KernelError(f"{path} is a kernel for {kind}; guests here are {' or '.join(ARCHS)}.")
    if data[0x30:0x38] == b"RISCV\0\0\0" or data[0x38:0x3C] == b"RSC\x05":
        raise KernelError(f"{path} is a kernel for RISC-V; guests here are {' or '.join(ARCHS)}.")
    if data[0x24:0x28] == b"\x18\x28\x6f\x01":
        raise KernelError(f"{path} is a kernel for ARM (32 bit); guests here are {' or '.join(ARCHS)}.")
    if not data:
        raise KernelError(f"{path} is empty, so it is no kernel image.")
    raise KernelError(
        f"{path} is no kernel image: it begins with {data[:8].hex(' ')} and has neither the header of an x86 "
        "bzImage nor that of an arm64 Image."
    )


def _gunzipped(path: Path, data: bytes) -> bytes:
    try:
        with gzip.open(path) as file:
            unpacked = file.read(IMAGE_LIMIT_BYTES)
    except (OSError, EOFError, zlib.error) as error:
        raise KernelError(
            f"{path} is a damaged gzip file, so no kernel can be read from it: {error}."
        ) from None
    if unpacked[0x38:0x3C] != b"ARM\x64":
        raise KernelError(f"{path} is a gzip file that holds no arm64 Image.")
    return unpacked


def _x86_release(path: Path, data: bytes) -> str:
    """The boot protocol's header: where the release's text is, how long the image must be, whether it is 64-bit."""
    (protocol,) = struct.unpack_from("<H", data, 0x206)
    (text,) = struct.unpack_from("<H", data, 0x20E)
    (units,) = struct.unpack_from("<I", data, 0x1F4)
    (flags,) = struct.unpack_from("<H", data, 0x236)
    if protocol >= 0x20C and not flags & 1:
        raise KernelError(f"{path} is a kernel for x86 (32 bit); guests here are {' or '.join(ARCHS)}.")
    needed = ((data[0x1F1] or 4) + 1) * 512 + units * 16
    if len(data) < needed:
        raise KernelError(f"{path} is cut off: its header says {needed:,} bytes, the file has {len(data):,}.")
    release = data[text + 0x200 :][:200].split(b"\0")[0].split(b" ")[0].decode("ascii", "replace")
    if not text or not re.match(r"\d+\.\d+", release) or not release.isprintable():
        raise KernelError(f"{path} has the header of a bzImage but says no release of a kernel.")
    return release


def _banner(path: Path, data: bytes) -> str:
    found = BANNER.search(data)
    if not found:
        raise KernelError(
            f"{path} has the header of an arm64 Image but no kernel's banner; it is damaged or cut off."
        )
    return found[1].decode("ascii")


# --- what the user chose ---------------------------------------------------------------------------


def choose(kernels: list[Path] = (), series: list[str] = (), archs: list[str] = ()) -> None:
    """Hand the command line's choice to the experiments' plans. Each image is checked now."""
    for arch in archs:
        if arch not in ARCHS:
            raise UsageError(f"No guest has the architecture {arch!r}; there are {' and '.join(ARCHS)}.")
    for path in kernels:
        of_image(path)
    for name, values in ((CHOSEN_KERNELS, kernels), (CHOSEN_SERIES, series), (CHOSEN_ARCHS, archs)):
        if values:
            os.environ[name] = os.pathsep.join(
                str(one.resolve() if name == CHOSEN_KERNELS else one) for one in values
            )
        else:
            os.environ.pop(name, None)


def _chosen(name: str, default: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(filter(None, os.environ.get(name, "").split(os.pathsep))) or default


def chosen_archs() -> tuple[str, ...]:
    """The architectures that the user wants, both by default."""
    return _chosen(CHOSEN_ARCHS, ARCHS)


def chosen_series() -> tuple[str, ...]:
    """The series that the user wants, SERIES by default."""
    return _chosen(CHOSEN_SERIES, SERIES)


def chosen_kernels() -> list[Kernel]:
    """The kernels that an experiment's plan goes through: the user's images, or those cached of the chosen series.

    What is chosen and not here is in ``not_here()``; a plan records each as skipped.
    """
    if images := _chosen(CHOSEN_KERNELS, ()):
        return [kernel for kernel in map(of_image, map(Path, images)) if kernel.arch in chosen_archs()]
    found = [find(series, arch) for series in chosen_series() for arch in chosen_archs()]
    return list(dict.fromkeys(kernel for kernel in found if kernel))


def not_here() -> list[tuple[str, str]]:
    """The chosen (series, arch) that are not cached."""
    if _chosen(CHOSEN_KERNELS, ()):
        return []
    return [(series, arch) for series in chosen_series() for arch in chosen_archs() if not find(series, arch)]
