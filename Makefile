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

# From the top folder, so that links between docs/, benchmarks/ and the README are the same on GitHub and in the site.
docs:
	rm -rf docs/_build/html
	$(PYTHON) -m sphinx -E -W --keep-going -q -c docs . docs/_build/html

pictures:
	$(PYTHON) docs/pictures/draw.py

screenshots: docs
	$(PYTHON) docs/screenshots.py docs/_build/html docs/_build/screenshots

.PHONY: pytest mypy type lint format check-codestyle commit-checks docs pictures screenshots
