PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-storms test-all lint docs bench clean

# Compiled once, not by each process again.
unexport PYTHONDONTWRITEBYTECODE

# Made anew whenever pyproject.toml changes. torch and torchvision in one go: they then are a pair that fits.
.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	bash .ci/install dev,fractals,gl,hf,leaves,mlflow,onnx,optuna,tensorboard,wandb
	touch $@

demo: .venv/ready
	$(BIN)/kdray demo

# A third process fills two cores while others wait: for the disk, for processes to start, to die, to be found dead.
PYTEST := $(BIN)/python -m pytest --numprocesses 3 --dist loadgroup

# All but the storms, which have a small version here. CI takes MARKS="not long": storms wait much, and others run meanwhile.
MARKS := not storm
test: .venv/ready
	$(PYTEST) -m "$(MARKS)"

# What exported web pages run on, for the tests that open one.
.venv/web/ready: .venv/ready
	npm install --silent --no-save --prefix .venv/web onnxruntime-web
	touch $@

# Each process reads all files that it is given.
test-storms: .venv/ready .venv/web/ready
	$(PYTEST) -m "storm and not long" $$(grep -l storm tests/test_*.py)

test-all: .venv/ready .venv/web/ready
	$(PYTEST)

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: .venv/ready
	$(BIN)/python docs/write_pages.py

bench: .venv/ready
	$(BIN)/python benchmarks/figure4.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/ledger.py
	$(BIN)/kdray teacher train --force examples/mnist.yaml
	$(BIN)/python benchmarks/http_overhead.py
	for part in ceiling mnist cifar10 peers; do $(BIN)/python benchmarks/score.py $$part || exit 1; done
	$(BIN)/python benchmarks/pairs.py
	$(BIN)/python benchmarks/elastic.py
	$(BIN)/python benchmarks/node_loss.py
	$(BIN)/python benchmarks/driver_limit.py
	for part in budgets lambda_range rad_w overhead; do $(BIN)/python benchmarks/sweeps.py $$part || exit 1; done
	$(BIN)/python benchmarks/batches.py
	$(BIN)/python benchmarks/generator.py
	$(BIN)/python benchmarks/clipping.py
	$(BIN)/python benchmarks/draw.py
	for part in "budgets mnist" "budgets mnist --pool pairs" "budgets cifar10" "budgets cifar10 --pool pairs" "rad mnist" "rad cifar10"; do $(BIN)/python benchmarks/choose.py $$part || exit 1; done
	for part in zeros students; do $(BIN)/python benchmarks/mixkd.py $$part || exit 1; done

clean:
	rm -rf .venv build *.egg-info
