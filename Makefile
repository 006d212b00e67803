# make train | test | lint | gpu-check | bench | bench-gpu
# (PYTHON=python3.12 make … picks another interpreter)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: train test lint gpu-check bench bench-gpu bench-results clean

# where bench and bench-gpu write
OUT ?= runs/bench

train: $(VENV)/.train
	$(BIN)/gpucnn train shapes

test: $(VENV)/.test
	$(BIN)/python -m pytest -n 2

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# On a machine with a GPU, from the checkout, with whatever Python has NumPy, CuPy and pytest.
gpu-check:
	GPUCNN_REQUIRE_GPU=1 $(PYTHON) -m pytest -m gpu -p no:cacheprovider

# The quick set: on a GPU where one works, else NumPy against PyTorch on the CPU.
bench: $(VENV)/.test
	$(BIN)/gpucnn bench --quick --out $(OUT)

# The full set, on a machine with a GPU, with whatever Python has NumPy, CuPy, click and rich.
bench-gpu:
	$(PYTHON) -m gpucnn bench --device cuda --minutes 6.5 --out $(OUT)

# Measure this machine anew for the repository and rewrite the README; the machine should be quiet.
bench-results: $(VENV)/.test
	$(BIN)/python -m bench.publish

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "gpucnn needs Python 3.10 or newer: PYTHON=python3.12 make …" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || \
		{ echo "Python lacks venv; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# gpucnn with the CUDA extra that fits the driver, where there is a driver
$(VENV)/.train: pyproject.toml | $(VENV)/bin/python
	extra=$$($(PYTHON) gpucnn/driver.py); $(BIN)/pip install --quiet -e ".[plot$${extra:+,$$extra}]"
	@touch $@

$(VENV)/.test: pyproject.toml | $(VENV)/bin/python
	@command -v g++ >/dev/null || \
		echo "g++ is missing, so the emulator's tests will be skipped; on Debian: apt install g++" >&2
	extra=$$($(PYTHON) gpucnn/driver.py); $(BIN)/pip install --quiet -e ".[test,$${extra:-cuda13x}]"
	@touch $@
