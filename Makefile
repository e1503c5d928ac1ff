# Targets of a checkout. The recipes are plain sh and work with GNU make 3.81 (macOS).
# The environment is .venv in this folder; PYTHON=python3.12 selects the interpreter that creates it.

PYTHON ?=
PY := .venv/bin/python
COMPILE := $(PY) -m uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --custom-compile-command "make lock"

.DEFAULT_GOAL := help
.PHONY: help setup demo test stress notebooks app serve web lint docs lock bench clean

help: ## list the targets
	@awk 'BEGIN { FS = ":.*## " } /^[a-z][a-z-]*:.*## / { printf "  %-10s %s\n", $$1, $$2 }' Makefile

setup: ## create .venv and install the locked requirements (skipped if unchanged)
	@PYTHON="$(PYTHON)" sh scripts/setup.sh

demo: setup ## train the tiny codec on photographs from installed packages, then measure it
	@$(PY) scripts/demo.py

test: setup ## run the tests, cores + 1 workers, at most four; ARGS="-k name" passes options to pytest, "-n 0": no workers
	@$(PY) -m pytest -n auto --dist loadscope --no-loadscope-reorder $(ARGS)

stress: setup ## run the long tests (tests/stress); ARGS="-k fuzz --stress rounds=1000" selects
	@$(PY) -m pytest -n 0 tests/stress --long -s $(ARGS)

notebooks: setup ## run the notebooks from top to bottom
	@$(PY) scripts/run_notebooks.py

app: setup ## install the web app's requirements into build/app (gradio needs an older Pillow)
	@$(PY) scripts/app_packages.py

serve: app ## open the web app; ARGS="--model FILE" passes options to glc serve
	@PYTHONPATH=build/app $(PY) -m glc serve $(ARGS)

web: setup ## write the page that decodes in a browser to build/web; npm fetches ONNX Runtime Web; ARGS="FOLDER MODEL ..."
	@$(PY) scripts/web.py $(ARGS)

lint: setup ## check style, formatting and types
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy src/glc

docs: setup ## build the documentation site into build/docs, offline; a warning is an error
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --quiet --strict

lock: setup ## resolve the newest allowed versions into requirements/*.txt
	@echo uv | $(COMPILE) --no-annotate - -o requirements/uv.txt
	@$(COMPILE) pyproject.toml -o requirements/core.txt
	@$(COMPILE) --extra train --extra sweep --extra tensorboard --extra dashboard --extra hf --extra s3 --extra ray --extra eval --extra dev pyproject.toml -o requirements/dev.txt
	@$(COMPILE) --extra app pyproject.toml -o requirements/app.txt

bench: setup ## measure speed and memory; FULL=1: the paper's sizes, VERSIONS=1: against 0.1, ARGS="loading": one benchmark, ARGS="-h": list
	@$(PY) -m benchmarks$(if $(VERSIONS),.versions --only targets,$(if $(FULL), --full --output runs/bench/full)) $(ARGS)

clean: ## delete caches and build output (.venv, data/ and runs/ stay)
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +
