"""machine.json says which machine it was, and nothing that tells one host from another of the same kind."""

import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import require_or_skip

from rseqlab import facts, hardware, host, microarchitecture
from rseqlab.experiments import catalogue
from rseqlab.lab import archive, bundle, fleet, older, runner
from rseqlab.lab.bundle import Bundle, BundleError
from rseqlab.study.run import CHOSEN, StudyRun

SCHEMA_1 = Path(__file__).parent / "data" / "schema-1.zip"
"""Cut out of a run that was shipped when the schema's version was 1."""


@pytest.fixture(scope="module")
def machine():
    return runner.machine()


def test_every_fact_is_a_value_or_null_with_its_reason(machine):
    bundle.validate(machine, "machine", "this machine")
    values, reasons = machine["facts"], machine["reasons"]
    assert set(host.ADDED) <= set(values)
    assert {name for name, value in values.items() if value is None} <= set(reasons)
    assert all(reasons.values()) and set(reasons) <= set(values)


def test_the_processor_is_told_by_its_numbers_and_the_kernel_by_its_settings(machine):
    values = machine["facts"]
    if values["arch"] == "x86_64":
        leaf = hardware.cpuid(1)[0]
        family, model = (leaf >> 8) & 15, (leaf >> 4) & 15
        if family == 15:
            family += (leaf >> 20) & 255
        if family in (6, *range(15, 300)):
            model += (leaf >> 12) & 0xF0
        told = [values[name] for name in ("cpu_family", "cpu_model_number", "cpu_stepping")]
        assert told == [family, model, leaf & 15], "CPUID and /proc/cpuinfo must agree"
        assert values["cpu_implementer"] is None and "constant_tsc" in values["tsc"]
        under_one = "hypervisor" in Path("/proc/cpuinfo").read_text()
        assert (values["hypervisor"] not in ("none", None)) == under_one or machine["reasons"].get(
            "hypervisor"
        )
    else:
        assert values["cpu_implementer"].startswith("0x") and values["cpu_family"] is None
    assert values["compilers"] is None or all(
        re.search(r"\d+\.\d+", text) for text in values["compilers"].values()
    )
    assert "-O2" in values["native_flags"] and not any("/" in flag for flag in values["native_flags"])
    assert all(one["bytes"] is None or one["bytes"] > 1024 for one in values["caches"] or [])


def _addresses():
    for path in Path("/sys/class/net").glob("*/address"):
        yield path.read_text().strip()


def _serials():
    for name in ("product_serial", "product_uuid", "board_serial", "chassis_serial", "product_asset_tag"):
        try:
            yield (Path("/sys/class/dmi/id") / name).read_text().strip()
        except OSError:
            continue
    for path in ("/etc/machine-id", "/proc/sys/kernel/random/boot_id", "/sys/hypervisor/uuid"):
        try:
            yield Path(path).read_text().strip()
        except OSError:
            continue


def test_no_name_number_or_address_of_this_host_is_among_them(machine):
    text = json.dumps(machine)
    private = {
        platform.node(),
        *platform.node().split("."),
        os.path.expanduser("~"),
        *_addresses(),
        *_serials(),
    }
    for word in private:
        assert len(word) < 4 or word.lower() not in text.lower(), "a word of this host is in machine.json"
    assert not re.search(r"\b(?:[0-9a-f]{2}:){5}[0-9a-f]{2}\b", text), "something like an address"
    assert not re.search(r"\b[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}\b", text), "something like a UUID"
    line = Path("/proc/cmdline").read_text().split()
    kept = set(machine["facts"]["kernel_parameters"])
    assert not [word for word in line if word not in kept and len(word) > 12 and word in text]


WITHOUT_MOUNTS = """
import csv, gzip, importlib.resources, json, os, platform, struct, subprocess, sys  # what is imported when it is needed
from rseqlab import host, microarchitecture, native
microarchitecture.table()
os.chroot(sys.argv[1])
os.chdir("/")
values, reasons = host.facts()
assert all(name in reasons for name, value in values.items() if value is None), reasons
print(json.dumps([values["cpu_family"], reasons["cpu_family"], values["mitigations"], host.cpu_title(values)]))
"""


def test_where_proc_and_sys_are_not_there_all_is_unknown_and_nothing_fails(tmp_path):
    require_or_skip(os.geteuid() == 0, "root", "chroot is root's")
    command = [sys.executable, "-c", WITHOUT_MOUNTS, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    family, reason, mitigations, title = json.loads(done.stdout)
    assert family is None and "/proc/cpuinfo" in reason and mitigations is None
    assert "not recorded" in title


# ---- the table of microarchitectures ----


def test_every_row_has_its_source_and_no_two_are_for_the_same_processor():
    seen = set()
    for core in microarchitecture.table():
        assert core.microarchitecture and re.fullmatch(r"https://[\w./-]+", core.source) and core.models
        assert (core.family is None) == (core.arch == "aarch64")
        for model in core.models:
            for stepping in core.steppings or {None}:
                key = (core.vendor, core.family, model, stepping)
                assert key not in seen, key
                seen.add(key)
    assert len(seen) > 300


@pytest.mark.parametrize(
    ("numbers", "title"),
    [
        (("AMD EPYC", "AuthenticAMD", 26, 2, 1), "AMD EPYC (Zen 5 Turin, family 26 model 2)"),
        (("AMD EPYC", "AuthenticAMD", 25, 1, 1), "AMD EPYC (Zen 3 Milan, family 25 model 1)"),
        (
            ("AMD EPYC 7763 64-Core Processor", "AuthenticAMD", 25, 1, 1),
            "AMD EPYC 7763 64-Core Processor (Zen 3 Milan)",
        ),
        (
            ("Intel(R) Xeon(R) CPU @ 2.20GHz", "GenuineIntel", 6, 85, 7),
            "Intel(R) Xeon(R) CPU @ 2.20GHz (Cascade Lake SP, family 6 model 85)",
        ),
        (
            ("Intel(R) Xeon(R) Processor @ 2.00GHz", "GenuineIntel", 6, 85, 4),
            "Intel(R) Xeon(R) Processor @ 2.00GHz (Skylake SP, family 6 model 85)",
        ),
        (
            ("Intel(R) Xeon(R) Platinum 8488C", "GenuineIntel", 6, 143, 8),
            "Intel(R) Xeon(R) Platinum 8488C (Golden Cove Sapphire Rapids)",
        ),
        (
            ("New CPU", "AuthenticAMD", 99, 3, 0),
            "New CPU (microarchitecture not in the lab's table, family 99 model 3)",
        ),
    ],
)
def test_a_title_names_the_core_and_the_numbers_where_the_name_says_nothing(numbers, title):
    names = ("cpu_model", "cpu_vendor", "cpu_family", "cpu_model_number", "cpu_stepping")
    assert host.cpu_title(dict(zip(names, numbers, strict=True))) == title


def test_a_title_of_an_arm_core():
    values = {"cpu_model": "implementer 0x41 part 0xd40", "cpu_implementer": "0x41", "cpu_part": 0xD40}
    assert host.cpu_title(values) == "implementer 0x41 part 0xd40 (Neoverse V1)"
    assert host.cpu_title({"cpu_model": "Neoverse-N1", "cpu_implementer": "0x41", "cpu_part": 0xD0C}) == (
        "Neoverse-N1 (Neoverse N1, implementer 0x41 part 0xd0c)"
    )


def test_a_host_of_a_fleet_is_called_by_its_core():
    numbers = {"cpu_vendor": "AuthenticAMD", "cpu_family": 26, "cpu_model_number": 2, "cpu_stepping": 1}
    values = numbers | {
        "arch": "x86_64",
        "cpu_model": "AMD EPYC",
        "kernel_release": "6.18.44",
        "cpus_allowed": "0-1",
    }
    assert fleet.describe({"facts": values}) == "x86_64-amd-epyc-zen-5-turin-2cpu-linux-6.18"


# ---- bundles of schema version 1 ----


def test_a_bundle_of_the_first_schema_is_read_and_says_what_it_does_not_know():
    run = Bundle(SCHEMA_1, catalogue()).check()
    assert run.run["version"] == 1 and run.run["builds"] == {}
    assert run.machine["version"] == bundle.VERSION and run.machine["facts"]["cpu_model"] == "AMD EPYC"
    assert run.machine["facts"]["cpu_family"] is None
    assert "schema version 1" in run.machine["reasons"]["cpu_family"]
    assert StudyRun(run, CHOSEN).machine()["CPU"] == "AMD EPYC (microarchitecture not recorded)"
    assert len(run.tables["cpu-id-read"]) == run.run["experiments"]["cpu-id-read"]["rows"]
    raw = json.loads(archive.files_of(SCHEMA_1).read("machine.json"))
    assert raw["version"] == 1, "the file itself stays as it is"


def test_what_is_no_machine_json_is_left_to_the_schema():
    for document in (None, [], {"version": 1}, {"version": 1, "facts": 1, "reasons": {}}, {"version": 3}):
        assert older.machine(document) == document
    with pytest.raises(BundleError, match="facts"):
        bundle.validate(older.machine({"version": 1, "facts": {}, "reasons": {}}), "machine", "a file")


def test_the_doctor_says_which_core_this_is():
    done = subprocess.run([sys.executable, "-m", "rseqlab.cli", "doctor"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    values, _ = host.facts()
    title = host.cpu_title(values)
    assert (
        title.split(" (")[0] in done.stdout
        and title.rpartition("(")[2].split(",")[0].rstrip(")") in done.stdout
    )


def test_facts_in_words():
    assert facts.in_words(None) == "unknown" and facts.in_words([]) == facts.in_words({}) == "none"
    assert facts.in_words([{"level": 1, "bytes": 32768}, "x"]) == "level 1, bytes 32768; x"
