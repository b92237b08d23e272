# `make report` and `make test` set everything up first; set-up does nothing where it is up to date.

# The first Python that is new enough; it is run, because a pyenv shim may have no Python behind it.
# Where none is, bootstrap.py says so under the old one.
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11, 0, "final"))' 2>/dev/null && exec echo $$python; \
	done; echo python3)
UV ?= uv

.PHONY: help report test test-all bench bench-cli kernel lab setup deps workloads reference lock clean \
	lint types api wheels nightly elsewhere

help:    ## Show this list
	@sed -n 's/^\([a-z-]*\): .*## /  make \1\t/p' Makefile | expand -t 16

report: setup  ## Measure on this machine (again only what is not measured yet) and write the report
	.venv/bin/rseqlab run --profile quick --resume
	.venv/bin/rseqlab report

test: setup    ## Run the tests, without those that take long (STAGE=NAME: only a stage; tests/conftest.py lists them)
	.venv/bin/python -m pytest -n 2 --dist loadfile --quick $(if $(STAGE),--stage=$(STAGE))

test-all: setup ## Run all tests (STAGE=NAME as above)
	.venv/bin/python -m pytest -n 2 --dist loadfile $(if $(STAGE),--stage=$(STAGE))

lint: setup    ## Check style and format (ruff)
	.venv/bin/python -m ruff check .
	.venv/bin/python -m ruff format --check .

types: setup   ## Check types (mypy; pyproject.toml says which rooms)
	.venv/bin/python -m mypy

api: setup     ## Write build/api, the reference made of docstrings
	.venv/bin/python tools/api.py

wheels: setup  ## Build a wheel for x86_64 and one for aarch64 into build/wheels (needs the aarch64 compiler)
	.venv/bin/python tools/wheels.py

nightly: setup ## All tests and what takes long: more attacks, repeats, programs, kernels, wheels, reference
	tools/nightly

bench: setup   ## Time every operation (OUT=FILE), and compare with an earlier time (AGAINST=FILE)
	.venv/bin/rseqlab bench $(if $(OUT),--out $(OUT)) $(if $(AGAINST),--against $(AGAINST))

bench-cli: setup ## Time the commands that only read
	.venv/bin/python tools/bench_cli.py

# USER is set in most environments; only one that was given to make is meant.
elsewhere: ## Run make report and make test on a bare SUITE=trixie (COMMANDS="report test" USER=reader KEEP=1 JSON=1)
	@test -n "$(SUITE)" || { echo "Say which: make elsewhere SUITE=trixie" >&2; exit 2; }
	@$(PYTHON) tools/elsewhere.py $(SUITE) $(if $(COMMANDS),--commands "$(COMMANDS)") \
		$(if $(filter command,$(firstword $(origin USER))),--user "$(USER)") $(if $(MIRROR),--mirror "$(MIRROR)") \
		$(if $(KEYRING),--keyring "$(KEYRING)") \
		$(if $(KEEP),--keep) $(if $(QUIET),--quiet) $(if $(JSON),--json)

kernel: setup  ## Build a kernel with slice extension and rseq statistics (optional; minutes, once)
	.venv/bin/rseqlab kernels build

lab: setup     ## Open the notebooks in JupyterLab
	.venv/bin/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) notebooks

setup:   ## Set up .venv and compile the extensions, as far as that is not done
	@command -v $(PYTHON) >/dev/null || { echo "No python3 was found; Python 3.11 or newer is needed." >&2; exit 1; }
	@$(PYTHON) tools/bootstrap.py

deps:    ## Install the optional system packages (second compiler, aarch64 tools, browser, fonts)
	@$(PYTHON) tools/bootstrap.py --deps

workloads: ## Install the programs that `rseqlab run workload-...` runs (PostgreSQL, Envoy, a JVM, ...; large)
	@$(PYTHON) tools/bootstrap.py --workloads

reference: setup ## Measure this machine for data/reference (full profile, some minutes; leave it alone)
	@test -n "$(NAME)" || { echo "Say which: make reference NAME=<arch>-<cpu>-<kernel>" >&2; exit 2; }
	.venv/bin/rseqlab run --profile full --out data/reference/$(NAME)
	.venv/bin/rseqlab bundle pack data/reference/$(NAME)
	rm -r data/reference/$(NAME)
	.venv/bin/python -m rseqlab.study.shipped .

# --no-config and no index in the output: the lock must hold everywhere.
lock:    ## Renew requirements.lock from pyproject.toml (needs uv)
	$(UV) pip compile pyproject.toml --all-extras --universal --python-version 3.11 --upgrade \
		--generate-hashes --no-emit-index-url --no-config --custom-compile-command "make lock" \
		--quiet --output-file requirements.lock

clean:   ## Remove .venv, build, report and caches; never runs/, which holds what was measured
	rm -rf .venv build report *.egg-info .pytest_cache .ruff_cache rseqlab/native/*.so
	find rseqlab tests tools notebooks -type d \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +
