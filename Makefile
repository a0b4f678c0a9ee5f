# What a newcomer runs. Every target sets up what it needs and does nothing twice.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup assets tasks demo test lint format clean clean-all test-packages pytest test-containers gpu-check gpu-wheels

BIN := .venv/bin
# Processes that tests start would else compile the whole package again, each of them.
unexport PYTHONDONTWRITEBYTECODE
# Three processes at a time, as the tests of a fleet mostly wait; a file's tests stay in one of them, in the order of tests/conftest.py.
PYTEST_ARGS ?= -n 3 --dist loadfile --no-loadscope-reorder

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */  make \1|/' | column -t -s '|'

setup:  ## make .venv with the pinned dependencies and .venv/bin/miniplm (about a minute, once)
	@scripts/setup.sh

assets: setup  ## fetch the demo's teacher and assemble the sample corpus (about 1 minute, once)
	@$(BIN)/python -m scripts.fetch_demo

tasks: setup  ## fetch data for eight of the nine zero-shot tasks, for machines without a hub (86 MB, once)
	@$(BIN)/python -m scripts.fetch_tasks

demo: assets  ## refine the sample corpus and train two students on it (about 5 minutes on 2 cores)
	@$(BIN)/miniplm run deployments/configs/demo.yaml

test-packages:
	@scripts/install_test_packages.sh

# Side by side, as the type check keeps one core busy and the first tests mostly wait; where either fails, so does this.
test: assets test-packages  ## lint, type check and all tests, with the real models (8 to 9 minutes on 2 cores)
	@$(MAKE) --no-print-directory --jobs 2 --keep-going lint pytest

pytest:
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-containers: setup  ## the images and the Compose file on a real Docker engine (measured in docs/fleet.md)
	@scripts/test_containers.sh

gpu-check:  ## tests and benchmarks on a machine with a GPU, in six stages of at most 8 minutes (docs/gpu.md)
	@scripts/gpu_check.sh

gpu-wheels: setup  ## fetch into .gpu-wheels/ what a GPU machine without a network may lack (8 MB)
	@scripts/fetch_gpu_wheels.sh

lint: setup  ## ruff and strict mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup  ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove what runs and tests left behind: data/, caches, build output
	rm -rf data gpu-check build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +

clean-all: clean  ## remove also .venv, the fetched models and text, and the download cache
	rm -rf .venv models samples .cache
