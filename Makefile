# `make demo` and `make test` need Python 3.11 or newer, make and a C++ compiler; they create the rest.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PRESET ?= demo
SEED ?= 42

.PHONY: demo test lint bench clean

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt scikit-build-core
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e '.[dev,gpt2]'
	touch $@

demo: $(INSTALLED)
	$(BIN)/agentforge-tui --batch --preset $(PRESET) --set seed=$(SEED)

test: $(INSTALLED)
	$(BIN)/python -m pytest

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=kernels:tui $(BIN)/lint-imports

bench: $(INSTALLED)
	$(BIN)/python -m bench.bench_training

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
