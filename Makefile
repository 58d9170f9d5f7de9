# The contributor's menu. `make screen` and `make test` each work alone on a fresh machine with
# Python 3.11, pip, make and git; later calls reuse what exists.
#
#   make screen   run the simulated CD4+ screen end to end, and show a ranking
#   make report   its figures and provenance as one HTML page
#   make test     run the tests
#   make lint     check style, types and workflow
#   make schema   write the schema of the configuration anew
#   make bench    run the benchmarks
#   make clean    remove the environment and caches; results/ stays
#
# screen and report take an overlay: make screen CONFIG=config/scenarios/thp1.yaml

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

BIN := .venv/bin
PYTHON ?= $(firstword $(shell command -v python3.11 python3 2>/dev/null))
CONFIG ?=
PIP_INSTALL := $(BIN)/python -m pip install -qq -c constraints.txt
SNAKEMAKE = PATH="$(CURDIR)/$(BIN):$$PATH" snakemake $(if $(CONFIG),--configfile $(CONFIG))
PYTHON_CODE := $(wildcard src tests benchmarks workflow/scripts)
# The scripts behind docs/performance.md; planner and workflow read the demo's plan.
BENCHES := startup workflow "planner demo" qc qc_memory loader vae dit sampling common_noise tolerance \
	rank_sums moments evaluate database rescore rerank growth roofline

# Read from the configuration when a recipe needs them: the run, and the program shown first.
READ = $(shell $(BIN)/python -c "import sys; from knockscreen.config import read_config; \
	c = read_config(*sys.argv[1:]); print(c.run, c.report.program)" config/config.yaml $(CONFIG))
RESULTS = results/$(word 1,$(READ))
PROGRAM = $(word 2,$(READ))

.PHONY: help screen report test lint schema bench clean

help:
	@sed -n 's/^#   //p' Makefile

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "make: Python 3.11 or newer is needed, and none was found." >&2; exit 2; }
	@echo "Making .venv with $(PYTHON)"
	$(PYTHON) -m venv .venv

.venv/.installed-screen: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing knockscreen and what it needs (a few minutes, once)"
	$(PIP_INSTALL) -e '.[workflow]'
	@touch $@

.venv/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing knockscreen and what its development needs (a few minutes, once)"
	$(PIP_INSTALL) -e '.[workflow,dev]'
	@touch $@ .venv/.installed-screen

.venv/.installed-bench: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing the peers that the benchmarks compare with"
	$(PIP_INSTALL) -e '.[workflow,dev,bench]'
	@touch $@ .venv/.installed-dev .venv/.installed-screen

screen: .venv/.installed-screen
	@$(BIN)/python workflow/scripts/unlock.py
	@$(SNAKEMAKE) --quiet rules host reason || \
		{ echo; for log in $$(ls -t $(RESULTS)/logs/*.log | head -n 1); do echo "$$log:"; tail -n 5 "$$log"; done; exit 1; }
	@test -z "$$(find $(RESULTS)/screen.duckdb $(RESULTS)/figures -newer $(RESULTS)/report.html 2>&1)" \
		|| $(SNAKEMAKE) --quiet all --report $(RESULTS)/report.html
	@echo
	@$(BIN)/knockscreen top --program $(PROGRAM) -n 10 --db $(RESULTS)/screen.duckdb
	@echo
	@echo "database  $(RESULTS)/screen.duckdb"
	@echo "report    $(RESULTS)/report.html"
	@echo "next      $(BIN)/knockscreen show STAT3 --db $(RESULTS)/screen.duckdb"

report: .venv/.installed-screen
	@$(SNAKEMAKE) --report $(RESULTS)/report.html

test: .venv/.installed-dev
	$(BIN)/python -m pytest

lint: .venv/.installed-dev
	$(BIN)/ruff check $(PYTHON_CODE)
	$(BIN)/ruff format --check $(PYTHON_CODE)
	$(BIN)/snakefmt --check Snakefile workflow rules
	$(SNAKEMAKE) --lint
	$(BIN)/mypy

schema: .venv/.installed-screen
	$(BIN)/python -m knockscreen.config > workflow/schemas/config.schema.json

bench: .venv/.installed-bench
	@test -f results/demo/screen/plan.json || $(MAKE) screen CONFIG=
	@for words in $(BENCHES); do set -- $$words; \
		echo "benchmarks/$$1.py $${2:-}"; $(BIN)/python benchmarks/$$1.py $${2:-}; \
	done

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache
