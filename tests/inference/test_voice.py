"""Voices: kept as codes, chosen among candidates, pinned whatever is dropped, refused by another codec."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from csm import cli
from csm.inference.conversation import Conversation
from csm.inference.segments import Segment
from csm.inference.voice import Voice, make_voice
from tests.inference.toys import ToyCodec, toy_generator
from tests.tiny import CODEBOOK_SIZE, K


def toy_voice(seed: int = 3) -> Voice:
    generator = torch.Generator().manual_seed(seed)
    codes = [torch.randint(1, CODEBOOK_SIZE, (K, length), generator=generator) for length in (5, 4)]
    return Voice("anna", ["Good day.", "Été 日本"], codes, ToyCodec.info)


class Direction:
    """An embedder whose voices are the first two samples of a recording; None for an empty one."""

    name = "direction"

    def embed(self, audio, sample_rate):
        return torch.nn.functional.normalize(audio[:2], dim=0) if len(audio) else None


def test_a_voice_is_saved_and_loaded_and_speaks_as_its_turns_do(tmp_path):
    generator, voice = toy_generator(), toy_voice()
    voice.save(tmp_path / "voices" / "anna.safetensors")
    loaded = Voice.load(tmp_path / "voices" / "anna.safetensors")
    assert (loaded.name, loaded.texts, loaded.codec) == (voice.name, voice.texts, voice.codec)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(loaded.codes, voice.codes, strict=True))
    assert loaded.seconds == 9 / 12.5
    by_hand = [Segment(1, text, codes=codes) for text, codes in zip(voice.texts, voice.codes, strict=True)]
    options = {"max_audio_length_ms": 800, "seed": 1, "topk": 5}
    said = generator.generate_segment("hello", 1, loaded.segments(generator, 1), **options)
    assert torch.equal(said.codes, generator.generate_segment("hello", 1, by_hand, **options).codes)


@pytest.mark.slow
def test_a_voice_stays_in_a_conversation_whose_turns_are_dropped():
    generator, voice = toy_generator(), toy_voice()
    options = {"max_audio_length_ms": 800, "topk": 5}
    conversation = Conversation(generator, voice.segments(generator, 0), **options)
    turns: list[Segment] = []
    for number in range(12):
        said = conversation.say(f"turn {number}", 0, seed=number)
        kept = len(conversation.turns) - 1 - len(voice.texts)
        context = [*voice.segments(generator, 0), *turns[len(turns) - kept :]]
        expected = generator.generate_segment(f"turn {number}", 0, context, seed=number, **options)
        assert torch.equal(said.codes, expected.codes)
        turns.append(said.segment)
    assert kept < 11 and [turn.pinned for turn in conversation.turns[:3]] == [True, True, False]


def test_candidates_are_chosen_by_their_likeness_to_the_others():
    """Three candidates of one voice, one of another, one without speech; 2.5 of the 5 seconds are taken."""
    turns = [
        Segment(0, name, torch.tensor([x, y, *[0.0] * (length - 2)]))
        for name, x, y, length in [
            ("odd", -1.0, 0.3, 50),
            ("a", 1.0, 0.1, 50),
            ("b", 1.0, 0.0, 60),
            ("c", 1.0, 0.2, 50),
        ]
    ]
    turns.insert(1, Segment(0, "none", torch.zeros(0)))
    codec = ToyCodec()  # 50 samples a second
    assert make_voice("v", turns, codec, 2.5, Direction()).texts == ["a", "c"]  # in the order in which they were given
    assert make_voice("v", turns, codec, 2.5).texts == ["odd", "none", "a"]
    assert make_voice("v", turns, codec, 0.1, Direction()).texts == ["c"]  # one turn at least
    with pytest.raises(ValueError, match="no turn holds enough speech"):
        make_voice("v", turns[1:2], codec, 2.5, Direction())
    with pytest.raises(ValueError, match="several speakers"):
        make_voice("v", [turns[0], replace(turns[2], speaker=1)], codec)
    with pytest.raises(ValueError, match="no turns"):
        make_voice("v", [], codec)


def test_another_codec_and_damaged_files_are_refused(tmp_path):
    generator, voice = toy_generator(), toy_voice()
    other = replace(voice, codec=replace(voice.codec, weights_hash="1"))
    with pytest.raises(ValueError, match="voice anna and the model: made with different codecs"):
        other.segments(generator, 0)
    with pytest.raises(FileNotFoundError, match="csm voice make"):
        Voice.load(tmp_path / "none.safetensors")
    voice.save(tmp_path / "v.safetensors")
    whole = (tmp_path / "v.safetensors").read_bytes()
    for content in (whole[: len(whole) // 2], b"", whole.replace(b"csm_voice", b"csm_vOice")):
        (tmp_path / "v.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match=r"v.safetensors: cannot be read as a voice"):
            Voice.load(tmp_path / "v.safetensors")


@pytest.mark.slow
def test_from_recordings_to_speech_on_the_command_line(tiny_overrides, tmp_path, monkeypatch, capsys):
    from csm.training.build import train
    from tests.conftest import ROOT, compose_train

    train(compose_train([*tiny_overrides, "trainer.max_steps=1"]))
    model, demo = str(tmp_path / "run" / "export"), ROOT / "data_prep" / "demo"
    lines = [
        f'{{"speaker": 0, "text": "{name}", "audio": "{demo / name}.flac"}}' for name in ("echo", "urgent", "welcome")
    ]
    (tmp_path / "turns.jsonl").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)

    def csm(*words: str) -> str:
        capsys.readouterr()
        arguments = cli.build_parser().parse_args(words)
        arguments.run(arguments)
        return capsys.readouterr().out

    made = csm("voice", "make", "anna", "--model", model, "--turns", "turns.jsonl", "--choose-by", "resemblyzer")
    assert made.startswith("voices/anna.safetensors: ") and made.strip().endswith("of 3 given")
    assert csm("voice", "list").startswith("voices/anna.safetensors: ")
    words = [model, "--voice", "anna", "--text", "Hello.", "--max-audio-length-ms", "400", "--watermark", "none"]
    for seed in range(9):
        try:
            csm("generate", *words, "--seed", str(seed))
            break
        except ValueError as error:
            assert "before saying anything" in str(error)
    assert (tmp_path / "out.wav").stat().st_size > 1000
