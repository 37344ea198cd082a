# Every target sets itself up: the first one that needs it creates .venv with the tested versions.
# Another interpreter: make PYTHON=python3.12 test. More processes for the tests: make NUM_PROCESSES=8 test.
# The lowest versions that are supported: make test-lowest, in an environment of its own.

PYTHON ?= python3
NUM_PROCESSES ?= 2
PYTEST_ARGS ?=
TRAIN_ARGS ?=
GPU_ARGS ?=
VENV := .venv
CONSTRAINTS := constraints.txt
BIN := $(VENV)/bin
# One stamp at a time: another file of constraints installs again.
STAMP := $(VENV)/.installed-$(notdir $(CONSTRAINTS))

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: train test test-lowest lint bench gpu-check peers reasoner docs site clean

train: $(STAMP)  ## the embedded training job, end to end; one thread, because waiting threads cost more on shared cores
	OMP_NUM_THREADS=1 $(BIN)/thoughtcache train $(TRAIN_ARGS)

test: $(STAMP)  ## the whole test suite; one torch thread per process
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(NUM_PROCESSES) $(PYTEST_ARGS)

test-lowest:  ## the same with the lowest versions of all declared ranges, in .venv-lowest
	$(MAKE) VENV=.venv-lowest CONSTRAINTS=constraints-lowest.txt test

lint: $(STAMP)  ## style, format, types, import order of the packages
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)  ## quick sizes of sampler and learner, each behind its correctness gate
	$(BIN)/python -m benchmarks

gpu-check: $(STAMP)  ## what only a GPU can show, in eight minutes; on a CPU everything else, at small sizes
	$(BIN)/python -m benchmarks.gpu $(GPU_ARGS)

peers: $(STAMP)  ## PEFT's own generic test suite (fetched from the registry) with ThoughtConfig in the place of LoraConfig
	OMP_NUM_THREADS=1 $(BIN)/python -m tools.peers $(PYTEST_ARGS)

reasoner: $(STAMP)  ## train the embedded reasoners again, into runs/
	$(BIN)/python -m thoughtcache.tasks.embedded.build_reasoner tiny_reasoner --output runs/tiny_reasoner
	$(BIN)/python -m thoughtcache.tasks.embedded.build_reasoner long_reasoner --output runs/long_reasoner

docs: $(STAMP)  ## the generated pages
	$(BIN)/python docs/generate.py

site: $(STAMP)  ## the pages as a site in site/, without network: open site/index.html
	rm -rf build/pages site
	mkdir -p build/pages
	cp -r README.md CONTRIBUTING.md docs build/pages/
	rm -rf build/pages/docs/*.py build/pages/docs/__pycache__
	$(BIN)/zensical build --strict

clean:
	rm -rf $(VENV) .venv-lowest build dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch first and alone: everything else then resolves against it.
$(STAMP): pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install torch==2.13.0 -c $(CONSTRAINTS)
	$(BIN)/python -m pip install -e ".[dev]" -c $(CONSTRAINTS)
	rm -f $(VENV)/.installed*
	touch $@
