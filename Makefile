# One command each: `make demo` runs the main job, `make test` runs the tests. Both set everything up first and do no
# installation work when nothing changed.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
EXTRAS ?= msf,triton,dev
# Two processes with one thread each use two cores better than one process with two.
PYTEST_ARGS ?= -n 2

BIN := $(VENV)/bin
NATIVE_SOURCES := $(shell find csrc -type f 2>/dev/null)

.PHONY: setup test test-fast compatibility demo lint format bench gpu-check gpu-bench gpu-first gpu-second clean
.DELETE_ON_ERROR:

setup: $(VENV)/.installed

$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip "setuptools>=77" wheel
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml setup.py $(NATIVE_SOURCES)
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable ".[$(EXTRAS)]"
	touch $@

test: setup
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest $(PYTEST_ARGS)

# Without those that take more than ten seconds each: `make test` and continuous integration run all.
test-fast: setup
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest $(PYTEST_ARGS) -m "not slow"

# Sources of the native extension against the oldest torch that is promised; downloads its wheel, or says that it cannot.
compatibility: setup
	$(BIN)/python tests/compatibility.py headers

demo: setup
	$(BIN)/msf demo --out demo-out

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Peers whose requirements are not needed for what is measured, or would replace the installed torch.
BENCH_BARE := torchcfm torchode torchtyping typeguard torch-uncertainty torchvision
BENCH_SUITES ?= ops network solver end-to-end train memory scaling

bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks run --suite $(BENCH_SUITES) --save $(BENCH_ARGS)
	folder=$$($(BIN)/python -m benchmarks folder) && \
		$(BIN)/python -m benchmarks report $(BENCH_SUITES:%=$$folder/%.jsonl) --out $$folder/report
	$(BIN)/python -m benchmarks readme

$(VENV)/.bench: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable ".[$(EXTRAS),latent,bench]"
	$(BIN)/python -m pip install --quiet --no-deps $(BENCH_BARE)
	touch $@

# With an interpreter that has PyTorch already: make gpu-check PYTHON=python3. Installs nothing.
GPU_PYTHON = $(if $(filter file default,$(origin PYTHON)),$(firstword $(wildcard $(BIN)/python) $(PYTHON)),$(PYTHON))

gpu-check:
	$(GPU_PYTHON) -m benchmarks.gpu_check $(GPU_CHECK_ARGS)

# Likewise; make gpu-bench GPU_BENCH_ARGS=--dry-run runs the same code on a CPU with tiny sizes.
gpu-bench:
	$(GPU_PYTHON) -m benchmarks.gpu_bench $(GPU_BENCH_ARGS)

# The first minutes on a GPU, then the next: is it right, how fast is it, what to choose. GPU_RUN_ARGS=--dry-run: on a CPU.
gpu-first gpu-second:
	$(GPU_PYTHON) -m benchmarks.gpu_run $(@:gpu-%=%) $(GPU_RUN_ARGS)

clean:
	rm -rf $(VENV) build dist demo-out *.egg-info
