"""LoRA adapters in PEFT's format, for transformers' CsmForConditionalGeneration.

Names only differ by a prefix from Hugging Face's names of the layers: our queries and keys already are in Hugging
Face's rotary order, so the adapters need no permutation.
"""

from __future__ import annotations

import json
from pathlib import Path

from csm.config import LoraConfig
from csm.formats.tensors import Weights, write_safetensors
from csm.formats.weight_names import hf_name

PEFT_PREFIX = "base_model.model."
PEFT_PARTS = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight"}
TARGET_STACKS = {"backbone": "backbone_model", "decoder": "depth_decoder"}
"""The modules of transformers' model whose layers have the adapters."""


def write_peft_adapter(folder: Path, adapters: Weights, lora: LoraConfig, base_model: str) -> None:
    """Writes adapter_config.json and adapter_model.safetensors into `folder`.

    adapters: `*.lora_a` and `*.lora_b` under our names; base_model: path or hub id that PEFT will name. Raises
    ValueError if there are none, or if modules were trained in full, for which an adapter has no place.
    """
    if not adapters:
        raise ValueError("this checkpoint has no LoRA adapter (lora.rank=0): choose another --format")
    if lora.train_modules:
        raise ValueError(
            f"lora.train_modules ({', '.join(lora.train_modules)}) were trained in full, which an adapter cannot hold; "
            "export the merged model with --format hf"
        )
    adapter: Weights = {}
    for name, tensor in adapters.items():
        layer, _, part = name.rpartition(".")
        target = hf_name(f"{layer}.weight").removesuffix("weight")
        adapter[f"{PEFT_PREFIX}{target}{PEFT_PARTS[part]}"] = tensor
    stacks = "|".join(TARGET_STACKS[stack] for stack in lora.stacks)
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base_model,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        # A pattern: the codec inside the model has layers of the same names.
        "target_modules": rf"({stacks})\..*\.({'|'.join(lora.targets)})",
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": None,
    }
    write_safetensors(adapter, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
