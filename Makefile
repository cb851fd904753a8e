# The one list of commands. Each makes .venv/ first if need be (Python 3.11 to 3.13, gcc), and leaves it usable.
#
#   make demo      PPO on CartPole: trained on Torch, taken up on TensorFlow (about two minutes after installation)
#   make test      every suite that takes seconds
#                  (the first time on a machine it builds Horovod: about five minutes, kept in ~/.cache/learner-core)
#   make test-all  the long tier as well (hours)
#   make bench     the update's speed, paired with other libraries (makes an environment of its own for them)
#   make venv-rllib  an environment with RLlib in it, for benchmarks/throughput and benchmarks/group
#   make lint      ruff, mypy --strict, import-linter, limits of the code's structure
#   make docs      the documentation as a site, in site/

SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXTRAS := torch,tf-cpu,horovod,plot,tensorboard,export,testing,dev,mujoco,box2d,ray,multi-agent

# Installed once per content of what decides the installation: nothing to do while the stamp of that name exists.
STAMP := $(VENV)/.installed-$(shell { cat pyproject.toml constraints.txt; echo '$(EXTRAS)'; $(PYTHON) -V; } 2>&1 | sha256sum | cut -c1-16)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1

.PHONY: install horovod demo test test-all bench venv-rllib lint format docs clean
.DEFAULT_GOAL := test

install: $(STAMP)

$(STAMP):
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq -e ".[$(EXTRAS)]" -c constraints.txt
	@rm -f $(VENV)/.installed-*
	@touch $(STAMP)

demo: $(STAMP)
	@$(BIN)/python examples/demo.py

# Says at once that it is there, takes it from the cache, or builds it; fails where nothing can be compiled.
horovod: $(STAMP)
	@$(BIN)/learner-core horovod build

test: horovod
	@$(BIN)/python tests/run_all.py

test-all: horovod
	@$(BIN)/python tests/run_all.py --slow

bench: $(STAMP)
	@$(BIN)/python benchmarks/run.py

venv-rllib: $(STAMP)
	@$(BIN)/python benchmarks/peer_environments.py .venv-rllib

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/measure_structure.py --trace torch

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP)
	@test -x .venv-docs/bin/mkdocs || { $(PYTHON) -m venv .venv-docs && .venv-docs/bin/python -m pip install -qq -e ".[docs]"; }
	.venv-docs/bin/mkdocs build --strict --site-dir site

clean:
	rm -rf $(VENV) .venv-docs site build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .test-results
