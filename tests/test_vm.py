"""Kernels in QEMU: what is fetched, what boots, and what a hostile guest, image or package source can do."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import require_or_skip

from rseqlab.errors import LabError, UsageError
from rseqlab.lab import bundle, compile
from rseqlab.vm import boot, cache, first, image, kernels, libcs, packages, stock

COMMAND = [sys.executable, "-m", "rseqlab.cli", "kernels"]
HELLO = Path(__file__).parent / "c" / "guest_hello.c"
MISDEEDS = ("panic", "flood", "console", "garbage", "checksum", "off", "hang", "no-rseq")


def lab(*arguments, **environment) -> subprocess.CompletedProcess:
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ | environment)


def said(result: subprocess.CompletedProcess) -> str:
    """The one line of an error; a traceback or a second line is a fault."""
    lines = [line for line in result.stderr.splitlines() if line.startswith("rseqlab:")]
    assert len(lines) == 1 and "Traceback" not in result.stderr, result.stderr
    return lines[0]


@pytest.fixture
def empty_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("RSEQLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vm"


# --- guests ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images(guests) -> dict[str, Path]:
    """An image for each architecture whose init says where it runs, and misbehaves as the command line says."""
    made = {}
    for arch in kernels.ARCHS:
        flags = ("-static", "-O2", "-Wall", "-Werror", "-I", str(boot.GUEST_H.parent))
        target = compile.Target("hello", (HELLO,), flags, first.compiler(arch), (boot.GUEST_H,))
        program, reason = compile.attempt(lambda target=target: compile.build(target))
        require_or_skip(program is not None, f"a program for {arch} guests ({reason})", "run `make deps`")
        made[arch] = image.root(arch, {"/bin/hello": program}, "/bin/hello")
    return made


@pytest.fixture(scope="module")
def outcomes(images, request) -> dict[tuple, boot.Outcome]:
    """One boot of every kind that is asked for, as many at once as this machine can."""
    wanted = {
        (series, arch): boot.Guest(kernels.find(series, arch), images[arch], cpus=2)
        for series, arch in (("5.10", "aarch64"), ("newest", "x86_64"))
    }
    kernel = kernels.find("6.1", "x86_64")
    for misdeed in MISDEEDS:
        append = (f"MISDEED={misdeed}",)
        limits = {"results_limit_bytes": 32 << 10, "timeout_s": 12 if misdeed == "hang" else 60}
        wanted[misdeed,] = boot.Guest(kernel, images["x86_64"], append=append, **limits)
    broken = cache.folder("images") / "broken.cpio.gz"
    broken.write_bytes(images["aarch64"].read_bytes()[:20000])
    wanted["broken",] = boot.Guest(kernels.find("6.12", "aarch64"), broken)
    if request.config.getoption("--quick"):
        wanted = {name: wanted[name] for name in (("newest", "x86_64"), ("panic",))}
    names = {id(guest): name for name, guest in wanted.items()}
    return {names[id(guest)]: outcome for guest, outcome in boot.boot_all(list(wanted.values()))}


@pytest.mark.parametrize(
    ("series", "arch"),
    [pytest.param("5.10", "aarch64", marks=pytest.mark.thorough), ("newest", "x86_64")],
)
def test_results_come_home_beside_the_console(outcomes, series, arch):
    outcome = outcomes[series, arch]
    assert (outcome.status, outcome.reason, outcome.rseq) == ("done", None, True)
    kernel = kernels.find(series, arch)
    assert boot.rows(outcome) == [{"release": kernel.release, "machine": arch}]
    assert b"release" not in outcome.console.read_bytes()
    assert outcome.accel in ("tcg", "kvm") and outcome.qemu.startswith(f"qemu-system-{arch} ")


@pytest.mark.parametrize(
    ("misdeed", "status", "words"),
    [
        ("panic", "panic", "Attempted to kill init"),
        pytest.param("flood", "bad results", "more than the 32,768 bytes", marks=pytest.mark.thorough),
        pytest.param("garbage", "bad results", "no UTF-8", marks=pytest.mark.thorough),
        pytest.param("checksum", "bad results", "checksum", marks=pytest.mark.thorough),
        pytest.param("off", "bad results", "before its results were complete", marks=pytest.mark.thorough),
        pytest.param("hang", "hang", "was not done after", marks=pytest.mark.thorough),
        pytest.param("broken", "panic", "kernel panicked", marks=pytest.mark.thorough),
    ],
)
def test_a_guest_that_fails_is_one_sentence_with_its_console(outcomes, misdeed, status, words):
    outcome = outcomes[misdeed,]
    assert outcome.status == status and words in outcome.reason, outcome.reason
    assert outcome.results == b"" and "\n" not in outcome.reason and outcome.reason.isprintable()
    assert outcome.reason.endswith(f"console: {outcome.console}") and outcome.console.exists()
    assert len(outcome.unfinished) <= (32 << 10) + (1 << 17), "what had come by the time it was ended"


def test_a_panic_leaves_the_rows_before_it_as_evidence(outcomes):
    assert b'"release": "6.1' in outcomes["panic",].unfinished
    assert "Kernel panic" in outcomes["panic",].console.read_text()


@pytest.mark.thorough
def test_a_console_is_bounded_and_has_no_control_characters(outcomes):
    outcome = outcomes["console",]
    assert outcome.status in ("done", "hang")
    text = outcome.console.read_text()
    assert "owned" in text and len(text) <= boot.CONSOLE_LIMIT_BYTES
    assert all(character.isprintable() or character == "\n" for character in text)


@pytest.mark.thorough
def test_a_kernel_without_the_system_call_is_said(outcomes):
    outcome = outcomes["no-rseq",]
    assert outcome.status == "done" and outcome.rseq is False
    with pytest.raises(first.VerdictError, match=f"without rseq.*CONFIG_RSEQ.*{outcome.console}"):
        first._verdict(kernels.find("6.1", "x86_64"), outcome)


def test_a_guest_that_does_not_fit_is_refused_with_the_numbers(images):
    guest = boot.Guest(kernels.find("6.12", "x86_64"), images["x86_64"], memory_mib=50_000_000)
    outcome = boot.boot(guest)
    assert outcome.status == "refused" and "50,000,200 MiB" in outcome.reason and "are free" in outcome.reason


def test_a_guest_has_no_network_and_counts_under_tcg_only(images):
    guest = boot.Guest(kernels.find("6.12", "x86_64"), images["x86_64"], icount=True)
    words = boot.command(guest, 9, "tcg")
    assert words[words.index("-nic") + 1] == "none" and "shift=0,sleep=off" in words
    assert boot.accel(guest) == "tcg"


def test_kvm_is_tried_with_a_kernel_and_the_answer_is_kept(guests):
    kernel = next(one for one in kernels.cached() if one.arch == os.uname().machine)
    answer = boot.kvm_refusal(kernel)
    if os.access("/dev/kvm", os.R_OK | os.W_OK):
        assert json.loads((cache.top() / "kvm" / "tried.json").read_text())["refusal"] == answer
    expected = "tcg" if answer else "kvm"
    assert boot.accel(boot.Guest(kernel, Path("unused"))) == expected


def _children(pid: int) -> list[int]:
    """Its guests; a child may end between two looks."""
    found = []
    with contextlib.suppress(OSError):
        for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            with contextlib.suppress(OSError):
                if b"-initrd" in Path(f"/proc/{one}/cmdline").read_bytes():
                    found.append(int(one))
    return found


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_no_guest_outlives_the_lab(guests, number, code):
    """Interrupted, and killed, while a guest boots."""
    given = kernels.find("6.1", "x86_64").image
    command = [*COMMAND, "run", "--kernel", str(given), "--offline"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as process:
        deadline = time.monotonic() + 60
        while not (running := _children(process.pid)) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert running, "QEMU never started"
        process.send_signal(number)
        assert process.wait(timeout=30) == code
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{one}").exists() for one in running) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(Path(f"/proc/{one}").exists() for one in running)


@pytest.mark.parametrize(
    "line",
    [
        "[1]",
        '{"a": [1]}',
        "no row",
        '{"a": "\\u001b[2J"}',
        '{"a": {"b": 1}}',
        "[" * 100_000,
        '{"a": 1e999}',
        '{"a": 1' + "0" * 400 + "}",
    ],
)
def test_what_is_no_row_is_refused(line):
    outcome = boot.Outcome("done", None, 0, "tcg", "", Path("console"), f'{{"a": 1}}\n{line}\n'.encode())
    with pytest.raises(boot.RowsError, match="Line 2") as caught:
        boot.rows(outcome)
    assert str(caught.value).isprintable()


# --- images ------------------------------------------------------------------------------------------


def test_an_image_is_the_same_bytes_whatever_order_or_time(tmp_path, monkeypatch):
    program = tmp_path / "program"
    program.write_bytes(b"content")
    files = {"/sbin/first": program, "/etc/words": "text", "/lib64": image.Link("lib")}
    made = []
    for number, content in enumerate([files, dict(reversed(files.items()))]):
        monkeypatch.setenv("RSEQLAB_CACHE", str(tmp_path / str(number)))
        os.utime(program, (number, number))
        made.append(image.root("x86_64", content, "/sbin/first"))
    assert made[0].name == made[1].name and made[0].read_bytes() == made[1].read_bytes()
    program.write_bytes(b"other")
    assert image.root("x86_64", files, "/sbin/first").name != made[1].name
    assert not list((tmp_path / "1" / "vm" / "partial").iterdir())


@pytest.mark.parametrize("name", ["../etc/passwd", "a/../b", "", "/"])
def test_a_path_that_leaves_the_image_is_refused(name, empty_cache):
    with pytest.raises(LabError, match="no path of a file inside"):
        image.root("x86_64", {"/init": b"", name: b""}, "/init")


# --- kernels and libcs that are given ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"junk" * 1000, "is no kernel image"),
        (Path("/proc/self/exe").read_bytes()[:5000], "ELF file for"),
        (b"\0" * 0x38 + b"RSC\x05" + bytes(5000), "RISC-V"),
        (b"\0" * 0x24 + b"\x18\x28\x6f\x01" + bytes(5000), "ARM \\(32 bit\\)"),
        (b"MZ\0\0zimg" + bytes(5000), "compressed EFI image"),
        (b"\x1f\x8bdamaged", "damaged gzip"),
        (bytes(0x38) + b"ARM\x64" + bytes(5000), "no kernel.s banner"),
    ],
)
def test_an_image_that_is_no_kernel_is_said(tmp_path, content, words):
    path = tmp_path / "image"
    path.write_bytes(content)
    with pytest.raises(kernels.KernelError, match=words):
        kernels.of_image(path)


def test_a_given_image_says_what_it_is(guests, tmp_path):
    for arch in kernels.ARCHS:
        known = kernels.find("6.12", arch)
        one = kernels.of_image(known.image)
        assert (one.release, one.arch, one.origin, one.sha256) == (known.release, arch, "user", known.sha256)
        other = next(name for name in kernels.ARCHS if name != arch)
        result = lab("run", "--kernel", known.image, "--arch", other, "--offline")
        assert result.returncode == 1 and f"is a kernel for {arch}, not for {other}" in said(result)
    cut = tmp_path / "cut"
    cut.write_bytes(kernels.find("6.12", "x86_64").image.read_bytes()[:1_000_000])
    result = lab("run", "--kernel", cut)
    assert result.returncode == 1 and "is cut off" in said(result)


def test_an_image_that_boots_nothing_is_one_line_with_the_console(guests, tmp_path):
    """A real kernel whose code is damaged behind an intact header."""
    data = bytearray(kernels.find("6.1", "x86_64").image.read_bytes())
    data[0x8000:0x60000] = bytes(0x58000)
    damaged = tmp_path / "damaged"
    damaged.write_bytes(data)
    outcome = boot.boot(
        boot.Guest(kernels.of_image(damaged), image.root("x86_64", {"/init": b""}, "/init"), timeout_s=4)
    )
    assert outcome.status in ("no boot", "panic") and str(outcome.console) in outcome.reason
    with pytest.raises(first.VerdictError, match=f"{damaged} .*{outcome.status}"):
        first._verdict(kernels.of_image(damaged), outcome)


def test_a_folder_with_a_libc_may_be_given(guests, tmp_path):
    known = libcs.find("glibc-2.41", "aarch64")
    for path in known.files.values():
        shutil.copy(path, tmp_path)
    one = libcs.given(str(tmp_path))
    assert (one.name, one.arch, one.origin, set(one.files)) == (
        known.name,
        "aarch64",
        "user",
        set(known.files),
    )
    (tmp_path / "ld-linux-aarch64.so.1").unlink()
    with pytest.raises(libcs.LibcError, match="not its loader ld-linux-aarch64"):
        libcs.given(str(tmp_path))
    with pytest.raises(libcs.LibcError, match="no C library in"):
        libcs.given(str(Path(__file__).parent))
    with pytest.raises(UsageError, match="neither a folder"):
        libcs.given("!what")


# --- the package source --------------------------------------------------------------------------------


def test_the_default_set_covers_each_change_of_the_abi(guests):
    for arch in kernels.ARCHS:
        there = [kernels.find(series, arch) for series in kernels.SERIES]
        numbers = [tuple(map(int, one.series.split("."))) for one in there]
        assert numbers == sorted(set(numbers)) and numbers[-1] > (7, 2)
        assert all(one.release in one.package for one in there)
        names = [one.name for one in libcs.chosen_libcs(arch)]
        assert len(names) == len(libcs.VERSIONS) and names[:3] == ["glibc-2.31", "glibc-2.36", "glibc-2.41"]
        assert libcs._order(names[3]) >= libcs._order("glibc-2.43") and names[4].startswith("musl-")
        assert libcs.find("musl-newest", arch).sysroot
    assert kernels.not_here() == libcs.not_here() == []
    assert cache.size_bytes() < 1_500_000_000


def test_json_fits_its_schema(guests, tmp_path):
    for arguments, schema in (
        (["list", "--offline", "--kernel", kernels.find("6.1", "aarch64").image], "kernels"),
        (["fetch"], "kernels-fetch"),
    ):
        result = lab(*arguments, "--json")
        assert result.returncode == 0, result.stderr
        found = json.loads(result.stdout)
        assert found["schema"] == f"rseqlab/{schema}"
        bundle.validate(found, schema, "stdout")
    (tmp_path / "vm" / "kernels").mkdir(parents=True)
    (tmp_path / "vm" / "kernels" / "one").write_bytes(bytes(5000))
    found = json.loads(lab("clean", "--json", RSEQLAB_CACHE=str(tmp_path)).stdout)
    bundle.validate(found, "kernels-clean", "stdout")
    assert found["freed_bytes"] == 5000 and not list((tmp_path / "vm").iterdir())


def test_an_unknown_series_lists_the_known_ones(guests):
    result = lab("fetch", "--series", "2.4")
    assert result.returncode == 2 and "no kernel of series '2.4'" in said(result) and "6.12" in said(result)
    result = lab("fetch", "--arch", "vax")
    assert result.returncode == 2 and "x86_64 and aarch64" in said(result)


def _kept(folder: Path) -> list[Path]:
    return [path for name in ("kernels", "libcs", "partial") for path in (folder / name).rglob("*")]


def test_no_apt_no_network_and_no_signature_are_said_and_leave_nothing(empty_cache, tmp_path):
    result = lab("fetch", PATH=str(tmp_path))
    assert result.returncode == 1 and "apt-get" in said(result) and "--kernel PATH" in said(result)
    require_or_skip(shutil.which("apt-get") is not None, "apt", "run this on a Debian machine")
    result = lab("fetch", RSEQLAB_MIRROR="http://127.0.0.1:9/debian")
    assert result.returncode == 1 and "could not be read" in said(result) and "127.0.0.1" in said(result)
    forged = tmp_path / "forged"
    for suite in packages.SUITES:
        (forged / "dists" / suite).mkdir(parents=True)
        (forged / "dists" / suite / "Release").write_text(
            f"Origin: Debian\nSuite: {suite}\nCodename: {suite}\n"
        )
    result = lab("fetch", RSEQLAB_MIRROR=f"file://{forged}")
    assert result.returncode == 1 and "not signed" in said(result)
    assert not _kept(empty_cache)


def test_a_full_disk_is_said_and_leaves_nothing(guests, tmp_path):
    """The cache on a file system that has no room for a kernel."""
    require_or_skip(os.geteuid() == 0 and shutil.which("unshare") is not None, "root", "run this as root")
    home = cache.top()
    script = (
        'mount -t tmpfs -o size=3m none "$1" && mkdir -p "$1/vm/apt" && ln -s "$2"/apt/* "$1/vm/apt/" && shift 2 && '
        '"$@"; code=$?; find "$RSEQLAB_CACHE/vm/kernels" "$RSEQLAB_CACHE/vm/partial" -type f | sed "s/^/LEFT /"; exit $code'
    )
    command = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        script,
        "sh",
        tmp_path,
        home,
        *COMMAND,
        "fetch",
        "--series",
        "6.1",
    ]
    environment = os.environ | {"RSEQLAB_CACHE": str(tmp_path)}
    result = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, timeout=120, env=environment
    )
    if "mount" in result.stderr and "rseqlab:" not in result.stderr:
        require_or_skip(False, "a file system of one's own", result.stderr.strip())
    assert result.returncode == 1 and "full" in said(result), result.stderr
    assert "LEFT" not in result.stdout


def test_the_machine_s_own_apt_is_not_touched(guests):
    text = (cache.top() / "apt" / "apt.conf").read_text()
    values = dict(line.rstrip(";").split(" ", 1) for line in text.splitlines() if line.startswith("Dir::"))
    assert all(str(cache.top()) in value or value == '""' for value in values.values()), values
    assert "Post-Invoke" not in text and "DPkg" not in text


def test_versions_are_ordered_as_debian_orders_them():
    require_or_skip(shutil.which("dpkg") is not None, "dpkg", "run this on a Debian machine")
    versions = (
        "7.3~rc7-1~exp1",
        "7.3.4-1~bpo13+1",
        "7.3.4-1",
        "1.0",
        "1.0~",
        "1.0-1",
        "1.0-1+b2",
        "1:0.1",
        "1.0a",
        "1.",
    )
    for one in versions:
        for other in versions:
            answer = subprocess.run(
                ["dpkg", "--compare-versions", one, "gt", other], stderr=subprocess.DEVNULL
            )
            assert packages.newer(one, other) == (answer.returncode == 0), (one, other)


def test_progress_and_the_second_fetch_downloads_nothing(guests):
    seen = []
    fetched = stock.fetch(*stock.defaults(), lambda *step: seen.append(step))
    assert fetched.new == 0 and len(fetched.kernels) == 8 and len(fetched.libcs) == 10
    assert {name for name, _, _ in seen} <= {name for name, _ in stock.STEPS}
