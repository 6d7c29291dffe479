# make demo | make test [FILES=tests/test_images.py] | make results | make bench | make lab | make lint | make colab | make kaggle | make oldest
PYTHON ?= python3
PYTHON311 ?= python3.11
PYTHON313 ?= python3.13
BIN := .venv/bin
# A file is one worker's: what its tests share is built once
ON_TWO_CORES := --numprocesses 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo test results bench lab lint colab kaggle oldest
.DELETE_ON_ERROR:

# All it writes lies in work/, where git does not look
demo: .venv/.demo
	$(BIN)/python -m tools.run_notebook

test: .venv/.test
	$(BIN)/python -m pytest $(ON_TWO_CORES) $(FILES)

# Copies what the last `make demo` measured to results/demo, which is committed
results:
	cp $(addprefix work/results/demo/,metrics.json metrics.csv report.html splat_enhancer.ipynb) results/demo

bench: .venv/.demo
	$(BIN)/python -m tools.bench

lab: .venv/.lab
	$(BIN)/jupyter lab splat_enhancer.ipynb

lint: .venv/.test
	$(BIN)/ruff check .

# The demo twice on Colab's packages; each time from their first state
colab kaggle: .venv-colab/bin/pip
	$< install --quiet -r tests/places/colab.txt
	$< uninstall --quiet --yes lpips stlpips-pytorch
	.venv-colab/bin/python -m tools.places $@

# The demo twice and the tests on the lowest versions; what they bring is new, and deprecates them
oldest: .venv-oldest/bin/pip
	sed 's/>=/==/' requirements.txt > .venv-oldest/requirements.txt
	$< install --quiet -r .venv-oldest/requirements.txt -r tests/requirements.txt
	.venv-oldest/bin/python -m tools.places oldest
	.venv-oldest/bin/python -m pytest $(ON_TWO_CORES) -W ignore::DeprecationWarning

.venv-colab/bin/pip:
	$(PYTHON313) -m venv .venv-colab

.venv-oldest/bin/pip:
	$(PYTHON311) -m venv .venv-oldest

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
