"""The wheels as a stranger meets them: installed where there is no checkout, run from any folder."""

import json
import os
import platform
import re
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from conftest import PATIENCE, require_or_skip
from elftools.elf.elffile import ELFFile

from rseqlab import host
from rseqlab.vm import crossbuild, python_image

ROOT = Path(__file__).resolve().parents[1]
OWN = host.ARCHITECTURES[platform.machine().lower()]
MACHINES = {"x86_64": "EM_X86_64", "aarch64": "EM_AARCH64"}
EMULATOR = "qemu-aarch64-static"


def made(folder: Path, arch: str) -> Path:
    command = [sys.executable, ROOT / "tools" / "wheels.py", folder, arch]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600 * PATIENCE, cwd=folder)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


@pytest.fixture(scope="module")
def own_wheel(tmp_path_factory):
    require_or_skip(python_image.project_root() == ROOT, "a checkout", "run the tests in one")
    return made(tmp_path_factory.mktemp("own"), OWN)


@pytest.fixture(scope="module")
def other_wheel(tmp_path_factory):
    if OWN != "x86_64":
        pytest.skip("the wheel for aarch64 is this machine's own")
    missing = python_image.missing()
    require_or_skip(missing is None, f"what the aarch64 wheel is built with ({missing})", "try `make deps`")
    return made(tmp_path_factory.mktemp("other"), "aarch64")


def check(wheel: Path, arch: str) -> None:
    """One wheel for all Pythons, named for the glibc that it needs, with everything in it that the lab reads."""
    assert re.fullmatch(rf"rseqlab-[\w.]+-cp311-abi3-manylinux_2_\d+_{arch}\.whl", wheel.name)
    with zipfile.ZipFile(wheel) as content:
        names = set(content.namelist())
        for name in ("_core", "_own_tls"):
            (inside,) = [found for found in names if re.fullmatch(rf"rseqlab/native/{name}\.[^/]*so", found)]
            assert inside.endswith(crossbuild.SUFFIX)
            with content.open(inside) as file:
                elf = ELFFile(file)
                assert elf["e_machine"] == MACHINES[arch]
                promised = int(re.search(r"manylinux_2_(\d+)_", wheel.name)[1])
                assert newest_glibc(elf) <= promised, "it needs a later glibc than its name says"
    wanted = [
        *(path for path in (ROOT / "data").rglob("*") if path.is_file()),
        *(ROOT / "notebooks").glob("*.ipynb"),
    ]
    assert {f"rseqlab/shipped/{path.relative_to(ROOT)}" for path in wanted} <= names
    source = (ROOT / "rseqlab").rglob("*")
    kinds = {".py", ".c", ".h", ".map", ".json", ".j2", ".css", ".js", ".cpp", ".java"}
    generated = {"_core.c", "_own_tls.c"}
    files = {path for path in source if path.suffix in kinds and path.name not in generated}
    assert {str(path.relative_to(ROOT)) for path in files} <= names
    assert not any(name.startswith(("tests/", "rseqlab/tests/")) or "__pycache__" in name for name in names)


def newest_glibc(elf: ELFFile) -> int:
    """The minor version of the newest glibc symbol version that a file asks for."""
    needs = elf.get_section_by_name(".gnu.version_r")
    found = [name.name for _, versions in needs.iter_versions() for name in versions]
    return max(int(name.split(".")[1]) for name in found if re.fullmatch(r"GLIBC_2\.\d+(\.\d+)?", name))


def test_the_wheel_for_this_machine(own_wheel):
    check(own_wheel, OWN)


def test_the_wheel_for_aarch64(other_wheel):
    check(other_wheel, "aarch64")


def test_the_aarch64_wheel_runs_under_an_emulator(other_wheel, tmp_path):
    """An aarch64 Python of another version imports what is in it: the stable ABI, the loader, the signature."""
    done = subprocess.run(["which", EMULATOR], capture_output=True)
    require_or_skip(done.returncode == 0, EMULATOR, "install it with `make deps`")
    root = python_image.python().root
    libraries = root / "usr/lib/aarch64-linux-gnu"
    (python,) = (
        path for path in (root / "usr/bin").glob("python3.*") if re.fullmatch(r"python3\.\d+", path.name)
    )
    with zipfile.ZipFile(other_wheel) as content:
        content.extractall(tmp_path)
    code = "from rseqlab import native; native.own_tls(); print(hex(native.core()[1].rl_signature()))"
    loader = [libraries / "ld-linux-aarch64.so.1", "--library-path", libraries]
    environment = {
        "PYTHONHOME": str(root / "usr"),
        "PYTHONPATH": f"{tmp_path}:{root}/usr/lib/python3/dist-packages",
    }
    command = [EMULATOR, *loader, python, "-B", "-c", code]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120 * PATIENCE, env=environment, cwd=tmp_path
    )
    assert done.stdout.strip() == "0xd428bc00", done.stderr


@pytest.fixture(scope="module")
def installed(own_wheel, tmp_path_factory):
    """A function that runs the installed command in an empty folder, as a reader with an empty home."""
    home = tmp_path_factory.mktemp("installed")
    venv = home / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True, timeout=120 * PATIENCE)
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(venv), "platbase": str(venv)}))
    # The dependencies are the lab's own, by path: a .pth found on such a path is not read, so no checkout is.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", venv, "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, own_wheel], check=True, timeout=120 * PATIENCE)
    for folder in ("reader", "anywhere"):
        (home / folder).mkdir()

    def run(*words, **environment):
        given = {"PATH": os.environ["PATH"], "HOME": str(home / "reader"), "LC_ALL": "C.UTF-8", **environment}
        command = [venv / "bin" / words[0], *words[1:]]
        return subprocess.run(
            command, capture_output=True, text=True, cwd=home / "anywhere", env=given, timeout=300 * PATIENCE
        )

    run.home = home
    return run


def said(result) -> dict:
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_it_is_the_installed_package_that_runs(installed):
    code = "import rseqlab, rseqlab.native as n; n.require(); print(rseqlab.__file__)"
    done = installed("python", "-I", "-c", code)
    assert done.stdout.startswith(str(installed.home / "venv")), done.stdout + done.stderr


@pytest.mark.thorough
def test_it_reads_what_it_ships(installed):
    claims = said(installed("rseqlab", "claims", "--json"))
    assert claims["origin"] == "shipped reference run" and len(claims["claims"]) > 10
    options = said(installed("rseqlab", "options", "--json"))
    assert any(cell["outcome"] == "works" for cell in options["cells"])
    assert said(installed("rseqlab", "usage", "--json"))
    assert said(installed("rseqlab", "doctor", "--json"))["native"]["available"]


@pytest.mark.thorough
def test_it_measures_into_the_reader_s_data_folder_and_compiles_into_the_cache(installed):
    """And nothing is written anywhere else: not where it was started, not where it is installed."""
    before = files(installed.home / "venv")
    done = said(installed("rseqlab", "run", "cpu-id-read", "--json"))
    data, cache = (installed.home / "reader" / name / "rseqlab" for name in (".local/share", ".cache"))
    assert list((data / "runs").glob("*/cpu-id-read.csv")), done
    code = "from rseqlab.lab import compile; print(compile.cache_folder())"
    assert installed("python", "-I", "-c", code).stdout.strip() == str(cache / "compiled")
    report = said(installed("rseqlab", "report", "--json"))
    assert report["origin"] == "local and shipped runs"
    assert (report["runs"][0]["origin"], report["runs"][0]["experiments"]) == ("local run", ["cpu-id-read"])
    assert Path(report["path"]) == data / "report" / "index.html"
    assert len(Path(report["path"]).read_text()) > 100_000
    assert not list((installed.home / "anywhere").iterdir())
    assert files(installed.home / "venv") == before


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts}


def test_the_folders_can_be_named(installed, tmp_path):
    code = "from rseqlab.lab import compile, runner; print(runner.runs_folder(), compile.cache_folder())"
    named = {"RSEQLAB_RUNS": str(tmp_path / "runs"), "XDG_CACHE_HOME": str(tmp_path)}
    assert installed("python", "-I", "-c", code, **named).stdout.split() == [
        str(tmp_path / "runs"),
        str(tmp_path / "rseqlab/compiled"),
    ]
