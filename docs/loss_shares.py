"""How much of the loss published trainers give the first codebook, by our reading of their code."""

from __future__ import annotations

from docs.tables import markdown

GITHUB = "https://github.com"
TRAINERS: list[tuple[str, str, str, tuple[float, float]]] = [
    (
        "csm-mlx",
        f"{GITHUB}/senstella/csm-mlx/blob/bd21751/csm_mlx/finetune/trainer.py",
        "mean over 32 codebooks, all frames",
        (1, 31),
    ),
    (
        "transformers 4.57.6, `Trainer`",
        f"{GITHUB}/huggingface/transformers/blob/v4.57.6/src/transformers/loss/loss_utils.py",
        "both sums divided by the number of frames; decoder on all frames, the default",
        (1, 31),
    ),
    (
        "the same",
        f"{GITHUB}/huggingface/transformers/blob/v4.57.6/src/transformers/models/csm/processing_csm.py",
        "decoder on 1/16 of the frames",
        (1, 31 / 16),
    ),
    (
        "MisoTTS",
        f"{GITHUB}/MisoLabsAI/MisoTTS/blob/0b76bfe6535c45f3b2b24bd3066715b53227b00b/models.py",
        "mean over all codes; were the decoder on 1/16 of the frames (its ratio is not published)",
        (1, 31 / 16),
    ),
    (
        "FireRedTTS-2",
        f"{GITHUB}/FireRedTeam/FireRedTTS2/blob/404f3f6/fireredtts2/llm/llm.py",
        "weights of its tutorial, loss of the text left out",
        (0.4, 0.6),
    ),
    (
        "sesame-finetune",
        f"{GITHUB}/knottwill/sesame-finetune/blob/6a58c6e/utils.py",
        "mean of two means",
        (0.5, 0.5),
    ),
    (
        "ConversationTTS",
        f"{GITHUB}/Audio-Foundation-Models/ConversationTTS/blob/1d33e35/trainer/pre_training.py",
        "sum of two means",
        (1, 1),
    ),
    (
        "Qwen3-TTS",
        f"{GITHUB}/QwenLM/Qwen3-TTS/blob/09364dcc3f947130861186f222a6c58e319ae67a/finetuning/sft_12hz.py",
        "16 codebooks, predictor weighted 0.3",
        (1, 0.3),
    ),
    (
        "moshi-finetune",
        f"{GITHUB}/kyutai-labs/moshi-finetune/blob/2acc879/example/moshi_7B.yaml",
        "8 codebooks, the first weighted 100, as in [Moshi](https://arxiv.org/abs/2410.00037)",
        (100, 7),
    ),
    (
        "csm-training",
        f"{GITHUB}/chenyuntc/csm-training/blob/de3d3bd/models.py",
        "codebook 0 weighted 20",
        (20, 1),
    ),
]
"""Trainers with a first codebook and a small stack for the others: name, source, rule, weights of the two parts."""


def loss_share(weights: tuple[float, float]) -> float:
    """Of codebook 0, from its weight and that of all others together."""
    return weights[0] / sum(weights)


def loss_shares() -> str:
    """Table of the share that published trainers give codebook 0."""
    rows = [
        [f"[{name}]({link})", rule, f"{first:.3g} : {others:.3g}", f"{loss_share((first, others)):.0%}"]
        for name, link, rule, (first, others) in TRAINERS
    ]
    return markdown(["trainer", "its loss", "codebook 0 : all others", "share of codebook 0"], rows)
