"""The census of packages: installed ones, package files here, and on a real Dask cluster that loses workers."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import pytest
from conftest import require_or_skip

from rseqlab import native
from rseqlab.census import package
from rseqlab.errors import LabError, UsageError
from rseqlab.lab import bundle

COMMAND = [sys.executable, "-m", "rseqlab.cli", "census"]
HOSTILE = "\x1b[31m\n<b>.tar"


def pack(path, *files):
    with tarfile.open(path, "w") as tar:
        for file in files:
            tar.add(file, arcname=Path(file).name)
    return str(path)


@pytest.fixture(scope="module")
def user():
    """A file that uses rseq: the lab's own."""
    native.core()
    return sys.modules["rseqlab.native._core"].__file__


@pytest.fixture(scope="module")
def packages(tmp_path_factory, user):
    """Package files that differ, each with the lab's own critical sections."""
    folder = tmp_path_factory.mktemp("packages")
    sources = sorted(Path(__file__).parent.glob("test_*.py"))[:8]
    return [pack(folder / f"{number:02}.tar", user, one) for number, one in enumerate(sources)]


def lasting(folder):
    records = package._read(folder / package.RECORDS)
    found = {one["digest"]: package.lasting(one) for one in records}
    assert len(found) == len(records)
    return found


@pytest.fixture(scope="module")
def single(packages, tmp_path_factory):
    """What one process of this machine finds: the measure of all else."""
    folder = tmp_path_factory.mktemp("single")
    document = package.census_archives(packages, folder, workers=1)
    bundle.validate(document, "census-packages", "the census")
    found = lasting(folder)
    assert len(found) == len(packages) and all(one["files"] for one in found.values())
    return found


# ---- on this machine ----


def test_any_number_of_processes_gives_the_same(packages, single, tmp_path):
    package.census_archives(packages, tmp_path, workers=3)
    assert lasting(tmp_path) == single


def test_a_census_goes_on_where_it_was_cut(packages, single, tmp_path):
    package.census_archives(packages[:5], tmp_path)
    path = tmp_path / package.RECORDS
    path.write_bytes(path.read_bytes()[:-20])  # as a power failure leaves it
    with pytest.raises(UsageError, match="--resume"):
        package.census_archives(packages, tmp_path)
    document = package.census_archives(packages, tmp_path, resume=True)
    assert document["totals"]["already_there"] == 4
    assert lasting(tmp_path) == single


def test_a_package_that_ends_its_process_twice_is_refused_and_once_is_not(packages, tmp_path):
    left = {packages[1]: 1, packages[2]: 9}

    class Fragile(package.GuardedScanner):
        """Its process is killed while it reads certain packages, for real."""

        def __call__(self, path):
            if left.get(path, 0) > 0:
                left[path] -= 1
                threading.Thread(target=kill_child_of, args=(threading.get_native_id(),)).start()
            return super().__call__(path)

    def kill_child_of(thread):
        end = time.monotonic() + 10
        children = Path(f"/proc/{os.getpid()}/task/{thread}/children")
        while not (found := children.read_text().split()) and time.monotonic() < end:
            time.sleep(0.001)
        (child,) = found  # it has hardly begun: this Python of its takes longer to start
        os.kill(int(child), signal.SIGKILL)

    records = package.Records(tmp_path, False)
    try:
        package.here(packages[:4], records, workers=1, open_scanner=lambda: SlowStart(Fragile))
    finally:
        records.close()
    found = {one["package"]: one["reason"] for one in records.known}
    assert [reason for reason in found.values() if reason] == [found["02.tar"]]
    assert "2 times the process that read it was ended by SIGKILL" in found["02.tar"]


class SlowStart:
    """A scanner opened anew for each package, so that the only child is the one that reads it."""

    def __init__(self, kind):
        self.kind = kind

    def __call__(self, path):
        scanner = self.kind()
        try:
            return scanner(path)
        finally:
            scanner.close()


def test_what_is_no_package_is_refused_and_tried_again(packages, tmp_path):
    missing = str(tmp_path / "missing.deb")
    document = package.census_archives([missing, packages[0]], tmp_path / "out")
    (one,) = [one for one in document["packages"] if one["reason"]]
    assert one["package"] == "missing.deb" and "No such file" in one["reason"]
    Path(missing).write_bytes(Path(packages[1]).read_bytes())
    document = package.census_archives([missing, packages[0]], tmp_path / "out", resume=True)
    assert document["totals"]["refused"] == 0 and document["totals"]["packages"] == 2


def test_the_command_reads_a_list_and_hostile_names_stay_harmless(packages, tmp_path, user):
    hostile = tmp_path / HOSTILE.replace("\n", "")
    pack(hostile, user)
    (tmp_path / "list").write_text(f"# two\n\n{packages[0]}\n{hostile}\n")
    command = [*COMMAND, "--archive", str(tmp_path / "list"), "--out", str(tmp_path / "out")]
    text = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert text.returncode == 0, text.stderr
    assert "\x1b" not in text.stdout and "\\x1b[31m<b>.tar" in text.stdout
    again = subprocess.run([*command, "--resume", "--json"], capture_output=True, text=True, timeout=120)
    document = json.loads(again.stdout)
    bundle.validate(document, "census-packages", "stdout")
    assert document["totals"]["packages"] == document["totals"]["already_there"] == 2
    once_more = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert once_more.returncode == 2 and "--resume" in once_more.stderr


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_census_keeps_its_records(how, packages, single, tmp_path):
    (tmp_path / "list").write_text("\n".join(packages))
    out = tmp_path / "out"
    command = [*COMMAND, "--archive", str(tmp_path / "list"), "--workers", "1", "--out", str(out)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as lab:
        end = time.monotonic() + 60
        while time.monotonic() < end and not (out / package.RECORDS).exists():
            time.sleep(0.01)
        while time.monotonic() < end and not (out / package.RECORDS).stat().st_size:
            time.sleep(0.005)
        lab.send_signal(how)
        assert lab.wait(timeout=30) in (0, 130, -how)
    before = len(package._read(out / package.RECORDS))
    assert before >= 1
    document = package.census_archives(packages, out, resume=True)
    assert document["totals"]["already_there"] == before
    assert lasting(out) == single


# ---- on a cluster ----


@pytest.fixture(scope="module")
def cluster():
    """Three processes and a scheduler; who is lost is started anew."""
    require_or_skip(have_distributed(), "the Python package distributed", "install rseqlab[cluster]")
    from distributed import LocalCluster

    with LocalCluster(n_workers=3, threads_per_worker=1, dashboard_address=":0", silence_logs=50) as one:
        yield one


def have_distributed():
    return importlib.util.find_spec("distributed") is not None


def test_a_worker_killed_in_mid_scan_loses_nothing(packages, single, tmp_path, cluster):
    in_hand = []

    def kill(done):
        if done == 2:
            busy = max(cluster.scheduler.workers.values(), key=lambda worker: len(worker.processing))
            in_hand.extend(busy.processing)
            (nanny,) = [one for one in cluster.workers.values() if one.worker_address == busy.address]
            os.kill(nanny.pid, signal.SIGKILL)

    document = package.census_archives(packages, tmp_path, cluster=cluster.scheduler_address, show=kill)
    assert in_hand
    bundle.validate(document, "census-packages", "the census")
    assert document["totals"]["refused"] == 0
    assert lasting(tmp_path) == single


class Deadly:
    """A scanner that takes its worker with it, for real, where the package is called poison."""

    def __call__(self, path):
        if "poison" in path:
            os.kill(os.getpid(), signal.SIGKILL)
        scanner = package.GuardedScanner()
        try:
            return scanner(path)
        finally:
            scanner.close()


def deadly(*arguments):
    package._mine.scanner = Deadly()
    return package.on_worker(*arguments)


def test_a_package_that_kills_its_worker_twice_is_refused_and_the_others_are_not(
    packages, single, tmp_path, user, cluster
):
    poison = pack(tmp_path / "poison.tar", user)
    records = package.Records(tmp_path / "out", False)
    cloudpickle = pytest.importorskip("cloudpickle")  # distributed brings it
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    try:
        paths = [packages[0], poison, *packages[1:4]]
        package.on_cluster(cluster.scheduler_address, paths, records, task=deadly)
    finally:
        records.close()
        cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    found = {one["digest"]: one for one in records.known}
    refused = found.pop(package.digest_of(poison))
    assert "2 workers of the cluster ended while they read it" in refused["reason"]
    assert {key: package.lasting(one) for key, one in found.items()} == {
        key: one for key, one in single.items() if key in found
    }
    assert len(found) == 4


@pytest.mark.thorough
def test_a_worker_that_does_not_see_the_path_gets_the_bytes(packages, single, tmp_path):
    require_or_skip(have_distributed(), "the Python package distributed", "install rseqlab[cluster]")
    require_or_skip(os.geteuid() == 0, "the right to hide a folder from one process", "run the tests as root")
    hide = f"mount -t tmpfs none {Path(packages[0]).parent} && exec {sys.executable} -m distributed.cli.dask_worker"
    from distributed import LocalCluster

    with LocalCluster(n_workers=0, dashboard_address=":0", silence_logs=50) as one:
        command = f"{hide} {one.scheduler_address} --nthreads 1 --no-dashboard --no-nanny --local-directory {tmp_path}"
        worker = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", command],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            package.census_archives(packages[:3], tmp_path / "out", cluster=one.scheduler_address)
        finally:
            worker.terminate()
            worker.wait(timeout=20)
    found = lasting(tmp_path / "out")
    assert len(found) == 3 and found == {key: single[key] for key in found}


def test_without_a_cluster_or_its_library_it_says_so(packages, tmp_path, monkeypatch):
    require_or_skip(have_distributed(), "the Python package distributed", "install rseqlab[cluster]")
    monkeypatch.setattr("rseqlab.lab.cluster.CONNECT_S", 1)
    with pytest.raises(LabError, match="does not answer"):
        package.census_archives(packages, tmp_path / "a", cluster="tcp://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(LabError, match=r"rseqlab\[cluster\]"):
        package.census_archives(packages, tmp_path / "b", cluster="tcp://127.0.0.1:9")


# ---- what is installed ----


def test_installed_packages_are_those_of_the_distribution(monkeypatch):
    listed = subprocess.run(["dpkg-query", "-W", "-f", "${binary:Package}\n"], capture_output=True, text=True)
    require_or_skip(listed.returncode == 0, "dpkg", "the census reads rpm's list too")
    found = {name: (version, files) for name, version, files in package.installed()}
    assert set(found) == set(listed.stdout.split())
    libc = next(name for name in found if name.split(":")[0] == "libc6")
    few = [(libc, *found[libc]), ("base-files", *found["base-files"])]
    monkeypatch.setattr(package, "installed", lambda: iter(few))
    document = package.census_installed(workers=1)
    bundle.validate(document, "census-packages", "the census")
    (one,) = document["packages"]
    assert one["package"] == libc and one["classes"].get("registers")
    plain = [Path(file) for _, _, files in few for file in files if not Path(file).is_symlink()]
    elf = [file for file in plain if file.is_file() and file.read_bytes()[:4] == b"\x7fELF"]
    assert document["totals"]["files_read"] > document["totals"]["elf_files"] == len(elf) > 10
    assert document["totals"]["packages"] == 2 and document["totals"]["with_evidence"] == 1


def test_lists_of_files_are_read_whoever_prints_them():
    text = b">a\t1\n /x y\n /z\n\n>b\t2:3\n\n>c\t\x1b[1m\n /\xff\n"
    assert list(package.parse_listed(text)) == [
        ("a", "1", ["/x y", "/z"]),
        ("b", "2:3", []),
        ("c", "\\x1b[1m", ["/\udcff"]),
    ]
