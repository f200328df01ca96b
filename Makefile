# Understudy. `make help` lists the targets.
VENV ?= .venv
PY := $(VENV)/bin/python
PYTHON ?= python3
PROTOS := $(shell find protos -name '*.proto')
.DEFAULT_GOAL := help
.PHONY: help setup demo triton images up down protos format lint types test test-cluster bench verify generate lock check clean

help: ## Show this help
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

setup: $(VENV)/.installed ## Create .venv from requirements.lock, compile the kernels (and helm where Go is at hand)
	@$(PY) -m understudy_kernels.build
	@$(PY) -m deploy.tools.build_helm

$(VENV)/.installed: requirements.lock deploy/tools/install.py
	@$(PYTHON) deploy/tools/install.py $(VENV)

demo: $(VENV)/.installed ## Start the platform, send real requests, show who answered and a trace (TRITON=1)
	@$(if $(TRITON),$(PY) deploy/tools/install_triton.py && UNDERSTUDY_LOCAL_TRITON=1) $(PY) -m understudy.cli demo

triton: $(VENV)/.installed ## Unpack the Triton server outside the checkout, for the tests and for `demo TRITON=1`
	@$(PY) deploy/tools/install_triton.py

images: ## Build the container images (IMAGE_PREFIX=registry/name IMAGES="router worker")
	@$(PYTHON) deploy/images/build.py $(if $(IMAGE_PREFIX),--prefix $(IMAGE_PREFIX)) $(IMAGES)

up: $(VENV)/.installed ## Start the platform on this machine and leave it running
	@$(PY) -m understudy.cli up

down: ## Stop it
	@$(PY) -m understudy.cli down

protos generate: ## Regenerate stubs, the chart's documentation, packages of images
	@$(PY) deploy/tools/generate.py

format: ## Format the code
	@$(VENV)/bin/ruff format . && $(VENV)/bin/ruff check --fix .

lint: ## Lint code, layering and chart
	@$(VENV)/bin/ruff format --check . && $(VENV)/bin/ruff check . && PATH=$(VENV)/bin:$$PATH lint-imports

types: ## Check types (mypy --strict)
	@$(VENV)/bin/mypy

test: ## Run every test with branch coverage
	@$(PY) deploy/tools/run_tests.py

test-cluster: setup ## Install the chart on a real control plane, as processes, and test it (ARGS="-k drain")
	@$(PY) -m deploy.cluster run $(PY) -m pytest -m cluster tests/cluster -n auto --dist=loadfile --no-loadscope-reorder $(ARGS)

bench: $(VENV)/.installed ## Measure the kernels against torch, side by side
	@$(PY) -m benchmarks.kernels

verify: ## Regenerate everything generated and fail on a difference
	@$(PY) deploy/tools/generate.py --check

lock: ## Resolve requirements.lock anew (versions and hashes, no addresses)
	@$(PY) deploy/tools/lock.py

check: lint types verify test ## Everything CI runs

clean: ## Stop the platform and remove what was built
	@test ! -x $(PY) || $(PY) -m understudy.cli down || echo "No platform could be stopped: .venv is incomplete."
	@rm -rf $(VENV) out .understudy .coverage* .mypy_cache .ruff_cache .pytest_cache
