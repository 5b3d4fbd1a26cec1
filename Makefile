# Everything from a fresh clone: `make demo` or `make test`. The first call makes .venv and installs
# the pinned packages into it; later calls find that done unless the pins changed.
PYTHON ?= python3
VENV ?= .venv
OUT ?= out
# Two processes, each with one thread; for one test alone: PYTEST_ARGS="-n 0 -k NAME"
PYTEST_ARGS ?= -n 2 --dist loadfile

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: help demo test lint bench performance docs clean
help:
	@echo "make demo   sample photographs to tokens and back: a table, and a picture in $(OUT)/"
	@echo "make test   formatting, types and tests"
	@echo "make lint   formatting and types only"
	@echo "make bench  the entropies against the dense computation, two quick cases"
	@echo "make performance  the tables of docs/performance.md from the committed results"
	@echo "make docs   the documentation as a site, in build/docs"
	@echo "make clean  remove $(VENV) and caches"

demo: $(INSTALLED)
	@$(BIN)/wetok demo --out "$(OUT)"

test: lint
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: $(INSTALLED)
	$(BIN)/python benchmarks/entropy.py --quick

performance: $(INSTALLED)
	$(BIN)/python benchmarks/performance.py

docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Written last, so an install that was cut short is done again.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "make: $(PYTHON) is older than 3.10; name another: make PYTHON=python3.11" >&2; exit 1; }
	@echo "Installing into $(VENV): a minute or two, this once"
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,train]'
	@touch $@

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
