# make demo: set up, then every notebook on the embedded data set.   make test: the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOWEST := .venv-lowest
# workers of pytest: many tests wait for processes of their own; three are slower on two cores
WORKERS ?= 2

.PHONY: install demo docs test test-slow test-lowest lint hooks lab gpu-day-prepare gpu-day-rehearsal clean

install: $(VENV)/installed

# torch and torchvision come together from requirements.lock, in one command
$(VENV)/installed: pyproject.toml requirements.lock
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "egokit needs Python 3.11 or newer: make PYTHON=python3.11 install")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -e '.[dev]'
	touch $@

demo: install
	$(BIN)/egokit demo

# the documents, the notebooks as the demo executed them, and an API reference: outputs/site/index.html
docs: $(VENV)/docs-installed
	$(BIN)/python docs/site/build_site.py

$(VENV)/docs-installed: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -e '.[docs]'
	touch $@

test: install
	$(BIN)/python -m pytest -m "not slow" -n $(WORKERS) --dist worksteal

# what .ci/run adds: training in several processes, kill -9, notebooks, full-size tables and checkpoints
test-slow: install
	$(BIN)/python -m pytest -m slow -n $(WORKERS) --dist loadfile --durations=100

# the oldest versions that pyproject.toml promises, in a virtual environment of their own; too long for .ci/run
test-lowest: $(LOWEST)/installed
	$(LOWEST)/bin/ruff check .
	$(LOWEST)/bin/python -m pytest -m "not slow or golden" -n $(WORKERS) --dist worksteal

$(LOWEST)/installed: pyproject.toml tests/floors.py
	test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python tests/floors.py > $(LOWEST)/floors.txt
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check -c $(LOWEST)/floors.txt -e '.[dev]'
	touch $@

lint: install
	$(BIN)/ruff check .  # notebooks' cells, too

# before each commit: notebooks lose their outputs, and ruff looks at them and at the code
hooks: install
	$(BIN)/pre-commit install

lab: install
	$(BIN)/jupyter lab

# what a GPU machine lacks, into .gpu_day/, which travels there with the checkout (docs/gpu.md)
gpu-day-prepare: install
	PATH="$(CURDIR)/$(BIN):$$PATH" bash benchmarks/gpu_day/prepare.sh

# every stage of the GPU day at tiny sizes on a CPU; STAGES: some of them, or --without=some,others
gpu-day-rehearsal: install
	PATH="$(CURDIR)/$(BIN):$$PATH" bash benchmarks/gpu_day/prepare.sh --data-only
	PATH="$(CURDIR)/$(BIN):$$PATH" bash benchmarks/gpu_day/gpu_day.sh --cpu $(STAGES)

clean:
	rm -rf $(VENV) $(LOWEST) outputs/*/demo outputs/demo outputs/toy outputs/site
