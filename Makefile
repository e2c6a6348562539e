# `make demo` and `make test` need only Python 3.11 or newer with its venv module; they install everything else.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help demo test lint types bench gpu-rehearsal results clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(READY)  ## compare baseline and distillation on generated images (minutes on a CPU)
	$(BIN)/w2skd compare --recipe demo --seeds 0,1 --out runs/demo

test: $(READY)  ## run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

lint: $(READY)  ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)  ## check types
	$(BIN)/mypy --strict w2skd

bench: $(READY)  ## run the benchmarks
	@for file in benchmarks/*.py; do [ -e "$$file" ] || continue; echo "$$file"; $(BIN)/python "$$file" || exit 1; done

gpu-rehearsal: $(READY)  ## run the GPU benchmark at tiny size on the CPU
	@out=$$(mktemp -d) && PYTHON=$(abspath $(BIN))/python OUT="$$out" benchmarks/gpu.sh --tiny; \
		code=$$?; [ $$code = 0 ] || tail -n 60 "$$out/log.txt"; rm -rf "$$out"; exit $$code

results: $(READY)  ## rebuild the published reports and results tables from their records
	$(BIN)/python docs/results/summarise.py

clean:  ## remove the environment, caches and builds, but no runs or data
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache build dist
	find w2skd tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# Touched last, so that an interrupted installation is repeated.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "w2skd needs Python 3.11 or newer; choose one with: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "$(PYTHON) lacks its venv module; on Debian or Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]' -c constraints.txt
	@touch $@
