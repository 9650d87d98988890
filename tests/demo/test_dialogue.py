"""Lines are spoken in their places with what was said before, for several visitors at once; files are whole."""

from __future__ import annotations

from dataclasses import replace

import pytest
import soundfile
import torch

from csm import Segment
from csm.audio import load_audio, save_wav
from csm.demo.dialogue import PAUSE_SECONDS, Dialogue
from csm.demo.stage import Stage
from csm.demo.voices import Recording, read_upload, read_voices
from csm.inference.voice import Voice as SavedVoice
from tests.inference.toys import toy_generator

SCRIPT = "one\n\n two \nthree"
LONGEST = 800  # ms


def spoken(dialogue: Dialogue, number: int, seed: int | None = 5) -> torch.Tensor:
    return torch.cat(list(dialogue.speak(number, seed=seed)))


@pytest.fixture
def stage() -> Stage:
    return Stage(toy_generator(slots=2))


def test_each_line_is_what_the_generator_says_after_those_before_it(stage):
    voices = [Segment(0, "a voice", torch.rand(9)), Segment(1, "another", torch.rand(7))]
    dialogue = Dialogue(stage, LONGEST)
    dialogue.write(SCRIPT, voices)
    assert [(line.speaker, line.text) for line in dialogue.lines] == [(0, "one"), (1, "two"), (0, "three")]
    context = list(voices)
    for number, line in enumerate(dialogue.lines):
        heard = spoken(dialogue, number)
        alone = stage.generator.generate_segment(line.text, line.speaker, context, LONGEST, seed=5 + number)
        assert torch.equal(line.codes, alone.codes) and torch.equal(heard, alone.audio)
        context.append(alone.segment)


def test_an_edited_line_is_spoken_again_with_the_lines_before_it_alone(stage):
    dialogue = Dialogue(stage, LONGEST)
    dialogue.write(SCRIPT)
    for number in range(3):
        spoken(dialogue, number)
    last = dialogue.lines[2].codes
    dialogue.edit(1, "otherwise")
    assert dialogue.lines[1].audio is None and "two" not in dialogue.transcript()
    spoken(dialogue, 1, seed=9)
    context = [Segment(0, "one", codes=dialogue.lines[0].codes)]
    alone = stage.generator.generate_segment("otherwise", 1, context, LONGEST, seed=10)
    assert torch.equal(dialogue.lines[1].codes, alone.codes) and dialogue.lines[2].codes is last
    spoken(dialogue, 2)  # with the new second line as context
    alone = stage.generator.generate_segment("three", 0, [*context, alone.segment], LONGEST, seed=7)
    assert torch.equal(dialogue.lines[2].codes, alone.codes)


def test_a_stopped_line_frees_its_slot_and_is_as_if_not_spoken(stage):
    dialogue = Dialogue(stage, LONGEST)
    dialogue.write(SCRIPT)
    first = spoken(dialogue, 0)
    for leave in ("stop", "close"):
        speaking = dialogue.speak(1, seed=5)
        next(speaking)
        with pytest.raises(ValueError, match="is being spoken"):
            dialogue.edit(0, "x")
        if leave == "stop":
            dialogue.stop()
            assert list(speaking) == []
        else:
            speaking.close()
        assert stage.generator.engine.slots == [None, None] and dialogue.lines[1].codes is None
    assert torch.equal(dialogue.audio(), first)
    context = [Segment(0, "one", codes=dialogue.lines[0].codes)]
    alone = stage.generator.generate_segment("two", 1, context, LONGEST, seed=6)
    assert torch.equal(spoken(dialogue, 1), alone.audio)


def test_visitors_do_not_hear_each_other(stage):
    alone = []
    for seed in (1, 2):
        dialogue = Dialogue(stage, LONGEST)
        dialogue.write("one\ntwo")
        alone.append(spoken(dialogue, 0, seed))
    visitors = [Dialogue(stage, LONGEST), Dialogue(stage, LONGEST)]
    for visitor in visitors:
        visitor.write("one\ntwo")
    streams = [visitor.speak(0, seed=seed) for visitor, seed in zip(visitors, (1, 2), strict=True)]
    heard: list[list[torch.Tensor]] = [[], []]
    for _ in range(20):  # in turn, as two threads would
        for stream, chunks in zip(streams, heard, strict=True):
            if (chunk := next(stream, None)) is not None:
                chunks.append(chunk)
    assert all(torch.equal(torch.cat(chunks), one) for chunks, one in zip(heard, alone, strict=True))


def test_a_refused_line_leaves_the_dialogue_usable(stage):
    dialogue = Dialogue(stage, LONGEST)
    for script in ("", " \n ", "x\n" * 51):
        with pytest.raises(ValueError, match="script"):
            dialogue.write(script)
    dialogue.write("one\ntwo")
    with pytest.raises(ValueError, match="temperature"):
        list(dialogue.speak(0, temperature=-1))
    assert len(spoken(dialogue, 0)) and stage.generator.engine.slots == [None, None]


def test_files_hold_the_dialogue_and_say_what_it_is(stage, tmp_path):
    dialogue = Dialogue(stage, LONGEST)
    assert dialogue.save(tmp_path) == []
    dialogue.write(SCRIPT)
    heard = [spoken(dialogue, number) for number in range(2)]
    audio, transcript = dialogue.save(tmp_path)
    pause = round(PAUSE_SECONDS * dialogue.sample_rate)
    assert len(load_audio(audio, dialogue.sample_rate)) == len(heard[0]) + pause + len(heard[1])
    head, empty, first, second = transcript.read_text().splitlines()
    assert "synthetic" in head and "no watermark" in head and empty == ""
    assert first.endswith("A: one") and second.endswith("B: two")
    assert float(second.split()[0]) == pytest.approx((len(heard[0]) + pause) / dialogue.sample_rate, abs=0.01)


def test_voices_come_from_files_with_their_text(tmp_path, stage):
    generator = stage.generator
    rate = generator.sample_rate
    save_wav(tmp_path / "anna.wav", torch.rand(16_000) - 0.5, 16_000)
    with pytest.raises(ValueError, match=r"anna.wav: lacks its text; write what is said in it into anna.txt"):
        read_voices(tmp_path, generator)
    (tmp_path / "anna.txt").write_text("Hello,\nworld.")
    voice = read_voices(tmp_path, generator)["anna"]
    assert isinstance(voice, Recording) and voice.text == "Hello, world." and len(voice.audio) == rate
    save_wav(tmp_path / "bert.wav", torch.zeros(31 * 8_000), 8_000)
    (tmp_path / "bert.txt").write_text("Silence.")
    with pytest.raises(ValueError, match=r"bert.wav: is longer than 30 s"):
        read_voices(tmp_path, generator)
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="holds no voices"):
        read_voices(tmp_path / "none", generator)


def test_voices_made_on_disk_are_spoken_with(tmp_path, stage):
    generator = stage.generator
    codes = [torch.randint(0, generator.codec.codebook_size, (generator.codec.num_codebooks, n)) for n in (5, 7)]
    made = SavedVoice("anna", ["One.", "Two."], codes, generator.codec.info)
    made.save(tmp_path / "anna.safetensors")
    turns = read_voices(tmp_path, generator)["anna"].segments(generator, 1)
    assert [(turn.speaker, turn.text) for turn in turns] == [(1, "One."), (1, "Two.")]
    assert all(torch.equal(turn.codes, code) for turn, code in zip(turns, codes, strict=True))

    save_wav(tmp_path / "anna.wav", torch.zeros(800), 8_000)
    with pytest.raises(ValueError, match=r"anna.wav: there is another voice anna in this folder"):
        read_voices(tmp_path, generator)
    (tmp_path / "anna.wav").unlink()
    replace(made, codes=[codes[0].repeat(1, 100), codes[1]]).save(tmp_path / "anna.safetensors")
    with pytest.raises(ValueError, match=r"anna.safetensors: is longer than 30 s; make it again with .* --seconds 30"):
        read_voices(tmp_path, generator)
    replace(made, codec=replace(made.codec, name="another")).save(tmp_path / "anna.safetensors")
    with pytest.raises(ValueError, match="voice anna and the model"):
        read_voices(tmp_path, generator)


@pytest.mark.parametrize(
    "samples, rate, message",
    [
        (torch.zeros(8_000, 6), 8_000, r"a.wav: it has 6 channels; give mono or stereo"),
        (torch.zeros(4_000, 1), 4_000, r"a.wav: its sample rate is 4000 Hz"),
        (torch.zeros(31 * 8_000, 1), 8_000, r"a.wav: it lasts 31 s; at most 30 s are taken"),
        (None, 0, r"a.wav: it is a playlist; give WAV"),
    ],
)
def test_recordings_of_visitors_have_the_limits_of_uploads(tmp_path, samples, rate, message):
    if samples is None:
        (tmp_path / "a.wav").write_bytes(b"#EXTM3U\n#EXTINF:10,\nfile:///etc/passwd\n")
    else:
        soundfile.write(tmp_path / "a.wav", samples.numpy(), rate)
    with pytest.raises(ValueError, match=message):
        read_upload(tmp_path / "a.wav", "Hello.", 24_000)


def test_a_visitor_s_recording_is_a_voice(tmp_path, stage):
    stereo = torch.stack([torch.linspace(-0.5, 0.5, 800), torch.zeros(800)], dim=1)
    soundfile.write(tmp_path / "a.wav", stereo.numpy(), 8_000, subtype="FLOAT")
    with pytest.raises(ValueError, match=r"a.wav: write what is said in the recording"):
        read_upload(tmp_path / "a.wav", " ", 8_000)
    (turn,) = read_upload(tmp_path / "a.wav", "Hello,\nworld.", 8_000).segments(stage.generator, 1)
    assert (turn.speaker, turn.text) == (1, "Hello, world.") and torch.equal(turn.audio, stereo[:, 0] / 2)
