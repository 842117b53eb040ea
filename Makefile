# make demo   set up .venv, then the main job on the bundled teacher
# make test   set up .venv, then lint, types and tests
# make fast   the tests that answer in about a minute
# make lint   ruff check, ruff format --check, mypy
# make docs   build the pages into site/; a dead link fails
# make golden hashes of tiny runs, to compare before and after a rebuild: tools/golden.py
# make gpu    on a machine with a CUDA device: its tests, the benchmark, a real run; figures in runs/gpu.json
# make clean  remove what both left

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test fast lint docs golden gpu clean

demo: $(VENV)/.ready
	$(BIN)/echoset demo --out runs/demo

test: lint
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal

fast: $(VENV)/.ready
	$(BIN)/python -m pytest -m "not slow and not process and not gpu" --numprocesses auto --maxprocesses 8 --dist worksteal

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.docs
	$(BIN)/python tools/command_line.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

golden: $(VENV)/.ready
	$(BIN)/python tools/golden.py

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("echoset needs Python 3.11 or newer; set PYTHON=…") if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv $(VENV)
# torch first and alone: asked for together with packages that need it, pip may settle on another build.
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	touch $@

$(VENV)/.docs: $(VENV)/.ready
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[docs]'
	touch $@

# Its own environment, over the Python that PYTHON names: a torch that is installed there is used, else the newest is fetched.
gpu:
	$(PYTHON) tools/gpu_setup.py $(VENV)-gpu
	$(VENV)-gpu/bin/python tools/gpu.py

clean:
	rm -rf $(VENV) $(VENV)-gpu runs/demo build site *.egg-info
