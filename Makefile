# The two set-up commands:
#   make quickstart   installs, then prepares, trains, evaluates and exports the demo (CPU, no download of models)
#   make test         installs, then runs the tests
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN := runs/quickstart

.PHONY: quickstart test lint

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	# --no-deps: resemblyzer asks for webrtcvad, which has no wheels; webrtcvad-wheels (above) is the same module
	$(BIN)/python -m pip install --quiet --no-deps -c constraints.txt resemblyzer
	touch $@

quickstart: $(VENV)/installed
	$(BIN)/python train.py experiment=quickstart
	$(BIN)/python evaluate.py checkpoint=$(RUN)/export eval=quickstart

test: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest

lint: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
