"""The checkpoint that a run continues: where it is, whether it belongs to the run, and whether it is whole.

`CheckpointFallback` looks at the candidates before anything else happens and loads one, the same on all ranks. Damage
may be seen by one rank alone: only that one reads a part of a sharded checkpoint, or its disk is at fault.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from csm.checkpoint.checksums import check_archive
from csm.checkpoint.contents import EXTRAS, config_of, plain_config, read_parts
from csm.checkpoint.sharded import check_parts, is_sharded
from csm.checkpoint.writer import LAST, PREVIOUS
from csm.checkpoint.zero import is_zero, read_zero
from csm.config import TrainConfig
from csm.parallel.plan import DEEPSPEED
from csm.parallel.ranks import RankAgreement, global_rank

log = logging.getLogger(__name__)

T = TypeVar("T")

CHANGEABLE = (
    *("name", "run_dir", "ckpt_path", "resume_anyway", "init_from", "logger", "callbacks"),
    *("trainer", "strategy", "optim", "loss"),
    *("data.path", "data.sources", "data.prepare", "data.num_workers", "data.micro_batch_size"),
    *("data.cache_dir", "data.cache_gb"),
    *("codec", "tokenizer.path"),  # what they lead to is compared instead
)
"""Options that a resumed run may change: how, how fast and how long to train. All others say what is trained, on what
data, in which order."""

AVERAGE = "trainer.ema_decay > 0"
ORDER = "the code's order of the data"
FIXED = (
    *("model.backbone", "model.decoder", "model.text_vocab_size", "model.codebook_size", "model.num_codebooks"),
    "model.layout",
    *("freeze", "lora.rank", "lora.targets", "lora.stacks", "lora.train_modules"),
    *("seed", "data.max_seq_len", "data.window_shards", "dataset", "tokenizer", "codec"),
    *(AVERAGE, ORDER),
)
"""Options that no run can change midway: they decide which tensors there are, and the order of the data."""


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
    """Settings in which two checkpoints of one run agree, as {name: value}."""
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


class CheckpointFallback:
    """Paths of checkpoints, the best first: one that is missing or damaged gives way to the next, with a warning.

    check: raises ValueError if a whole checkpoint is of another run, which is a mistake and no reason to go on
    """

    def __init__(self, paths: list[Path], check: Callable[[Path], None]) -> None:
        self._paths, self._check = paths, check
        self._number = 0
        self._verified = -1  # number of the last one that was found whole
        self._problem = ""  # of the one before the chosen one

    @property
    def chosen(self) -> Path | None:
        """The one that the run continues; None for a new run."""
        return self._paths[self._number] if self._paths else None

    def select(self) -> None:
        """Chooses the first that looks whole to this process, which need not be one of several yet. Raises
        FileNotFoundError or ValueError if none does, and ValueError if it is of another run."""
        if not self._paths:
            return
        while (problem := self._problem_of(self._verify_chosen)) is not None:
            if self._number + 1 == len(self._paths):
                raise problem
            self._fall_back(str(problem))
        self._check(self._paths[self._number])

    def load(self, read: Callable[[Path], T], verify: Callable[[Path], None] = lambda _: None) -> T:
        """`read(path)` of the first that is whole to all ranks, on all of them. All must call it together.

        verify: called with the path before, may raise ValueError on any rank
        read: may raise ValueError on any rank if it does not communicate, otherwise on all or none

        Raises ValueError on all ranks if no candidate is left, naming what some rank has found.
        """
        agreement = RankAgreement()
        number, problem = max(agreement.gather((self._number, self._problem)))
        while self._number < number:  # another rank has seen more
            self._fall_back(problem)
        found: list[T] = []
        while not found:
            path, unseen = self._paths[self._number], self._verified != self._number
            failure = self._problem_on_any(agreement, self._verify_chosen)
            failure = failure or self._problem_on_any(agreement, partial(verify, path))
            if failure is None and unseen:
                self._check(path)
            failure = failure or self._problem_on_any(agreement, lambda: found.append(read(self._paths[self._number])))
            if failure is not None:
                found.clear()  # of this rank, where others have failed
                if self._number + 1 == len(self._paths):
                    raise ValueError(failure)
                self._fall_back(failure)
        return found[0]

    def _verify_chosen(self) -> None:
        if self._verified != self._number:
            verify_whole(self._paths[self._number])
            self._verified = self._number

    def _problem_on_any(self, agreement: RankAgreement, task: Callable[[], None]) -> str | None:
        """The problem of the first rank that has one."""
        problem = self._problem_of(task)
        problems = agreement.gather(None if problem is None else str(problem))
        return next((text for text in problems if text is not None), None)

    def _problem_of(self, task: Callable[[], None]) -> Exception | None:
        try:
            task()
        except (ValueError, OSError) as error:
            return error
        return None

    def _fall_back(self, problem: str) -> None:
        """Goes on to the next one."""
        self._number, self._problem = self._number + 1, problem
        if global_rank() == 0:
            log.warning("%s; continuing from the one before it, %s", problem, self.chosen)


def verify_whole(path: Path) -> None:
    """Raises FileNotFoundError or ValueError, saying what is wrong, if a checkpoint is missing or damaged.

    A file is read in full, by the CRC-32 of its records. The folder of a sharded checkpoint, which may be too large for
    that, must have all its parts, those of FSDP in full length; their contents are checked by the ranks that load them.
    """
    if path.is_dir():
        if is_zero(path):
            read_zero(path)
        elif is_sharded(path):
            check_parts(path)
        else:
            raise ValueError(f"{path} is a folder, but not of a sharded checkpoint")
        return
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    try:
        check_archive(path)
    except ValueError as error:
        raise ValueError(f"checkpoint {path} is damaged or not a checkpoint ({error})") from None
