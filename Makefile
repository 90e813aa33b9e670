# make demo    tokenize real photographs, draw them, train a small model and use it
# make test    run the tests
# make check   lint, and the quick tests: half a minute
# make lint    check style, and types of the package as it is installed
# make bench   run the benchmarks and write docs/performance.md; PEERS=python adds other loaders
# make gpu     run the tests and benchmarks that need a GPU, and write docs/gpu.md
# make soak    MINUTES=5 of each: random kills, damaged images, damaged shards; the rarer tests; and
#              new random examples
# make reliability    run the fault tests and write their table into docs/reliability.md
# All of them create .venv on first use. PYTHON=python3.12 chooses another interpreter.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check -q

# Pillow-SIMD is for x86-64 Linux and needs the processor's vectors to be fast.
SIMD := $(filter Linux-x86_64,$(shell uname -s)-$(shell uname -m))
AVX2 := $(shell grep -qm1 avx2 /proc/cpuinfo 2>/dev/null && echo -mavx2)

.DELETE_ON_ERROR:
.PHONY: check demo test kernels lint bench gpu soak reliability clean

$(VENV)/created:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "quadpipe needs Python 3.11 or later; give make PYTHON=python3.11")'
	PYTHON=$(PYTHON) .ci/system-packages python
	$(PYTHON) -m venv --clear $(VENV)
	touch $@

# Not from the cache: a wheel built before may lack decoders.
$(VENV)/imaging: constraints.txt .ci/system-packages $(VENV)/created
ifdef SIMD
	PYTHON=$(PYTHON) .ci/system-packages python imaging
	CC="$${CC:-cc} $(AVX2)" $(PIP) install --no-cache-dir --force-reinstall --no-deps \
	    -c constraints.txt pillow-simd
endif
	touch $@

# Compiled on all cores, which pip does on one; some environments forbid it later.
$(VENV)/installed: pyproject.toml constraints.txt $(VENV)/imaging
	$(PIP) install --no-compile -c constraints.txt -e '.[test,lint]'
	-$(BIN)/python -m compileall -qq -j 0 -x '/(tests|testing/_internal|rllib)/' $(VENV)/lib
	touch $@

# Photographs of a package, without the package's dependencies: they would bring Pillow.
$(VENV)/photographs: constraints.txt $(VENV)/created
	rm -rf $(VENV)/scikit-image
	$(PIP) install --no-deps -c constraints.txt --target $(VENV)/scikit-image scikit-image
	touch $@

demo: $(VENV)/installed $(VENV)/photographs
	$(BIN)/python docs/demo.py $(VENV)/scikit-image/skimage/data .demo

# Most tests wait for processes they have started: three at a time, each file in one go, in the order of
# their names; by default files with few tests come last, which are the longest.
test: kernels
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

# Compiled once, not by each process that runs tests.
kernels: $(VENV)/installed
	$(BIN)/python tests/kernels.py

# Not those that train, run networks or jobs, or talk to servers.
QUICK := $(filter-out %_processors.py %_docs.py %_render.py,$(wildcard tests/test_*.py)) \
    tests/cli tests/images tests/loader $(wildcard tests/shards/test_*.py) tests/sources \
    tests/files/test_local.py tests/files/test_lock.py tests/job/test_steps.py tests/job/test_config.py
check: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-processes $(QUICK)

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf $(VENV)/types && mkdir $(VENV)/types
	cp -r quadpipe $(VENV)/types/ && cp -r cli model $(VENV)/types/quadpipe/
	MYPYPATH=$(VENV)/types $(BIN)/mypy -p quadpipe
	MYPYPATH=$(VENV)/types $(BIN)/mypy benchmarks
	MYPYPATH=$(VENV)/types:tests $(BIN)/mypy --config-file tests/mypy.ini tests

bench: $(VENV)/installed
	$(BIN)/python benchmarks/report.py $(if $(PEERS),--peers $(PEERS))

gpu: $(VENV)/installed
	$(BIN)/python benchmarks/gpu_report.py

MINUTES ?= 5
soak: $(VENV)/installed
	$(BIN)/python tests/soak/kills.py --minutes $(MINUTES) --scorers 1
	$(BIN)/python tests/soak/images.py --minutes $(MINUTES)
	$(BIN)/python tests/soak/shards.py --minutes $(MINUTES)
	$(BIN)/python -m pytest -m soak
	$(BIN)/python -m pytest --hypothesis-profile=other -m hypothesis

reliability: $(VENV)/installed
	$(BIN)/python -m pytest -m 'fault and not soak' --reliability=docs/reliability.md

clean:
	rm -rf $(VENV) .demo build
