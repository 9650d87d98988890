PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN := runs/quickstart

.DEFAULT_GOAL := help
.PHONY: help install quickstart check format test pytest test-slow docs

help: ## list these commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	# --no-deps: resemblyzer requires webrtcvad, which has no wheels; webrtcvad-wheels (above) provides the same module.
	# Of llama-models and pyannote.audio the tests read data files only: Llama 3's vocabulary and a telephone call.
	$(BIN)/python -m pip install --quiet --no-deps -c constraints.txt resemblyzer llama-models pyannote.audio
	touch $@

install: $(VENV)/installed ## create .venv with the package and everything needed for development

quickstart: $(VENV)/installed ## prepare, train, evaluate and export the demo (CPU, no model downloads)
	$(BIN)/python train.py experiment=quickstart
	$(BIN)/python evaluate.py checkpoint=$(RUN)/export eval=quickstart
	@echo
	@echo "Done. Results:"
	@echo "  report         $(RUN)/eval-quickstart/report.html (speech in $(RUN)/eval-quickstart/audio)"
	@echo "  model          $(RUN)/export"
	@echo "  checkpoint     $(RUN)/checkpoints/last.ckpt, metrics in $(RUN)/metrics.jsonl"
	@echo "Next:"
	@echo "  speak          $(BIN)/csm generate $(RUN)/export --text 'The leader has left the conference.' --temperature 0"
	@echo "  your data      $(BIN)/python -m data_prep input=manifest.jsonl output=data/mine codec=spectral"
	@echo "                 $(BIN)/python train.py experiment=quickstart data=shards data.path=data/mine name=mine"
	@echo "  the 1B model   $(BIN)/python train.py experiment=pretrain_1b data.path=DATASET trainer.devices=8"
	@echo "                 (8 GPUs, and a dataset made with Mimi, data_prep's default codec)"

check: $(VENV)/installed ## lint, formatting, spelling and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	git ls-files -z | xargs -0 $(BIN)/codespell
	$(BIN)/mypy

format: $(VENV)/installed ## fix lint and formatting where ruff can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: $(VENV)/installed ## checks and tests, side by side (five minutes on two cores)
	$(MAKE) --no-print-directory --jobs 2 check pytest

pytest:
	$(BIN)/python -m pytest

test-slow: $(VENV)/installed ## tests that start many processes: kills, clusters, executors, the wheel
	$(BIN)/python -m pytest -m slow -n 4

docs: $(VENV)/installed ## the documentation site, in site/
	$(BIN)/python -m docs.generate_options
	$(BIN)/python -m docs.generate_figures
	$(BIN)/mkdocs build --strict --quiet
