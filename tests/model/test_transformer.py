"""The stack against transformers' Llama, an independent implementation, with csm_1b's rotary scaling."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaModel

from csm.config import RopeConfig, TransformerConfig
from csm.model.transformer import Transformer, rope_frequencies

NAMES = {
    "attn_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "attn.": "self_attn.",
}


def hf_name(name: str) -> str:
    for ours, theirs in NAMES.items():
        name = name.replace(ours, theirs)
    return name


def test_stack_equals_llama():
    torch.manual_seed(0)
    config = TransformerConfig(layers=3, dim=48, heads=6, kv_heads=3, ffn_dim=72)
    ours = Transformer(config, RopeConfig(), norm_eps=1e-5).eval()
    theirs = LlamaModel(
        LlamaConfig(
            vocab_size=11,
            hidden_size=48,
            intermediate_size=72,
            num_hidden_layers=3,
            num_attention_heads=6,
            num_key_value_heads=3,
            rms_norm_eps=1e-5,
            rope_theta=500_000.0,
            rope_scaling={
                "rope_type": "llama3",
                "factor": 32.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
            max_position_embeddings=131072,
        )
    ).eval()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.uniform_(-0.4, 0.4)
    weights = {hf_name(name): tensor for name, tensor in ours.state_dict().items()}
    missing, unexpected = theirs.load_state_dict(weights, strict=False)
    assert missing == ["embed_tokens.weight"] and unexpected == []
    x = torch.randn(2, 17, 48)
    positions = torch.stack((torch.arange(17), torch.arange(17) + 1900))  # far positions meet the scaling
    with torch.no_grad():
        expected = theirs(inputs_embeds=x, position_ids=positions).last_hidden_state
        torch.testing.assert_close(ours(x, positions), expected, atol=1e-5, rtol=1e-5)


def test_rope_scaling_slows_low_frequencies():
    """csm_1b's stacks have head widths 64 and 128: 17 of 32 and 35 of 64 frequencies are changed by the scaling."""
    for width, changed in ((64, 17), (128, 35)):
        scaled = rope_frequencies(width, RopeConfig())
        plain = rope_frequencies(width, RopeConfig(scale_factor=1.0))
        assert int((scaled != plain).sum()) == changed
        torch.testing.assert_close(scaled[-1] * 32, plain[-1])
