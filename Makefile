SHELL = /bin/bash
PYTHON ?= python

pytest:
	$(PYTHON) -m pytest

mypy:
	$(PYTHON) -m mypy

type: mypy

lint:
	$(PYTHON) -m ruff check .

format:
	$(PYTHON) -m ruff check --select I --fix .
	$(PYTHON) -m ruff format .

check-codestyle:
	$(PYTHON) -m ruff check --select I .
	$(PYTHON) -m ruff format --check .

commit-checks: format type lint

.PHONY: pytest mypy type lint format check-codestyle commit-checks
