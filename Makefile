# Every command the project offers. CI calls these targets and nothing else.
#
#   make serve      set up on first use, then serve the built-in model on http://127.0.0.1:8000
#   make test       set up on first use, then run the default tests (no GPU, no network, no download)
#   make test-all   the default tests and the slow ones
#   make check      linter, formatting and types
#   make fmt        rewrite the sources in the project's format
#   make docs       refresh the generated parts of README.md and docs/
#   make bench      a short throughput measurement of the built-in model on this machine
#   make test-gpu   the tests that need an NVIDIA GPU
#
# Settings: PYTHON=python3.12 chooses the interpreter, VENV=path the environment, ARGS="..." goes to `quire serve`,
# `quire bench offline` or pytest.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VENV ?= .venv
PYTHON ?=
ARGS ?=
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt

.PHONY: help serve test test-all check fmt docs bench test-gpu clean

help:
	@sed -n 's/^#   //p' Makefile

$(BIN)/python:
	@for candidate in $(PYTHON) python3 python3.14 python3.13 python3.12 python3.11; do \
	    if "$$candidate" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	        echo "==> making $(VENV) with $$("$$candidate" --version)"; \
	        exec "$$candidate" -m venv "$(VENV)"; \
	    fi; \
	done; \
	echo "quire needs Python 3.11 or newer with the venv module, and none was found;" >&2; \
	echo "found: $$(python3 --version 2>&1 || true). Install one, or name it: make PYTHON=/path/to/python3 serve" >&2; \
	exit 2

# What an installation depends on: the metadata, and the kernels that it compiles.
INSTALL_INPUTS := pyproject.toml constraints.txt hatch_build.py $(wildcard src/quire/ops/cpu/csrc/*)

# Two stamps, so that serving does not wait for the tools of development.
$(VENV)/.installed: $(INSTALL_INPUTS) | $(BIN)/python
	@echo "==> installing quire and what it needs (the first time fetches torch; a few minutes)"
	@$(INSTALL) -e .
	@touch $@

$(VENV)/.installed-dev: $(INSTALL_INPUTS) | $(BIN)/python
	@echo "==> installing quire and what its tests need (the first time fetches torch; a few minutes)"
	@$(INSTALL) -e '.[dev]'
	@touch $(VENV)/.installed $@

serve: $(VENV)/.installed
	@exec $(BIN)/quire serve $(ARGS)

bench: $(VENV)/.installed
	$(BIN)/quire bench offline $(ARGS)

# Threads that wait by sleeping: beside other work on few cores, spinning ones take most of the time for themselves.
test test-all: export OMP_WAIT_POLICY := passive

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q -m "not slow and not gpu" $(ARGS)

test-all: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q -m "not gpu" $(ARGS)

test-gpu: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q -m gpu $(ARGS)

check: $(VENV)/.installed-dev
	$(BIN)/ruff check src tests tools
	$(BIN)/ruff format --check src tests tools
	$(BIN)/mypy

fmt: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix src tests tools
	$(BIN)/ruff format src tests tools

docs: $(VENV)/.installed-dev
	$(BIN)/python tools/write_docs.py

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
