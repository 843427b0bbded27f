# `make demo` and `make test` set up what they need on a fresh machine: Python 3.11+ and make.
#
#   make setup TORCH_INDEX_URL=...   another build of torch (the CPU or another CUDA one)
#   make setup PYTHON=python3.12     another Python

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
NEEDED_GB := 4

.PHONY: setup demo test test-slow test-server lint bench clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "e2rank_rag needs Python 3.11 or newer as $(PYTHON); name one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make virtual environments; install them (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@free=$$(df -Pk . | awk 'NR == 2 { print int($$4 / 1048576) }'); \
	  test -d $(VENV) || test "$$free" -ge $(NEEDED_GB) || { \
	  echo "the environment takes $(NEEDED_GB) GB (more with a CUDA build of torch) and $$free GB are free here; make room" >&2; exit 1; }
	@echo "Setting up $(VENV): torch, transformers and the tools for tests (some minutes) ..."
	@$(PYTHON) -m venv $(VENV)
	@echo "  1 of 2: torch"
	@$(PIP_INSTALL) torch $(if $(TORCH_INDEX_URL),--index-url $(TORCH_INDEX_URL))
	@echo "  2 of 2: everything else"
	@$(PIP_INSTALL) -e '.[dev]'
	@touch $(READY)

demo: $(READY)
	@$(BIN)/e2rank demo

test: $(READY)
	@$(BIN)/python -m pytest -q

test-slow: $(READY)
	@$(BIN)/python -m pytest -q -m slow

test-server: $(READY)
	@test -n "$(E2RANK_TEST_QDRANT_URL)" || { echo "set E2RANK_TEST_QDRANT_URL to a Qdrant server that may be written to" >&2; exit 1; }
	@$(BIN)/python -m pytest -q -m server

lint: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: $(READY)
	@$(BIN)/python benchmarks/indexing_speed.py
	@$(BIN)/python benchmarks/rerank_latency.py

clean:
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache
