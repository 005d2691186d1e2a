# The recipes that people and CI run; each is one command that can be read.

.PHONY: install check format test bench docs

install:  ## everything a developer needs
	pip install -c constraints.txt -e ".[dev]"

check:  ## style, types, layers, and that the docs say what the command line does
	ruff check .
	ruff format --check .
	mypy
	mypy benchmarks
	lint-imports
	python docs/write_cli.py --check
	python docs/write_methods.py --check

format:
	ruff check --fix .
	ruff format .

test:
	pytest

bench:  ## how much of a run survives kill -9
	python benchmarks/kill.py

docs:  ## write docs/cli.md anew from the command line's own help, docs/methods.md from the methods and their tests
	python docs/write_cli.py
	python docs/write_methods.py
