import json
import shutil
from pathlib import Path

import pytest
import torch

from csm.audio import load_audio, save_wav
from csm.codec import SpectralCodec
from csm.config import EvalConfig
from csm.data.dataset import ShardedDataset
from csm.evaluation.prompts import AudioSpan, EvalPrompt, dataset_prompts, file_prompts, fit_context
from csm.formats.load import load_generator
from csm.inference.generator import Generator, Segment


@pytest.fixture(scope="module")
def generator(checkpoint) -> Generator:
    return load_generator(checkpoint)


@pytest.fixture
def dataset(dataset_path) -> ShardedDataset:
    return ShardedDataset(dataset_path)


def settings(**options) -> EvalConfig:
    return EvalConfig(**{"name": "test", "split": "train", "max_prompts": 5, **options})


def test_prompts_are_the_last_turns_of_as_many_conversations_as_possible(dataset, generator):
    prompts = dataset_prompts(dataset, settings(), generator.codec, "model").prompts
    assert [prompt.id[-2:] for prompt in prompts] == ["/3", "/3", "/3", "/2", "/2"]
    assert len({prompt.cluster for prompt in prompts}) == 3


def test_prompt_holds_the_turn_its_context_and_its_recording(dataset, generator, speech):
    prompts = dataset_prompts(dataset, settings(speaker=0), generator.codec, "model").prompts
    prompt = next(p for p in prompts if p.cluster == "local/weasels" and p.id.endswith("/3"))
    turns = speech["weasels"]
    assert (prompt.text, prompt.speaker) == (turns[3].text, 0)
    assert [(s.speaker, s.text) for s in prompt.context] == [(t.speaker, t.text) for t in turns[:3]]
    assert torch.equal(prompt.reference.load(24_000), turns[3].audio)
    assert [torch.equal(span.load(24_000), turns[1].audio) for span in prompt.own_context] == [True]

    sample = next(s for s in map(dataset.read, range(len(dataset))) if s.recording == "local/weasels")
    last = sample.turns[3]
    assert (
        prompt.reference_codes.tolist()
        == sample.codes[:, last.start_frame : last.start_frame + last.num_frames].tolist()
    )
    joined = torch.cat([s.codes for s in prompt.context] + [prompt.reference_codes], dim=1)
    assert joined.tolist() == sample.codes.tolist()


def test_context_turns_limits_the_context_to_the_latest(dataset, generator):
    prompts = dataset_prompts(dataset, settings(context_turns=1), generator.codec, "model").prompts
    assert {len(prompt.context) for prompt in prompts} == {1}
    assert dataset_prompts(dataset, settings(context_turns=0), generator.codec, "model").prompts[0].context == []


def test_missing_recordings_leave_the_prompt_and_say_where_they_were_looked_for(dataset_path, generator, tmp_path):
    shutil.copytree(dataset_path, tmp_path / "moved")
    info = json.loads((tmp_path / "moved/dataset.json").read_text())
    info["audio_root"] = "nowhere"
    (tmp_path / "moved/dataset.json").write_text(json.dumps(info))
    prompts = dataset_prompts(ShardedDataset(tmp_path / "moved"), settings(), generator.codec, "model").prompts
    assert len(prompts) == 5
    assert all(p.reference is None and p.own_context == [] and p.reference_codes is not None for p in prompts)
    assert prompts[0].missing_reference.startswith("nowhere")


def test_another_codec_is_refused_in_one_clear_line(dataset, speech):
    other = SpectralCodec.fit([speech["echo"][1].audio], num_codebooks=5, codebook_size=11, seed=0)
    with pytest.raises(ValueError, match="different codecs") as error:
        dataset_prompts(dataset, settings(), other, "runs/other")
    message = str(error.value)
    assert "\n" not in message
    assert str(dataset.path) in message and "runs/other" in message and "codebook_size 23 against 11" in message


@pytest.mark.parametrize(
    ("options", "message"),
    [({"split": "test"}, "split 'test' holds no conversation"), ({"speaker": 9}, "is spoken by speaker 9")],
)
def test_nothing_to_evaluate_is_an_error(dataset, generator, options, message):
    with pytest.raises(ValueError, match=message):
        dataset_prompts(dataset, settings(**options), generator.codec, "model")


def test_file_prompts_carry_context_audio_and_ground_truth(generator, speech, tmp_path):
    turns = speech["echo"]
    for i, turn in enumerate(turns):
        save_wav(tmp_path / f"{i}.wav", turn.audio, 24_000)
    context = [{"speaker": t.speaker, "text": t.text, "audio": f"{i}.wav"} for i, t in enumerate(turns[:3])]
    full = {"id": "bye", "text": turns[3].text, "speaker": 0, "audio": "3.wav", "context": context, "cluster": "echo"}
    (tmp_path / "prompts.jsonl").write_text(json.dumps(full) + '\n\n{"id": "new", "text": "Hello.", "speaker": 1}\n')
    bye, new = file_prompts(tmp_path / "prompts.jsonl", generator.codec, max_prompts=9).prompts
    assert (bye.cluster, bye.speaker, [s.speaker for s in bye.context]) == ("echo", 0, [1, 0, 1])
    assert torch.equal(bye.context[1].audio, load_audio(tmp_path / "1.wav", 24_000))
    assert torch.equal(bye.reference.load(24_000), load_audio(tmp_path / "3.wav", 24_000))
    assert [span.path.name for span in bye.own_context] == ["1.wav"]
    assert (new.cluster, new.context, new.reference, new.reference_codes) == ("new", [], None, None)
    assert len(file_prompts(tmp_path / "prompts.jsonl", generator.codec, max_prompts=1).prompts) == 1


def test_prompts_of_other_editors_are_read(generator, tmp_path):
    """Lines end at line feeds alone (U+2028 may occur in a text); a byte order mark is accepted."""
    lines = [json.dumps({"id": i, "text": "One\u2028two.", "speaker": 0}, ensure_ascii=False) for i in range(2)]
    (tmp_path / "prompts.jsonl").write_bytes(b"\xef\xbb\xbf" + "\r\n".join([*lines, ""]).encode())
    prompts = file_prompts(tmp_path / "prompts.jsonl", generator.codec, max_prompts=9).prompts
    assert [(prompt.id, prompt.text) for prompt in prompts] == [("0", "One\u2028two."), ("1", "One\u2028two.")]


GOOD = '{"id": "a", "text": "Hello.", "speaker": 0}\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no prompts"),
        (GOOD + "{oops\n", "prompts.jsonl:2: not JSON"),
        (GOOD + "[1]\n", ":2: expected a JSON object"),
        (GOOD + '{"id": "b", "text": "Hi."}\n', ":2: lacks speaker"),
        (GOOD + '{"id": "b", "text": " ", "speaker": 0}\n', ":2: text must be a non-empty string"),
        (GOOD + '{"id": "b", "text": "Hi.", "speaker": "Anna"}\n', ":2: speaker must be an integer from 0, got 'Anna'"),
        (GOOD + '{"id": "b", "text": "Hi.", "speaker": 0, "voice": 1}\n', ":2: unknown field voice"),
        (GOOD + '{"id": "b", "text": "Hi.", "speaker": 0, "audio": "no.wav"}\n', "no.wav does not exist"),
        (GOOD + '{"id": "b", "text": "Hi.", "speaker": 0, "context": {}}\n', ":2: context must be a list"),
        (GOOD + '{"id": "b", "text": "Hi.", "speaker": 0, "context": [{"text": "x"}]}\n', ":2: context: lacks audio"),
        (GOOD + GOOD, ":2: id 'a' occurs twice"),
    ],
)
def test_bad_prompts_files_are_refused_by_line(generator, tmp_path, content, message):
    (tmp_path / "prompts.jsonl").write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        file_prompts(tmp_path / "prompts.jsonl", generator.codec, 9)
    assert "\n" not in str(error.value)


def test_missing_prompts_file(generator, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such prompts file"):
        file_prompts(tmp_path / "none.jsonl", generator.codec, 9)


def test_span_beyond_the_end_of_its_recording_is_refused(tmp_path):
    save_wav(tmp_path / "short.wav", torch.full((2_400,), 0.25), 24_000)
    with pytest.raises(ValueError, match=r"holds no audio at 3\.50 s"):
        AudioSpan(tmp_path / "short.wav", start=3.5, end=4.0).load(24_000)


def test_context_is_shortened_from_its_oldest_turn_until_the_model_accepts_it(dataset, generator):
    whole = dataset_prompts(dataset, settings(speaker=0), generator.codec, "model").prompts[0]
    assert len(whole.context) == 3
    assert fit_context(whole, generator, max_frames=20) == whole.context

    def turn(frames: int) -> Segment:
        return Segment(1, "well", codes=torch.ones(5, frames, dtype=torch.int64))

    text = len(generator.tokenizer.encode_turn("well", 1))
    free = generator.model.config.max_seq_len - 2 * text - 3  # two texts, two frames to speak, one end of speech
    largest = turn(free - 1)  # and one position the generator wants to spare
    prompt = EvalPrompt("id", "well", 1, "cluster", context=[turn(4), largest])
    assert fit_context(prompt, generator, max_frames=2) == [largest]
    assert generator.generate_segment("well", 1, [largest], max_audio_length_ms=160, seed=0).frames <= 2

    too_large = turn(free)
    assert fit_context(EvalPrompt("id", "well", 1, "cluster", context=[too_large]), generator, max_frames=2) == []
    with pytest.raises(ValueError, match="too long"):
        generator.generate_segment("well", 1, [too_large], max_audio_length_ms=160, seed=0)


def test_text_that_cannot_fit_names_the_option_to_change(dataset, generator):
    prompt = dataset_prompts(dataset, settings(), generator.codec, "model").prompts[0]
    with pytest.raises(ValueError, match=r"prompt .*lower eval.max_audio_seconds"):
        fit_context(prompt, generator, generator.model.config.max_seq_len)


def test_relative_audio_of_a_prompts_file_is_found_from_anywhere(generator, tmp_path, monkeypatch):
    save_wav(tmp_path / "a.wav", torch.full((4_800,), 0.25), 24_000)
    (tmp_path / "prompts.jsonl").write_text('{"id": "a", "text": "Hello.", "speaker": 0, "audio": "a.wav"}\n')
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    prompts = file_prompts(Path("../prompts.jsonl"), generator.codec, 9).prompts
    assert len(prompts[0].reference.load(24_000)) == 4_800
