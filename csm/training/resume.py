"""Which checkpoints a run may continue from: where they are, and whether they belong to it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from csm.checkpoint.contents import EXTRAS, config_of, plain_config, read_parts
from csm.checkpoint.zero import is_zero
from csm.config import TrainConfig
from csm.parallel.strategies import DEEPSPEED
from csm.training.checkpointing import LAST, PREVIOUS

log = logging.getLogger(__name__)

CHANGEABLE = (
    *("name", "run_dir", "ckpt_path", "resume_anyway", "init_from", "logger"),
    *("trainer", "strategy", "optim", "loss"),
    *("data.path", "data.sources", "data.demo", "data.num_workers", "data.micro_batch_size"),
    *("data.cache_dir", "data.cache_gb"),
    *("codec", "tokenizer.path"),  # what they lead to is compared instead
)
"""Options that a resumed run may change: how, how fast and how long to train. All others say what is trained, on what
data, in which order."""

AVERAGE = "trainer.ema_decay > 0"
ORDER = "the code's order of the data"
FIXED = (
    *("model.backbone", "model.decoder", "model.text_vocab_size", "model.codebook_size", "model.num_codebooks"),
    *("lora.rank", "lora.targets", "lora.stacks", "lora.train_modules"),
    *("seed", "data.max_seq_len", "data.window_shards", "dataset", "tokenizer", "codec"),
    *(AVERAGE, ORDER),
)
"""What no run can change midway: which tensors there are, and the order of the data, where a checkpoint has a place."""


def find_checkpoints(config: TrainConfig) -> list[Path]:
    """The checkpoint to resume from, then the one to take if that is damaged; none to start from the beginning."""
    if config.ckpt_path is None:
        return []
    if config.ckpt_path != "last":
        return [Path(config.ckpt_path)]
    folder = Path(config.run_dir) / "checkpoints"
    last, previous = folder / LAST, folder / PREVIOUS
    if previous.exists():
        return [last, previous]  # a kill may have left no last one
    if last.exists():
        return [last]
    log.info("no checkpoint in %s yet: starting from the beginning", folder)
    return []


def check_same_run(path: Path, extras: dict[str, Any], config: TrainConfig) -> None:
    """Raises ValueError, with every difference from old to new, if `config` does not continue what the checkpoint at
    `path` is a part of. Differences named in `config.resume_anyway` are only logged, unless they are FIXED.

    extras: of the new run, see csm/checkpoint/contents.py
    """
    if is_zero(path) != (config.strategy.name in DEEPSPEED):
        raise ValueError(
            f"{path}: only DeepSpeed continues a checkpoint of DeepSpeed, and no other, so not "
            f"strategy={config.strategy.name.value}; resume with the strategy that wrote it, or start a new run_dir "
            "from its weights with init_from"
        )
    content, _ = read_parts(path)
    old, new = _identity(content[EXTRAS], config_of(content)), _identity(extras, config)
    changed = [name for name in old | new if old.get(name) != new.get(name)]
    refused = [name for name in changed if name not in config.resume_anyway or _within(name, FIXED)]
    if refused:
        listed = "; ".join(f"{name}: {old.get(name)} -> {new.get(name)}" for name in refused)
        if any(_within(name, FIXED) for name in refused):
            remedy = f"or start from its weights in another run_dir: ckpt_path=null init_from={path}"
        else:
            remedy = f"or accept the new ones: resume_anyway=[{','.join(changed)}]"
        raise ValueError(f"{path} belongs to a run with other settings ({listed}); resume with the old ones, {remedy}")
    for name in changed:
        log.warning("%s is continued with another %s: %s -> %s", path, name, old.get(name), new.get(name))
    if content[EXTRAS]["code"] != extras["code"]:
        log.info("%s was written by %s, this is %s", path, content[EXTRAS]["code"], extras["code"])


def _identity(extras: dict[str, Any], config: TrainConfig) -> dict[str, str]:
    """What makes two runs the same one, as {name: value}."""
    values = _flat(plain_config(config))
    options = {name: str(value) for name, value in values.items() if not _within(name, CHANGEABLE)}
    codec = {f"codec.{name}": str(value) for name, value in extras["codec"].items()}
    datasets = {f"dataset.{name}": fingerprint for name, fingerprint in extras["datasets"].items()}
    others = {"tokenizer": extras["tokenizer"], ORDER: str(extras.get("order", 1))}
    others[AVERAGE] = str(config.trainer.ema_decay > 0)
    return options | codec | datasets | others


def _within(name: str, groups: tuple[str, ...]) -> bool:
    return any(name == group or name.startswith(f"{group}.") for group in groups)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
