"""Initial weights of a run: random, from a CSM checkpoint in any layout, or a text model as the backbone."""

from __future__ import annotations

import logging

import torch

from csm.config import TokenizerConfig, TrainConfig
from csm.formats.hub import fetch
from csm.formats.llama import init_from_llama
from csm.formats.open import open_checkpoint, read_json
from csm.formats.tensors import check_tensors
from csm.formats.weight_names import shapes
from csm.model.init import assign
from csm.model.lora import LoraLinear
from csm.model.speech_lm import SpeechLM
from csm.text import NORMALIZE_KEY, PROMPT_KEY, load_tokenizer, saved_properties

log = logging.getLogger(__name__)


def initialize(model: SpeechLM, config: TrainConfig, resumed: bool) -> None:
    """Gives every parameter the value that the run starts from; the model's own may be DTensors on any mesh.

    Random values are a function of `config.seed` alone, so all ranks, and runs with any number of them, start from the
    same. resumed: a checkpoint is loaded afterwards, so that `init_from` is not needed.
    """
    torch.manual_seed(config.seed)
    model.init_weights()
    for module in model.modules():
        if isinstance(module, LoraLinear):
            module.init_adapter()
    if config.init_from is not None and not resumed:
        init_weights_from(model, config.init_from, config.tokenizer)


def init_weights_from(model: SpeechLM, path_or_repo: str, tokenizer: TokenizerConfig | None = None) -> None:
    """Overwrites the weights of `model` with those of a checkpoint.

    tokenizer: that the model will be trained with; a warning says if it writes turns otherwise than the checkpoint's.

    A CSM (native, Sesame's, Hugging Face's layout, or a training checkpoint) gives all of them; a Llama gives backbone
    and text embeddings, and what keeps its random values is listed in the log. Raises ValueError naming the first
    tensor that does not fit, FileNotFoundError if there is no such checkpoint.
    """
    path = fetch(path_or_repo)
    content = read_json(path / "config.json")
    if content.get("model_type") == "llama":
        kept = init_from_llama(model, path, content)
        log.info("backbone and text embeddings from %s; random: %s", path_or_repo, ", ".join(_summary(kept)))
        return
    checkpoint = open_checkpoint(path)
    weights = checkpoint.original_weights()
    check_tensors(weights, shapes(model.config), str(path_or_repo))
    parameters = dict(model.named_parameters())
    for name, tensor in weights.items():
        assign(parameters[name], tensor.read())
    if checkpoint.config.layout is not model.config.layout:
        layouts = (checkpoint.config.layout.value, model.config.layout.value)
        log.warning("%s was trained with model.layout=%s, this run has %s", path_or_repo, *layouts)
    if checkpoint.config.rope != model.config.rope:
        log.warning("%s has %s, the model %s", path_or_repo, checkpoint.config.rope, model.config.rope)
    log.info("all weights from %s (%s layout)", path_or_repo, checkpoint.layout)
    if tokenizer is not None:
        ours, theirs = saved_properties(load_tokenizer(tokenizer)), checkpoint.read_properties()
        for key, option in ((PROMPT_KEY, "tokenizer.prompt"), (NORMALIZE_KEY, "tokenizer.normalize")):
            if ours.get(key) != theirs.get(key):
                log.warning(
                    "%s was trained on turns written with %s=%s, this run has %s; set %s to the former, unless it "
                    "shall learn the latter",
                    path_or_repo,
                    option,
                    theirs.get(key, "null"),
                    ours.get(key, "null"),
                    option,
                )


def _summary(names: list[str]) -> list[str]:
    """Names, with those of a whole stack as one entry."""
    others = [name for name in names if not name.startswith("decoder.")]
    return [*others, "decoder.*"] if len(others) < len(names) else others
