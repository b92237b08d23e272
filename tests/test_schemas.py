"""What checks documents at run time is quick to load; it must refuse what the full validator of JSON schemas refuses."""

import copy
import json
import subprocess
import sys
from importlib import resources
from pathlib import Path

import jsonschema
import pytest

from rseqlab.lab import archive, bundle, older
from rseqlab.lab.bundle import BundleError
from rseqlab.study.run import reference_runs

NAMES = sorted(
    path.name.removesuffix(".json")
    for path in resources.files("rseqlab.schemas").iterdir()
    if path.name.endswith(".json")
)
SCHEMA_1 = Path(__file__).parent / "data" / "schema-1.zip"


def documents():
    """(schema, document) of real documents, small enough to be changed in every place."""
    files = archive.files_of(SCHEMA_1)
    run, machine = (json.loads(files.read(f"{name}.json")) for name in ("run", "machine"))
    record = next(iter(run["experiments"].values()))
    record["parts"] = dict(list(record["parts"].items())[:1])
    run["experiments"] = {"cpu-id-read": record}
    run["builds"] = {"0": {"seed": 0, "compiler": "gcc 12", "flags": ["-O2"], "align_loops": None}}
    yield "run", run | {"version": 2}
    yield "machine", older.machine(machine)
    yield "machine", {**older.machine(machine), "facts": this_machine()}
    yield "error", {"schema": "rseqlab/error", "version": 1, "kind": "failed", "message": "no"}


def this_machine():
    from rseqlab.lab import runner

    return runner.machine()["facts"]


def places(value, path=()):
    yield path
    if isinstance(value, dict):
        for name, one in value.items():
            yield from places(one, (*path, name))
    elif isinstance(value, list):
        for number, one in enumerate(value[:2]):
            yield from places(one, (*path, number))


STRANGE = (None, True, -1, 1e300, 0.5, "", "\x1b[2J", "x" * 30_000, [], [[]], {}, {"surprise": 1}, "<b>")


def changed(document):
    """The document with one thing in it that is strange, missing or too much, in every place."""
    for path in places(document):
        if not path:
            continue
        for strange in STRANGE:
            other = copy.deepcopy(document)
            inner = other
            for step in path[:-1]:
                inner = inner[step]
            inner[path[-1]] = strange
            yield path, other
        other = copy.deepcopy(document)
        inner = other
        for step in path[:-1]:
            inner = inner[step]
        if isinstance(inner, dict):
            del inner[path[-1]]
            yield path, other
            inner["surprise"] = 1
            yield path, other


@pytest.mark.parametrize("name", NAMES)
def test_every_schema_is_one(name):
    jsonschema.Draft202012Validator.check_schema(bundle.schema(name))
    with pytest.raises(BundleError, match="the place"):
        bundle.validate({"schema": "another"}, name, "the place")


def test_the_quick_validator_agrees_with_the_full_one_on_real_and_on_strange_documents():
    checked = 0
    for name, document in documents():
        full = jsonschema.Draft202012Validator(bundle.schema(name))
        assert full.is_valid(document)
        bundle.validate(document, name, "a real one")
        for path, other in changed(document):
            try:
                bundle.validate(other, name, "it")
                quick = True
            except BundleError:
                quick = False
            assert quick == full.is_valid(other), (name, path, str(other)[:200])
            checked += 1
    assert checked > 3000


@pytest.mark.parametrize("path", reference_runs(), ids=lambda path: path.name)
def test_what_is_shipped_fits_by_the_full_validator(path):
    files = archive.files_of(path)
    for name, document in (
        ("run", json.loads(files.read("run.json"))),
        ("machine", older.machine(json.loads(files.read("machine.json")))),
    ):
        jsonschema.Draft202012Validator(bundle.schema(name)).validate(document)


def test_no_command_loads_the_full_validator():
    """It takes seconds to load (its formats compile grammars), and every --json would pay them."""
    code = "import sys; from rseqlab.lab import bundle, runner; bundle.validate({}, 'run', 'x')"
    done = subprocess.run(
        [sys.executable, "-c", f"try:\n    {code}\nfinally:\n    print('jsonschema' in sys.modules)"],
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "False", done.stderr
