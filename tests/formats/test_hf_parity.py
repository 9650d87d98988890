"""Our model and transformers' CsmForConditionalGeneration with the same weights compute the same things."""

from __future__ import annotations

import pytest
import torch
from transformers import CsmConfig
from transformers.models.csm.modeling_csm import CsmRotaryEmbedding

from csm.config import CSMConfig, RopeConfig, TransformerConfig
from csm.formats import hf
from csm.inference.generator import Generator
from csm.model.transformer import rope_frequencies
from tests.hf_reference import hf_inputs, hf_labels, hf_model, small_codec_config
from tests.tiny import conversation, forward, rows, tiny_model

K = 32


@pytest.fixture(scope="module")
def pair():
    model = tiny_model(seed=3, codebooks=K).eval()
    return model, hf_model(model)


@pytest.fixture(scope="module")
def frames():
    return conversation(seed=5, frame_counts=(6, 9, 4), codebooks=K)


@torch.no_grad()
def test_logits_of_both_stacks(pair, frames):
    model, reference = pair
    tokens, mask, positions = frames.tokens[None], frames.mask[None], torch.arange(len(frames))[None]
    states = model.backbone_states(tokens, mask, positions)
    expected = reference(inputs_embeds=hf_inputs(reference, frames), output_hidden_states=True)
    ours = model.codebook0_head(states)
    assert expected.logits.std() > 0.5
    torch.testing.assert_close(ours, expected.logits, atol=1e-4, rtol=0)

    where = frames.targets.nonzero()[:, 0]
    hidden, codes = states[0, where - 1], frames.tokens[where, :-1]
    depth_inputs = torch.nn.functional.pad(codes[:, :-1], (1, 0))  # a placeholder for the backbone's state
    depth = reference.depth_decoder(input_ids=depth_inputs, backbone_last_hidden_state=hidden).logits  # [M, K-1, V]
    assert depth.std() > 0.5
    torch.testing.assert_close(model.decoder_logits(hidden, codes[:, :-1]).transpose(0, 1), depth, atol=1e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("ratio", [1, 16])
def test_training_loss(pair, ratio):
    """Both terms apart; at 1/16 the depth decoder is given the frames that our slots chose, with unit weights."""
    model, reference = pair
    frames = conversation(seed=6, frame_counts=(16, 9, 14), codebooks=K)
    batch = rows([[frames]], max_seq_len=64, ratio=ratio, codebooks=K)
    used = batch.slot_weights > 0
    batch.slot_weights = used.float()
    sums = forward(model, batch)
    chosen = torch.zeros(len(frames), dtype=torch.bool)
    chosen[batch.slots[used]] = True
    assert (chosen.sum() == frames.targets.sum()) == (ratio == 1)

    expected = reference(inputs_embeds=hf_inputs(reference, frames), labels=hf_labels(frames, chosen))
    torch.testing.assert_close(sums.losses[0] / sums.frames, expected.backbone_loss, atol=1e-5, rtol=0)
    decoder = sums.losses[1:].mean() / chosen.sum()
    torch.testing.assert_close(decoder, expected.depth_decoder_loss, atol=1e-5, rtol=0)


class _Codec:
    """Says what codec the model reads; these tests decode nothing."""

    name, num_codebooks, codebook_size = "none", K, 13


@pytest.mark.slow
@torch.no_grad()
def test_greedy_generation(pair, frames):
    """40 frames: ours with its cache = transformers' generate = everything computed anew for every code."""
    model, reference = pair
    steps = 40
    prompt = frames.tokens[:-20], frames.mask[:-20]  # ends within a turn's frames
    ours = Generator(model, _Codec(), None).generate_codes(*prompt, max_frames=steps, temperature=0)
    assert ours.shape == (K, steps)

    reserved = list(range(model.config.codebook_size, model.config.audio_vocab_size))
    for config in (reference.generation_config, reference.depth_decoder.generation_config):
        config.suppress_tokens = reserved
    cut = type(frames)(*prompt, targets=frames.targets[:-20], eos=frames.eos[:-20])
    sequences = reference.generate(
        inputs_embeds=hf_inputs(reference, cut), max_new_tokens=steps, do_sample=False, depth_decoder_do_sample=False
    )
    assert torch.equal(sequences[0, -steps:].T, ours)

    tokens, mask = prompt[0].clone(), prompt[1].clone()
    for step in range(steps):
        states = model.backbone_states(tokens[None], mask[None], torch.arange(len(tokens))[None])[:, -1]
        size = model.config.codebook_size
        codes = [model.codebook0_head(states)[0, :size].argmax()]
        for codebook in range(1, K):
            padded = torch.tensor([[*codes, *[0] * (K - 1 - codebook)]])
            codes.append(model.decoder_logits(states, padded)[codebook - 1, 0, :size].argmax())
        frame = torch.tensor(codes)
        assert torch.equal(frame, ours[:, step]), step
        tokens = torch.cat((tokens, torch.nn.functional.pad(frame, (0, 1))[None]))
        mask = torch.cat((mask, torch.tensor([[True] * K + [False]])))


CSM_1B = CSMConfig(
    backbone=TransformerConfig(layers=16, dim=2048, heads=32, kv_heads=8, ffn_dim=8192),
    decoder=TransformerConfig(layers=4, dim=1024, heads=8, kv_heads=2, ffn_dim=8192),
    text_vocab_size=128_256,
    codebook_size=2048,
    num_codebooks=32,
)
PUBLISHED_ROPE = {  # sesame/csm-1b config.json
    "backbone": {"low_freq_factor": 0.125, "high_freq_factor": 0.5, "original_max_position_embeddings": 1024},
    "decoder": {
        "low_freq_factor": 0.001953125,
        "high_freq_factor": 0.0078125,
        "original_max_position_embeddings": 16,
    },
}


def csm_config(config: CSMConfig) -> CsmConfig:
    codec = small_codec_config(config.num_codebooks, config.codebook_size)
    return CsmConfig(**hf.write_config(config, codec, 128_000, 128_001, 128_002, 128_003, "float32"))


@pytest.mark.parametrize("stack", ["backbone", "decoder"])
def test_rotary_frequencies_of_csm_1b_bit_for_bit(stack):
    exported = csm_config(CSM_1B)
    theirs = exported if stack == "backbone" else exported.depth_decoder_config
    published = {"rope_type": "llama3", "factor": 32.0, **PUBLISHED_ROPE[stack]}
    assert {key: theirs.rope_scaling[key] for key in published} == published
    head_dim = {"backbone": 64, "decoder": 128}[stack]
    ours = rope_frequencies(head_dim, CSM_1B.rope)
    assert torch.equal(ours, CsmRotaryEmbedding(theirs).inv_freq)
    # The scaling matters: without it a good part of the frequencies is another.
    theirs.rope_scaling = {"rope_type": "default", "rope_theta": CSM_1B.rope.base}
    plain = CsmRotaryEmbedding(theirs).inv_freq
    assert (ours != plain).sum() >= head_dim // 4


@pytest.mark.parametrize(
    "rope",
    [
        RopeConfig(),
        RopeConfig(scale_factor=8.0),
        RopeConfig(base=10_000.0, old_context=4096, high_freq_factor=2.0),
    ],
)
def test_config_round_trip(rope):
    config = CSMConfig(CSM_1B.backbone, CSM_1B.decoder, 128_256, 2048, 32, 2048, 1e-6, rope, 0.03)
    assert hf.read_config(csm_config(config).to_dict(), "here") == config


def test_configs_that_are_not_ours_are_refused():
    content = csm_config(CSM_1B).to_dict()

    def read(**changes) -> None:
        hf.read_config({**content, **changes}, "config.json")

    with pytest.raises(ValueError, match="hidden_act='gelu' is not supported"):
        read(hidden_act="gelu")
    with pytest.raises(ValueError, match="rotary positions of backbone and depth decoder differ"):
        read(rope_scaling=None, rope_parameters=None)  # the names of transformers 4 and 5
    with pytest.raises(ValueError, match="its codec has 32 of 1024"):
        read(codec_config={**content["codec_config"], "codebook_size": 1024})
    with pytest.raises(ValueError, match="its codec has 8 of 2048"):
        read(codec_config={**content["codec_config"], "num_quantizers": 8})
    with pytest.raises(ValueError, match=r"rms_norm_eps of backbone \(1e-06\) and depth decoder \(1e-05\) differ"):
        read(rms_norm_eps=1e-6)
    with pytest.raises(ValueError, match="codebook_eos_token_id=2048 is not supported"):
        read(codebook_eos_token_id=2048)
    with pytest.raises(ValueError, match="tie_codebooks_embeddings must be true"):
        read(tie_codebooks_embeddings=False)
    with pytest.raises(ValueError, match="not a configuration of transformers' CSM"):
        hf.read_config({"model_type": "csm"}, "config.json")
