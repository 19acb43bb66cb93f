# make run   executes the three notebooks, results under results/
# make lab   opens JupyterLab on notebooks/
# make test  runs all that CI runs
# make cuda  on a machine with a card: tests, steps, notebooks there, in ten minutes
# DIP_BUDGET=full|quick|smoke chooses how much work; without it, what fits the machine.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready

.PHONY: run lab test lint fast slow notebooks colab benchmark denoising stopping report gain cuda publish address clean

run: $(READY)
	$(BIN)/python notebooks/run_all.py

lab: $(READY)
	$(BIN)/jupyter lab notebooks

test: lint fast slow notebooks

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# A worker for each core, each with one thread.
fast: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -q -m "not slow" -n auto --dist worksteal

# Among them the notebooks in JupyterLab in a real browser.
slow: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -q -m slow -rs -n auto --dist loadgroup

# The committed notebooks, executed anew, a worker for each, and compared cell by cell.
notebooks: $(READY)
	DIP_BUDGET=smoke OMP_NUM_THREADS=1 $(BIN)/python -m pytest notebooks -q --nbval --nbval-sanitize-with tests/nbval.cfg \
		-n auto --dist loadscope

# The notebooks as Colab would run them, with its versions.
colab: $(READY) .venv-colab/ready
	COLAB_PYTHON=$(CURDIR)/.venv-colab/bin/python $(BIN)/python -m pytest tests/test_colab.py -q -rs

.venv-colab/ready: tests/colab-requirements.txt
	$(PYTHON) -m venv .venv-colab
	.venv-colab/bin/python -m pip install --quiet -r $<
	@touch $@

# A step of fit beside the textbook loop; some minutes.
benchmark: $(READY)
	$(BIN)/python -m benchmarks.benchmark $(ARGS)

# The next four go on where they were stopped.

# Denoising beside classical methods; two hours. Of your own pictures: ARGS="--folder my_pictures"
denoising: $(READY)
	$(BIN)/python -m benchmarks.denoising $(ARGS)

# When to stop: every photograph, three noise levels; about half an hour.
stopping: $(READY)
	$(BIN)/python -m benchmarks.stopping

# The report's numbers on its own pictures: make report F16=…/F16_GT.png ZEBRA=…/zebra_GT.png; two hours and a half.
report: $(READY)
	$(BIN)/python -m benchmarks.report_images $(if $(F16),--f16 "$(F16)") $(if $(ZEBRA),--zebra "$(ZEBRA)")

# What 2018's batch norms gain over today's; an hour and a half, ARGS="--side 128" twenty minutes.
gain: $(READY)
	$(BIN)/python -m benchmarks.gain $(ARGS)

# With the packages at hand where there is no virtual environment: nothing is fetched.
cuda:
	$(if $(wildcard $(READY)),$(BIN)/python,$(PYTHON)) benchmarks/cuda.py $(ARGS)

# Executes the notebooks in place, at the full budget, and checks them; one of them: ARGS=2_denoising
publish: $(READY)
	DIP_BUDGET=full $(BIN)/python notebooks/run_all.py --publish $(ARGS)
	$(BIN)/python notebooks/run_all.py --pictures
	$(BIN)/python -m pytest tests/test_notebook_files.py -q

address: $(READY)
	$(BIN)/python notebooks/run_all.py --address "$(ADDRESS)"

$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("This lab needs Python 3.11 or newer; choose one with: make PYTHON=python3.12 …" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements.txt
	@touch $@

# Not the long measurements that have begun.
clean:
	rm -f results/*.ipynb results/*.html
