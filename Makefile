# `make run` and `make test` need only Python >= 3.11, make, and the package registry.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test check

run: .venv/installed
	$(BIN)/python -m s8lib train

test: check
	$(BIN)/python -m pytest

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/installed: pyproject.toml requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -r requirements.txt
	touch $@
