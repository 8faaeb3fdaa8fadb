# Two commands: `make quickstart` trains a perturbative network on bundled images, `make test` checks everything.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python

.PHONY: quickstart test lint

quickstart: $(VENV)/installed
	$(RUN) -m pnn_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

test: $(VENV)/installed-dev
	$(VENV)/bin/ruff check .
	$(RUN) -m pytest

lint: $(VENV)/installed-dev
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check --upgrade pip

$(VENV)/installed: pyproject.toml | $(VENV)/bin/python
	$(RUN) -m pip install --quiet --disable-pip-version-check -e .
	touch $@

# PyTorch is pinned, because the tests compare with it; on Linux its CPU build is enough.
$(VENV)/installed-dev: pyproject.toml | $(VENV)/bin/python
	$(RUN) -m pip install --quiet --disable-pip-version-check -e '.[dev,verify]'
	touch $(VENV)/installed $@
