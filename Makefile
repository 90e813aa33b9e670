# make demo    tokenize real photographs and draw what came out
# make test    run the tests
# make lint    check style, and types on the installed wheel
# make bench   print the tables of the docs
# All of them create .venv on first use. PYTHON=python3.12 chooses another interpreter.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check -q

# Pillow-SIMD is for x86-64 Linux and needs the processor's vectors to be fast.
SIMD := $(filter Linux-x86_64,$(shell uname -s)-$(shell uname -m))
AVX2 := $(shell grep -qm1 avx2 /proc/cpuinfo 2>/dev/null && echo -mavx2)

.PHONY: demo test lint bench clean

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "quadpipe needs Python 3.11 or later; give make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

# Not from the cache: a wheel built before may lack decoders.
$(VENV)/imaging: constraints.txt .ci/system-packages | $(BIN)/python
ifdef SIMD
	.ci/system-packages
	CC="$${CC:-cc} $(AVX2)" $(PIP) install --no-cache-dir --force-reinstall --no-deps \
	    -c constraints.txt pillow-simd
endif
	touch $@

$(VENV)/installed: pyproject.toml constraints.txt $(VENV)/imaging
	$(PIP) install -c constraints.txt -e '.[test,lint]'
	touch $@

# Photographs of a package, without the package's dependencies: they would bring Pillow.
$(VENV)/photographs: | $(BIN)/python
	rm -rf $@ && $(PIP) install --no-deps --target $@ scikit-image

demo: $(VENV)/installed $(VENV)/photographs
	$(BIN)/python docs/demo.py $(VENV)/photographs/skimage/data .demo

test: $(VENV)/installed
	$(BIN)/python -m pytest

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf $(VENV)/types build && $(PIP) install --no-deps --target $(VENV)/types .
	MYPYPATH=$(VENV)/types $(BIN)/mypy -p quadpipe

bench: $(VENV)/installed
	$(BIN)/python benchmarks/throughput.py

clean:
	rm -rf $(VENV) .demo build
