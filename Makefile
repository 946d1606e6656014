# `make demo` and `make test` work on a fresh machine: they create .venv and install what they need.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO_CONFIG := configs/retinanet/retinanet_r18_fpn_shapes.py
DEMO_DIR := work_dirs/retinanet_r18_fpn_shapes
ARGS ?=

.PHONY: demo train-all test test-slow test-kill test-gpu gpu-speed lint format clean

demo: $(VENV)/.installed ## Train, evaluate and look at a RetinaNet on the example data.
	$(BIN)/python tools/train.py $(DEMO_CONFIG) $(ARGS)

train-all: $(VENV)/.installed ## Every method on the example data, minutes each; table in docs/methods.md.
	$(BIN)/python tools/train_all.py $(ARGS)

test: $(VENV)/.dev ## All tests; at most 8 minutes on 2 cores.
	# Tests start many processes; each would compile all modules anew where writing bytecode is off.
	OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n auto

test-slow: $(VENV)/.dev ## What takes minutes: the demo, twice.
	$(BIN)/python -m pytest -m slow -s

test-kill: $(VENV)/.dev ## Some 150 runs killed without warning, and resumed; 10 minutes.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m slow tests/engine/resuming/test_kill.py

test-gpu: $(VENV)/.dev ## On a CUDA device: every method, runs of the tools, the reference values.
	$(BIN)/python -m pytest -m gpu tests/gpu
	DETKIT_TEST_DEVICE=cuda $(BIN)/python -m pytest tests/models/test_parity.py tests/losses/test_parity.py

gpu-speed: $(VENV)/.installed ## Images per second and peak memory of a training step; needs a GPU.
	$(BIN)/python tools/benchmark.py gpu $(ARGS)

lint: $(VENV)/.dev ## Style, import rules, types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) work_dirs data/shapes build dist *.egg-info

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python pyproject.toml requirements/runtime.txt
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.installed requirements/dev.txt
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@
