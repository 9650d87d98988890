# ruff: noqa: RUF001 phonetic symbols
"""The suites homograph and consistency, on speech whose variants are known."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC

from csm.audio import load_audio
from csm.codec.base import Codec
from csm.compose import EVALUATE
from csm.config import AsrKind, EvalConfig, EvaluateConfig, PhonemeKind, SpeakerKind
from csm.evaluation.pronunciation import pronounced, thresholds
from csm.evaluation.run import evaluate
from csm.evaluation.sets.items import Target
from csm.evaluation.stages import Take, sampling_seed
from csm.evaluation.store import StageLog
from csm.evaluation.suites import find_suite
from csm.evaluation.utterances import System
from csm.formats.open import open_checkpoint
from csm.inference.generator import Generator
from csm.inference.segments import GeneratedSegment
from csm.judges.hub import ModelUnavailable
from csm.judges.phonemes import Hama, load_phonemes

SPOKEN = Path(__file__).parent / "pronounced"
ESPEAK = ["<pad>", "<s>", "</s>", "<unk>", *"abdefhiklmnopstuvwzæðŋɐɔəɚɛɡɪɹɾʃʊʌ", "iː", "uː", "eɪ", "aʊ", "oʊ"]


def request(checkpoint: Path, output: Path, suite: str, **options) -> EvaluateConfig:
    settings = {
        "name": suite,
        "suite": suite,
        "max_prompts": 10,
        "max_audio_seconds": 0.24,
        "codec_levels": [],
        "asr": AsrKind.faster_whisper,
        "asr_model": "no-such-folder",
        "speaker_model_kind": SpeakerKind.wavlm_ecapa,
        "speaker_model": "no-such-folder",
        "phonemes": PhonemeKind.hama,
        "bootstrap_samples": 50,
    }
    return EvaluateConfig(checkpoint=str(checkpoint), output=str(output), eval=EvalConfig(**settings | options))


def report(cfg: EvaluateConfig) -> dict:
    return json.loads((evaluate(cfg) / "results.json").read_text())


@pytest.fixture(scope="module")
def wav2vec2(tmp_path_factory) -> Path:
    """A model of random weights in the layout of the published one."""
    path = tmp_path_factory.mktemp("wav2vec2")
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 20}
    layers = {"conv_dim": (8, 8), "conv_stride": (20, 16), "conv_kernel": (20, 16), "num_feat_extract_layers": 2}
    positions = {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
    config = Wav2Vec2Config(vocab_size=len(ESPEAK), pad_token_id=0, **sizes, **layers, **positions)
    Wav2Vec2ForCTC(config).save_pretrained(path)
    Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(path)
    (path / "vocab.json").write_text(json.dumps({symbol: number for number, symbol in enumerate(ESPEAK)}))
    return path


def test_homograph_suite_runs_to_its_report_with_the_published_recognizer(checkpoint, tmp_path, wav2vec2):
    cfg = request(checkpoint, tmp_path / "report", "homograph", phonemes=PhonemeKind.wav2vec2)
    cfg.eval.phoneme_model = str(wav2vec2)
    results = report(cfg)
    model = results["systems"]["model"]
    assert model["scored"] == 10 and model["metrics"]["pronounced"]["clusters"] == 5
    assert 0 <= model["metrics"]["pronounced_greedy"]["value"] <= 1
    scores = results["pronunciation"]["model"]
    assert {word: total for word, (_, total) in scores["forced"]["by_word"].items()} == dict.fromkeys(
        ["bass", "lead", "row", "tear", "wound"], 2
    )
    assert "no recording lead-metal-01.wav" in results["systems"]["ground_truth"]["metrics"]["pronounced"]["not_run"]
    assert results["protocol"]["judges"]["phonemes"]["model"] == str(wav2vec2)
    html = (tmp_path / "report/report.html").read_text()
    assert "By word, right of all" in html and "wound" in html
    assert "| in the expected variant, % |" in (tmp_path / "report/report.md").read_text()


def test_reason_stands_in_the_report_where_no_recognizer_is(checkpoint, tmp_path, hub_cache):
    cfg = request(checkpoint, tmp_path / "report", "homograph", max_prompts=2, phonemes=PhonemeKind.wav2vec2)
    results = report(cfg)
    reason = results["systems"]["model"]["metrics"]["pronounced"]["not_run"]
    assert reason.startswith("facebook/wav2vec2-lv-60-espeak-cv-ft is not a local directory, not in the hub's")
    assert results["protocol"]["judges"]["phonemes"] == {"not run": reason} and results["pronunciation"] is None


def test_hama_says_why_it_cannot_run(monkeypatch):
    monkeypatch.setitem(sys.modules, "hama.asr", None)
    with pytest.raises(ModelUnavailable, match="hama is not installed: pip install hama"):
        load_phonemes(PhonemeKind.hama, None, "cpu")


def test_hama_writes_what_it_hears():
    hama = Hama()
    audio = load_audio(SPOKEN / "bass-music-01.ogg", 24_000)
    log_probs = hama.log_probs(audio, 24_000)
    assert log_probs.shape[1] == len(hama.vocabulary) and set(hama.symbols) < set(hama.vocabulary)
    torch.testing.assert_close(log_probs.exp().sum(1), torch.ones(len(log_probs)), atol=1e-3, rtol=0)
    best = [hama.vocabulary[n] for n in torch.unique_consecutive(log_probs.argmax(1)) if n != hama.blank]
    heard = "".join(symbol for symbol in best if symbol in hama.symbols)
    assert "eɪsɪnəd͡ʒæs" in heard, heard  # "bass in a jazz"
    assert hama.log_probs(audio[:100], 24_000).shape == (0, len(hama.vocabulary))
    assert hama.spell("iːðɚ") == "iðɝ"


@pytest.fixture
def contexts(tmp_path) -> Path:
    """Contexts of two words, both variants of each. Hama does not hear "data" as it is said in one of them."""
    folder = tmp_path / "contexts"
    folder.mkdir()
    for path in SPOKEN.glob("*-01-*.ogg"):
        if path.name.startswith(("data", "either")) and "answer" not in path.name:
            shutil.copy(path, folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("follows", [True, False])
def test_consistency_tells_who_follows_the_context(checkpoint, tmp_path, contexts, monkeypatch, follows):
    cfg = request(checkpoint, tmp_path / "report", "consistency", data=str(contexts))
    prompts = find_suite("consistency").load(cfg.eval, open_codec(checkpoint), None).prompts
    by_seed = {sampling_seed(0, prompt): prompt for prompt in prompts}

    def result(generator, turn, request):
        prompt = by_seed[turn.seed]
        habit = prompt.id.removesuffix(prompt.target.variant) + next(iter(prompt.target.variants))
        said = prompt.id if follows else habit
        audio = load_audio(SPOKEN / f"{said}-answer.ogg", 24_000)
        return GeneratedSegment(0, turn.text, audio, torch.zeros(5, 1), "stop")

    monkeypatch.setattr(Generator, "result", result)
    results = report(cfg)
    assert "196 of 200 pairs have no recording of their context in eval.data." in results["notes"]
    found = results["pronunciation"]["model"]
    assert (found["items"], found["unconfirmed_contexts"]) == (3, 1)
    forced = found["forced"]
    assert forced["by_word"] == ({"data": [1, 1], "either": [2, 2]} if follows else {"data": [0, 1], "either": [1, 2]})
    assert forced["kappa"] == (1.0 if follows else 0.0)
    assert results["systems"]["model"]["metrics"]["pronounced"]["items"] == 3


def open_codec(checkpoint: Path) -> Codec:
    return open_checkpoint(str(checkpoint), None, None).read_codec("cpu")


def test_consistency_without_recordings_says_which_it_needs(tmp_path):
    for data in (None, str(tmp_path)):
        with pytest.raises(FileNotFoundError, match=r"set eval\.data to a folder with .* such as aunt-01-ant\.wav"):
            find_suite("consistency").load(EvalConfig("x", data=data), None, None)


def test_first_prompts_are_of_all_words_and_senses():
    prompts = find_suite("homograph").load(EvalConfig("x", max_prompts=10), None, None).prompts
    assert len({(p.target.word, p.target.variant) for p in prompts}) == 10 == len(prompts)
    for name, count in (("homograph", 200), ("consistency", 200)):
        options = EVALUATE.options(EVALUATE.compose([f"eval={name}", "checkpoint=runs/a"]))
        assert (options.eval.suite, options.eval.max_prompts) == (name, count)


def test_threshold_of_a_word_is_set_by_the_recordings_of_both_senses(tmp_path):
    prompts = find_suite("homograph").load(EvalConfig("x"), None, None).prompts
    takes = {p.id: Take(p, System.ground_truth, None, p.id) for p in prompts if p.id.endswith(("-01", "-02"))}
    (tmp_path / "rank0").mkdir()
    log = StageLog(tmp_path, "phonemes", 0)
    heard = {"lead-metal-01": 4.0, "lead-metal-02": 6.0, "lead-guide-01": 1.0, "bass-fish-01": 2.0}
    for name, advantage in heard.items():
        log.add(name, greedy=None, advantage=advantage)
    said = [takes[name] for name in heard]
    offsets = thresholds(said, log)
    assert offsets == {"lead": 2.5}  # of "bass" there is one sense only
    guide = pronounced(said[2], log, offsets)
    assert (guide.forced, guide.margin, guide.confirmed) == ("guide", 1.5, True)
    assert pronounced(said[2], log, {}).forced == "metal"
    model = replace(said[0], system=System.model)
    assert thresholds([model, said[2]], log) == {}  # of the model's speech the sense is not known
    assert Target("lead", "metal").variants.keys() == {"metal", "guide"}
