# `make demo` and `make test` need nothing but Python >= 3.11 with venv, make and git; they set up .venv themselves.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PHOTOS ?=
BUNDLE ?=

STAMP := $(VENV)/.installed
# mypy does not follow the mapping of export/, workers/ and demo/world/ into the package (docs/adr/0001), so it gets the folders as a wheel has them.
TYPED := build/typed

.PHONY: help setup demo test chaos redis browser check format test-full-size bench clean

help: ## show this help
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 18

setup: $(STAMP) ## create .venv with everything for development

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 …"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		if [ -f /etc/debian_version ] && [ "$$(id -u)" = 0 ]; then apt-get update && apt-get install -y python3-venv; \
		else echo "Python's venv module is missing; on Debian or Ubuntu: sudo apt-get install python3-venv"; exit 1; fi; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	@touch $@

demo: setup ## export the small demo model, ingest drawn pictures, search them (PHOTOS=dir your own, BUNDLE=dir a real model)
	$(BIN)/python demo/run.py $(if $(PHOTOS),--photos "$(PHOTOS)") $(if $(BUNDLE),--bundle "$(BUNDLE)")

test: setup redis browser ## run the whole test suite
	$(BIN)/python -m pytest -n 2 --dist loadfile

chaos: setup redis ## the tests that kill workers, Redis, Qdrant and dispatchers, at full length (15 minutes)
	MCIP_CHAOS=1 $(BIN)/python -m pytest -m chaos

# The tests start their own redis-server; a service of the system's is neither needed nor started.
redis:
	@command -v redis-server >/dev/null || { \
		if [ -f /etc/debian_version ] && [ "$$(id -u)" = 0 ]; then apt-get update && RUNLEVEL=1 apt-get install -y --no-install-recommends redis-server; \
		else echo "redis-server is missing, so tests that need it are skipped; on Debian or Ubuntu: sudo apt-get install redis-server"; fi; }

# The page of `serve` is tested in a real browser, the commands of its documentation with curl.
browser:
	@{ command -v chromium && command -v curl; } >/dev/null || { \
		if [ -f /etc/debian_version ] && [ "$$(id -u)" = 0 ]; then apt-get update && apt-get install -y --no-install-recommends chromium curl; \
		else echo "chromium or curl is missing, so tests of serve are skipped; on Debian or Ubuntu: sudo apt-get install chromium curl"; fi; }

check: setup ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@rm -rf $(TYPED) && mkdir -p $(TYPED) && cp -r mcip_qdrant $(TYPED)/ && cp -r export workers demo/world $(TYPED)/mcip_qdrant/
	cd $(TYPED) && $(abspath $(BIN))/mypy --config-file $(CURDIR)/pyproject.toml -p mcip_qdrant

format: setup ## format and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test-full-size: setup ## export both released architectures at full size (about 10 GB of memory, half an hour)
	$(BIN)/python benchmarks/full_size_export.py

bench: setup ## the benchmark table of docs/benchmarks.md (quiet machine, about 20 minutes; PHOTOS=dir adds camera-size JPEGs)
	$(BIN)/python -m pip install --quiet -e ".[dev,bench]"
	$(BIN)/python benchmarks/run_all.py $(if $(PHOTOS),--photos "$(PHOTOS)")

clean: ## remove what make made
	rm -rf $(VENV) build dist *.egg-info demo/out
