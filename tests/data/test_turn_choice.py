"""Choice of the turns that are predicted, and of those that are read without their text."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from csm.data.dataset import ShardedDataset
from csm.data.rows import only_last, sample_turns
from csm.text import ByteTokenizer
from tests.data.test_rows import train_steps

TOKENIZER = ByteTokenizer()


@pytest.fixture(scope="module")
def dataset(small_dataset):
    return ShardedDataset(small_dataset)


def turns_of(row) -> list[tuple[str, bool, bool]]:
    """(text with its tag, whether it is predicted, whether it is its document's last turn) of the turns of one row."""
    tokens, mask, targets, documents = row.tokens[0], row.mask[0], row.targets[0], row.documents[0]
    starts = torch.nonzero(mask[:, -1] & (tokens[:, -1] == TOKENIZER.bos_id)).flatten().tolist()
    ends = [*starts[1:], int((documents >= 0).sum())][: len(starts)]
    found = []
    for start, end in zip(starts, ends, strict=True):
        text = bytes(i for i in tokens[start:end, -1][mask[start:end, -1]].tolist() if i < 256).decode()
        frames = mask[start:end, 0]
        predicted = targets[start:end][frames]
        assert predicted.all() or not predicted.any()
        last = end == len(documents) or int(documents[end]) != int(documents[start])
        found.append((text, bool(predicted.all()), last))
    return found


def all_turns(dataset, **options) -> list[tuple[str, bool, bool]]:
    steps = train_steps(dataset, max_epochs=2, micro_batch_size=1, **options)
    return [turn for step in steps for row in step.microbatches for turn in turns_of(row)]


@pytest.mark.parametrize("context_dropout", [0.0, 0.5])
def test_last_is_the_last_turn_of_every_document(dataset, context_dropout):
    turns = all_turns(dataset, loss_turns="last", context_dropout=context_dropout)
    assert {(predicted, last) for _, predicted, last in turns} == {(True, True), (False, False)}


def test_a_speaker_is_the_stored_one_whatever_the_permutation(dataset):
    stored = {turn.text: turn.speaker for i in range(len(dataset)) for turn in dataset.read(i).turns}
    turns = all_turns(dataset, loss_turns="speaker:1", permute_speakers=True)
    assert len({text[1] for text, predicted, _ in turns if predicted}) == 2, "tags are permuted"
    for text, predicted, _ in turns:
        assert predicted == (stored[text.split("]", 1)[1]] == 1), text


def test_a_turn_that_is_context_in_the_dataset_is_never_predicted(dataset):
    sample = next(s for s in (dataset.read(i) for i in range(len(dataset))) if len(s.turns) == 4)
    sample.turns[-1].loss = False
    assert not any(turn.loss for turn in only_last(sample_turns(sample, TOKENIZER, 10_000)))


def test_dropped_text_leaves_the_tag_and_all_frames(dataset):
    """The unconditional prompt is the turn's with an empty text: BOS "[speaker]" EOS."""
    sample = dataset.read(0)
    whole = sample_turns(sample, TOKENIZER, 10_000)
    without = np.array([True, *[False] * (len(whole) - 1)])
    for limit in (10_000, sum(turn.num_positions for turn in whole) - 1):  # no turn more fits for the lack of a text
        expected = sample_turns(sample, TOKENIZER, limit)
        found = sample_turns(sample, TOKENIZER, limit, without_text=without)
        assert found[0].text == TOKENIZER.encode_turn("", sample.turns[0].speaker)
        assert bytes(found[0].text[1:-1]).decode() == f"[{sample.turns[0].speaker}]"
        assert [turn.text for turn in found[1:]] == [turn.text for turn in expected[1:]]
        assert all(torch.equal(a.codes, b.codes) for a, b in zip(found, expected, strict=True))


def test_text_is_dropped_as_often_as_asked_for_and_the_same_on_any_number_of_ranks(dataset):
    turns = all_turns(dataset, text_dropout=0.3)
    share = sum(text.endswith("]") for text, _, _ in turns) / len(turns)
    assert abs(share - 0.3) < 4 * (0.3 * 0.7 / len(turns)) ** 0.5, (share, len(turns))
    whole = train_steps(dataset, 3, micro_batch_size=4, text_dropout=0.3)[2].microbatches[0]
    parts = [train_steps(dataset, 3, rank, 2, micro_batch_size=2, text_dropout=0.3)[2] for rank in (0, 1)]
    assert torch.equal(whole.tokens, torch.cat([part.microbatches[0].tokens for part in parts]))


def test_hidden_frames_are_absent_from_the_input_and_predicted_all_the_same(dataset):
    whole = train_steps(dataset, 3, micro_batch_size=4)[2].microbatches[0]
    batch = train_steps(dataset, 3, micro_batch_size=4, frame_dropout=0.4)[2].microbatches[0]
    for name in ("tokens", "positions", "documents", "targets"):
        assert torch.equal(getattr(batch, name), getattr(whole, name)), name
    frames, ends = whole.mask[..., 0], whole.mask[..., 0] & (whole.tokens[..., :-1] == 0).all(-1)
    seen = batch.mask[..., :-1]
    assert torch.equal(seen.any(-1), seen.all(-1)), "a frame is hidden with all its codebooks"
    assert torch.equal(batch.mask[..., -1], whole.mask[..., -1]), "texts stay"
    assert seen[ends].all(), "ends stay"
    candidates = int((frames & ~ends).sum())
    share = 1 - int((seen[..., 0] & ~ends).sum()) / candidates
    assert abs(share - 0.4) < 4 * (0.4 * 0.6 / candidates) ** 0.5, (share, candidates)
    parts = [train_steps(dataset, 3, rank, 2, micro_batch_size=2, frame_dropout=0.4)[2] for rank in (0, 1)]
    assert torch.equal(batch.mask, torch.cat([part.microbatches[0].mask for part in parts]))


def test_documents_are_seen_with_their_first_codebooks_only(dataset):
    whole = train_steps(dataset, 3, micro_batch_size=4)[2].microbatches[0]
    batch = train_steps(dataset, 3, micro_batch_size=4, codebook_dropout=1.0)[2].microbatches[0]
    for name in ("tokens", "positions", "documents", "targets"):
        assert torch.equal(getattr(batch, name), getattr(whole, name)), name
    codebooks = batch.tokens.shape[-1] - 1
    frames, ends = whole.mask[..., 0], whole.mask[..., 0] & (whole.tokens[..., :-1] == 0).all(-1)
    counts = batch.mask[..., :-1].sum(-1)
    assert (counts[ends] == codebooks).all(), "ends stay whole"
    assert torch.equal(batch.mask[..., -1], whole.mask[..., -1]), "texts stay"
    speech, chosen = frames & ~ends, set()
    assert torch.equal(batch.mask[..., :-1][speech], torch.arange(codebooks) < counts[speech][:, None])
    for row in range(len(counts)):
        for document in range(int(batch.documents[row].max()) + 1):
            (count,) = counts[row][speech[row] & (batch.documents[row] == document)].unique().tolist()
            chosen.add(count)
    assert chosen <= set(range(1, codebooks)) and len(chosen) > 1, chosen


def small_model(dataset):
    from csm.config import CSMConfig, TransformerConfig
    from csm.model.csm import CSM

    torch.manual_seed(0)
    return CSM(
        CSMConfig(
            backbone=TransformerConfig(layers=2, dim=48, heads=6, kv_heads=3, ffn_dim=72),
            decoder=TransformerConfig(layers=1, dim=32, heads=4, kv_heads=2, ffn_dim=56),
            text_vocab_size=TOKENIZER.vocab_size,
            codebook_size=dataset.codec.codebook_size,
            num_codebooks=dataset.codec.num_codebooks,
        )
    )


def test_codes_are_read_with_noise_and_predicted_without(dataset):
    whole = train_steps(dataset, 3, micro_batch_size=4)[2].microbatches[0]
    batch = train_steps(dataset, 3, micro_batch_size=4, code_noise=0.25)[2].microbatches[0]
    for name in ("tokens", "mask", "positions", "documents", "targets", "slots"):
        assert torch.equal(getattr(batch, name), getattr(whole, name)), name
    assert whole.inputs is None and torch.equal(batch.inputs[..., -1], batch.tokens[..., -1]), "texts stay"
    codes, read = batch.tokens[..., :-1], batch.inputs[..., :-1]
    ends = batch.mask[..., 0] & (codes == 0).all(-1)
    assert torch.equal(read[ends], codes[ends]) and torch.equal(read[~batch.mask[..., 0]], codes[~batch.mask[..., 0]])
    size, speech = dataset.codec.codebook_size, batch.mask[..., 0] & ~ends
    assert int(read.min()) >= 0 and int(read.max()) < size
    expected, count = 0.25 * (1 - 1 / size), codes[speech].numel()  # a drawn code may be the one that was there
    share = float((read != codes)[speech].float().mean())
    assert abs(share - expected) < 4 * (expected * (1 - expected) / count) ** 0.5, (share, count)
    changed = (read != codes)[speech].float().mean(0)
    assert (changed > 0.1).all(), "every codebook has noise"
    parts = [train_steps(dataset, 3, rank, 2, micro_batch_size=2, code_noise=0.25)[2] for rank in (0, 1)]
    assert torch.equal(batch.inputs, torch.cat([part.microbatches[0].inputs for part in parts]))

    model = small_model(dataset)
    rest = (batch.positions, batch.targets, batch.slots, batch.slot_weights, batch.attention_mask())
    with torch.no_grad():
        sums = model(batch.tokens, batch.mask, *rest, batch.inputs)
        states = model.backbone_states(batch.inputs, batch.mask, batch.positions, batch.attention_mask())
        logits = model.codebook0_head(states[:, :-1])[batch.targets[:, 1:]]
        c0 = torch.nn.functional.cross_entropy(logits, codes[:, 1:, 0][batch.targets[:, 1:]], reduction="sum")
        rows = torch.arange(len(batch.slots))[:, None]
        frames = codes[rows, batch.slots].flatten(0, 1)
        depth = model.decoder_logits(states[rows, batch.slots - 1].flatten(0, 1), frames[:, :-1])  # [K-1, M, V]
        each = torch.nn.functional.cross_entropy(depth.permute(1, 2, 0), frames[:, 1:], reduction="none")
    torch.testing.assert_close(sums.c0, c0)
    torch.testing.assert_close(sums.decoder, (each.mean(1) * batch.slot_weights.flatten()).sum())


def test_predictions_do_not_depend_on_hidden_frames(dataset):
    """Other codes in a hidden frame change its own loss only."""
    batch = train_steps(dataset, 1, frame_dropout=0.5)[0].microbatches[0]
    model = small_model(dataset)
    hidden = batch.targets & ~batch.mask.any(-1)
    assert hidden.any()
    changed = batch.tokens.clone()
    changed[hidden] = 1
    with torch.no_grad():
        states, others = (
            model.backbone_states(tokens, batch.mask, batch.positions, batch.attention_mask())
            for tokens in (batch.tokens, changed)
        )
    assert torch.equal(states, others)
