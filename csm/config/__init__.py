"""All options of training, evaluation and planning, typed and documented in one place.

The dataclasses are schemas for Hydra (csm/compose.py), so the YAML files under `configs/` only set values: an
unknown key or a value of the wrong type fails while the configuration is composed, with the key's name. `_target_`
appears only for objects of other libraries, such as loggers.

    train.py       TrainConfig
    evaluate.py    EvaluateConfig
    csm plan       PlanConfig, next to the options of train.py

The options of data preparation are in data_prep/config/. The string below a field documents it;
`docs/options.md` is generated from these strings.
"""

from __future__ import annotations

from csm.config.evaluation import (
    AsrKind,
    EvalConfig,
    EvaluateConfig,
    PhonemeKind,
    SpeakerKind,
)
from csm.config.model import (
    RESERVED_CODES,
    CodecConfig,
    CodecKind,
    CodeLayout,
    CSMConfig,
    RopeConfig,
    TokenizerConfig,
    TokenizerKind,
    TransformerConfig,
)
from csm.config.training import (
    ActivationCheckpointing,
    DataConfig,
    EarlyStopConfig,
    LoraConfig,
    LossConfig,
    OptimConfig,
    PlanConfig,
    Profile,
    Schedule,
    SourceConfig,
    StrategyConfig,
    StrategyName,
    TrainConfig,
    TrainerConfig,
)

__all__ = [
    "REMOVED_OPTIONS",
    "RENAMED_OPTIONS",
    "RESERVED_CODES",
    "ActivationCheckpointing",
    "AsrKind",
    "CSMConfig",
    "CodeLayout",
    "CodecConfig",
    "CodecKind",
    "DataConfig",
    "EarlyStopConfig",
    "EvalConfig",
    "EvaluateConfig",
    "LoraConfig",
    "LossConfig",
    "OptimConfig",
    "PhonemeKind",
    "PlanConfig",
    "Profile",
    "RopeConfig",
    "Schedule",
    "SourceConfig",
    "SpeakerKind",
    "StrategyConfig",
    "StrategyName",
    "TokenizerConfig",
    "TokenizerKind",
    "TrainConfig",
    "TrainerConfig",
    "TransformerConfig",
]

RENAMED_OPTIONS = {
    "data.max_positions": "data.max_seq_len",
    "data.rows_per_microbatch": "data.micro_batch_size",
    "data.rows_per_step": "data.global_batch_size",
    "model.max_positions": "model.max_seq_len",
    "trainer.recompute": "trainer.activation_checkpointing",
}
"""Earlier names of options of train.py, as they appear in old checkpoints."""
REMOVED_OPTIONS = ("data.demo",)
"""Earlier options of train.py, which old checkpoints hold."""
