# `make demo` and `make test` do all their own set-up: a virtual environment, installation, the thing.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SETUP := $(VENV)/.installed

# The tests start many processes, which import the same modules: the first keeps them compiled.
export PYTHONDONTWRITEBYTECODE :=

# Several tests run at once: a thread that waits for another must not keep a core busy.
test soak mutants mutants-sample: export OMP_WAIT_POLICY := passive

.PHONY: demo pictures test test-busy soak mutants mutants-sample lint docs bench clean

demo: $(SETUP)-demo
	$(BIN)/vdna demo --out vdna-demo

# COVERAGE=yes also measures what the tests run, and fails below the floor of pyproject.toml.
test: $(SETUP)-test
	$(BIN)/python -m pytest -m "not soak" -n 3 --dist loadfile --no-loadscope-reorder \
	    $(if $(COVERAGE),--cov --cov-report=term:skip-covered)

# The same beside two processes that never rest: a test that fails here counts on a quiet machine.
test-busy: $(SETUP)-test
	@$(BIN)/python -c 'while True: pass' & first=$$!; \
	$(BIN)/python -c 'while True: pass' & second=$$!; \
	trap "kill $$first $$second" EXIT; \
	$(MAKE) test

# First alone: nodes that die by the clock, and must have worked before. It prints what went wrong.
# Then two of three workers begin with the longest tests of clusters, which wait half of the time.
# Tests that can be left out come last: as many begin as this time allows (CONTRIBUTING.md).
soak: export VDNA_TEST_SECONDS ?= 1500
soak: STORM := tests/engine/test_chaos.py
soak: $(SETUP)-test
	$(BIN)/python -m pytest -m soak --timeout 1500 --capture no $(STORM)
	$(BIN)/python -m pytest -m soak -n 3 --dist loadfile --no-loadscope-reorder --timeout 1500 \
	    --durations 40 --ignore $(STORM)

# Small faults in the code that holds the promises: some test must notice each (docs/mutants.md).
mutants: $(SETUP)-test
	$(BIN)/python -m tests.mutants

mutants-sample: $(SETUP)-test
	$(BIN)/python -m tests.mutants --seconds 60

docs: $(SETUP)-docs
	$(BIN)/mkdocs build --strict --quiet --site-dir site

# The pictures of the README, of the demo's pages; chromium takes them.
pictures: demo
	$(BIN)/python -m docs.pictures

lint: $(SETUP)-lint
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(SETUP)-bench
	$(BIN)/python -m benchmarks.suite

$(SETUP)-%: pyproject.toml $(BIN)/pip
	$(BIN)/pip install --quiet --editable '.[$*]'
	@touch $@

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "Python 3.11 or later is needed: make PYTHON=/path/to/python3.11 …"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip

clean:
	rm -rf $(VENV) vdna-demo site
