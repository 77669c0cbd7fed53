# The two commands of the README, and what they need. Extra arguments: make train ARGS="model=resnet optimizer.lr=3e-5"
PYTHON ?= python3
PY := .venv/bin/python

.PHONY: setup train test test-medium test-slow faults lint format lock results proof
setup: .venv/ready

.venv/ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: Thaw needs Python 3.11 or later; write e.g. make setup PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --require-hashes -r requirements.lock
	$(PY) -m pip install --no-deps --no-build-isolation -e .
	@touch $@

train: setup
	$(PY) train.py $(ARGS)

test: setup
	$(PY) -m pytest -n 2 -m "not slow and not medium" $(ARGS)

test-medium: setup
	$(PY) -m pytest -n 2 -m "medium and not slow" $(ARGS)

test-slow: setup
	$(PY) -m pytest -m slow --timeout 7200 $(ARGS)

faults: setup
	$(PY) -m pytest -q -m fault --timeout 7200 $(ARGS)

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

format: setup
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

lock: setup
	$(PY) -m uv pip compile --universal --generate-hashes --no-header --no-annotate --python-version 3.11 \
	  --prerelease if-necessary-or-explicit --extra dev --extra export --extra tensorboard --extra postgres --extra ray \
	  --extra submitit pyproject.toml -o requirements.lock

results: setup
	$(PY) scripts/results.py

proof: setup
	$(PY) -W ignore scripts/proof.py $(ARGS)
