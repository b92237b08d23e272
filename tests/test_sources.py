"""The cited tables: they fit their schema, and what does not fit is told with file, line and column."""

import csv
import json
import re
import subprocess
import sys
from types import SimpleNamespace

import pandas as pd
import pytest

from rseqlab.lab import bundle
from rseqlab.study import claims, sources
from rseqlab.study.claims import WHY_NOT
from rseqlab.study.sources import CONTRADICTIONS, TABLES, TIMELINE, USAGE, SourceError, day, problems, read


def lab(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "rseqlab.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def changed(table, folder, change):
    """The table with its second data row changed, in a file of its own."""
    rows = [dict(row) for row in read(table)]
    change(rows)
    path = folder / table.file
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in table.fields], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.file)
def test_the_shipped_tables_fit_their_schema(table):
    assert problems(table) == []
    assert len(read(table)) >= 20


@pytest.mark.parametrize(
    ("table", "change", "words"),
    [
        (
            USAGE,
            lambda rows: rows[1].update(role="loves"),
            ["usage.csv, line 3", "column role", "loves", "uses,"],
        ),
        (USAGE, lambda rows: rows[1].update(date="2026-13"), ["line 3", "column date", "2026-13"]),
        (USAGE, lambda rows: rows[1].update(source=""), ["line 3", "column source", "empty"]),
        (USAGE, lambda rows: rows[1].update(fields="cpu_id;cpu"), ["line 3", "'cpu'", "mm_cid"]),
        (USAGE, lambda rows: rows[1].update(fields="cpu_id;none"), ["line 3", "stands beside"]),
        (USAGE, lambda rows: rows[1].update(commit="HEAD"), ["line 3", "column commit", "hexadecimal"]),
        (USAGE, lambda rows: rows[1].update(repository="", path="a.c"), ["line 3", "no repository"]),
        (USAGE, lambda rows: rows[1].update(checked="file", checked_at=""), ["line 3", "which commit"]),
        (USAGE, lambda rows: rows[1].update(id=rows[0]["id"]), ["line 3", "stands in line 2 already"]),
        (USAGE, lambda rows: rows[1].update(note="\x1b[31mred"), ["line 3", "column note", "printed"]),
        (TIMELINE, lambda rows: rows[1].update(date="2012"), ["timeline.csv, line 3", "column date"]),
        (TIMELINE, lambda rows: rows.reverse(), ["timeline.csv", "earlier than the row before"]),
        (
            CONTRADICTIONS,
            lambda rows: rows[1].update(other=rows[1]["one"], other_source=rows[1]["one_source"]),
            ["contradictions.csv, line 3", "nothing is contradicted"],
        ),
    ],
)
def test_what_does_not_fit_is_told_with_file_line_and_column(tmp_path, table, change, words):
    found = "\n".join(problems(table, changed(table, tmp_path, change)))
    for word in words:
        assert word in found
    assert "\x1b" not in found


def test_files_that_are_no_tables(tmp_path):
    path = tmp_path / "usage.csv"
    assert "could not be read" in problems(USAGE, path)[0]
    path.write_bytes(b"id,project\n\xff\xfe\n")
    assert "UTF-8" in problems(USAGE, path)[0]
    path.write_text("id,project\n1,x\n")
    assert "its columns are" in problems(USAGE, path)[0]
    header = ",".join(field.name for field in USAGE.fields)
    path.write_text(f"{header}\nU001\n")
    assert "the row ends before it" in "\n".join(problems(USAGE, path))
    path.write_text(f"{header}\n{'x,' * 40}\n")
    assert "more cells" in "\n".join(problems(USAGE, path))


def test_reading_a_table_that_does_not_fit_raises_with_every_place(tmp_path, monkeypatch):
    path = changed(USAGE, tmp_path, lambda rows: [row.update(role="loves") for row in rows])
    (tmp_path / "data").mkdir()
    path.rename(tmp_path / "data" / "usage.csv")
    monkeypatch.setattr(sources, "project_root", lambda: tmp_path)
    with pytest.raises(SourceError, match=r"line 2.*\n.*line 3(.*\n)+and \d+ more"):
        read.__wrapped__(USAGE)


def test_dates_of_any_precision_sort():
    assert sorted(["2026", "2026-11-24", "2026-11", "2025-12-31"], key=day) == [
        "2025-12-31",
        "2026-11-24",
        "2026-11",
        "2026",
    ]


def test_what_a_contradiction_names_exists():
    known = {claim.id for claim in claims.claims()}
    for row in read(CONTRADICTIONS):
        assert set(filter(None, row["claims"].split(";"))) <= known, row["id"]


def test_the_rows_that_the_page_about_the_data_names_exist():
    page = (sources.project_root() / "data" / "SOURCES.md").read_text(encoding="utf-8")
    known = {row["id"] for table in (USAGE, CONTRADICTIONS) for row in read(table)}
    named = set(re.findall(r"\b[UX]\d{2,3}\b", page))
    assert named and named <= known, named - known


def test_a_summary_says_when_the_rows_were_checked():
    said = sources.summary(read(USAGE))
    assert f"Checked on {sources.CHECKED_ON}, in part again on {sources.CHECKED_AGAIN_ON}: " in said


def test_every_claim_has_a_rule_or_a_reason_and_never_both():
    for claim in claims.claims():
        assert bool(claim.rule) != bool(claim.why_not), claim.id
        if claim.why_not:
            kind, _, text = claim.why_not.partition(": ")
            assert kind in WHY_NOT and text and not text.endswith("."), claim.id
            assert claim.reason.startswith(WHY_NOT[kind]) and text in claim.reason


def test_the_schema_of_the_document_has_the_columns_of_the_tables():
    schema = bundle.schema("usage")["properties"]
    for name, table in (("usage", USAGE), ("contradictions", CONTRADICTIONS)):
        item = schema[name]["items"]
        assert item["required"] == list(item["properties"]) == [field.name for field in table.fields]
        for field in table.fields:
            assert item["properties"][field.name].get("enum", list(field.choices)) == list(field.choices) or (
                "enum" not in item["properties"][field.name]
            )


def test_the_command_shows_filters_and_refuses():
    shown = lab("usage", "--json", "--role", "conflicts")
    document = json.loads(shown.stdout)
    bundle.validate(document, "usage", "stdout")
    assert {row["role"] for row in document["usage"]} == {"conflicts"}
    assert "TCMalloc" in lab("usage", "tcmalloc").stdout
    assert "ClickHouse" in lab("usage", "--contradictions").stdout
    assert "fits its schema" in lab("usage", "--check").stdout
    for arguments, word in ((["nosuch"], "jemalloc"), (["--role", "loves"], "registers")):
        refused = lab("usage", *arguments)
        assert refused.returncode == 2 and word in refused.stderr and not refused.stdout


def test_claims_can_be_filtered_and_end_with_their_totals():
    # Which verdict a claim has depends on the machine; that the filter picks by it does not.
    ids = ("T01", "T03", "C37")
    verdicts = {
        one["id"]: one["verdict"] for one in json.loads(lab("claims", "--json", *ids).stdout)["claims"]
    }
    assert verdicts.keys() == set(ids) and verdicts["C37"] == "not measured"
    verdict = verdicts["T03"]
    picked = json.loads(lab("claims", "--json", "--verdict", verdict, *ids).stdout)
    assert [one["id"] for one in picked["claims"]] == [name for name in ids if verdicts[name] == verdict]
    assert sum(picked["totals"].values()) == 3
    shown = lab("claims", "C37")
    assert "Of 1 claims: not measured 1." in shown.stdout and "d7822b1e24f2" in shown.stdout
    assert lab("claims", "--verdict", "perhaps").returncode == 2


class Rows:
    """As much of a run as these rules look at: rows placed by hand around what they decide."""

    def __init__(self, rows):
        self.rows = pd.DataFrame(rows)

    def table(self, name):
        return self.rows


def a_claim(threshold=1.0):
    return claims.Claim("X", "s", "t", "risk", "workload-envoy", "r", threshold)


def test_caches_follow_whoever_owns_the_area():
    right = [{"rseq_owner": "libc", "cache_bytes": 0}, {"rseq_owner": "program", "cache_bytes": 700_000}]
    rule = claims.RULES["caches_need_own_area"]
    assert rule(Rows(right), a_claim()).verdict == claims.HOLDS
    assert "libc owns: 0 of 1 have them, program owns: 1 of 1" in rule(Rows(right), a_claim()).measured
    wrong = [*right, {"rseq_owner": "libc", "cache_bytes": 1}]
    assert rule(Rows(wrong), a_claim()).verdict == claims.FAILS


@pytest.mark.parametrize(("off", "verdict"), [(1.3, "holds"), (0.7, "fails"), (1.0, "inconclusive")])
def test_a_programs_verdict_is_that_of_its_ratio_and_control(off, verdict):
    speeds = {"on": 1000.0, "on-again": 1001.0, "off": 1000.0 * off}
    rows = [
        {"workload": "envoy x", "mode": mode, "part": "a-0", "round": number, "resident_kib": 1}
        | {"operations_per_second": speed + number, "operations": 1, "getcpu_calls": None}
        for number in range(20)
        for mode, speed in speeds.items()
    ]
    rule = claims.RULES["program_verdict"]
    found = rule(Rows(rows), a_claim(), "envoy", "loses")
    assert found.verdict == verdict and "envoy x" in found.measured
    with pytest.raises(claims.NotMeasured, match="no rows for redis"):
        rule(Rows(rows), a_claim(), "redis", "loses")


def test_a_fact_above_the_threshold_fails_and_a_missing_one_gives_its_reason():
    run = SimpleNamespace(
        facts={"at_rseq_align_bytes": 64}, bundle=SimpleNamespace(machine={"reasons": {"x": "no rseq"}})
    )
    rule = claims.RULES["fact_at_most"]
    assert rule(run, a_claim(32), "at_rseq_align_bytes").verdict == claims.FAILS
    assert rule(run, a_claim(64), "at_rseq_align_bytes").verdict == claims.HOLDS
    with pytest.raises(claims.NotMeasured, match="no rseq"):
        rule(run, a_claim(32), "x")
