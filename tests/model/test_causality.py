"""Dependencies of the predictions, by perturbation: the known bugs of this model family are shifts by one."""

from __future__ import annotations

import pytest
import torch

from tests.tiny import CODEBOOK_SIZE, K, conversation, rows, tiny_model


def backbone_logits(model, batch):
    states = model.backbone_states(batch.tokens, batch.mask, batch.positions, batch.attention_mask())
    return model.codebook0_head(states)[0]  # [S, V]; entry p-1 predicts position p


def test_changing_a_frame_changes_only_predictions_after_it():
    model = tiny_model().eval()
    batch = rows([[conversation(1)]])
    position = 7  # inside the first turn's audio
    assert bool(batch.mask[0, position, 0])
    before = backbone_logits(model, batch)
    for codebook in range(K):
        changed = rows([[conversation(1)]])
        changed.tokens[0, position, codebook] = (changed.tokens[0, position, codebook] + 1) % CODEBOOK_SIZE
        after = backbone_logits(model, changed)
        assert torch.equal(after[:position], before[:position])  # predictions of frames up to `position`
        # Every codebook of the frame is read by the position itself, which predicts the next frame.
        assert (after[position] - before[position]).abs().max() > 1e-3


def test_changing_text_changes_the_first_frame_of_its_turn():
    model = tiny_model().eval()
    before = backbone_logits(model, rows([[conversation(1)]]))
    changed = rows([[conversation(1)]])
    changed.tokens[0, 2, K] = (changed.tokens[0, 2, K] + 1) % 41
    after = backbone_logits(model, changed)
    assert torch.equal(after[:2], before[:2])
    assert (after[3] - before[3]).abs().max() > 1e-3  # the last text position (3) predicts the first frame


@pytest.mark.parametrize("changed", range(K))
def test_changing_a_code_changes_only_later_heads(changed):
    model = tiny_model().eval()
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(3, 48, generator=generator)
    codes = torch.randint(0, CODEBOOK_SIZE, (3, K), generator=generator)
    before = model.decoder_logits(states, codes[:, :-1])  # [K-1, M, V], entry i-1 predicts c_i
    codes[:, changed] = (codes[:, changed] + 1) % CODEBOOK_SIZE
    after = model.decoder_logits(states, codes[:, :-1])
    for head in range(1, K):
        if head <= changed:
            assert torch.equal(after[head - 1], before[head - 1])
        else:
            assert (after[head - 1] - before[head - 1]).abs().max() > 1e-4


def test_absent_entries_do_not_matter():
    """Zeros in masked columns are real ids; only the mask decides."""
    model = tiny_model().eval()
    batch, garbage = rows([[conversation(1)]]), rows([[conversation(1)]])
    garbage.tokens[~garbage.mask] = 3
    assert torch.equal(
        model.embed(batch.tokens, batch.mask)[batch.documents >= 0],
        model.embed(garbage.tokens, garbage.mask)[batch.documents >= 0],
    )


def test_embedding_equals_the_sum_written_out():
    model = tiny_model()
    batch = rows([[conversation(1)], [conversation(2)]])
    expected = model.text_embeddings(batch.tokens[..., K]) * batch.mask[..., K:]
    for codebook in range(K):
        ids = batch.tokens[..., codebook] + codebook * model.config.audio_vocab_size
        expected = expected + model.audio_embeddings(ids) * batch.mask[..., codebook : codebook + 1]
    torch.testing.assert_close(model.embed(batch.tokens, batch.mask), expected, atol=1e-6, rtol=1e-5)
