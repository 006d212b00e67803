# make train | test | lint | bench; with a GPU: gpu-check | gpu-sanitize | bench-gpu | gpu-all
# (PYTHON=python3.12 make … picks another interpreter)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: train test lint gpu-check gpu-sanitize gpu-all gpu-1 gpu-2 gpu-3 bench bench-gpu \
	bench-results clean

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

# On a machine with a GPU, from the checkout, with whatever Python has NumPy, CuPy and pytest; in as
# many processes as JOBS says where pytest-xdist is there.
JOBS ?= 8
gpu-check:
	jobs=$$($(PYTHON) -c 'import xdist' 2>/dev/null && echo "-n $(JOBS)"); \
	GPUCNN_REQUIRE_GPU=1 $(PYTHON) -m pytest -m gpu -p no:cacheprovider $$jobs $(PYTEST)

# Every kernel on small shapes under a checker; TOOL: memcheck, racecheck, initcheck, synccheck.
SANITIZER ?= compute-sanitizer
TOOL ?= memcheck
gpu-sanitize:
	$(SANITIZER) --tool $(TOOL) --error-exitcode 3 $(PYTHON) -m bench.sanitize --minutes $(SANITIZE_MINUTES)
SANITIZE_MINUTES ?= 3

# The half hour of a GPU that is lent: three calls of at most nine minutes each, the most telling
# first. They go on where one step of theirs fails, and leave few files in OUT. DATA: the folder of
# Fashion-MNIST, if it is not where Debian has it.
gpu-all: gpu-1 gpu-2 gpu-3

# Is it right? The tests, the checker, then the first goals.
gpu-1:
	@mkdir -p $(OUT)
	-timeout -k 20 -s INT 240 $(MAKE) gpu-check PYTEST="-q" > $(OUT)/check.txt 2>&1; tail -n 25 $(OUT)/check.txt
	-timeout -k 20 -s INT 100 $(MAKE) gpu-sanitize SANITIZE_MINUTES=1 > $(OUT)/sanitize.txt 2>&1; \
		tail -n 15 $(OUT)/sanitize.txt
	-$(PYTHON) -m bench.goals steps parts --minutes 3 --out $(OUT)

# Is it fast? Every goal, then the layers in what time is left.
gpu-2:
	-$(MAKE) bench-gpu

# Which kernels are fastest? Races and unwritten memory first, then a table of this GPU.
gpu-3:
	@mkdir -p $(OUT)
	-for tool in racecheck initcheck; do \
		timeout -k 20 -s INT 75 $(MAKE) gpu-sanitize TOOL=$$tool SANITIZE_MINUTES=0.7; \
	done > $(OUT)/races.txt 2>&1; tail -n 20 $(OUT)/races.txt
	-timeout -k 20 -s INT 330 $(PYTHON) -m gpucnn tune --out $(OUT)/tuned.json > $(OUT)/tune.txt 2>&1; \
		tail -n 15 $(OUT)/tune.txt

# The quick set: on a GPU where one works, else NumPy against PyTorch on the CPU.
bench: $(VENV)/.test
	$(BIN)/gpucnn bench --quick --out $(OUT)

# On a machine with a GPU, with whatever Python has NumPy, CuPy, click and rich: every goal, stage
# after stage (STAGES names some), then the full set in what is left of nine minutes.
bench-gpu:
	$(PYTHON) -m bench.goals $(STAGES) --minutes 9 --out $(OUT) $(if $(DATA),--data $(DATA))

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
