# Every command for working with this repository. `make` alone lists them.
.DEFAULT_GOAL := help
SHELL := /bin/bash

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# What to run: names separated by commas. `lra` offers the same without make.
TASKS ?= listops,text,retrieval,image,pathfinder
ATTENTIONS ?= softmax,fourier,wavspa,mra
SEEDS ?= 0
SCALE ?= paper
PROTOCOL ?= nystromformer
LAUNCHER ?= basic
DEVICE ?= auto
DATA_DIR ?=
# FETCH=1 lets `make data` fetch the published archive (about 8 GB) into DATA_DIR.
FETCH ?=
# What reproduce-lra does if the data of a task are missing: stop, or skip the task.
MISSING ?= stop
# PLAN=1 makes reproduce-lra measure and print what the grid will take, and then stop.
PLAN ?=
# TORCH=cpu installs the CPU build of torch where plain pip would fetch the CUDA one.
TORCH ?=
# The commit that bench-check compares this code with.
BASE ?= main
# Further arguments of `lra train`, quoted for the shell.
ARGS ?=

# The value of a variable, passed to the shell as one word: $(call literal,DATA_DIR).
literal = '$(subst ','\'',$(value $(1)))'
# A variable as a key=value argument, or nothing if it is empty: $(call key,data_dir,DATA_DIR).
key = $(if $(value $(2)),'$(1)='$(call literal,$(2)))
LRA = $(BIN)/python -m lra
ABOUT_DATA = $(call key,task,TASKS) $(call key,scale,SCALE) $(call key,protocol,PROTOCOL) \
	$(call key,data_dir,DATA_DIR)
GRID = $(ABOUT_DATA) $(call key,attention,ATTENTIONS) $(call key,seed,SEEDS)
RUN = $(call key,device,DEVICE) $(call key,hydra/launcher,LAUNCHER) $(value ARGS)

# A misspelled variable would silently change nothing, so an unknown one is an error.
KNOWN := PYTHON VENV BIN TASKS ATTENTIONS SEEDS SCALE PROTOCOL LAUNCHER DEVICE DATA_DIR FETCH \
	MISSING PLAN TORCH BASE ARGS PYTEST SHELL MAKEFLAGS MAKEOVERRIDES
GIVEN := $(foreach v,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $(v)))),$(v)))
ifneq ($(filter-out $(KNOWN) -%,$(GIVEN)),)
$(error $(filter-out $(KNOWN) -%,$(GIVEN)): no such variable; the variables are $(KNOWN))
endif

.PHONY: help install install-dev test test-all lint data preflight reproduce-lra bench bench-check report clean

help: ## Print this help
	@echo "Long Range Arena suite. Targets:"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "Variables of reproduce-lra, with their values:"
	@echo "  TASKS=$(TASKS) ATTENTIONS=$(ATTENTIONS) SEEDS=$(SEEDS) SCALE=$(SCALE)"
	@echo "  PROTOCOL=$(PROTOCOL) LAUNCHER=$(LAUNCHER) DEVICE=$(DEVICE) DATA_DIR=$(DATA_DIR)"
	@echo "  MISSING=$(MISSING) PLAN=$(PLAN)"
	@echo "To see what it will take before training anything: make reproduce-lra PLAN=1"
	@echo "To begin with: make reproduce-lra SCALE=mini"

install: $(VENV)/.installed ## Set up .venv from requirements.lock (TORCH=cpu for the CPU build)

install-dev: $(VENV)/.developing ## Set up .venv as above, with what tests and linters need

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

# One process per core, each with one thread.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

test: install-dev ## Run the tests that take seconds
	$(PYTEST) -m "not slow"

test-all: install-dev ## Run every test
	$(PYTEST)

lint: install-dev ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

data: install ## Build the data sets of TASKS at SCALE into data/cache and print a table
	@$(LRA) data $(ABOUT_DATA) $(value ARGS) $(if $(FETCH),--fetch)

preflight: install ## Print where the data of TASKS come from, or what is missing
	@$(LRA) preflight $(ABOUT_DATA) $(value ARGS) --missing $(call literal,MISSING) >/dev/null

reproduce-lra: install ## Plan, train every pairing of TASKS and ATTENTIONS, then print and write the tables
	@$(LRA) reproduce $(GRID) $(RUN) --missing $(call literal,MISSING) $(if $(PLAN),--plan)

report: install ## Print and write the tables of the existing runs
	@$(LRA) report $(GRID) $(value ARGS)

bench: install ## Measure speed and memory of the backends at several lengths
	@$(LRA) bench $(value ARGS)

bench-check: install ## Measure this code and commit BASE in turn, and report what got slower
	@$(LRA) bench against $(call literal,BASE) $(value ARGS)

clean: ## Remove the virtual environment, caches and mini results; data and other runs stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info results/mini results/runs/mini
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
