# Everything a checkout needs, by name. The recipes are plain sh and GNU make 3.81 (macOS) is enough.
# The environment is .venv in this folder; PYTHON=python3.12 picks the interpreter that makes it.

PYTHON ?=
PY := .venv/bin/python
COMPILE := $(PY) -m uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --custom-compile-command "make lock"

.DEFAULT_GOAL := help
.PHONY: help setup demo test stress notebooks app serve lint docs lock bench clean

help: ## list the targets
	@awk 'BEGIN { FS = ":.*## " } /^[a-z][a-z-]*:.*## / { printf "  %-10s %s\n", $$1, $$2 }' Makefile

setup: ## make .venv and install the locked requirements (nothing to do when they are unchanged)
	@PYTHON="$(PYTHON)" sh scripts/setup.sh

demo: setup ## train the tiny codec on photographs inside installed packages, then show what it does
	@$(PY) scripts/demo.py

test: setup ## run the tests, by a worker for each core, at most four; ARGS="-k name" passes options to pytest, "-n 0" is without workers
	@$(PY) -m pytest -n auto --maxprocesses 4 --dist loadscope $(ARGS)

stress: setup ## kill, fuzz and compare at length (tests/stress); ARGS="-k fuzz --stress rounds=1000" chooses
	@$(PY) -m pytest -n 0 tests/stress --long -s $(ARGS)

notebooks: setup ## run the notebooks from top to bottom
	@$(PY) scripts/run_notebooks.py

app: setup ## install what the page needs beside .venv (gradio holds Pillow back)
	@$(PY) scripts/app_packages.py

serve: app ## open the page; ARGS="--model FILE" passes options to glc serve
	@PYTHONPATH=build/app $(PY) -m glc serve $(ARGS)

lint: setup ## check style, formatting and types
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy src/glc

docs: setup ## build the documentation site into build/docs, offline; a warning is an error
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --quiet --strict

lock: setup ## resolve the newest allowed versions again into requirements/*.txt
	@echo uv | $(COMPILE) --no-annotate - -o requirements/uv.txt
	@$(COMPILE) pyproject.toml -o requirements/core.txt
	@$(COMPILE) --extra train --extra sweep --extra eval --extra dev pyproject.toml -o requirements/dev.txt
	@$(COMPILE) --extra app pyproject.toml -o requirements/app.txt

bench: setup ## measure speed and memory; FULL=1 for the paper's sizes, ARGS="loading" for one part, ARGS="-h" lists them
	@$(PY) -m benchmarks $(if $(FULL),--full --output runs/bench/full) $(ARGS)

clean: ## delete caches and build output (.venv, data/ and runs/ stay)
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +
