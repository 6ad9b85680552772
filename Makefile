# Every target works from a bare clone: .venv is made if absent, and only what the target needs
# is installed. Another interpreter: `make PYTHON=python3.12 demo`.

PYTHON  ?= python3
WORKERS ?= 2

BIN     := .venv/bin
PIP     := $(BIN)/python -m pip --disable-pip-version-check --no-input -qq
CORE    := .venv/.installed-core
DEV     := .venv/.installed-dev
# One thread per pytest worker: more only makes them fight for the cores.
PYTEST  := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

.PHONY: help setup demo test test-slow test-lowest lint docs bench
.DEFAULT_GOAL := help

help:
	@echo "make setup      install rmt into .venv"
	@echo "make demo       train, evaluate and predict on real images, on the CPU, in minutes"
	@echo "make test       all tests but the slow ones        make test-slow   the slow ones"
	@echo "make test-lowest  the tests with the oldest versions that pyproject.toml allows"
	@echo "make lint       style, types, import layers        make docs        the site, in site/"
	@echo "make bench      the benchmarks that need no further data"

setup: $(CORE)

demo: $(CORE)
	$(BIN)/rmt demo

test: $(DEV)
	$(PYTEST) -m "not slow"

test-slow: $(DEV)
	@$(PIP) install -e '.[ultralytics]'
	$(PYTEST) -m slow --timeout 3600

# In an environment of its own, which uv resolves: pip cannot ask for the oldest.
test-lowest:
	@$(PYTHON) -m venv .venv-lowest
	@.venv-lowest/bin/python -m pip --disable-pip-version-check --no-input -qq install uv
	@.venv-lowest/bin/uv pip install -q --python .venv-lowest/bin/python \
	    --resolution lowest-direct -e '.[test]'
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 .venv-lowest/bin/python -m pytest -n $(WORKERS) \
	    --dist worksteal -m "not slow" -W default # old versions warn of newer ones

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check
	$(BIN)/lint-imports --no-logo

docs: $(DEV)
	$(BIN)/zensical build --strict

# The others ask for data or a checkpoint: `python benchmarks/NAME.py --help`.
bench: $(DEV)
	@set -e; for name in attention_backends attention_memory training_memory detection_memory \
	    segmentation_scaling loading prediction classification results; do \
	    echo "== benchmarks/$$name.py"; OMP_NUM_THREADS=1 $(BIN)/python benchmarks/$$name.py; \
	done

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "rmt needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." >&2; \
	    echo "Name another interpreter: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -m venv .venv || { rm -rf .venv; \
	    echo "'$(PYTHON) -m venv' failed; some systems package it apart (python3-venv)." >&2; exit 1; }

# What `dev` installs includes what `core` does.
$(CORE): pyproject.toml | $(BIN)/python
	@[ $(DEV) -nt pyproject.toml ] || { \
	    echo "Installing rmt into .venv (torch is large: the first time takes minutes) ..."; \
	    $(PIP) install -e .; }
	@touch $@

$(DEV): pyproject.toml | $(BIN)/python
	@echo "Installing rmt and its development tools into .venv (the first time takes minutes) ..."
	@$(PIP) install -e '.[dev]'
	@touch $@
