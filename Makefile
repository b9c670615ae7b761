# `make demo` and `make test` need Python 3.11 or later and a package index; everything else lands in .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

WORKERS ?= 3
# Processes that tests run in, each of which takes the next test when it is done with one; some tests wait.
PARALLEL = -n $(WORKERS) --dist worksteal
# Else each process compiles the tests, with their assertions rewritten, again.
unexport PYTHONDONTWRITEBYTECODE
# For test-oldest and test-newest, whose other packages come from the index: PyPI's own builds bring CUDA, several GB.
TORCH ?= torch==2.13.0
# For train-tiny and measure-tiny; tiny-itm starts from the weights of tiny.
MODELS ?= tiny tiny-itm

.PHONY: help demo test test-fast test-long test-oldest test-newest mutate check lint types format train-tiny measure-tiny bench-cpu bench-gpu samples clean

help:  ## List these targets.
	@awk -F ':.*## ' '/^[a-z -]+:.*## / {printf "%-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.ready  ## Caption sample_images with a model inside the package; index them with another, and search.
	$(BIN)/blip2cap caption sample_images --model tiny --overwrite
	$(BIN)/blip2cap show captions.jsonl
	rm -rf demo.index
	$(BIN)/blip2cap index sample_images --model tiny-itm --out demo.index
	$(BIN)/blip2cap search demo.index "a boat on the sea" --max-hits 3

test: $(VENV)/.ready  ## The tests that need no GPU, but for those of test-long.
	$(BIN)/python -m pytest $(PARALLEL)

test-fast: $(VENV)/.ready  ## Without those that take seconds.
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow and not long"

test-long: $(VENV)/.ready  ## Those that take longer: kill loops, races, training, more models and searches.
	$(BIN)/python -m pytest $(PARALLEL) -m long

test-oldest: .venv-oldest/.ready  ## The tests of `make test` with the lowest versions that pyproject.toml allows, but for torch (see TORCH).
	.venv-oldest/bin/python -m pytest $(PARALLEL)

test-newest: .venv-newest/.ready  ## The tests of `make test` with the newest versions that there are, but for torch (see TORCH).
	.venv-newest/bin/python -m pytest $(PARALLEL)

mutate: $(VENV)/.ready  ## Break engine, outputs and decoding line by line; list what no test notices (ONLY="blip2cap.engine.flow*"; hours for all).
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --group mutation
	$(BIN)/python -m mutmut run $(ONLY)
	$(BIN)/python -m mutmut results

check: lint types test  ## Lint, types and tests: before every commit.

lint: $(VENV)/.ready  ## Style and format.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.ready  ## Types, strictly.
	$(BIN)/mypy

format: $(VENV)/.ready  ## Repair style and format.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

train-tiny: $(VENV)/.ready  ## Train the models inside the package, or one: MODELS=tiny-itm (hours on 2 cores; resumes where it stopped).
	set -e; mkdir -p runs; for model in $(MODELS); do \
		$(BIN)/python -m blip2cap.train $$model runs/$$model; \
		cp runs/$$model/*.safetensors runs/$$model/*.json runs/$$model/recipe.toml blip2cap/$$(echo $$model | tr - _)/; \
	done
	$(MAKE) measure-tiny

measure-tiny: $(VENV)/.ready  ## How right they are about scenes they have never seen.
	set -e; for model in $(MODELS); do \
		$(BIN)/python -m blip2cap.train measure $$model --out benchmarks/results/$$(echo $$model | tr - _).json; \
	done

bench-cpu: $(VENV)/.ready  ## Measure it beside the plain script on a CPU (9 minutes; 20 GB of memory for the largest model).
	PYTHONPATH=. $(BIN)/python benchmarks/cpu.py --out benchmarks/results/cpu.json

bench-gpu:  ## Test, profile and measure it beside others on a GPU (9 minutes), with the machine's own python3 and torch: nothing is installed.
	PYTHONPATH=. $(PYTHON) benchmarks/gpu.py --out benchmarks/results/gpu.json

samples: $(VENV)/.ready  ## Draw sample_images again.
	$(BIN)/python -m tests.make_samples

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable . --group dev
	touch $@

.venv-oldest/.ready: RESOLUTION = lowest-direct
.venv-newest/.ready: RESOLUTION = highest
.venv-oldest/.ready .venv-newest/.ready: pyproject.toml
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check "$(TORCH)" uv
	$(@D)/bin/uv pip install --quiet --python $(@D)/bin/python --resolution $(RESOLUTION) "$(TORCH)" --editable . --group dev
	touch $@

clean:  ## Remove the environments and caches.
	rm -rf mutants $(VENV) .venv-oldest .venv-newest .mypy_cache .pytest_cache .ruff_cache .hypothesis
