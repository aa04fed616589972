# Tollgate. `make dev` runs the whole stack on this machine, `make test` the test suite; both set up .venv first.
SHELL := /bin/bash
PYTHON ?= $(shell for v in 3.13 3.12 3.11 3; do p=$$(command -v python$$v) && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready

.PHONY: help setup dev test lint types check clean
.DEFAULT_GOAL := help

help: ## show this list
	@grep -hE '^[a-z][a-z-]*:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

setup: $(STAMP) ## make .venv with everything that Tollgate and its tests need

$(STAMP): pyproject.toml requirements/dev.lock requirements/redis-server.lock
	@test -n "$(PYTHON)" || { echo "Tollgate needs Python 3.11 or newer on the PATH (or: make PYTHON=/path/to/python3)" >&2; exit 1; }
	@echo "setting up $(VENV) with $$($(PYTHON) -V)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements/dev.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@command -v redis-server valkey-server >/dev/null || $(BIN)/python requirements/fetch_redis_server.py $(BIN)
	@touch $@

dev: setup ## run the whole stack on loopback
	@exec $(BIN)/tollgate dev $(ARGS)

test: setup ## run the test suite
	@$(BIN)/python -m pytest $(ARGS)

lint: setup ## ruff, both as linter and as formatter
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: setup ## mypy, strict
	@$(BIN)/mypy

check: test lint types ## everything that must pass before a change lands

clean: ## remove .venv and everything built
	rm -rf $(VENV) .aws-sam build dist *.egg-info
