# Everything a person does with this repository. `make` alone prints what there is.
.DEFAULT_GOAL := help
SHELL := /bin/bash

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# What is run; names separated by commas.
TASKS ?= listops,text,retrieval,image,pathfinder
ATTENTIONS ?= softmax,fourier,wavspa,mra
SEEDS ?= 0
SCALE ?= paper
PROTOCOL ?= nystromformer
LAUNCHER ?= basic
DEVICE ?= auto
DATA_DIR ?=
# FETCH=1 lets `make data` fetch the published archive (some 8 GB) into DATA_DIR.
FETCH ?=
# What reproduce-lra does where data of a task are missing: stop, or skip the task.
MISSING ?= stop
# PLAN=1: reproduce-lra measures and prints what the grid will take, and stops.
PLAN ?=
# TORCH=cpu installs the CPU build of torch where plain pip would fetch the CUDA one.
TORCH ?=
# Further key=value overrides of lra.train.
ARGS ?=

# The table of where the data come from, and on stdout the tasks that can be trained.
PREFLIGHT = $(BIN)/python -m lra.preflight --tasks $(TASKS) --scale $(SCALE) \
	--protocol $(PROTOCOL) --missing $(MISSING) $(if $(DATA_DIR),--data-dir $(DATA_DIR)) -- $(ARGS)
OVERRIDES = device=$(DEVICE) hydra/launcher=$(LAUNCHER) \
	$(if $(DATA_DIR),data_dir=$(DATA_DIR)) $(ARGS)
SWEEP = attention=$(ATTENTIONS) seed=$(SEEDS) scale=$(SCALE) protocol=$(PROTOCOL) $(OVERRIDES)
GRID = --scale $(SCALE) --protocol $(PROTOCOL) --attentions $(ATTENTIONS) --seeds $(SEEDS)
REPORT = $(GRID) --tasks $(TASKS)

.PHONY: help install install-dev test test-all lint data preflight reproduce-lra bench report clean

help: ## Print this help
	@echo "Long Range Arena suite. Targets:"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "Variables of reproduce-lra, with their values:"
	@echo "  TASKS=$(TASKS) ATTENTIONS=$(ATTENTIONS) SEEDS=$(SEEDS) SCALE=$(SCALE)"
	@echo "  PROTOCOL=$(PROTOCOL) LAUNCHER=$(LAUNCHER) DEVICE=$(DEVICE) DATA_DIR=$(DATA_DIR)"
	@echo "  MISSING=$(MISSING) PLAN=$(PLAN)"
	@echo "What it will take, before it trains anything: make reproduce-lra PLAN=1"
	@echo "First of all: make reproduce-lra SCALE=mini"

install: $(VENV)/.installed ## Set up .venv from requirements.lock (TORCH=cpu for the CPU build)

install-dev: $(VENV)/.developing ## The same, with what tests and linters need

$(VENV)/.installed: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
ifeq ($(TORCH),cpu)
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' requirements.lock)+cpu" \
		--extra-index-url https://download.pytorch.org/whl/cpu
endif
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $@

$(VENV)/.developing: requirements-dev.lock $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --requirement requirements-dev.lock
	touch $@

test: install-dev ## Run the tests that take seconds
	$(BIN)/python -m pytest -m "not slow"

test-all: install-dev ## Run every test
	$(BIN)/python -m pytest

lint: install-dev ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

data: install ## Build the data sets of TASKS at SCALE into data/cache, print a table
	$(BIN)/python scripts/prepare_data.py --tasks $(TASKS) --scale $(SCALE) --protocol $(PROTOCOL) \
		$(if $(DATA_DIR),--data-dir $(DATA_DIR)) $(if $(FETCH),--fetch) $(ARGS)

preflight: install ## Say where the data of TASKS come from, or what is missing
	@$(PREFLIGHT) >/dev/null

reproduce-lra: install ## Plan, train every pairing of TASKS and ATTENTIONS, print and write the tables
	@tasks=$$($(if $(filter paper,$(SCALE)),$(PREFLIGHT),echo $(TASKS))) || \
		$(if $(PLAN),tasks=$(TASKS),exit); status=0; \
	$(BIN)/python -m lra.plan $(GRID) --tasks $$tasks -- $(OVERRIDES) || exit; \
	$(if $(PLAN),exit;) \
	$(BIN)/python -m lra.train -m task=$$tasks $(SWEEP) || status=$$?; \
	$(BIN)/python -m lra.report $(REPORT) || status=$$?; exit $$status

report: install ## Print and write the tables of the runs there are
	$(BIN)/python -m lra.report $(REPORT)

bench: install ## Measure speed and memory of the backends at several lengths
	$(BIN)/python -m lra.bench $(ARGS)

clean: ## Remove the virtual environment, caches and mini results; data and paper runs stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info results/mini results/runs/mini
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
