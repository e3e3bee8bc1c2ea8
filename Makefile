# Every target is a line one could type. `make PYTHON=python3.12 setup` takes another interpreter.
PYTHON ?= python3
BIN := .venv/bin
# `make ui` shows the database of conf/base/tracking.yml; KEDRO_ENV=tiny shows the digits' graph.
# The port is that of `ui` there: whoever moves it for good changes both.
MLFLOW_URI ?= sqlite:///mlflow.db
MLFLOW_PORT ?= 5000
VIZ_PORT ?= 4141
# Both servers have processes of their own, which end with the group that this makes.
GROUP := $(BIN)/python -c 'import os, sys; os.setsid(); os.execv(sys.argv[1], sys.argv[1:])'

.PHONY: help setup demo test lint test-slow test-gpu viz ui lock clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: .venv/.installed  ## Build .venv from requirements.lock, unless it is up to date

demo: setup  ## Run row dsd_b on embedded digits, from images to table, on a CPU
	$(BIN)/kedro run --env=tiny --pipelines=dsd_b
	@echo "Table and pictures:" && find data/tiny/08_reporting -type f | sort

test: lint  ## Check everything that needs neither a GPU nor patience
	$(BIN)/pytest -n auto --dist loadgroup -m "not gpu and not slow"

lint: setup  ## Check style, types and architecture
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

test-slow: setup  ## Train the tiny rows, hold metrics to brute force on more images (an hour)
	$(BIN)/pytest -m slow

test-gpu: setup  ## Run the tests that need a CUDA device
	$(BIN)/pytest -m gpu

viz: setup  ## Look at the graph in a browser
	$(BIN)/kedro viz run --host 127.0.0.1

lock: $(BIN)/uv  ## Write requirements.lock anew from pyproject.toml
	$(BIN)/uv pip compile pyproject.toml --group dev --universal --python-version 3.11 --no-header --no-emit-index-url --no-annotate -o requirements.lock

ui: setup  ## Open MLflow and Kedro-Viz, on this machine only; Ctrl-C ends both
	@echo "MLflow: http://127.0.0.1:$(MLFLOW_PORT)   Kedro-Viz: http://127.0.0.1:$(VIZ_PORT)"
	@trap 'kill -TERM -$$mlflow -$$viz 2>/dev/null; wait' EXIT; trap 'exit 130' INT; trap 'exit 143' TERM; \
		MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false \
		$(GROUP) $(BIN)/mlflow ui --host 127.0.0.1 --port $(MLFLOW_PORT) --workers 1 --backend-store-uri $(MLFLOW_URI) & mlflow=$$!; \
		$(GROUP) $(BIN)/kedro viz run --host 127.0.0.1 --port $(VIZ_PORT) --no-browser & viz=$$!; \
		while kill -0 $$mlflow && kill -0 $$viz; do sleep 1; done 2>/dev/null; \
		if kill -0 $$mlflow 2>/dev/null; then wait $$viz; else wait $$mlflow; fi

clean:  ## Remove caches and the demo's data; keep .venv and all other data
	rm -rf build dist data/tiny .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "selfdistill needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 setup" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv

.venv/.installed: requirements.lock pyproject.toml | $(BIN)/uv
	$(BIN)/uv pip install --python $(BIN)/python -r requirements.lock
	$(BIN)/uv pip install --python $(BIN)/python --no-deps --editable .
	@touch $@
