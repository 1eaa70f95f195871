# Needs python3 (3.11 or newer) and make. Everything else is installed into .venv, in the tested versions.

PYTHON ?= python3
TARGETS ?= banana gmm40 eight_schools digits
OUT ?= comparison

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help compare test test-all oracles lint format bench wheel check-wheel clean

help: ## say what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1: /'

compare: $(VENV)/core ## samplers of both halves on the same targets: a table here, the report in comparison/
	$(BIN)/gensamp compare $(TARGETS) --out $(OUT)

# Most of the fast tier is compilation, so XLA is asked for its quickest; the whole of the tests runs at XLA's default.
test: $(VENV)/test ## the fast tier of the tests
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow" --quick-compilation

test-all: $(VENV)/test ## every test
	$(BIN)/python -m pytest -n 2 --dist worksteal

oracles: $(VENV)/oracles ## install what some tests compare with, and skip without: diffusers on CPU torch

lint: $(VENV)/dev ## ruff and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --level error

format: $(VENV)/dev ## mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/core ## what the runner costs beside a bare scan
	$(BIN)/python -m benchmarks.runner_overhead

wheel: $(VENV)/dev ## build the wheel and the source archive into dist/
	$(BIN)/python -m build --outdir dist

check-wheel: wheel ## install the wheel alone into an environment of its own, and compare two samplers from there
	rm -rf dist/alone && $(PYTHON) -m venv dist/alone
	dist/alone/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt dist/*.whl
	cd dist/alone && bin/gensamp compare banana --budget tiny --with nuts,realnvp,ddpm --out comparison

clean: ## remove what was made here
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/python: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "gensamp needs Python 3.11 or newer; $(PYTHON) is older (make PYTHON=python3.12 ...)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/core: $(VENV)/python pyproject.toml
	@echo "Installing gensamp into $(VENV): a minute or two, once."
	$(PIP) -e .
	@touch $@

$(VENV)/test: $(VENV)/python pyproject.toml
	@echo "Installing gensamp and its test tools into $(VENV): a minute or two, once."
	$(PIP) -e '.[test]'
	@touch $@ $(VENV)/core

$(VENV)/oracles: $(VENV)/test
	@echo "Installing diffusers and torch into $(VENV): some minutes, once."
	$(PIP) -e '.[test,oracles]'
	@touch $@

$(VENV)/dev: $(VENV)/python pyproject.toml
	@echo "Installing gensamp and its development tools into $(VENV): a minute or two, once."
	$(PIP) -e '.[dev]'
	@touch $@ $(VENV)/test $(VENV)/core
