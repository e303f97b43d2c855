# make demo: set up, run the main job.   make test: set up, check everything.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test lint slow clean
.DEFAULT_GOAL := demo

$(VENV)/demo: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "opgraph needs Python 3.11 or newer: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable .
	@touch $@

$(VENV)/test: $(VENV)/demo
	$(PIP) --editable '.[test]'
	@touch $@

# PyTorch, transformers and the measured tables: with them, tests that are skipped otherwise run
$(VENV)/extras: $(VENV)/test
	$(PIP) torch==2.13.0
	$(PIP) --editable '.[test,torch,validation]'
	@touch $@

demo: $(VENV)/demo
	@mkdir -p out
	$(BIN)/opgraph simulate llama-3.1-70b --platform dgx-h100 --tp 8 \
		--batch 32 --prompt 2048 --output 256 --plot out/decode.png --trace out/steps.json.gz
	@echo "timeline: out/decode.png   trace: out/steps.json.gz (open it at ui.perfetto.dev)"

lint: $(VENV)/test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(BIN)/pytest -m "not slow"

slow: $(VENV)/extras
	$(BIN)/pytest -m slow

clean:
	rm -rf $(VENV) out
