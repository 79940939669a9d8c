PYTHON ?= python3
VENV ?= .venv
INSTALLED := $(VENV)/.installed
INSTALLED_DEV := $(VENV)/.installed-dev
PIP := $(VENV)/bin/python -m pip install --only-binary :all: --editable

.PHONY: demo test kernels-interpreted kernels-aot lint clean

demo: $(INSTALLED)
	$(VENV)/bin/plait demo --out demo

test: $(INSTALLED_DEV)
	GOMP_SPINCOUNT=1000 $(VENV)/bin/python -m pytest -n logical --maxprocesses 4 --dist worksteal

# Triton without a GPU: both are part of `test` too, in processes of their own
kernels-interpreted: $(INSTALLED_DEV)
	TRITON_INTERPRET=1 $(VENV)/bin/python -m pytest tests/kernels/test_*triton*.py

kernels-aot: $(INSTALLED_DEV)
	PYTHONPATH=.package $(VENV)/bin/python benchmarks/kernels_aot.py

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
