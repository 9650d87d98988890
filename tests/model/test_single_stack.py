"""The layouts delay and flat: where codes lie, what predicts them, and their losses, against plain loops over codes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from csm.arrangement import arranged, by_frame, turn_positions
from csm.config import CodeLayout, LossConfig
from csm.data.packing import RowBatch
from csm.data.rows import drop_codebooks, drop_frames, noisy_codes
from csm.frames import Frames, TurnTokens, conversation_frames
from csm.model.flops import Work, training_flops
from csm.model.loss import LossSums
from csm.model.single_stack import SingleStack, build_model
from csm.stability.labels import batch_faults
from tests.tiny import (
    CODEBOOK_SIZE,
    TEXT_VOCAB,
    K,
    enlarge_weights,
    forward,
    forward_backward,
    inputs,
    rows,
    tiny_config,
)

LAYOUTS = [CodeLayout.delay, CodeLayout.flat]
ROW = 160
V = CODEBOOK_SIZE + 3


def made_turns(seed: int, frame_counts: tuple[int, ...], loss: tuple[bool, ...] | None = None) -> list[TurnTokens]:
    generator = torch.Generator().manual_seed(seed)
    turns = []
    for number, count in enumerate(frame_counts):
        text = torch.randint(0, TEXT_VOCAB, (4 + number,), generator=generator).tolist()
        codes = torch.randint(0, CODEBOOK_SIZE, (K, count), generator=generator)
        codes[0].clamp_(min=1)
        turns.append(TurnTokens(text, codes, loss is None or loss[number]))
    return turns


CONVERSATIONS = [made_turns(1, (6, 3)), made_turns(2, (4, 7), (False, True)), made_turns(3, (1,))]


def document(turns: list[TurnTokens], layout: CodeLayout) -> Frames:
    return arranged(conversation_frames(turns, K), layout)


def packed(layout: CodeLayout) -> RowBatch:
    first, second, third = (document(turns, layout) for turns in CONVERSATIONS)
    return rows([[first, third], [second]], ROW)


def made_model(layout: CodeLayout) -> SingleStack:
    torch.manual_seed(0)
    model = build_model(replace(tiny_config(), layout=layout))
    assert isinstance(model, SingleStack)
    enlarge_weights(model)
    return model


def written_out(turns: list[TurnTokens], layout: CodeLayout) -> tuple[list[dict[int, int]], dict[tuple[int, ...], int]]:
    """The definition in plain loops: {column: id} of every position, and the position of code (turn, frame, codebook);
    the frame after the last one is the end of speech, zeros."""
    positions: list[dict[int, int]] = []
    place_of: dict[tuple[int, ...], int] = {}
    for number, turn in enumerate(turns):
        positions += [{K: token} for token in turn.text]
        assert turn.codes is not None
        frames, start = turn.codes.shape[1], len(positions)
        length = frames + 1 + K - 1 if layout is CodeLayout.delay else (frames + 1) * K
        positions += [{} for _ in range(length)]
        for t in range(frames + 1):
            for k in range(K):
                place = start + (t + k if layout is CodeLayout.delay else t * K + k)
                place_of[number, t, k] = place
                positions[place][k] = int(turn.codes[k, t]) if t < frames else 0
    return positions, place_of


# ------------------------------------------------------------------------------------------------- arrangement


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("turns", CONVERSATIONS)
def test_codes_lie_where_the_definition_says_and_come_back(layout, turns):
    found, (expected, place_of) = document(turns, layout), written_out(turns, layout)
    assert len(found) == len(expected) == sum(turn_positions(turn, layout) for turn in turns)
    for position, present in enumerate(expected):
        assert torch.nonzero(found.mask[position]).flatten().tolist() == sorted(present)
        assert all(found.tokens[position, column] == value for column, value in present.items())
    assert all(found.mask.any(1)), "no position is empty"
    ends = [place_of[number, turn.codes.shape[1], 0] for number, turn in enumerate(turns)]
    assert torch.nonzero(found.eos).flatten().tolist() == ends
    trained = [place for (number, _, k), place in sorted(place_of.items()) if k == 0 and turns[number].loss]
    assert torch.nonzero(found.targets).flatten().tolist() == sorted(trained)

    codes = by_frame(found.tokens[:, :-1], layout)
    assert by_frame(found.mask[:, :-1], layout)[found.eos[: len(codes)]].all()
    for number, turn in enumerate(turns):
        places = [place_of[number, t, 0] for t in range(turn.codes.shape[1])]
        assert torch.equal(codes[places].T, turn.codes)


def test_depth_is_left_as_it_is():
    laid_out = conversation_frames(CONVERSATIONS[0], K)
    assert arranged(laid_out, CodeLayout.depth) is laid_out
    assert by_frame(laid_out.tokens, CodeLayout.depth) is laid_out.tokens
    assert all(turn_positions(turn, CodeLayout.depth) == turn.num_positions for turn in CONVERSATIONS[0])
    assert turn_positions(TurnTokens([1, 2], None), CodeLayout.flat) == 2


@pytest.mark.parametrize("layout", LAYOUTS)
def test_hidden_frames_and_codebooks_are_those_of_whole_frames(layout):
    whole = conversation_frames(CONVERSATIONS[0], K)
    hidden = conversation_frames(CONVERSATIONS[0], K)
    drop_frames(hidden, 0.5, np.random.default_rng(1))
    drop_codebooks(hidden, 1.0, np.random.default_rng(5))
    assert 0 < int(hidden.mask.sum()) < int(whole.mask.sum())
    found = arranged(hidden, layout)
    assert torch.equal(found.tokens, arranged(whole, layout).tokens)
    assert torch.equal(found.targets, arranged(whole, layout).targets)
    frames = ~hidden.mask[:, K]
    places = torch.nonzero(found.targets).flatten()  # of all frames: every turn is trained on
    assert torch.equal(by_frame(found.mask[:, :-1], layout)[places], hidden.mask[frames][:, :-1])
    assert int(found.mask[:, K].sum()) == int(whole.mask[:, K].sum())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_noise_changes_present_codes_but_no_end_and_no_text(layout):
    row = rows([[document(CONVERSATIONS[0], layout)]], ROW)
    noisy = noisy_codes(row, 1.0, CODEBOOK_SIZE, np.random.default_rng(0), layout)
    changed = noisy != row.tokens
    assert not changed[..., K].any() and not changed[~row.mask].any()
    ends = [place for turn in CONVERSATIONS[:1] for place in _end_places(turn, layout)]
    assert all(not changed[0, position, k] for position, k in ends)
    spoken = int(row.mask[..., :-1].sum()) - len(ends)
    assert spoken * 0.8 < int(changed.sum()) <= spoken  # a drawn code may be the old one


def _end_places(turns: list[TurnTokens], layout: CodeLayout) -> list[tuple[int, int]]:
    _, place_of = written_out(turns, layout)
    return [(place, k) for (number, t, k), place in place_of.items() if t == turns[number].codes.shape[1]]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_look_at_labels_knows_the_layouts(layout):
    turns = [made_turns(seed, (12, 14)) for seed in range(5)]
    batch = rows([[document(conversation, layout)] for conversation in turns], ROW)
    assert batch_faults([batch], 12.5, layout) == []
    shifted = replace(batch, targets=batch.targets.roll(1, 1))
    assert batch_faults([shifted], 12.5, layout)[0].startswith("labels look shifted: ")


# --------------------------------------------------------------------------------------------------- causality


def frame_logits(model: SingleStack, batch: RowBatch) -> dict[int, Tensor]:
    """By the place of a frame of the first row: the logits [K, V] that its losses come from."""
    _, frames = model.backbone_losses(**inputs(batch))
    first = model.codebook0_head(frames.states)[None]
    logits = torch.cat((first, model.audio_logits(frames.embeddings.transpose(0, 1)))).transpose(0, 1)
    return dict(zip(batch.slots[0].tolist(), logits, strict=True))


@torch.no_grad()
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_code_is_seen_by_those_after_it_in_the_layouts_order_alone(layout):
    model, turns = made_model(layout).eval(), made_turns(4, (4, 2))
    _, place_of = written_out(turns, layout)
    before = frame_logits(model, rows([[document(turns, layout)]], ROW))

    def order(number: int, t: int, k: int) -> tuple[int, int]:
        return number, (t + k if layout is CodeLayout.delay else t * K + k)

    for changed, position in place_of.items():
        if changed[1] == turns[changed[0]].codes.shape[1]:
            continue  # ends of speech stay
        batch = rows([[document(turns, layout)]], ROW)
        batch.tokens[0, position, changed[2]] = (batch.tokens[0, position, changed[2]] + 1) % CODEBOOK_SIZE
        after = frame_logits(model, batch)
        for seen in place_of:
            number, t, k = seen
            place = place_of[number, t, 0]
            difference = float((after[place][k] - before[place][k]).abs().max())
            if order(*seen) <= order(*changed):
                assert difference == 0, (changed, seen)
            else:
                assert difference > 1e-6, (changed, seen)


# ------------------------------------------------------------------------------------------------------- losses


def slow_losses(model: SingleStack, turns: list[TurnTokens], layout: CodeLayout) -> LossSums:
    """The losses of one conversation, code by code, from a single unpacked pass without a mask."""
    positions, place_of = written_out(turns, layout)
    table = model.audio_embeddings.weight
    embedded = []
    for present in positions:
        parts = [model.text_embeddings.weight[v] if c == K else table[c * V + v] for c, v in present.items()]
        embedded.append(torch.stack(parts).sum(0))
    states = model.backbone(torch.stack(embedded)[None], torch.arange(len(positions))[None])[0]
    losses, ends = [torch.zeros(()) for _ in range(K)], [torch.zeros(()) for _ in range(K)]
    correct, found, frames, top5, entropy = [0] * K, [0, 0], 0, 0, torch.zeros(())
    for number, turn in enumerate(turns):
        if not turn.loss:
            continue
        for t in range(turn.codes.shape[1] + 1):
            end = t == turn.codes.shape[1]
            hits = []
            for k in range(K):
                place = place_of[number, t, k]
                head = model.codebook0_head.weight.T if k == 0 else model.audio_head[k - 1]
                logp = (states[place - 1] @ head).log_softmax(0)
                code = positions[place][k]
                losses[k] = losses[k] - logp[code]
                ends[k] = ends[k] - logp[code] * end
                hits.append(int(logp.argmax()) == code)
                correct[k] += hits[-1]
                if k == 0:
                    top5 += code in logp.topk(5).indices.tolist()
                    entropy = entropy - (logp.exp() * logp).sum()
            frames += 1
            found[0] += end
            found[1] += end and all(hits)
    others, end_others = torch.stack(losses[1:]).mean(), torch.stack(ends[1:]).mean()
    numbers = (torch.tensor(value).float() for value in (correct, top5, frames, found))
    of_all, of_top5, count, of_ends = numbers
    end_losses = torch.stack((ends[0], end_others))
    return LossSums(losses[0], others, torch.stack(losses), of_all, of_top5, entropy, count, of_ends, end_losses)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_losses_and_gradients_of_packed_rows_are_those_of_a_loop_over_codes(layout):
    model, config = made_model(layout), LossConfig(c0_weight=0.7, decoder_weight=1.9, eos_weight=3.0)
    batch = packed(layout)
    found = forward_backward(model, batch, chunk=7, config=config, total_frames=11.0)
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    alone = [slow_losses(model, turns, layout) for turns in CONVERSATIONS]
    expected = LossSums(*(torch.stack(parts).sum(0) for parts in zip(*alone, strict=True)))
    for name in LossSums._fields:
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(getattr(forward(model, batch), name), getattr(found, name), rtol=1e-5, atol=1e-5)
    assert found.frames == 7 + 4 + 8 + 2 and found.eos[0] == 4
    expected.loss(config, 11.0).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_has_no_depth_decoder_and_its_operations_are_counted_without_one(layout):
    config = replace(tiny_config(), layout=layout)
    names = [name for name, _ in made_model(layout).named_parameters()]
    assert not [name for name in names if name.startswith(("decoder.", "projection."))]
    flops, width = training_flops(config, Work(100, 3000, 20, 20)), config.backbone.dim
    assert flops.decoder == flops.decoder_attention == flops.projection == 0
    assert flops.audio_head == 6 * (K - 1) * width * V * 20
    assert flops.backbone == training_flops(tiny_config(), Work(100, 3000, 20, 20)).backbone
