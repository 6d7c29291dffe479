# make demo | make test | make bench | make lab | make lint
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test bench lab lint
.DELETE_ON_ERROR:

demo: .venv/.demo
	$(BIN)/python -m helpers notebook --preset demo
	@$(BIN)/python -m helpers metrics results/demo

test: .venv/.test
	$(BIN)/python -m pytest

bench: .venv/.demo
	$(BIN)/python -m tests.bench

lab: .venv/.lab
	$(BIN)/jupyter lab splat_enhancer.ipynb

lint: .venv/.test
	$(BIN)/ruff check .

.venv/bin/pip:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if (3, 11) <= v[:2] <= (3, 13) else \
	"Python: expected 3.11 to 3.13, got %d.%d; run make PYTHON=python3.12" % v[:2])'
	$(PYTHON) -m venv .venv

.venv/.demo: requirements.txt | .venv/bin/pip
	$(BIN)/pip install --upgrade pip
	$(BIN)/pip install -r requirements.txt
	touch $@

.venv/.test: tests/requirements.txt .venv/.demo
	$(BIN)/pip install -r tests/requirements.txt
	touch $@

.venv/.lab: .venv/.demo
	$(BIN)/pip install jupyterlab
	touch $@
