# Understudy. `make help` lists the targets.
VENV ?= .venv
PY := $(VENV)/bin/python
PYTHON ?= python3
PROTOS := $(shell find protos -name '*.proto')
.DEFAULT_GOAL := help
.PHONY: help setup demo up down protos format lint types test verify generate lock check clean

help: ## Show this help
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

setup: $(VENV)/.installed ## Create .venv from requirements.lock (and build helm where Go is at hand)
	@$(PY) deploy/tools/build_helm.py

$(VENV)/.installed: requirements.lock deploy/tools/install.py
	@$(PYTHON) deploy/tools/install.py $(VENV)

demo: $(VENV)/.installed ## Start the whole platform, send real requests, show who answered and one trace
	@$(PY) -m understudy.cli demo

up: $(VENV)/.installed ## Start the platform on this machine and leave it running
	@$(PY) -m understudy.cli up

down: ## Stop it
	@$(PY) -m understudy.cli down

protos generate: ## Regenerate stubs and the chart's documentation
	@$(PY) deploy/tools/generate.py

format: ## Format the code
	@$(VENV)/bin/ruff format . && $(VENV)/bin/ruff check --fix .

lint: ## Lint code, layering and chart
	@$(VENV)/bin/ruff format --check . && $(VENV)/bin/ruff check . && PATH=$(VENV)/bin:$$PATH lint-imports

types: ## Check types (mypy --strict)
	@$(VENV)/bin/mypy

test: ## Run every test with branch coverage
	@$(PY) deploy/tools/run_tests.py

verify: ## Regenerate everything generated and fail on a difference
	@$(PY) deploy/tools/generate.py --check

lock: ## Resolve requirements.lock anew (versions and hashes, no addresses)
	@$(PY) deploy/tools/lock.py

check: lint types verify test ## Everything CI runs

clean: ## Stop the platform and remove what was built
	@test ! -x $(PY) || $(PY) -m understudy.cli down || echo "No platform could be stopped: .venv is incomplete."
	@rm -rf $(VENV) out .understudy .coverage* .mypy_cache .ruff_cache .pytest_cache
