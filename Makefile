PYTHON ?= python3
VENV ?= .venv
INSTALLED := $(VENV)/.installed
INSTALLED_DEV := $(VENV)/.installed-dev
PIP := $(VENV)/bin/python -m pip install --only-binary :all: --editable

.PHONY: demo test lint clean

demo: $(INSTALLED)
	$(VENV)/bin/plait demo --out demo

test: $(INSTALLED_DEV)
	GOMP_SPINCOUNT=1000 $(VENV)/bin/python -m pytest

lint: $(INSTALLED_DEV)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright --pythonpath $(VENV)/bin/python

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) .
	touch $@

$(INSTALLED_DEV): $(INSTALLED)
	$(PIP) '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) demo build dist
