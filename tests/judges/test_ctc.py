"""CTC recognizers of letters and phonemes, loaded from small models of random weights in the published layout."""

import json

import pytest
import torch
from transformers import HubertConfig, HubertForCTC, Wav2Vec2FeatureExtractor

from csm.config import AsrKind
from csm.judges.ctc import CtcModel, CtcRecognizer
from csm.judges.hub import ModelUnavailable
from csm.judges.whisper import load_recognizer

SYMBOLS = ["<pad>", "<s>", "</s>", "<unk>", "|", "E", "T", "A"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("ctc")
    torch.manual_seed(0)
    config = HubertConfig(
        vocab_size=len(SYMBOLS),
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=3,
        intermediate_size=20,
        conv_dim=(8, 8),
        conv_stride=(20, 16),
        conv_kernel=(20, 16),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        pad_token_id=0,
    )
    HubertForCTC(config).save_pretrained(path)
    Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(path)
    (path / "vocab.json").write_text(json.dumps({symbol: number for number, symbol in enumerate(SYMBOLS)}))
    return path


def test_log_probabilities_are_those_of_the_model(folder):
    ctc = CtcModel(str(folder), "cpu")
    audio = torch.randn(4800, generator=torch.Generator().manual_seed(1))
    found = ctc.log_probs(audio, 16_000)
    normalized = (audio - audio.mean()) / (audio.var(unbiased=False) + 1e-7).sqrt()
    with torch.inference_mode():
        expected = HubertForCTC.from_pretrained(folder).eval()(normalized[None]).logits[0].log_softmax(-1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert ctc.log_probs(audio[:10], 16_000).shape == (0, len(SYMBOLS))
    assert ctc.vocabulary == SYMBOLS


def test_greedy_decoding_collapses_repetitions_and_drops_blanks(folder):
    ctc = CtcModel(str(folder), "cpu")
    frames = ["|", "T", "T", "<pad>", "T", "E", "<s>", "|", "|", "A", "<pad>", "<pad>", "A", "|"]
    scores = torch.full((len(frames), len(SYMBOLS)), -9.0)
    for row, symbol in zip(scores, frames, strict=True):
        row[SYMBOLS.index(symbol)] = 0.0
    assert ctc.greedy(scores) == ["|", "T", "T", "E", "|", "A", "A", "|"]


def test_recognizer_writes_words(folder):
    recognizer = load_recognizer(AsrKind.ctc, str(folder), "English", "cpu")
    audio = torch.randn(24_000, generator=torch.Generator().manual_seed(2))
    text = recognizer.transcribe(audio, 24_000)
    assert set(text) <= set("ETA ") and text == " ".join(text.split())
    assert recognizer.transcribe(audio[:5], 24_000) == ""
    assert recognizer.describe()["decoding"].startswith("greedy CTC")


def test_why_it_cannot_run(folder, tmp_path):
    with pytest.raises(ModelUnavailable, match="knows only English, not 'de'"):
        CtcRecognizer(None, "de", "cpu")
    with pytest.raises(ModelUnavailable, match=r"has no vocab\.json"):
        CtcModel(str(tmp_path), "cpu")
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "vocab.json").write_text('{"a": 0, "b": 2}')
    with pytest.raises(ModelUnavailable, match=r"vocab\.json does not number the model's 8 outputs"):
        CtcModel(str(tmp_path), "cpu")
