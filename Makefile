# Every target does its own set-up, in .venv: `make demo` and `make test` are all that a fresh machine needs.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: demo test test-transformers lint

demo: $(INSTALLED)  ## train a small Prism on the built-in stories, then load it again and let it tell one
	$(BIN)/python -m training.pretrain configuration/recipes/quickstart.yaml
	$(BIN)/python -m training.tell outputs/quickstart --prompt "One day, Tom and Mia"

test: $(INSTALLED)  ## the project's tests
	$(BIN)/python -m pytest

test-transformers: $(INSTALLED)  ## transformers' own common model tests, on every family
	$(BIN)/python -m tests.transformers_common.run

lint: $(INSTALLED)  ## ruff, as a check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[train,analysis,dev]"
	touch $(INSTALLED)
