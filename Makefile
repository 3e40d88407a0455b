# Two commands for a fresh machine with Python (3.11 or newer) and make:
#
#   make quickstart   environment + a real fine-tune on bundled images, offline, on a CPU
#   make test         environment + linter, type checker and tests (one process a core, at most 4)
#
# `make test-slow` runs the tests that take longest: kills at every moment, several processes, simulations.
# `make docs` builds the documents as a site, in site/. All install into .venv with the tested versions of
# constraints.txt; PYTHON chooses another interpreter.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Modules are compiled, and kept so, when they are first imported: most of those installed never are.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: quickstart test test-slow docs clean
.DELETE_ON_ERROR:

quickstart: $(VENV)/.installed
	$(BIN)/pugdft finetune quickstart
	$(BIN)/pugdft leaderboard runs

test: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n auto --maxprocesses=4 --dist=worksteal

test-slow: $(VENV)/.installed
	$(BIN)/python -m pytest -n auto --maxprocesses=4 --dist=worksteal -m slow

docs: $(VENV)/.installed
	$(BIN)/python -m mkdocs build --quiet

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'pugdft needs Python 3.11 or newer: make PYTHON=python3.12 …'; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { echo 'Python has no venv module; on Debian and Ubuntu: apt install python3-venv'; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[quickstart,test]'
	@touch $@

clean:
	rm -rf $(VENV) site
