# Each target sets up .venv when it is missing and installs the package again when its sources have changed.
# Stamp files in .venv say what has been done, so that a second run does nothing twice.

VENV := .venv
PYTHON := $(VENV)/bin/python
PIP := $(PYTHON) -m pip --quiet --disable-pip-version-check
# A process for each CPU, but few: the kernels that they test start threads for all CPUs. Neighbours stay together, as
# some share what a fixture made.
PYTEST := $(PYTHON) -m pytest --quiet --numprocesses $(shell nproc) --maxprocesses 4 --dist worksteal
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

SOURCES := CMakeLists.txt pyproject.toml README.md $(shell find cmake csrc python tests/emulator -type f -not -name '*.pyc')
CPP := $(shell find csrc scripts tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

.PHONY: demo test lint format docs wheel wheel-cuda bench clean

# Two minutes of training on the source of Python's standard library; writes the folder demo.
demo: $(VENV)/.package
	$(PYTHON) -m fastrnn train --out demo

# The C++ tests under AddressSanitizer and UndefinedBehaviorSanitizer, layers side by side and CUDA kernels in the
# emulator also under ThreadSanitizer; every Python test with the fastest instruction set; before that, with each of
# the others forced, the tests that do not go through all sets by themselves, and call the kernels most directly.
test: $(VENV)/.package
	@for preset in sanitize threads; do \
	    cmake --preset $$preset > build/$$preset.log || { cat build/$$preset.log; exit 1; }; \
	    cmake --build --preset $$preset && ctest --preset $$preset || exit 1; \
	done
	@fastest=$$($(PYTHON) -c "from fastrnn import _core; print(_core.available_isas()[-1])"); \
	for isa in baseline avx2 avx512; do \
	    if [ $$isa = $$fastest ]; then \
	        continue; \
	    elif FASTRNN_ISA=$$isa $(PYTHON) -c "from fastrnn import _core; _core.isa()" 2> build/isa.log; then \
	        echo "FASTRNN_ISA=$$isa"; \
	        FASTRNN_ISA=$$isa $(PYTEST) -m "not (kernels or cuda or examples or frameworks or nvcc)" || exit 1; \
	    else \
	        echo "FASTRNN_ISA=$$isa left out: $$(tail -n 1 build/isa.log)"; \
	    fi; \
	done
	$(PYTEST)

# The C++ warnings are errors in the build that .package installs.
lint: $(VENV)/.package $(VENV)/.lint
	ruff check
	ruff format --check
	mypy
	clang-format --dry-run -Werror $(CPP)
	shellcheck .ci/run scripts/*.sh

# What lint would ask for in layout alone.
format: $(VENV)/.lint
	ruff check --quiet --fix --exit-zero
	ruff format
	clang-format -i $(CPP)

# The documentation site, in build/site, with warnings as errors; it reads the package and does not need it built.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict

# A wheel in dist, tagged with the oldest glibc it runs on, tried out in a new environment; for the CPU alone, or in
# dist/cuda with kernels for every architecture of a release, which takes a CPU 13 minutes to compile.
wheel: dist/cpu/.checked
wheel-cuda: dist/cuda/.checked

# Throughput on this machine; results go to bench/results.
bench: $(VENV)/.package
	$(PYTHON) bench/run.py

clean:
	rm -rf $(VENV) build dist demo .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.build: pyproject.toml
	test -x $(PYTHON) || python3 -m venv $(VENV)
	$(PIP) install --upgrade "pip>=25.1"
	$(PIP) install --group build
	touch $@

# Without isolation and in a folder that stays, only what has changed is compiled. The emulated device, for tests, stays
# in that folder.
$(VENV)/.package: $(VENV)/.build $(SOURCES)
	$(PIP) install --no-build-isolation -Cbuild-dir=build/dev -Ccmake.define.FASTRNN_WERROR=ON \
	    -Ccmake.define.FASTRNN_BUILD_EMULATED=ON ".[test]"
	touch $@

$(VENV)/.lint: $(VENV)/.build
	$(PIP) install --group lint
	touch $@

$(VENV)/.docs: $(VENV)/.build
	$(PIP) install --group docs
	touch $@

dist/cpu/.checked: WHEEL := FASTRNN_CUDA=OFF
dist/cpu/.checked: MEGABYTES := 5
dist/cuda/.checked: WHEEL := FASTRNN_CUDA=ON -Ccmake.define.CMAKE_CUDA_ARCHITECTURES="80-real;90-real;100-real;120"
dist/cuda/.checked: MEGABYTES := 12
dist/%/.checked: $(VENV)/.build $(SOURCES) scripts/check_wheel.py scripts/smoke_test.py
	$(PIP) install --group wheel
	rm -rf dist/$* build/wheel-$*
	$(PIP) wheel --no-deps --wheel-dir build/wheel-$* -Ccmake.define.$(WHEEL) .
	auditwheel repair --wheel-dir dist/$* build/wheel-$*/*.whl
	auditwheel show dist/$*/*.whl
	$(PYTHON) scripts/check_wheel.py dist/$*/*.whl $(MEGABYTES)
	touch $@
