# Every target sets up .venv first, so a fresh machine needs only `make demo` or `make test`.

PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
# Processes that run the tests, one thread each.
WORKERS ?= 2
BIN := .venv/bin
INSTALLED := .venv/installed
PYTEST := $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal

.PHONY: demo test test-fast test-transformers test-ecosystem lint

demo: $(INSTALLED)  ## train a small Prism on the built-in stories, and tell a story with it and with the released one
	$(BIN)/python -m training.pretrain configuration/recipes/quickstart.yaml
	$(BIN)/python -m training.tell outputs/quickstart hub_cards/prism-tinystories --prompt "One day, Tom and Mia"

test: $(INSTALLED)  ## all tests
	$(PYTEST)

test-fast: $(INSTALLED)  ## the unit tests
	$(PYTEST) -m "not compile and not process and not experiment and not generation"

test-transformers: $(INSTALLED)  ## transformers' own common model tests, on every family
	$(BIN)/python -m tests.transformers_common.run

test-ecosystem: .venv-ecosystem/installed  ## other people's tools on every family, in an environment of their own
	.venv-ecosystem/bin/python -m pytest tests/ecosystem

lint: $(INSTALLED)  ## ruff, as a check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

$(INSTALLED): pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable ".[train,analysis,dev]"
	touch $(INSTALLED)

.venv-ecosystem/installed: pyproject.toml $(CONSTRAINTS) $(wildcard tests/ecosystem/requirements*.txt)
	$(PYTHON) -m venv .venv-ecosystem
	.venv-ecosystem/bin/python -m pip install --quiet --upgrade pip
	.venv-ecosystem/bin/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable ".[train,analysis,dev]" \
		--requirement tests/ecosystem/requirements.txt
	.venv-ecosystem/bin/python -m pip install --quiet --no-deps --requirement tests/ecosystem/requirements_alone.txt
	touch $@
