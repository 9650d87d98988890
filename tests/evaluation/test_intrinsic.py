"""Teacher-forced measures: equal to the validation loss, exact on models whose loss is known, honest about context."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from csm.config import CSMConfig, TokenizerConfig, TokenizerKind, TransformerConfig
from csm.data.dataset import ShardedDataset
from csm.data.packing import pack_row
from csm.data.rows import sample_turns
from csm.evaluation.context_gain import Context, context_gain, context_items, exchanged_speakers
from csm.evaluation.intrinsic import auc, codebook_groups, intrinsic_scores
from csm.frames import TurnTokens, conversation_frames
from csm.model.csm import CSM
from csm.text import load_tokenizer
from tests.data.made_datasets import CODEC, made_dataset
from tests.tiny import forward

SAMPLES = 1000
V = CODEC.codebook_size + 3


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> ShardedDataset:
    return ShardedDataset(made_dataset(tmp_path_factory.mktemp("intrinsic"), train=1, val=9))


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(TokenizerConfig(kind=TokenizerKind.bytes, vocab_size=258))


@pytest.fixture
def model() -> CSM:
    torch.manual_seed(0)
    config = CSMConfig(
        backbone=TransformerConfig(layers=2, dim=48, heads=6, kv_heads=3, ffn_dim=72),
        decoder=TransformerConfig(layers=1, dim=32, heads=4, kv_heads=2, ffn_dim=56),
        text_vocab_size=258,
        codebook_size=CODEC.codebook_size,
        num_codebooks=CODEC.num_codebooks,
        max_seq_len=160,
    )
    model = CSM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=0.2)
    return model


def documents(dataset, tokenizer, model):
    samples = [dataset.read(int(i)) for i in dataset.select("val")]
    return samples, [
        conversation_frames(sample_turns(s, tokenizer, model.config.max_seq_len), CODEC.num_codebooks) for s in samples
    ]


@torch.inference_mode()
def test_equals_the_validation_loss_of_training(model, dataset, tokenizer):
    scores = intrinsic_scores(model, dataset, "val", tokenizer, SAMPLES)
    samples, frames = documents(dataset, tokenizer, model)
    length = model.config.max_seq_len
    sums = [
        forward(model, pack_row([one], length, CODEC.num_codebooks, length, np.random.default_rng(0))) for one in frames
    ]
    total = sum(float(one.frames) for one in sums)
    losses = sum(one.losses for one in sums) / total
    assert scores.frames == total and scores.conversations == len(samples) and scores.cut == 0
    assert scores.loss.value == pytest.approx(float(losses[0] + losses[1:].mean()), abs=1e-5)
    assert [one.nats.value for one in scores.codebooks] == pytest.approx(losses.tolist(), abs=1e-5)
    correct = sum(one.correct for one in sums) / total
    assert [one.top1.value for one in scores.codebooks] == pytest.approx(correct.tolist(), abs=1e-6)
    assert scores.codebooks[0].top5.value == pytest.approx(sum(float(one.top5) for one in sums) / total)
    ends = sum(one.eos for one in sums)
    assert scores.ends.found.items == ends[0] and scores.ends.found.value == pytest.approx(float(ends[1] / ends[0]))
    assert scores.groups["c1-4"].nats.value == pytest.approx(float(losses[1:].mean()), abs=1e-5)
    assert scores.loss.clusters == len({sample.group for sample in samples})
    for parts in (scores.positions, scores.turns, scores.speakers):  # each divides all frames
        assert sum(part.items for part in parts.values()) == total
        mean = sum(part.value * part.items for part in parts.values()) / total
        assert mean == pytest.approx(scores.loss.value, abs=1e-6)
    assert [one.key for one in scores.sums] == [sample.key for sample in samples]
    nats = sum(np.array(one.nats) for one in scores.sums) / total
    assert nats == pytest.approx(losses.numpy(), abs=1e-5) and sum(one.frames for one in scores.sums) == total
    assert sum(one.ends for one in scores.sums) == ends[0] and sum(one.found for one in scores.sums) == ends[1]
    first = [turn for sample in samples for turn in sample.turns]
    assert scores.positions["0"].items == len(first) == ends[0]  # every turn has a frame 0, and an end
    assert scores.speakers["1"].items == sum(t.num_frames + 1 for t in first if t.speaker == 1)


def test_a_model_that_knows_nothing_has_the_uniform_loss(model, dataset, tokenizer):
    with torch.no_grad():
        model.codebook0_head.weight.zero_()
        model.audio_head.zero_()
    scores = intrinsic_scores(model, dataset, "val", tokenizer, SAMPLES)
    assert [one.nats.value for one in scores.codebooks] == pytest.approx([math.log(V)] * 5, abs=1e-5)
    assert scores.ends.nats.value == pytest.approx(5 * math.log(V), abs=1e-4)
    assert scores.ends.auc == pytest.approx(0.5)
    assert all(scores.positions[name].value == pytest.approx(2 * math.log(V), abs=1e-5) for name in scores.positions)


def test_a_model_that_always_stops(model, dataset, tokenizer):
    with torch.no_grad():  # all logits are equal, of which argmax takes the first: code 0
        model.codebook0_head.weight.zero_()
        model.audio_head.zero_()
    scores = intrinsic_scores(model, dataset, "val", tokenizer, SAMPLES)
    assert scores.ends.false_stops.value == scores.ends.found.value == 1.0
    assert scores.codebooks[0].top1.value == pytest.approx(scores.ends.found.items / scores.frames)  # its ends alone


@torch.inference_mode()
def test_context_is_what_it_is_called(model, dataset, tokenizer):
    """Against forward passes over documents written out here."""
    items = context_items(model, dataset, "val", tokenizer)
    samples, _ = documents(dataset, tokenizer, model)
    samples = [sample for sample in samples if len(sample.turns) > 1]
    assert [item.key for item in items] == [sample.key for sample in samples] and len(items) >= 3

    def turn(sample, number, speaker=None):
        stored = sample.turns[number]
        text = tokenizer.encode_turn(stored.text, stored.speaker if speaker is None else speaker)
        return TurnTokens(text, torch.from_numpy(sample.turn_codes(stored)), False)

    def loss(turns, last):
        last.loss = True
        frames = conversation_frames([*turns, last], CODEC.num_codebooks)
        row = pack_row([frames], len(frames), CODEC.num_codebooks, len(frames), np.random.default_rng(0))
        sums = forward(model, row)
        return float(sums.losses[0] + sums.losses[1:].mean())

    for number, (item, sample) in enumerate(zip(items, samples, strict=True)):
        other, before = samples[(number + 1) % len(samples)], range(len(sample.turns) - 1)
        expected = {
            Context.true: [turn(sample, i) for i in before],
            Context.none: [],
            Context.shuffled: [turn(other, i) for i in range(len(other.turns) - 1)][-len(before) :],
            Context.swapped: [turn(sample, i, 1 - sample.turns[i].speaker) for i in before],
        }
        assert item.frames == sample.turns[-1].num_frames + 1
        for context, turns in expected.items():
            found = item.losses[context]
            assert found["loss"] == pytest.approx(loss(turns, turn(sample, len(before))), rel=1e-5), context
            assert found["loss"] == pytest.approx(found["c0"] + found["c1-4"], rel=1e-5)
    none = context_gain(items, Context.none, bootstrap_samples=SAMPLES)
    saved = sum(item.losses[Context.none]["loss"] - item.losses[Context.true]["loss"] for item in items)
    assert none.value == pytest.approx(saved / sum(item.frames for item in items)) != 0


def test_a_model_without_attention_gains_nothing_from_context(model, dataset, tokenizer):
    with torch.no_grad():
        for layer in model.backbone.blocks():
            layer.attn.o_proj.weight.zero_()
    items = context_items(model, dataset, "val", tokenizer)
    for control in (Context.none, Context.shuffled, Context.swapped):
        gain = context_gain(items, control, "c0", SAMPLES)
        assert gain.value == pytest.approx(0, abs=1e-5) and gain.low <= 1e-5


@pytest.mark.slow
def test_a_model_that_was_trained_on_context_gains_from_it(model, dataset, tokenizer):
    """A few steps on these very conversations: the true context is what the last turn was learned with."""
    _, frames = documents(dataset, tokenizer, model)
    length = model.config.max_seq_len
    rows = [pack_row([one], length, CODEC.num_codebooks, length, np.random.default_rng(0)) for one in frames]
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(8):
        for row in rows:
            sums = forward(model, row)
            optimizer.zero_grad()
            ((sums.c0 + sums.decoder) / sums.frames).backward()
            optimizer.step()
    items = context_items(model, dataset, "val", tokenizer)
    assert context_gain(items, Context.none, bootstrap_samples=SAMPLES).low > 0
    assert context_gain(items, Context.shuffled, bootstrap_samples=SAMPLES).low > 0


def test_auc_counts_ties_half():
    scores = np.array([0.1, 0.4, 0.4, 0.9])
    assert auc(scores, np.array([False, True, False, True])) == pytest.approx((1 + 0.5 + 1 + 1) / 4)
    assert auc(scores, np.zeros(4, bool)) is None


def test_groups_and_exchanged_speakers(dataset):
    assert list(codebook_groups(32)) == ["c0", "c1-7", "c8-31"] and list(codebook_groups(5)) == ["c0", "c1-4"]
    sample = next(s for s in (dataset.read(int(i)) for i in dataset.select("val")) if len(s.turns) > 1)
    assert exchanged_speakers(sample) == {0: 1, 1: 0}
    assert exchanged_speakers(replace(sample, turns=sample.turns[1:2])) == {1: 0}


def test_splits_without_the_frames_needed_are_refused(model, dataset, tokenizer):
    with pytest.raises(ValueError, match="split 'test' holds no frame to predict"):
        intrinsic_scores(model, dataset, "test", tokenizer)
    with pytest.raises(ValueError, match="holds no conversation with a turn before"):
        context_items(model, dataset, "test", tokenizer)
    with pytest.raises(ValueError, match="needs two groups"):
        context_items(model, dataset, "val", tokenizer, max_items=1)
