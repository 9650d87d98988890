"""`python -m data_prep [command] [key=value ...]`: a Hydra program, options and commands in `DataPrepConfig`.

    python -m data_prep input=calls/manifest.jsonl output=data/calls codec=mimi
    python -m data_prep demo output=data/demo
    python -m data_prep verify output=data/calls
    python -m data_prep lengths output=data/calls tokenizer=llama3

Exit code 0: done. 1: `verify` found the dataset broken. 2: something in the request is wrong; one line says what.
"""

from __future__ import annotations

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from csm.config import DataPrepCommand, DataPrepConfig, TokenizerConfig, register_schemas
from csm.data.dataset import ShardedDataset
from csm.data.lengths import load_lengths
from csm.errors import user_errors
from csm.text import load_tokenizer
from data_prep.demo import MANIFEST, demo_config
from data_prep.prepare import Prepared, prepare
from data_prep.rejects import REJECTS_FILE
from data_prep.verify import verify

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
COMMANDS = [command.value for command in DataPrepCommand]

register_schemas()


def main() -> None:
    """Takes the command off the command line and leaves the rest to Hydra."""
    arguments = sys.argv[1:]
    if arguments and arguments[0].isidentifier():
        word = arguments.pop(0)
        if word not in COMMANDS:
            print(f"error: unknown command {word!r}; known are {', '.join(COMMANDS)}", file=sys.stderr)
            sys.exit(2)
        name = "data_prep_demo" if word == DataPrepCommand.demo.value else "data_prep"
        arguments = ["--config-name", name, f"command={word}", *arguments]
    sys.argv[1:] = arguments
    try:
        with user_errors():
            _hydra_main()
    except KeyboardInterrupt:
        print("interrupted; nothing was left half written", file=sys.stderr)
        sys.exit(130)


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="data_prep")
def _hydra_main(config: DictConfig) -> None:
    with user_errors():
        _run(config)


def _run(config: DictConfig) -> None:
    demo = config.command == DataPrepCommand.demo
    for key in ("input", "output") if config.command == DataPrepCommand.prepare else ("output",):
        if OmegaConf.is_missing(config, key):
            raise ValueError(f"{key} is not set; give {key}=PATH")
    if config.command == DataPrepCommand.verify:
        problems = verify(config.output)
        for problem in problems:
            print(problem, file=sys.stderr)
        if problems:
            sys.exit(1)
        print(f"{config.output}: whole")
        return
    if config.command == DataPrepCommand.lengths:
        _count_lengths(config.output, OmegaConf.to_object(config.tokenizer))
        return
    if demo:
        config.input = str(MANIFEST)
    cfg: DataPrepConfig = OmegaConf.to_object(config)
    cfg = demo_config(cfg) if demo else cfg
    _report(cfg, prepare(cfg))


def _count_lengths(path: str, tokenizer: TokenizerConfig) -> None:
    dataset = ShardedDataset(path)
    lengths = load_lengths(dataset, load_tokenizer(tokenizer), cache_dir=None)
    print(f"{path}: {len(dataset)} conversations, {int(lengths[0].sum(dtype='int64'))} positions")


def _report(cfg: DataPrepConfig, prepared: Prepared) -> None:
    print(f"{cfg.output}: {prepared.turns_kept} of {prepared.turns_in} turns kept")
    for split, totals in prepared.dataset.totals.items():
        hours, turns, samples = totals["hours"], totals["turns"], totals["samples"]
        print(f"  {split}: {hours:.3f} hours, {turns} turns in {samples} conversations")
    for reason, turns in prepared.rejected.items():
        print(f"  left out, {reason}: {turns} turns")
    if prepared.rejected:
        print(f"  each with its reason in {Path(cfg.output) / REJECTS_FILE}")
