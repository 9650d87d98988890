"""Writes figures and tables that follow from the code: `python -m docs.generate_figures` (part of `make docs`).

Tables stand between `<!-- table: NAME -->` and `<!-- end -->` in the pages; what is around them is written by hand.
"""

from __future__ import annotations

import re
from pathlib import Path

from csm.config import CodeLayout, CSMConfig, LoraConfig, PlanConfig
from csm.model.flops import TrainingFlops, Work, linear_parameters, training_flops
from csm.planning.device import FRAME_RATE
from csm.planning.state import Parameters
from docs.figures import architecture, frame_layout, shares_of_work
from docs.loss_shares import loss_shares
from docs.scaling_tables import TABLES as SCALING
from docs.tables import LENGTH, MODELS, config_of, markdown

FOLDER = Path(__file__).parent
PAGES = ("whitepaper.md", "comparison.md", "scaling.md")
PARTS = {
    "text embeddings": "text_embeddings",
    "audio embeddings": "audio_embeddings",
    "backbone": "backbone",
    "codebook-0 head": "codebook0_head",
    "projection": "projection",
    "depth decoder": "decoder",
    "heads of codebooks 1..31": "audio_head",
}
BANDWIDTH = {
    "L4": 0.300,
    "RTX 4090": 1.008,
    "A100 80 GB": 2.039,
    "H100 SXM": 3.35,
}  # TB/s, from the makers' data sheets


def shapes() -> str:
    """Layers, widths, heads of both stacks."""
    rows = []
    for model in MODELS:
        for name, stack in (("backbone", config_of(model).backbone), ("depth decoder", config_of(model).decoder)):
            shape = [
                stack.layers,
                stack.dim,
                f"{stack.heads} / {stack.kv_heads}",
                stack.dim // stack.heads,
                stack.ffn_dim,
            ]
            rows.append([f"`{model}` {name}", *map(str, shape)])
    return markdown(["stack", "layers", "width", "heads / key-value heads", "head width", "feed-forward width"], rows)


def parameters() -> str:
    """Millions of parameters by part."""
    counted = [Parameters.of(config_of(model), LoraConfig()) for model in MODELS]
    rows = [[part, *(f"{c.total[key] / 1e6:,.1f}" for c in counted)] for part, key in PARTS.items()]
    rows.append(["**all**", *(f"**{c.count / 1e6:,.1f}**" for c in counted)])
    rows.append(["training state in fp32 (16 bytes each), GB", *(f"{16 * c.count / 1e9:,.1f}" for c in counted)])
    return markdown(["million parameters", *(f"`{model}`" for model in MODELS)], rows)


def row_flops(config: CSMConfig, ratio: int) -> TrainingFlops:
    """FLOPs of forward and backward pass over a row of frames, one document."""
    return training_flops(config, Work(LENGTH, LENGTH**2, LENGTH, LENGTH // ratio))


def training_work() -> str:
    """GFLOPs for each audio frame of a full row, forward and backward."""
    rows = []
    for model in MODELS:
        for ratio in (1, 16):
            flops = row_flops(config_of(model), ratio)
            backbone = flops.backbone + flops.backbone_attention
            depth = flops.decoder + flops.decoder_attention + flops.projection + flops.audio_head
            numbers = [backbone, flops.codebook0_head, depth, flops.model]
            cells = [f"{number / LENGTH / 1e9:,.2f}" for number in numbers]
            rows.append([f"`{model}`, 1/{ratio}", *cells, f"{depth / flops.model:.0%}"])
    return markdown(
        ["GFLOPs a frame", "backbone", "codebook-0 head", "depth decoder", "all", "depth decoder's share"], rows
    )


def generation_traffic() -> str:
    """Weights read from memory for one frame of one stream in bf16, and the time that takes at full bandwidth."""
    rows = []
    for model in MODELS:
        config = config_of(model)
        k, v, wide, narrow = config.num_codebooks, config.audio_vocab_size, config.backbone.dim, config.decoder.dim
        backbone = 2 * (linear_parameters(config.backbone) + wide * v)
        # K - 1 passes: the first reads two positions, the state and codebook 0, and each predicts one code.
        depth = 2 * ((k - 1) * linear_parameters(config.decoder) + (k - 1) * narrow * v + wide * narrow)
        times = [f"{(backbone + depth) / tb / 1e9:.1f}" for tb in BANDWIDTH.values()]
        rows.append(
            [f"`{model}`", f"{backbone / 1e9:.2f}", f"{depth / 1e9:.2f}", f"{depth / (backbone + depth):.0%}", *times]
        )
    head = ["model", "backbone, GB", "depth decoder, GB", "its share", *(f"{gpu}, ms" for gpu in BANDWIDTH)]
    return markdown(head, rows)


def seconds_of_row(layout: CodeLayout, text_tokens_per_second: float) -> float:
    """Speech that LENGTH positions hold, as one turn: x seconds of frames, their text, and the end."""
    codebooks = config_of("csm_1b").num_codebooks
    frame, end = {CodeLayout.depth: (1, 1), CodeLayout.delay: (1, codebooks), CodeLayout.flat: (codebooks, codebooks)}[
        layout
    ]
    return (LENGTH - end) / (FRAME_RATE * frame + text_tokens_per_second)


def row_length() -> str:
    """Seconds of a row for each layout of codes."""
    tokens = PlanConfig().text_tokens_per_second
    rows = [
        [f"`{layout.value}`", *(f"{seconds_of_row(layout, rate):.1f} s" for rate in (0, tokens))]
        for layout in (CodeLayout.depth, CodeLayout.delay, CodeLayout.flat)
    ]
    return markdown([f"{LENGTH} positions hold", "frames alone", f"with {tokens:g} text tokens a second"], rows)


OWN = {
    "shapes": shapes,
    "parameters": parameters,
    "training work": training_work,
    "generation traffic": generation_traffic,
    "row length": row_length,
    "loss shares": loss_shares,
}
TABLES = OWN | SCALING


def with_tables(text: str) -> str:
    """A page with its tables computed anew. Raises KeyError for a table that does not exist."""

    def table(found: re.Match[str]) -> str:
        return f"<!-- table: {found[1]} -->\n\n{TABLES[found[1]]()}\n\n<!-- end -->"

    return re.sub(r"<!-- table: ([a-z ]+) -->.*?<!-- end -->", table, text, flags=re.DOTALL)


def files() -> dict[Path, str]:
    """Contents of everything that is generated."""
    small = config_of("csm_1b")
    made = {
        FOLDER / "images" / "architecture.svg": architecture(small),
        FOLDER / "images" / "frame_layout.svg": frame_layout(small.num_codebooks),
        FOLDER / "images" / "shares_of_work.svg": shares_of_work(small, [1, 4, 16, 32]),
    }
    return made | {FOLDER / page: with_tables((FOLDER / page).read_text(encoding="utf-8")) for page in PAGES}


if __name__ == "__main__":
    for path, content in files().items():
        path.write_text(content, encoding="utf-8")
