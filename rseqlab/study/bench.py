"""The single-thread cost of every operation as one JSON document, and its comparison with an earlier one.

A benchmark is no test: nothing here fails because something is slow. It fails where two documents cannot be
compared, because they come from another machine or another profile.
"""

import json
import re
import statistics
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import rseqlab
from rseqlab.errors import LabError, UsageError
from rseqlab.experiments import catalogue
from rseqlab.lab import bundle, runner, stats, verdict
from rseqlab.lab.experiment import Experiment, Part

AGAIN = "-again"
"""A variant of this ending is a second instantiation of another one: the A/A control."""

VERSION = 2

SAME_WITHIN_PERCENT = 5
"""Below it a difference is no reason to act; only an interval that lies within it says that there is none."""

OUTCOME = {
    verdict.BELOW: "faster",
    verdict.ABOVE: "slower",
    verdict.SAME: "no difference",
    verdict.NEITHER: "undecided",
    verdict.NO_VERDICT: "no verdict",
}


@dataclass(frozen=True)
class Benchmark:
    """Which rows of an experiment are a benchmark, and what in them is the time of one operation."""

    experiment: str
    variant: tuple[str, ...]
    """The columns that tell one variant from another; the last one says how the operation is done."""
    value_ns: str
    ours: str = r"\brseq|^section/"
    """Found in the ways whose code is this project's. The others are controls: no change here moves them."""


BENCHMARKS = (Benchmark("percpu-ops", ("technique",), "cpu_ns_per_operation"),)
"""Everything that `rseqlab bench` measures."""

SECONDS = {"quick": 7.0, "full": 45.0}
"""Of all of them, on one thread."""

Progress = Callable[[str, int, int], None]


def experiments() -> list[Experiment]:
    """The experiments of the benchmarks, without what they do on more than one thread."""
    return [_single_threaded(catalogue()[one.experiment]) for one in BENCHMARKS]


def _single_threaded(experiment: Experiment) -> Experiment:
    def plan(profile: str):
        return [
            _with_jobs(part, [job for job in part.arguments["jobs"] if job[1] == 1])
            for part in experiment.plan(profile)
        ]

    return replace(experiment, plan=plan, seconds=SECONDS)


def _with_jobs(part: Part, jobs: list) -> Part:
    """The part with these (technique, threads, batch_ns) only."""
    arguments = {**part.arguments, "jobs": jobs}
    return replace(part, arguments=arguments, rows=arguments["rounds"] * len(jobs))


def machine() -> dict:
    """The facts that two documents must share to be compared."""
    return runner.identity(runner.machine())


def measure(profile: str, progress: Progress) -> dict:
    """Measure now. Raises LabError with the reason where a benchmark did not pass here."""
    started = datetime.now(UTC)
    with tempfile.TemporaryDirectory(prefix="rseqlab-bench-") as scratch:
        folder = Path(scratch) / "run"
        record = runner.run(experiments(), profile, folder, False, progress)
        for name, one in record["experiments"].items():
            if one["status"] != "pass":
                raise LabError(
                    f"{name} ended with {one['status']}: {one['reason']}. Nothing can be said of it."
                )
        tables = bundle.Bundle(folder, catalogue()).tables
        steal = {name: one["steal_percent"] for name, one in record["experiments"].items()}
    return {
        "schema": "rseqlab/bench",
        "version": VERSION,
        "lab_version": rseqlab.__version__,
        "profile": profile,
        "started": f"{started:%Y-%m-%dT%H:%M:%SZ}",
        "machine": record["machine"],
        "steal_percent": steal,
        "variants": [row for one in BENCHMARKS for row in summary(one, tables[one.experiment])],
        "comparison": None,
    }


def summary(benchmark: Benchmark, rows: list[Mapping]) -> list[dict]:
    """Location and interval of every variant at one thread, by name, and its median in each build."""
    series: dict[tuple, list[Mapping]] = {}
    for row in rows:
        if row["threads"] == 1:
            series.setdefault(tuple(row[name] for name in benchmark.variant), []).append(row)
    found = []
    for variant, members in sorted(series.items()):
        values = [row[benchmark.value_ns] for row in members]
        interval = stats.interval(values, *_origins(members), log=True)
        again = series.get((*variant[:-1], f"{variant[-1]}{AGAIN}"))
        found.append(
            {
                "experiment": benchmark.experiment,
                "variant": dict(zip(benchmark.variant, map(str, variant), strict=True)),
                "median_ns": interval.median,
                "low_ns": interval.low,
                "high_ns": interval.high,
                "samples": interval.samples,
                "processes": interval.processes,
                "builds_ns": _by_build(members, values),
                "control": not re.search(benchmark.ours, str(variant[-1])),
                "null_ratio": _itself(benchmark, members, again) if again else None,
            }
        )
    return found


def _origins(rows: list[Mapping]) -> tuple[list, list]:
    """(process, build) of each row, for stats.interval; a part is a process."""
    return [row["part"] for row in rows], [row.get("build") for row in rows]


def _by_build(rows: list[Mapping], values: list[float]) -> dict[str, float]:
    """The median of each build's values, by its number as text; empty where the rows name no build."""
    by_build: dict[str, list[float]] = {}
    for row, value in zip(rows, values, strict=True):
        if row.get("build") is not None:
            by_build.setdefault(str(row["build"]), []).append(value)
    return {number: statistics.median(found) for number, found in by_build.items()}


def _itself(benchmark: Benchmark, members: list[Mapping], again: list[Mapping]) -> float:
    """What an A/A control differs by, batch by batch of the same round."""
    first = {(row["part"], row["round"]): row for row in members}
    second = {(row["part"], row["round"]): row[benchmark.value_ns] for row in again}
    pairs = [key for key in first if key in second]
    rows = [first[key] for key in pairs]
    below = [row[benchmark.value_ns] for row in rows]
    return stats.ratio([second[key] for key in pairs], below, *_origins(rows)).median


def read(path: Path) -> dict:
    """An earlier document. UsageError where there is no such file, LabError where it is none of these."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(f"There is no file {path}; `rseqlab bench --out FILE` writes one.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise LabError(f"Could not read {path}: {error}. It should be what `rseqlab bench` wrote.") from None
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise LabError(f"{path} is not JSON ({error}); it should be what `rseqlab bench` wrote.") from None
    if isinstance(document, dict) and document.get("version") == 1:
        raise LabError(
            f"{path} is of schema version 1, which was timed in one build; this rseqlab compares benchmarks of several "
            f"builds (version {VERSION}). Measure the earlier state again with: rseqlab bench --out FILE"
        )
    bundle.validate(document, "bench", str(path))
    return document


def check_comparable(earlier: Mapping, profile: str, here: Mapping) -> None:
    """Raise LabError, naming what differs, unless both come from the same machine and profile."""
    if earlier["profile"] != profile:
        raise LabError(
            f"The earlier benchmark was measured with --profile {earlier['profile']}, this one with {profile}; "
            "only the same profile can be compared."
        )
    changed = sorted(
        name for name in {*earlier["machine"], *here} if earlier["machine"].get(name) != here.get(name)
    )
    if changed:
        said = "; ".join(
            f"{name} was {earlier['machine'].get(name)}, is {here.get(name)}" for name in changed
        )
        raise LabError(
            f"The earlier benchmark was measured under other conditions ({said}); measure both on one machine."
        )


def compare(document: Mapping, earlier: Mapping) -> list[dict]:
    """The ratio of every variant that both have, new to earlier, judged. Raises LabError where they are not comparable.

    Pairs are the medians of the same build number, which lays code out alike. The A/A control is the most that
    anything differs from itself within a document, or that a control moved between the two.
    """
    check_comparable(earlier, document["profile"], document["machine"])
    before = {_key(row): row for row in earlier["variants"]}
    pairs = [(row, before[_key(row)]) for row in document["variants"] if _key(row) in before]
    doubts = [*_doubts(document), *_doubts(earlier)]
    doubt = max([*doubts, _drift(pairs)]) if doubts else None
    rows = []
    for now, then in pairs:
        effect = _ratio(now, then)
        control = None if doubt is None else replace(effect, median=1 + doubt)
        judged = verdict.change(effect, control, 1 + SAME_WITHIN_PERCENT / 100)
        rows.append(
            {
                "experiment": now["experiment"],
                "variant": now["variant"],
                "control": now["control"],
                "before_ns": then["median_ns"],
                "now_ns": now["median_ns"],
                "ratio": judged.effect.median,
                "low": judged.effect.low,
                "high": judged.effect.high,
                "verdict": OUTCOME[judged.verdict],
                "lacks": judged.lacks,
            }
        )
    return rows


def _ratio(now: Mapping, then: Mapping) -> stats.Interval:
    """New to earlier over the builds that both have; of documents without, the two locations and their doubt."""
    builds = [number for number in now["builds_ns"] if number in then["builds_ns"]]
    samples, processes = (min(now[name], then[name]) for name in ("samples", "processes"))
    if not builds:
        middle = now["median_ns"] / then["median_ns"]
        low, high = now["low_ns"] / then["high_ns"], now["high_ns"] / then["low_ns"]
        return stats.Interval(middle, low, high, samples, processes)
    above, below = ([one["builds_ns"][number] for number in builds] for one in (now, then))
    found = stats.ratio(above, below, builds=builds)
    return replace(found, samples=samples, processes=processes, builds=len(builds))


def _drift(pairs: list[tuple[Mapping, Mapping]]) -> float:
    """The most that a control certainly moved: the machine does not run at the same speed at all times."""
    moved = [0.0]
    for now, then in pairs:
        found = _ratio(now, then)
        if now["control"] and not found.low <= 1 <= found.high:
            moved.append(max(found.median, 1 / found.median) - 1)
    return max(moved)


def _key(row: Mapping) -> tuple:
    return row["experiment"], *sorted(row["variant"].items())


def _doubts(document: Mapping) -> list[float]:
    """How far each A/A control of a document differs from itself."""
    return [abs(row["null_ratio"] - 1) for row in document["variants"] if row["null_ratio"]]


def new_file(profile: str) -> Path:
    """Where a document goes by default: beside the runs, named for its time."""
    return runner.runs_folder() / f"bench-{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{profile}.json"


def write(path: Path, document: dict) -> None:
    """Write it, validated. LabError where it cannot be written."""
    bundle.validate(document, "bench", "the benchmark")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LabError(f"Could not create {path.parent}: {error.strerror}. Choose another --out.") from None
    bundle.write_json(path, document)
