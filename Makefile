# `make demo` and `make test` need Python 3.11 or later and a package index; everything else lands in .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-fast test-long check lint types format train-tiny measure-tiny bench-cpu bench-gpu samples clean

demo: $(VENV)/.ready  ## Caption sample_images with the model inside the package and show the rows.
	$(BIN)/blip2cap caption sample_images --model tiny --overwrite
	$(BIN)/blip2cap show captions.jsonl

test: $(VENV)/.ready  ## All tests that need no GPU.
	$(BIN)/python -m pytest

test-fast: $(VENV)/.ready  ## Without those that take seconds.
	$(BIN)/python -m pytest -m "not slow and not long"

test-long: $(VENV)/.ready  ## Those that take minutes: kill loops, races, a million files.
	$(BIN)/python -m pytest -m long

check: lint types test  ## What CI runs.

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.ready
	$(BIN)/mypy

format: $(VENV)/.ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

train-tiny: $(VENV)/.ready  ## Train the model inside the package (over an hour on 2 cores; goes on where it was cut off).
	$(BIN)/python -m blip2cap.train tiny runs/tiny
	cp runs/tiny/model/* blip2cap/tiny/
	$(MAKE) measure-tiny

measure-tiny: $(VENV)/.ready  ## How right it is about scenes it has never seen.
	$(BIN)/python -m blip2cap.train measure tiny --out benchmarks/results/tiny.json

bench-cpu: $(VENV)/.ready  ## Measure it beside the plain script on a CPU (9 minutes; 20 GB of memory for the largest model).
	PYTHONPATH=. $(BIN)/python benchmarks/cpu.py --out benchmarks/results/cpu.json

bench-gpu:  ## Measure it beside others on a GPU (9 minutes), with the machine's own python3 and torch: nothing is installed.
	PYTHONPATH=. $(PYTHON) benchmarks/gpu.py --out benchmarks/results/gpu.json

samples: $(VENV)/.ready  ## Draw sample_images anew.
	$(BIN)/python -m tests.make_samples

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable . --group dev
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis
