# Everything sets itself up in .venv; a laptop with Python 3.11 and make needs nothing else.
# pip takes torch from wherever it is told to: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
# keeps the download small where no GPU is wanted.
PYTHON ?= python3
BIN := .venv/bin
WHEELHOUSE := .wheelhouse
# Globus's `local` environment fixes port 5000, so tests and demo get a loopback of their own where
# the kernel grants one, and can run beside a sandbox.
PRIVATE := $(BIN)/python tests/private_loopback.py

.PHONY: demo test lint docs bench clean

demo: .venv/ready $(WHEELHOUSE)/ready
	$(PRIVATE) bash examples/demo.sh

# Tests that start no daemon share the cores. The others run one by one: heartbeats want the cores
# undisturbed, and Globus's port serves one sandbox at a time.
test: .venv/ready $(WHEELHOUSE)/ready
ifdef PYTEST
	$(PRIVATE) $(BIN)/python -m pytest $(PYTEST)
else
	$(PRIVATE) $(BIN)/python -m pytest -m 'not daemons' -n auto --maxprocesses 4 --dist worksteal --durations 10
	$(PRIVATE) $(BIN)/python -m pytest -m daemons --durations 20
endif

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/bandit --quiet --recursive --configfile pyproject.toml fl templates
	$(BIN)/python -m tests.audit
	$(BIN)/yamllint --strict .
	PATH=$(abspath $(BIN)):$$PATH $(BIN)/ansible-lint --offline --profile production
	$(MAKE) docs

docs: .venv/ready
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet --builder html docs build/docs
	@echo "build/docs/index.html"

bench: .venv/ready $(WHEELHOUSE)/ready
	$(BIN)/python -m benchmarks.results

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt 'setuptools>=77' wheel
	$(BIN)/pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	touch $@

# What a site that reaches no package index is installed from.
$(WHEELHOUSE)/ready: pyproject.toml constraints.txt .venv/ready
	$(BIN)/pip wheel --quiet --constraint constraints.txt --no-build-isolation --wheel-dir $(WHEELHOUSE) .
	rm -f $(WHEELHOUSE)/fl_hpc-*.whl
	touch $@

clean:
	rm -rf .venv $(WHEELHOUSE) .sandbox build federation
