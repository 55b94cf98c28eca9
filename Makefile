# Two commands do everything on a fresh machine: `make demo` and `make test`. Each sets up .venv when it is missing or stale.
PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: demo test test-all check docs bench fuzz systems systems-full format clean

.venv/stamp: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[cpu,eval,video,web,img2dataset,dev]'
	touch $@

demo: .venv/stamp  ## the main job: noisy pairs in, a better model out
	vlpipe run workflows/blip_capfilt.yaml
	vlpipe report workflows/blip_capfilt.yaml --out runs/blip_capfilt/report.html

# One process more than there are CPUs: many tests wait.
PYTEST := python -m pytest -q --dist worksteal -n $$(python -c "import os; print((os.cpu_count() or 1) + 1)")

test: .venv/stamp
	$(PYTEST)

test-all: .venv/stamp  ## also the slow tests: what CI runs
	$(PYTEST) -m ""

systems: .venv/stamp  ## docs/systems.md: small runs of all systems, finished ones reused
	python tools/systems.py --run

systems-full: .venv/stamp
	python tools/systems.py --run --seeds 5

fuzz: .venv/stamp  ## five minutes of odd inputs; what is found is stored, and replayed by `make test`
	python tests/fuzz/fuzz.py --seed $$(date +%s)

check: .venv/stamp  ## what CI checks: format, lint, types, who imports whom
	ruff format --check .
	ruff check .
	mypy
	lint-imports
	python tools/house.py

docs: .venv/stamp  ## the pages of docs/ as HTML in docs/_build
	sphinx-build -q -W --keep-going -b html docs docs/_build

bench: .venv/stamp
	python benchmarks/engine.py

format: .venv/stamp
	ruff format .
	ruff check --fix .

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
