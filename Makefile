# Tollgate. `make dev` runs the whole stack on this machine, `make test` the test suite; both set up .venv first.
SHELL := /bin/bash
PYTHON ?= $(shell for v in 3.13 3.12 3.11 3; do p=$$(command -v python$$v) && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready

# Tests start hundreds of processes, which would compile all of Tollgate each time where bytecode is not to be kept.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup dev test faults long dynamodb-local dynamodb-check dynamodb-long servers-check oidc-check lint types check clean
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
	@command -v redis-server valkey-server >/dev/null || \
	  $(BIN)/python requirements/fetch_redis_servers.py requirements/redis-server.lock $(BIN) || \
	  echo 'make dev will use fakeredis' >&2
	@touch $@

dev: setup ## run the whole stack on loopback
	@exec $(BIN)/tollgate dev $(ARGS)

test: setup ## run the test suite, in four processes at most
	@$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile $(ARGS)

faults: setup ## kill, stall, empty and redirect real servers under the gateway
	@$(BIN)/python -m pytest -m faults tests/faults $(ARGS)

long: setup ## what takes long: a thousand generated sequences, a hundred thousand events, hundreds of killed processes
	@$(BIN)/python -m pytest -m 'long and not dynamodb_local' tests $(ARGS)

DYNAMODB_LOCAL := .tools/dynamodb-local

dynamodb-local: $(DYNAMODB_LOCAL)/.ready ## fetch DynamoDB Local (needs Java 17 and Maven)

$(DYNAMODB_LOCAL)/.ready: requirements/dynamodb-local.xml
	@rm -rf $(@D)
	@mvn -q -B --strict-checksums -f $< dependency:copy-dependencies -DincludeScope=runtime -DoutputDirectory=$(CURDIR)/$(@D)
	@touch $@

dynamodb-check: setup dynamodb-local ## the limit store on DynamoDB Local, under real concurrency
	@$(BIN)/python -m pytest -m 'dynamodb_local and not long' tests/contract tests/dynamodb_local $(ARGS)

dynamodb-long: setup dynamodb-local ## the thousand sequences on DynamoDB Local
	@$(BIN)/python -m pytest -m 'long and dynamodb_local' tests/contract $(ARGS)

SERVERS := .tools/redis-servers

servers-check: setup $(SERVERS)/.ready ## the limit store on Redis 6.2 and 8, Valkey 8 and 9 (x86-64 Linux)
	@for server in $(SERVERS)/*/; do $$server/redis-server --version && \
	  PATH=$$PWD/$$server:$$PATH $(BIN)/python -m pytest -q -k 'redis or cluster' tests/contract $(ARGS) || exit 1; done

$(SERVERS)/.ready: requirements/redis-servers.lock
	@rm -rf $(@D)
	@$(BIN)/python requirements/fetch_redis_servers.py $< $(@D)
	@touch $@

OIDC := .tools/oidc

oidc-check: setup $(OIDC)/.ready ## a foreign OpenID provider, really running, and its tokens (needs node and npm)
	@$(BIN)/python -m pytest -m oidc tests/oidc $(ARGS)

$(OIDC)/.ready: tests/oidc/package.json tests/oidc/package-lock.json
	@mkdir -p $(@D) && cp $^ $(@D) && npm --prefix $(@D) ci --silent --ignore-scripts --no-fund --no-audit
	@touch $@

lint: setup ## ruff, both as linter and as formatter
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: setup ## mypy, strict
	@$(BIN)/mypy

check: test faults long lint types ## everything that must pass before a change lands

clean: ## remove .venv and everything built
	rm -rf $(VENV) $(SAM_VENV) $(BENCH_VENV) .tools .aws-sam build dist *.egg-info

# ---------------------------------------------------------------------------------------------------------------------
# AWS: `sam build` calls build-<LogicalId> for each function of template.yaml (Metadata: BuildMethod: makefile)

SAM_VENV := .venv-sam
SAM_STAMP := $(SAM_VENV)/.ready
BUNDLES := alerts authorizer inspect metering proxy publisher reconciler token_trigger
BUNDLE_ARCH ?= aarch64
BUNDLE_PYTHON ?= 3.13
UV ?= uv
export SAM_CLI_TELEMETRY := 0

# the newest on crates.io; the layer's released binary is not to be had without AWS
ADAPTER := .tools/bin/lambda-adapter
ADAPTER_VERSION := 1.0.0-rc1

.PHONY: sam-check lwa-check lock

build-%: $(STAMP)
	@$(BIN)/python requirements/bundle.py $* "$(ARTIFACTS_DIR)" --arch $(BUNDLE_ARCH) --python $(BUNDLE_PYTHON)

sam-check: $(STAMP) $(SAM_STAMP) ## lint the template, build every bundle, run each on its own
	@AWS_DEFAULT_REGION=$${AWS_DEFAULT_REGION:-us-east-1} $(SAM_VENV)/bin/sam validate --lint
	@$(SAM_VENV)/bin/sam build
	@$(BIN)/python -m pytest -m sam tests/functional/test_bundles.py

lwa-check: $(STAMP) $(ADAPTER) ## run the proxy behind the real Lambda Web Adapter (needs cargo, and minutes the first time)
	@$(BIN)/python -m pytest -m lwa tests/functional/test_web_adapter.py

$(ADAPTER):
	cargo install --quiet --locked --root .tools --version $(ADAPTER_VERSION) lambda_web_adapter

$(SAM_STAMP): requirements/sam.lock
	@echo "setting up $(SAM_VENV)"
	@test -x $(SAM_VENV)/bin/python || $(PYTHON) -m venv $(SAM_VENV)
	@$(SAM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements/sam.lock
	@touch $@

lock: ## pin the bundles' libraries, the SAM CLI and matplotlib (needs uv; versions follow requirements/dev.lock)
	@cd requirements && for name in $(BUNDLES); do \
	  $(UV) pip compile -q --no-header --no-emit-index-url --no-annotate --generate-hashes --python-version $(BUNDLE_PYTHON) \
	    --python-platform aarch64-manylinux_2_28 -c dev.lock $$name.in -o $$name.lock || exit 1; \
	done
	@cd requirements && $(UV) pip compile -q --no-header --no-emit-index-url --no-annotate --generate-hashes --universal \
	  --python-version 3.11 sam.in -o sam.lock
	@cd requirements && $(UV) pip compile -q --no-header --no-emit-index-url --no-annotate --generate-hashes --universal \
	  --python-version 3.11 bench.in -o bench.lock

# ---------------------------------------------------------------------------------------------------------------------
# Figures (bench/README.md); ARGS are those of bench/run.py

.PHONY: bench bench-metering soak

bench: setup ## measure the gateway beside a bare proxy and a direct call (Linux, a C compiler)
	@$(BIN)/python bench/run.py $(ARGS)

bench-metering: setup ## what metering costs for each usage record (ARGS="--moto --dynamodb-local --at-once 4")
	@$(BIN)/python -m bench.metering $(ARGS)

SOAK_MINUTES ?= 30
soak: setup ## half an hour of mixed load, under which memory must stay (Linux, a C compiler)
	@$(BIN)/python bench/soak.py --minutes $(SOAK_MINUTES) $(ARGS)

# The simulator: virtual time, so its figures depend on the seed and not on the machine. Plots need matplotlib, which lives
# in an environment of its own.

BENCH_VENV := .venv-bench
BENCH_STAMP := $(BENCH_VENV)/.ready
SIMULATED := bench/results/simulator.json

.PHONY: simulate simulate-plots

simulate: setup ## run the admission code of thousands of containers in virtual time (ARGS="--scenario outage --seed 7")
	@$(BIN)/python -m bench.simulator --json $(SIMULATED) $(ARGS)

simulate-plots: $(BENCH_STAMP) ## draw what `make simulate` measured
	@$(BENCH_VENV)/bin/python bench/simulator/plot.py $(SIMULATED) bench/results

$(BENCH_STAMP): requirements/bench.lock
	@echo "setting up $(BENCH_VENV)"
	@test -x $(BENCH_VENV)/bin/python || $(PYTHON) -m venv $(BENCH_VENV)
	@$(BENCH_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements/bench.lock
	@touch $@
