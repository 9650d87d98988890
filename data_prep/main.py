"""`python -m data_prep [command] [option=value ...]`: a Hydra program, with the options of data_prep/config/.

    python -m data_prep input=calls output=data/calls codec=mimi          all steps at once, for small sets
    python -m data_prep plan|run|status|retry|pack|report input=... output=...       step by step, for large ones
    python -m data_prep verify output=data/calls
    python -m data_prep takedown output=data/calls takedown=names.txt
    python -m data_prep mix '+weights={data/a: 2, data/b: 1}' output=mix.yaml
    python -m data_prep export output=data/calls export.format=huggingface
    python -m data_prep demo output=data/demo

`--strict` is short for `plan.strict=true`: whatever of the input is not used is an error.

Exit codes:  0    success.
             1    `verify` found the dataset damaged, or recordings or units failed that `retry` can re-queue.
             2    an error in the request; one line on stderr names it.
             130  interrupted.

The commands are imported after Hydra has composed the configuration, so that `--help` and mistakes do not wait for
torch.
"""

from __future__ import annotations

import sys

import hydra
from omegaconf import DictConfig, OmegaConf

from csm.compose import config_folder
from csm.errors import user_errors
from data_prep.config import DATA_PREP, DataPrepCommand

COMMANDS = [command.value for command in DataPrepCommand]


def main() -> None:
    """Entry point of `csm-data-prep`: takes the command from the command line and passes the rest to Hydra."""
    words = sys.argv[1:]
    try:
        with user_errors():
            if words and words[0].isidentifier():
                command = words.pop(0)
                if command not in COMMANDS:
                    raise ValueError(f"unknown command {command!r}; known are {', '.join(COMMANDS)}")
                name = "demo" if command == DataPrepCommand.demo.value else DATA_PREP.name
                words = ["--config-name", name, f"command={command}", *words]
            words = ["plan.strict=true" if word == "--strict" else word for word in words]
            sys.argv[1:] = DATA_PREP.read_words(words)
            _run()
    except KeyboardInterrupt:
        print("interrupted; no file was left half written: rerun the same command to resume", file=sys.stderr)
        sys.exit(130)


@hydra.main(version_base="1.3", config_path=str(config_folder("data_prep")), config_name="data_prep")
def _run(config: DictConfig) -> None:
    with user_errors():
        if OmegaConf.is_missing(config, "output"):
            raise ValueError("output is not set; give output=PATH")
        options = DATA_PREP.options(config)
        if "torch" not in sys.modules:  # it takes seconds to import
            print(f"data_prep {options.command.value}: loading ...", file=sys.stderr, flush=True)
        from data_prep.cli import run_command

        sys.exit(run_command(options))
