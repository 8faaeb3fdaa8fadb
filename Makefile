# `make quickstart` trains a perturbative network on bundled images, `make test` checks the code in a few minutes,
# `make test-all` checks everything.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
# Two processes, whatever the machine: most of a test is a compilation, which uses one core. Each begins with half of
# the tests, so that the tests of a file share its fixtures. One that is done takes over tests of the other.
PYTEST := $(RUN) -m pytest -n 2 --dist=worksteal

.PHONY: quickstart check test test-all test-compile docs lint

quickstart: $(VENV)/installed
	$(RUN) -m pnn_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

check: $(VENV)/installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

test: check
	$(PYTEST) -m 'not slow and not compile'

test-all: check
	$(PYTEST) -m 'not compile'

# Compiles for TPU and GPU, without either: needs the extras tpu-compile and gpu-compile.
test-compile: $(VENV)/installed-dev
	$(RUN) -m pytest -m compile

# The site, from docs/, into build/site.
docs: $(VENV)/installed-dev
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict

lint: $(VENV)/installed-dev
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check --upgrade pip

$(VENV)/installed: pyproject.toml | $(VENV)/bin/python
	$(RUN) -m pip install --quiet --disable-pip-version-check -e '.[train]'
	touch $@

# PyTorch is pinned, because the tests compare with it; on Linux its CPU build is enough.
$(VENV)/installed-dev: pyproject.toml | $(VENV)/bin/python
	$(RUN) -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $(VENV)/installed $@
