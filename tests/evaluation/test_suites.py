"""Published suites on small data sets of their layouts, and the experiments on context and speed."""

import json
import math
from pathlib import Path

import pytest
import soundfile
import torch

from csm.codec import SpectralCodec
from csm.compose import EVALUATE
from csm.config import AsrKind, EvalConfig, EvaluateConfig, SpeakerKind
from csm.data.dataset import ShardedDataset
from csm.evaluation.prompts import EvalPrompt, PromptSet
from csm.evaluation.run import evaluate
from csm.evaluation.seedtts import audio_for_similarity
from csm.evaluation.stages import recorded
from csm.evaluation.suites import SUITES, find_suite
from csm.evaluation.suites.suite import Published, comparable
from csm.formats.open import open_checkpoint
from csm.judges.sinc import sinc_resample

TONE = 0.3 * torch.sin(torch.arange(6_000) * 0.05)


@pytest.fixture(scope="module")
def codec(dataset_path) -> SpectralCodec:
    return SpectralCodec.load(ShardedDataset(dataset_path).codec_file)


def write_audio(path: Path, seconds: float = 0.5, rate: int = 16_000) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, TONE[: int(seconds * rate)].numpy(), rate)


def load(name: str, data: Path, codec: SpectralCodec, **options) -> PromptSet:
    settings = EvalConfig(**{"name": name, "suite": name, "data": str(data), "max_prompts": 100_000} | options)
    return find_suite(name).load(settings, codec, None)


def seedtts(folder: Path, language: str) -> None:
    for number in (1, 2):
        write_audio(folder / language / f"prompt-wavs/p{number}.wav", seconds=0.25 * number)
    write_audio(folder / language / "wavs/a.wav")
    lines = ["a|The prompt, said.|prompt-wavs/p1.wav|Fifty well-known words.|wavs/a.wav"]
    lines += ["b|The other prompt.|prompt-wavs/p2.wav|It's <b>fine</b>."]
    (folder / language / "meta.lst").write_text("\n".join(lines) + "\n")


def librispeech_pc(folder: Path) -> None:
    lines = []
    for reader in ("61", "121"):
        for number in (0, 1):
            write_audio(folder / f"test-clean/{reader}/70968/{reader}-70968-000{number}.flac")
        lines.append(f"{reader}-70968-0000\t0.375\tA prompt.\t{reader}-70968-0001\t0.375\tA sentence.")
    (folder / "librispeech_pc_test_clean_cross_sentence.lst").write_text("\n".join(lines) + "\n")


def longeval(folder: Path, name: str, speakers: int) -> None:
    files = [f"vctk/p{number}_023.wav" for number in range(speakers)]
    for file in files:
        write_audio(folder / "voices" / file)
        (folder / "voices" / file).with_suffix(".txt").write_text(f"Voice of {file}.\n")
    record = {"id": f"{name}_0", "turns": ["Hello: (you)", "I\u2019m here.", "Good."], "speaker_audios": files}
    (folder / "datasets").mkdir()
    (folder / f"datasets/{name}.jsonl").write_text(json.dumps(record | {"language": "en", "tags": ["daily"]}) + "\n")


def covomix2(folder: Path) -> None:
    entry = {"key": "0001", "text": "transcriptions/0001.txt"}
    for number in (1, 2):
        file = f"test-clean/{number}/1/{number}-1-0000.flac"
        write_audio(folder / "LibriSpeech" / file)
        entry |= {f"audio_prompt_spk{number}": file, f"audio_prompt_spk{number}_transcription": f"Speaker {number}."}
    (folder / "dailydialog-dialogue.json").write_text(json.dumps([entry]))
    (folder / "transcriptions").mkdir()
    (folder / "transcriptions/0001.txt").write_text("Good morning.\n\nMorning.\nHow are you?\n")


@pytest.mark.parametrize("language", ["en", "zh"])
def test_seedtts_prompts_have_the_voice_the_text_and_the_recording(tmp_path, codec, language):
    seedtts(tmp_path, language)
    found = load(f"seedtts_{language}", tmp_path, codec)
    first, second = found.prompts
    assert (first.id, first.text, first.speaker) == ("a", "Fifty well-known words.", 0)
    assert [(s.speaker, s.text, len(s.audio)) for s in first.context] == [(0, "The prompt, said.", 6_000)]
    assert first.own_context[0].path == tmp_path / language / "prompt-wavs/p1.wav"
    assert first.reference.path.name == "a.wav" and second.reference is None
    assert second.missing_reference == "the list names none" and first.cluster != second.cluster
    total = {"en": "1088", "zh": "2020"}[language]
    assert found.notes == [f"2 prompts, the published set has {total}: the numbers are not those of the benchmark."]
    assert len(found.origin["sha256"]) == 64


def test_similarity_hears_the_prompt_as_the_published_script_does(tmp_path, codec):
    """The first channel of the original file, resampled only by the encoder, not the mixture at the codec's rate."""
    seedtts(tmp_path, "en")
    samples = torch.stack([TONE, torch.zeros_like(TONE)], dim=1).numpy()
    path = tmp_path / "en/prompt-wavs/p1.wav"
    soundfile.write(path, samples, 22_050, "FLOAT")
    first, _ = load("seedtts_en", tmp_path, codec).prompts
    audio, rate = recorded(first.own_context, codec.sample_rate)
    assert rate == 22_050 and torch.equal(audio, TONE)
    assert torch.equal(sinc_resample(audio, rate, 16_000), audio_for_similarity(path, prompt=True))


def test_librispeech_pc_prompts_are_pairs_of_one_reader(tmp_path, codec):
    librispeech_pc(tmp_path)
    prompts = load("librispeech_pc", tmp_path, codec).prompts
    assert [prompt.cluster for prompt in prompts] == ["61", "121"]
    assert prompts[0].context[0].text == "A prompt." and prompts[0].text == "A sentence."
    assert prompts[0].reference.path.name == "61-70968-0001.flac"
    assert prompts[0].own_context[0].path.name == "61-70968-0000.flac"


def check_dialogue(prompts: list[EvalPrompt], texts: list[str]) -> None:
    """Whoever speaks is speaker 0 and comes first; the other prompt follows."""
    assert [prompt.text for prompt in prompts] == texts
    assert {prompt.speaker for prompt in prompts} == {0} and len({prompt.cluster for prompt in prompts}) == 1
    assert [[segment.speaker for segment in prompt.context] for prompt in prompts] == [[0, 1]] * len(texts)
    own = [prompt.own_context[0].path for prompt in prompts]
    assert own[0] == own[2] != own[1] and prompts[0].other_context[0].path == own[1]
    assert prompts[0].context[0].text == prompts[1].context[1].text != prompts[1].context[0].text
    assert [prompt.turn for prompt in prompts] == [0, 1, 2]


def test_longeval_dialogues_alternate_between_the_two_voices(tmp_path, codec):
    longeval(tmp_path, "synth_dialogs_en", 2)
    check_dialogue(load("longeval_dialogs", tmp_path, codec).prompts, ["Hello you", "I'm here.", "Good."])


def test_longeval_monologues_have_one_voice(tmp_path, codec):
    longeval(tmp_path, "ntrex_eng", 1)
    found = load("longeval_monologs", tmp_path, codec)
    assert [len(prompt.context) for prompt in found.prompts] == [1, 1, 1]
    assert found.notes == ["1 documents, the published set has 123."]


def test_covomix2_dialogues_alternate_whatever_blank_lines_there_are(tmp_path, codec):
    covomix2(tmp_path)
    check_dialogue(load("covomix2_dialogue", tmp_path, codec).prompts, ["Good morning.", "Morning.", "How are you?"])


@pytest.mark.parametrize(
    ("name", "make", "file", "line", "message"),
    [
        ("seedtts_en", lambda f: seedtts(f, "en"), "en/meta.lst", "c|only|three", "meta.lst:1: has 3 fields"),
        ("seedtts_en", lambda f: seedtts(f, "en"), "en/meta.lst", "c|t|no.wav|text", "meta.lst:1: audio file .*no.wav"),
        ("librispeech_pc", librispeech_pc, "librispeech_pc_test_clean_cross_sentence.lst", "a\tb", "has 2 columns"),
        (
            "longeval_dialogs",
            lambda f: longeval(f, "synth_dialogs_en", 2),
            "datasets/synth_dialogs_en.jsonl",
            '{"id": "a", "turns": ["b"], "speaker_audios": ["missing.wav"]}',
            "jsonl:1: .*missing.txt, the text of the voice, does not exist",
        ),
        ("covomix2_dialogue", covomix2, "dailydialog-dialogue.json", '[{"key": 7}]', "dialogue 7: lacks text, audio_"),
    ],
)
def test_data_of_another_layout_is_named_by_file_and_line(tmp_path, codec, name, make, file, line, message):
    make(tmp_path)
    (tmp_path / file).write_text(line)
    with pytest.raises(ValueError, match=message):
        load(name, tmp_path, codec)


@pytest.mark.parametrize("name", [name for name, suite in SUITES.items() if suite.source])
def test_published_suite_says_where_its_data_is_to_be_had(tmp_path, codec, name):
    suite = SUITES[name]
    assert suite.licence and suite.checksum and suite.scoring
    for data in (None, str(tmp_path)):
        with pytest.raises(FileNotFoundError, match=r"set eval\.data to a folder with") as error:
            suite.load(EvalConfig(name, data=data), codec, None)
        assert suite.source in str(error.value)
    options = EVALUATE.options(EVALUATE.compose([f"eval={name}", "checkpoint=runs/a"]))
    assert (options.eval.suite, options.eval.max_prompts) == (name, 100_000)


def test_published_rows_are_comparable_only_with_their_judges():
    suite, row = SUITES["seedtts_en"], Published("Human", {}, "a table")
    right = ["Whisper large-v3 (transformers, float32, greedy)", "WavLM-large + ECAPA-TDNN"]
    assert comparable(suite, row, right) == "yes"
    assert comparable(suite, row, ["Whisper tiny.en", "resemblyzer"]).startswith("no: needs Whisper large-v3")
    assert comparable(suite, Published("X", {}, "a table", "another subset"), right) == "no: another subset"


def request(checkpoint: Path, output: Path, suite: str, **options) -> EvaluateConfig:
    settings = {
        "name": suite,
        "suite": suite,
        "split": "train",
        "max_audio_seconds": 0.4,
        "codec_levels": [],
        "asr": AsrKind.faster_whisper,
        "asr_model": "no-such-folder",
        "speaker_model_kind": SpeakerKind.wavlm_ecapa,
        "speaker_model": "no-such-folder",
        "bootstrap_samples": 50,
    }
    return EvaluateConfig(checkpoint=str(checkpoint), output=str(output), eval=EvalConfig(**settings | options))


def test_context_suite_speaks_the_same_turns_under_every_condition(checkpoint, dataset_path, codec):
    settings = request(checkpoint, Path("out"), "context", max_prompts=2, context_turns=3).eval
    prompts = find_suite("context").load(settings, codec, open_checkpoint(str(checkpoint), None, None)).prompts
    conditions = ["0 turns", "1 turns", "3 turns", "3 turns of another conversation"]
    assert [prompt.condition for prompt in prompts] == [name for name in conditions for _ in range(2)]
    assert [len(prompt.context) for prompt in prompts] == [0, 0, 1, 1, 3, 3, 3, 3]
    assert len({prompt.id for prompt in prompts}) == 8
    whole, other = prompts[4:6], prompts[6:8]
    assert other[0].context == whole[1].context and other[1].context == whole[0].context
    assert prompts[2].context == whole[0].context[2:]  # the latest turn
    assert {tuple(prompt.own_context) for prompt in prompts[::2]} == {tuple(whole[0].own_context)}
    settings.context_turns = 9
    with pytest.raises(ValueError, match=r"change eval\.speaker, eval\.split or eval\.context_turns"):
        find_suite("context").load(settings, codec, open_checkpoint(str(checkpoint), None, None))


@pytest.mark.slow
def test_suites_without_data_of_their_own_reach_their_reports(checkpoint, tmp_path, hub_cache):
    folder = evaluate(request(checkpoint, tmp_path / "context", "context", max_prompts=2, context_turns=2))
    results = json.loads((folder / "results.json").read_text())
    assert results["systems"]["model/2 turns of another conversation"]["scored"] == 2
    # Nothing was judged but length and failures; the same turns are compared under each condition.
    against = {(row["metric"], row["condition"]): row["difference"] for row in results["contrasts"]}
    assert against["failed", "2 turns of another conversation"]["items"] == 2
    assert {metric for metric, _ in against} == {"failed"}  # an untrained model does not end: no speed
    assert "Model, 1 turns" in (folder / "report.html").read_text()
    folder = evaluate(request(checkpoint, tmp_path / "speed", "speed", max_prompts=2))
    timings = json.loads((folder / "results.json").read_text())["timings"]
    assert timings["one_turn_at_a_time"]["rtf"] > 0 and timings["frame_ms"]["p50"] <= timings["frame_ms"]["p95"]
    assert 0 < timings["first_audio_ms"]["p50"] < math.inf


@pytest.mark.slow
def test_published_suite_runs_to_its_report_and_says_what_it_could_not_measure(checkpoint, tmp_path, hub_cache):
    seedtts(tmp_path / "data", "en")
    folder = evaluate(request(checkpoint, tmp_path / "report", "seedtts_en", data=str(tmp_path / "data")))
    results = json.loads((folder / "results.json").read_text())
    metrics = results["systems"]["model"]["metrics"]
    assert metrics["cosine_earlier"]["not_run"].startswith("no-such-folder")
    assert metrics["wer_seedtts"]["not_run"].startswith("no-such-folder is not a CTranslate2")
    assert {row["comparable"][:9] for row in results["published"]} == {"no: needs"}
    html = (folder / "report.html").read_text()
    assert "Seed-TTS" in html and "Comparable?" in html and "<b>fine</b>" not in html
