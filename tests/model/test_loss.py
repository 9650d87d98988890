"""The objective: packing, padding, accumulation, amortization and chunking leave it alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from csm.config import ActivationCheckpointing, LossConfig
from csm.data.packing import select_slots
from csm.model import loss
from csm.model.loss import LossSums
from tests.tiny import K, conversation, forward, forward_backward, rows, tiny_model

CONFIG = LossConfig(c0_weight=0.7, decoder_weight=1.9)
LENGTHS = [(6, 9), (3,), (12, 2, 5), (4, 4)]


def gradients(model, batches, total=None):
    """Objective and gradients of one optimizer step over microbatches."""
    model.zero_grad()
    total = total or sum(batch.targets.sum() for batch in batches)
    value = 0.0
    for batch in batches:
        loss = forward(model, batch).loss(CONFIG, total)
        loss.backward()
        value += loss.item()
    return value, {name: p.grad.clone() for name, p in model.named_parameters()}


def assert_same(first, second, tolerance=1e-5):
    assert first[0] == pytest.approx(second[0], abs=tolerance)
    for name, gradient in first[1].items():
        torch.testing.assert_close(gradient, second[1][name], atol=tolerance, rtol=1e-4, msg=name)


def test_loss_equals_a_loop_over_frames():
    """The whole objective, written out frame by frame and codebook by codebook."""
    model, document = tiny_model(), conversation(3, (5, 4), loss=(False, True))
    batch = rows([[document]])
    sums = forward(model, batch)
    states = model.backbone_states(document.tokens[None], document.mask[None], torch.arange(len(document))[None])[0]
    expected, frames = torch.zeros(K), 0
    for position in range(1, len(document)):
        if not document.targets[position]:
            continue
        frames += 1
        codes = document.tokens[position, :K]
        expected[0] += F.cross_entropy(model.codebook0_head(states[position - 1]), codes[0])
        logits = model.decoder_logits(states[position - 1][None], codes[None, :-1])
        for codebook in range(1, K):
            expected[codebook] += F.cross_entropy(logits[codebook - 1, 0], codes[codebook])
    assert frames == 5 and sums.frames == 5  # the second turn's four frames and its end
    torch.testing.assert_close(sums.losses, expected, atol=1e-4, rtol=1e-5)
    loss = 0.7 * expected[0] / 5 + 1.9 * expected[1:].mean() / 5
    torch.testing.assert_close(sums.loss(CONFIG, sums.frames), loss, atol=1e-5, rtol=1e-5)


def test_entropy_and_top_five_of_codebook_0(monkeypatch):
    """Over more positions than are taken at a time; text positions and padding do not count."""
    monkeypatch.setattr(loss, "ENTROPY_POSITIONS", 512)
    model, batch = tiny_model(), rows([[conversation(i, (90, 70))] for i in range(3)], 250)
    assert batch.targets[:, 1:].numel() > loss.ENTROPY_POSITIONS
    sums = forward(model, batch)
    with torch.no_grad():
        states = model.backbone_states(batch.tokens, batch.mask, batch.positions, batch.attention_mask())
        logits = model.codebook0_head(states[:, :-1])[batch.targets[:, 1:]].double()
    codes = batch.tokens[:, 1:, 0][batch.targets[:, 1:]]
    better = (logits > logits.gather(1, codes[:, None])).sum(1)  # codes more likely than the right one
    assert 0 < sums.correct[0] == (better == 0).sum() < sums.top5 == (better < 5).sum() < sums.frames
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    torch.testing.assert_close(sums.entropy.double(), entropy.sum(), atol=1e-3, rtol=1e-5)
    assert not sums.entropy.requires_grad


def test_packed_row_equals_its_documents_alone():
    model = tiny_model()
    documents = [conversation(i, lengths) for i, lengths in enumerate(LENGTHS)]
    packed = gradients(model, [rows([documents], max_seq_len=128)])
    alone = gradients(model, [rows([[document] for document in documents], max_seq_len=40)])
    assert_same(packed, alone)


def test_padding_changes_nothing():
    model = tiny_model()
    documents = [[conversation(i, lengths)] for i, lengths in enumerate(LENGTHS)]
    assert_same(gradients(model, [rows(documents, 40)]), gradients(model, [rows([*documents, []], 97)]))


def test_accumulation_equals_one_batch():
    """Microbatches of unequal frame counts: averaging their means would be wrong."""
    model = tiny_model()
    documents = [[conversation(i, lengths)] for i, lengths in enumerate(LENGTHS)]
    whole = gradients(model, [rows(documents, 40)])
    parts = gradients(model, [rows([document], 40) for document in documents])
    assert_same(whole, parts)


@pytest.mark.parametrize("ratio", [1, 8])
@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_chunks_of_frames_change_nothing(ratio, chunk):
    """In value and in every gradient; 7 divides no number of slots here, 1000 is more than all of them."""
    batch = rows([[conversation(i, lengths)] for i, lengths in enumerate(LENGTHS)], 40, ratio)
    results = []
    for frames in (None, chunk):
        model = tiny_model()
        if frames is None:
            sums = forward(model, batch)
            sums.loss(CONFIG, 11.0).backward()
        else:
            sums = forward_backward(model, batch, frames, CONFIG, 11.0)
        results.append((sums, {name: parameter.grad for name, parameter in model.named_parameters()}))
    (whole, expected), (chunked, found) = results
    torch.testing.assert_close(whole.stacked(), chunked.stacked(), atol=1e-4, rtol=1e-5)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize(
    "frozen",
    [
        ("decoder.layers.0.",),
        ("audio_embeddings", "text_embeddings"),  # as with LoRA: no gradient of the decoder's embeddings
        ("audio_embeddings", "text_embeddings", "backbone"),  # nor of its states
    ],
)
def test_chunks_leave_frozen_parameters_alone(frozen):
    """The others have the gradients of the whole. 4 divides no number of slots here."""
    batch = rows([[conversation(1)]], 30)
    results = []
    for chunk in (1000, 4):
        model = tiny_model()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not name.startswith(frozen))
        forward_backward(model, batch, chunk, CONFIG, 11.0)
        results.append({name: parameter.grad for name, parameter in model.named_parameters()})
    expected, found = results
    assert {name for name, gradient in found.items() if gradient is None} == {
        name for name in found if name.startswith(frozen)
    }
    for name, gradient in expected.items():
        if gradient is not None:
            torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("activation_checkpointing", [ActivationCheckpointing.selective, ActivationCheckpointing.full])
def test_recomputation_changes_nothing(activation_checkpointing):
    batch = rows([[conversation(i, lengths)] for i, lengths in enumerate(LENGTHS)], 40)
    results = []
    for choice in (ActivationCheckpointing.none, activation_checkpointing):
        model = tiny_model()
        for block in (*model.backbone.layers, *model.decoder.layers):
            block.activation_checkpointing = choice
        forward_backward(model, batch, 9, CONFIG, 11.0)
        results.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in results[0].items():
        assert torch.equal(gradient, results[1][name]), name


def test_amortized_loss_is_the_full_loss_in_expectation():
    model = tiny_model().eval()
    document = conversation(5, (17, 11, 15))
    with torch.no_grad():
        full = forward(model, rows([[document]], 64))
        draws = [forward(model, rows([[document]], 64, ratio=8, seed=seed)) for seed in range(400)]
    losses = torch.stack([draw.losses for draw in draws])
    assert torch.equal(losses[:, 0], full.losses[0].expand(400))  # c0 is never sampled
    error = losses.mean(0) - full.losses
    standard_error = losses.std(0) / 400**0.5
    assert (error[1:].abs() < 4 * standard_error[1:]).all()
    assert (losses[:, 1:].std(0) > 0).all()
    assert all(draw.frames == full.frames for draw in draws)  # normalized by all frames, not by the drawn ones


def test_end_of_speech_frames_are_always_supervised():
    document = conversation(5, (17, 11, 15))
    ends = set(torch.nonzero(document.eos).flatten().tolist())
    assert len(ends) == 3
    for seed in range(50):
        slots, weights = select_slots(document.targets, document.eos, 8, np.random.default_rng(seed))
        chosen = {int(p): float(w) for p, w in zip(slots, weights, strict=True)}
        assert ends <= set(chosen)
        assert all(chosen[p] == 1.0 for p in ends)
        assert [w for p, w in chosen.items() if p not in ends] == pytest.approx([43 / 5] * 5)


def test_context_turns_are_never_targets():
    document = conversation(5, (17, 11), loss=(True, False))
    slots, weights = select_slots(document.targets, document.eos, 64, np.random.default_rng(0))
    supervised = set(torch.nonzero(document.targets).flatten().tolist())
    assert set(slots[weights > 0].tolist()) == supervised
    assert len(supervised) == 18


def test_row_without_targets_is_finite():
    model = tiny_model()
    value, grads = gradients(model, [rows([[conversation(1, (4,), loss=(False,))], []], 32)], total=torch.tensor(1.0))
    assert value == 0.0
    assert all(torch.isfinite(gradient).all() for gradient in grads.values())


@pytest.mark.parametrize("slots", [2, 3, 5, 9])
def test_more_ends_than_slots_stays_unbiased(slots):
    """Weights of each kind add up to the frames of that kind, even where ends alone would fill every slot."""
    targets = torch.ones(30, dtype=torch.bool)
    eos = torch.zeros(30, dtype=torch.bool)
    eos[3::3] = True  # 9 of 30
    for seed in range(20):
        chosen, weights = select_slots(targets, eos, slots, np.random.default_rng(seed))
        assert weights[eos[chosen]].sum() == pytest.approx(9)
        assert weights[~eos[chosen]].sum() == pytest.approx(21)


def test_sums_survive_stacking():
    sums = forward(tiny_model(), rows([[conversation(1)]]))
    again = LossSums.from_stacked(sums.stacked())
    for name in LossSums._fields:
        torch.testing.assert_close(getattr(sums, name).detach(), getattr(again, name))


@pytest.mark.parametrize("weight", [0.0, 3.0])
def test_end_frames_have_their_weight_in_the_objective_and_none_in_what_is_reported(weight):
    """In both stacks, with and without chunks; the divisor stays the number of frames."""
    model, document = tiny_model(), conversation(3, (5, 4))
    batch, config = rows([[document]], 64, 8), LossConfig(c0_weight=0.7, decoder_weight=1.9, eos_weight=weight)
    plain = forward(model, batch)
    ends = torch.nonzero(document.eos).flatten()
    states = model.backbone_states(document.tokens[None], document.mask[None], torch.arange(len(document))[None])[0]
    codes = document.tokens[ends, :K]
    c0 = F.cross_entropy(model.codebook0_head(states[ends - 1]), codes[:, 0], reduction="sum")
    logits = model.decoder_logits(states[ends - 1], codes[:, :-1]).flatten(0, 1)
    decoder = F.cross_entropy(logits, codes[:, 1:].T.flatten(), reduction="sum") / (K - 1)
    expected = plain.loss(CONFIG, 11.0) + (weight - 1) * (0.7 * c0 + 1.9 * decoder) / 11.0
    torch.testing.assert_close(plain.loss(config, 11.0), expected, atol=1e-5, rtol=1e-5)
    plain.loss(config, 11.0).backward()
    gradients_whole = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    chunked = forward_backward(model, batch, 3, config, 11.0)
    torch.testing.assert_close(chunked.stacked(), plain.stacked(), atol=1e-4, rtol=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients_whole[name], atol=1e-5, rtol=1e-4, msg=name)
