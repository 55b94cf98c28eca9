# Two commands do everything on a fresh machine: `make demo` and `make test`. Each sets up .venv when it is missing or stale.
PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: demo recaption test test-all check docs wheel bench fuzz systems systems-full format clean

.venv/stamp: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[cpu,eval,video,web,img2dataset,dev]'
	touch $@

demo: .venv/stamp  ## the main job: noisy pairs in, a better model out
	vlpipe run workflows/blip_capfilt.yaml
	vlpipe report workflows/blip_capfilt.yaml --out runs/blip_capfilt/report.html

# A server of our own that speaks OpenAI's chat completions, with the faults of real ones, captions the demo world anew.
RECAPTION_FAULTS := 429=0.02 500=0.02 cut=0.01 wrong_json=0.01 refusal=0.02 length=0.02 loop=0.01 control=0.01
recaption: export RECAPTION_KEY := a-key-for-the-small-server
recaption: .venv/stamp  ## new captions for the demo's images, from a server
	python -m vlpipe.stages.chat_server --port 8765 --world runs/recaption --key $$RECAPTION_KEY \
	  $(addprefix --fault ,$(RECAPTION_FAULTS)) & server=$$!; trap "kill $$server" EXIT; \
	vlpipe run workflows/recaption.yaml --set captions.api_key_env=RECAPTION_KEY
	vlpipe report workflows/recaption.yaml --out runs/recaption/report.html

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

wheel: .venv/stamp  ## builds the wheel, installs it into a new environment, runs a small demo there
	python tools/try_wheel.py

bench: .venv/stamp
	python benchmarks/engine.py

format: .venv/stamp
	ruff format .
	ruff check --fix .

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
