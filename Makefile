# `make demo` and `make test` need nothing but Python 3.11 or newer with its venv module: they set up everything else.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help demo test lint types bench results clean

help:  ## list what can be made
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(READY)  ## compare baseline and distillation on generated images, on a CPU in minutes
	$(BIN)/w2skd compare --recipe demo --seeds 0,1 --out runs/demo

test: $(READY)  ## run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

lint: $(READY)  ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)  ## check types
	$(BIN)/mypy --strict w2skd

bench: $(READY)  ## measure speed
	@for file in benchmarks/*.py; do [ -e "$$file" ] || continue; echo "$$file"; $(BIN)/python "$$file" || exit 1; done

results: $(READY)  ## make the published reports and the README's table again from their records
	$(BIN)/python docs/results/summarise.py

clean:  ## remove the environment and what tools leave, but no runs and no data
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache build dist
	find w2skd tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# Rewritten last, so that an interrupted installation is done again.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "w2skd needs Python 3.11 or newer; choose one with: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "$(PYTHON) lacks its venv module; on Debian or Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]' -c constraints.txt
	@touch $@
