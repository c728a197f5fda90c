# One command sets up all it needs in .venv; a second run of the same command sets up nothing.
#
#   make demo     train a small GPT, dense and sparse side by side: about 5 minutes on 2 cores
#   make check    linters, types and the tests that are not slow: under 2 minutes on 2 cores
#   make test     linters, types and all tests: under 20 minutes on 2 cores
#   make count    compare the instruction counts of the verbs with the committed ones; needs valgrind
#   make docs     the documentation, built strictly into build/site: under a minute
#   make bench    measure against torch and SparseProp
#   make cross    compile the kernels for 64-bit ARM and check them under an emulator: 2 minutes
#   make corrupted  load 2,000 corrupted files and states: about 3 minutes
#   make sweep    prune all classification models of torchvision, which must be installed: 15 minutes
#   make kills    kill a training 50 times and compare the outcome: about 10 minutes
#   make wheel    build a wheel for an old glibc, and test it in a clean environment: 10 minutes
#   make versions  test the wheel with the oldest torch that is promised and with the newest
#   make asan     the tests under AddressSanitizer and UndefinedBehaviorSanitizer
#   make lint     linters and type checker alone
#   make setup    the environment alone
#
# torch comes at the version that constraints.txt pins. Where pip would take a build with CUDA and
# a CPU build is wanted, point PIP_EXTRA_INDEX_URL at PyTorch's CPU index.

PYTHON ?= $(shell for p in python3 python3.12 python3.11 python3.13; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
DEMO_ARGS ?= --demo --overwrite
BENCH_ARGS ?=
PYTEST_ARGS ?=
COUNT_ARGS ?=
KILLS_ARGS ?=
CORRUPTED_ARGS ?=
WHEEL_ARGS ?=
# The oldest that pyproject.toml promises, and the newest that is known to pass.
TORCHES ?= 2.8.0 2.14.1

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
CPP := $(shell find csrc tests/counts tests/cross tests/gpu -name '*.[ch]pp' -o -name '*.cu' -o -name '*.cuh')
ASAN := build/asan/venv
PY_LIST := build/python-files

.PHONY: demo announce-demo check test count cross docs bench kills corrupted sweep wheel versions asan lint setup clean always
.DELETE_ON_ERROR:

# pytest keeps the tests that it compiled: compiling them all takes each worker 8 s.
unexport PYTHONDONTWRITEBYTECODE

demo: announce-demo setup
	$(BIN)/gossamer train $(DEMO_ARGS)

announce-demo:
	@test -e $(VENV)/build.stamp || echo "make demo: first sets up $(VENV) (downloads torch, compiles the kernels: about 5 minutes)."
	@echo "make demo: trains a small GPT on the source of Python's standard library, dense, 2:4:v4 and"
	@echo "90% sparse side by side: about 5 minutes on 2 cores. Table and picture: runs/demo/."

# Two workers with one thread each: most tests are too small to share among threads. Threads of one
# worker that wait must not spin: it takes the other worker's core.
check: lint
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not slow" tests $(PYTEST_ARGS)

# Here each worker has as many threads as a user has.
test: lint
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n 2 --dist worksteal $(PYTEST_ARGS)

count: setup
	$(BIN)/cmake --build build/release --target gossamer_count
	$(BIN)/python tests/counts/count.py build/release/gossamer_count $(COUNT_ARGS)

# Needs Debian's packages g++-aarch64-linux-gnu and qemu-user. Names the tables that must be there:
# an emulated processor without BF16 would check less.
cross: $(VENV)/packages.stamp
	@command -v aarch64-linux-gnu-g++ >/dev/null && command -v qemu-aarch64 >/dev/null \
	    || { echo "make cross needs a cross compiler and an emulator: apt-get install g++-aarch64-linux-gnu qemu-user"; exit 1; }
	$(BIN)/cmake --preset cross
	$(BIN)/cmake --build --preset cross -j2
	qemu-aarch64 -L /usr/aarch64-linux-gnu build/cross/gossamer_check neonbf16 neon portable

# Not --quiet: strict counts the warnings that are logged.
docs: $(VENV)/docs.stamp
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --clean
	@echo "The site is in build/site; open build/site/index.html."

bench: $(VENV)/bench.stamp
	$(BIN)/python -m bench $(BENCH_ARGS)

kills: setup
	OMP_NUM_THREADS=1 $(BIN)/python tests/train/kills.py $(KILLS_ARGS)

corrupted: setup
	OMP_NUM_THREADS=1 $(BIN)/python tests/corrupted $(CORRUPTED_ARGS)

wheel:
	$(PYTHON) cmake/wheel.py $(WHEEL_ARGS)

versions:
	$(PYTHON) cmake/wheel.py --only-test $(TORCHES:%=--torch %) $(WHEEL_ARGS)

sweep: setup
	OMP_NUM_THREADS=1 $(BIN)/python tests/pruning/sweep.py $(SWEEP_ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CPP)

setup: $(VENV)/build.stamp

# ---- environment -------------------------------------------------------------------------------
$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "gossamer needs Python 3.11 or later: make PYTHON=/path/to/python"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# torch first and by itself: see constraints.txt.
$(VENV)/packages.stamp: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install -q -c constraints.txt torch
	$(PIP) install -q -c constraints.txt cmake ninja pybind11 scikit-build-core
	touch $@

# An editable install: Python files are read where they stand, C++ is built again when it changes.
# It keeps a list of the Python files, so it is made again when one is added, moved or deleted.
$(PY_LIST): always
	@mkdir -p $(@D) && find python -name '*.py' | sort > $@.new
	@cmp -s $@.new $@ && rm $@.new || mv $@.new $@

$(VENV)/build.stamp: $(VENV)/packages.stamp CMakeLists.txt CMakePresets.json cmake/check_symbols.cmake $(CPP) $(PY_LIST)
	$(PIP) install -q -c constraints.txt --no-build-isolation \
	    -C build-dir=build/release -C cmake.args=--preset=release -e '.[cli,test,lint]'
	touch $@

# The site is built from the sources alone: gossamer itself is not imported.
$(VENV)/docs.stamp: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install -q -c constraints.txt mkdocs mkdocs-material 'mkdocstrings[python]' pymdown-extensions
	touch $@

# SparseProp is compiled for this very processor, by a setup that calls the first `pip` and `python3`
# on the PATH and needs pybind11 there. Where that fails, the bench runs without this rival.
# The other rivals come as wheels; a bench runs without those that cannot be had.
$(VENV)/bench.stamp: $(VENV)/build.stamp
	$(PIP) install -q -c constraints.txt POT geomloss ott-jax regot scikit-learn \
	    || echo "A rival in transport cannot be had here: the bench runs without it."
	$(PIP) install -q -c constraints.txt modopt pyproximal skglm \
	    || echo "A rival in proximal operators cannot be had here: the bench runs without it."
	PATH="$(abspath $(BIN)):$$PATH" $(PIP) install -q -c constraints.txt --no-build-isolation \
	    setuptools sparseprop \
	    || echo "SparseProp does not build here: the bench runs without it."
	touch $@

# ---- sanitizers --------------------------------------------------------------------------------
# A second environment that sees .venv's packages, but has its own instrumented gossamer.
$(ASAN)/build.stamp: $(VENV)/build.stamp
	$(BIN)/python -m venv --without-pip $(ASAN)
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	    > $$($(ASAN)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/venv.pth
	$(PIP) --python $(ASAN)/bin/python install -q --no-deps --no-build-isolation \
	    -C build-dir=build/asan/cmake -C cmake.args=--preset=asan -C cmake.build-type=RelWithDebInfo -e .
	touch $@

# libstdc++ is preloaded too: the sanitizers must find __cxa_throw before torch brings it.
# The linker's and allocator's leaks of Python itself are not ours: detect_leaks=0.
asan: $(ASAN)/build.stamp
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so) $$(gcc -print-file-name=libstdc++.so.6)" \
	ASAN_OPTIONS=detect_leaks=0:abort_on_error=1:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 PYTHONMALLOC=malloc OMP_WAIT_POLICY=passive \
	$(ASAN)/bin/python -m pytest $(PYTEST_ARGS)

clean:
	rm -rf build .venv
