"""The model card, README.md of an exported directory."""

from __future__ import annotations

import math
from typing import Any

from csm.config import CodeLayout, TransformerConfig
from csm.formats.layouts import Checkpoint

HF_SNIPPET = """
```python
from transformers import AutoProcessor, CsmForConditionalGeneration

processor = AutoProcessor.from_pretrained("{name}")
model = CsmForConditionalGeneration.from_pretrained("{name}", dtype="float32")  # bfloat16 would round the codec too
conversation = [{{"role": "0", "content": [{{"type": "text", "text": "Hello."}}]}}]
inputs = processor.apply_chat_template(conversation, tokenize=True, return_dict=True)
audio = model.generate(**inputs, output_audio=True)
processor.save_audio(audio, "hello.wav")
```
"""
OWN_SNIPPET = """
```python
from csm import load_generator

generator = load_generator("{name}")
audio = generator.generate("Hello.", speaker=0, context=[])  # float32 [num_samples] at generator.sample_rate
```
"""
DESCRIPTION = """\
A CSM (Conversational Speech Model): a backbone reads a conversation as text and audio frames and predicts the first
codebook of every frame, a depth decoder predicts the others."""
BASELINE = """\
A baseline beside CSM (Conversational Speech Model): one stack reads a conversation as text and codes in the layout
`{layout}` and predicts all codebooks. It can be trained and scored (`python -m experiments.arms`), but not speak."""
CARD = """---
library_name: {library}
pipeline_tag: text-to-speech
tags:
- csm
- text-to-speech
- conversational-speech
---

# {name}

{description}

| | |
|---|---|
| parameters | {parameters:.1f} M |
| backbone | {backbone} |
| {rest} |
| audio | {codec}, {codebooks} codebooks of {codebook_size} |
| text vocabulary | {text_vocab} |
| longest sequence | {max_seq_len} positions |
{training}
{use}
## Limits and responsible use

State here what the model was trained on, with whose consent, in which languages, and how it was evaluated. Generated
speech can deceive: do not clone a voice without its owner's consent, do not impersonate, and say that speech is
synthetic.
"""


def model_card(checkpoint: Checkpoint, name: str, layout: str) -> str:
    """Markdown with the hub's metadata block; the author fills in data and evaluation."""
    config = checkpoint.config
    in_hf = layout in ("hf", "all")
    parameters = sum(math.prod(tensor.shape) for tensor in checkpoint.weights.values())
    baseline = config.layout is not CodeLayout.depth
    snippets = (HF_SNIPPET.format(name=name) if in_hf else "") + OWN_SNIPPET.format(name=name)
    training = "".join(f"| training: {key} | {_cell(value)} |\n" for key, value in checkpoint.training.items())
    return CARD.format(
        library="transformers" if in_hf else "csm",
        name=name,
        description=BASELINE.format(layout=config.layout.value) if baseline else DESCRIPTION,
        parameters=parameters / 1e6,
        backbone=_shape(config.backbone),
        rest=f"layout | {config.layout.value}" if baseline else f"depth decoder | {_shape(config.decoder)}",
        codec=checkpoint.codec.kind.name,
        codebooks=config.num_codebooks,
        codebook_size=config.codebook_size,
        text_vocab=config.text_vocab_size,
        max_seq_len=config.max_seq_len,
        training=training,
        use="" if baseline else f"## Use\n{snippets}",
    )


def _cell(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _shape(stack: TransformerConfig) -> str:
    heads = f"{stack.heads} heads ({stack.kv_heads} kv)"
    return f"{stack.layers} layers of width {stack.dim}, {heads}, ffn {stack.ffn_dim}"
