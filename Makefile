# The two set-up commands:
#   make quickstart   installs, then prepares, trains, evaluates and exports the demo (CPU, no download of models)
#   make test         installs, then runs the tests (8 to 14 minutes on two cores)
#   make test-slow    the tests that start many processes: kills, clusters, executors (CI runs both)
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN := runs/quickstart

.PHONY: quickstart test test-slow lint

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	# --no-deps: resemblyzer asks for webrtcvad, which has no wheels; webrtcvad-wheels (above) is the same module
	# and llama-models and pyannote.audio, of which the tests read files: Llama-3's vocabulary, a telephone call
	$(BIN)/python -m pip install --quiet --no-deps -c constraints.txt resemblyzer llama-models pyannote.audio
	touch $@

quickstart: $(VENV)/installed
	$(BIN)/python train.py experiment=quickstart
	$(BIN)/python evaluate.py checkpoint=$(RUN)/export eval=quickstart
	@echo
	@echo "Done. Look and listen:"
	@echo "  report         $(RUN)/eval-quickstart/report.html (speech in $(RUN)/eval-quickstart/audio)"
	@echo "  model          $(RUN)/export"
	@echo "  checkpoint     $(RUN)/checkpoints/last.ckpt, metrics in $(RUN)/metrics.jsonl"
	@echo "Next:"
	@echo "  speak          $(BIN)/csm generate $(RUN)/export --text 'The leader has left the conference.' --temperature 0"
	@echo "  your data      $(BIN)/python -m data_prep input=manifest.jsonl output=data/mine codec=spectral"
	@echo "                 $(BIN)/python train.py experiment=quickstart data=shards data.path=data/mine name=mine"
	@echo "  the 1B model   python train.py model=csm_1b data.path=data/mine trainer.devices=8 strategy=ddp   (GPUs)"

test: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest

test-slow: $(VENV)/installed
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
