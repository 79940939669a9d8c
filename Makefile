PYTHON ?= python3
VENV ?= .venv
STAMP := $(VENV)/.installed

.PHONY: demo test lint clean

demo: $(STAMP)
	$(VENV)/bin/plait demo --out demo

test: $(STAMP)
	GOMP_SPINCOUNT=1000 $(VENV)/bin/python -m pytest

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright --pythonpath $(VENV)/bin/python

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --only-binary :all: --editable '.[dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) demo build dist
