"""Marks are found where they were put, streamed ones equal whole ones, and what becomes context carries none."""

from __future__ import annotations

import subprocess
import sys
import warnings
from dataclasses import replace
from types import SimpleNamespace

import pytest
import soundfile
import torch

from csm import Conversation, Segment
from csm.audio import load_audio, load_channels, resample
from csm.cli import main
from csm.codec import SpectralCodec
from csm.config import CodecConfig, CodecKind, TokenizerConfig, TokenizerKind
from csm.formats.native import write_native
from csm.formats.tensors import lazy
from csm.model.csm import CSM
from csm.text import load_tokenizer
from csm.watermark import UNMARKED, WatermarkUnavailable, choice, load_watermark, perth
from csm.watermark.streaming import OverlapStream
from tests.codec.conftest import make_babble
from tests.demo_speech import DEMO
from tests.inference.toys import toy_generator
from tests.tiny import tiny_config

TURN = {"max_audio_length_ms": 1600, "seed": 3}


@pytest.fixture(scope="module")
def speech() -> torch.Tensor:
    return load_audio(DEMO / "urgent.flac", 24_000)[: 4 * 24_000]


@pytest.fixture(scope="module")
def mark() -> perth.Perth:
    return perth.Perth()


class Shift:
    """A mark for tests: adds a tenth of the next sample, so it needs one sample of lookahead."""

    name = "shift"

    def embed(self, samples, rate):
        return samples + 0.1 * torch.cat([samples[1:], torch.zeros(1)]) if len(samples) else samples

    def stream(self, rate):
        return OverlapStream(lambda samples: self.embed(samples, rate), 0, 1)

    def detect(self, samples, rate):
        return 0.0


@pytest.mark.parametrize("rate", [8_000, 24_000, 44_100])
def test_the_mark_is_found_and_only_there(mark, speech, rate):
    audio = resample(speech, 24_000, rate)
    marked = mark.embed(audio, rate)
    assert marked.shape == audio.shape and marked.dtype == torch.float32
    assert mark.detect(audio, rate) < 0.5 < 0.9 < mark.detect(marked, rate)
    assert mark.detect(0.3 * marked[5_000:], rate) > 0.9


@pytest.mark.parametrize("chunks", [[1_920, 3_840, 7_680, 15_360], [2_003, 9_999], [50_000]])
def test_streamed_marks_equal_those_of_the_whole(mark, speech, chunks):
    stream, marked, start = mark.stream(24_000), [], 0
    while start < len(speech):
        size = chunks[min(len(marked), len(chunks) - 1)]
        marked.append(stream.push(speech[start : start + size]))
        start += size
        assert min(start, len(speech)) - sum(map(len, marked)) <= 0.23 * 24_000  # the delay that the docs state
    marked.append(stream.flush())
    torch.testing.assert_close(torch.cat(marked), mark.embed(speech, 24_000), rtol=0, atol=1e-5)


def test_long_audio_is_marked_in_pieces_as_at_once(mark, speech, monkeypatch):
    whole = mark.embed(speech, 24_000)
    monkeypatch.setattr(perth, "PIECE_SECONDS", 1)
    torch.testing.assert_close(mark.embed(speech, 24_000), whole, rtol=0, atol=1e-5)


def test_silence_and_snippets_stay_what_they_are(mark, speech):
    silence = torch.zeros(24_000)
    assert torch.equal(mark.embed(silence, 24_000), silence) and mark.detect(silence, 24_000) == 0
    assert mark.embed(torch.zeros(0), 24_000).shape == (0,) and mark.detect(torch.zeros(0), 24_000) == 0
    for length in (1, 700, 2_000):
        assert mark.embed(speech[3_000 : 3_000 + length], 24_000).isfinite().all()
        assert mark.embed(speech[3_000 : 3_000 + length], 24_000).shape == (length,)


def test_a_backend_is_chosen_by_name_or_taken_as_installed(monkeypatch):
    assert load_watermark("none") is UNMARKED
    assert load_watermark("auto").name == load_watermark("perth").name == "perth"
    assert load_watermark("required").name == "perth"
    with pytest.raises(ValueError, match="unknown watermark 'pert': choose auto, required, none, perth"):
        load_watermark("pert")
    for name, package in (("audioseal", "pip install audioseal"), ("silentcipher", "pip install git")):
        with pytest.raises(WatermarkUnavailable, match=package):
            load_watermark(name)


def test_without_a_backend_auto_warns_once_and_required_refuses(monkeypatch):
    monkeypatch.setattr(choice, "BACKENDS", {"audioseal": choice.BACKENDS["audioseal"]})
    choice._warn_once.cache_clear()
    with pytest.warns(UserWarning, match="speech leaves unmarked"):
        assert load_watermark("auto") is UNMARKED
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_watermark("auto") is UNMARKED
    with pytest.raises(WatermarkUnavailable, match=r"pip install 'csm-train\[watermark\]'"):
        load_watermark("required")


class Whole(Shift):
    """A mark of whole files."""

    name = "whole"

    def stream(self, rate):
        raise ValueError("whole cannot mark streams: choose perth")


class Weightless(Shift):
    def embed(self, samples, rate):
        raise WatermarkUnavailable("its weights do not load")


def test_auto_takes_the_first_backend_that_works(monkeypatch):
    monkeypatch.setattr(choice, "BACKENDS", {"weightless": Weightless, "whole": Whole, "shift": Shift})
    assert load_watermark("auto").name == "whole"
    assert load_watermark("auto", streams=True).name == "shift"
    with pytest.raises(ValueError, match="whole cannot mark streams"):
        load_watermark("whole", streams=True)
    monkeypatch.setattr(choice, "BACKENDS", {"weightless": Weightless, "whole": Whole})
    choice._warn_once.cache_clear()
    reasons = r"\(weightless: its weights do not load; whole: whole cannot mark streams: choose perth\)"
    with pytest.warns(UserWarning, match=f"no watermark backend works {reasons}, so speech leaves unmarked"):
        assert load_watermark("auto", streams=True) is UNMARKED
    with pytest.raises(WatermarkUnavailable, match=f"required and no backend works {reasons}"):
        load_watermark("required", streams=True)


def test_a_perth_that_does_not_import_is_passed_over_by_servers(monkeypatch):
    """Short commands, which do not try it, meet it when they mark."""
    monkeypatch.setattr(choice, "BACKENDS", {"perth": perth.Perth, "shift": Shift})
    monkeypatch.setattr(perth, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "perth", SimpleNamespace(PerthImplicitWatermarker=None))
    assert load_watermark("auto", streams=True).name == "shift"
    with pytest.raises(WatermarkUnavailable, match="shift does not find its own mark"):
        load_watermark("required")
    with pytest.raises(WatermarkUnavailable, match="Perth does not import"):
        load_watermark("auto").embed(torch.rand(24_000), 24_000)


@pytest.mark.filterwarnings("ignore:no watermark backend works")
def test_a_server_starts_without_a_mark_for_streams(monkeypatch, tmp_path):
    served = []
    monkeypatch.setattr(choice, "BACKENDS", {"whole": Whole})
    monkeypatch.setattr("csm.serving.server.run_server", lambda service, host, port: served.append(service))
    monkeypatch.setattr("sys.argv", ["csm", "serve", "model", "--data", str(tmp_path)])
    main()
    assert served[0].marking.name == "none"


def test_a_package_adds_its_backend_and_required_tries_it(monkeypatch):
    class Point:
        name = "shift"

        def load(self):
            return Shift

    monkeypatch.setattr(choice, "entry_points", lambda group: [Point()] if group == "csm.watermarks" else [])
    assert load_watermark("shift").name == "shift"
    monkeypatch.setattr(choice, "BACKENDS", {})
    assert load_watermark("auto").name == "shift"
    with pytest.raises(WatermarkUnavailable, match="shift does not find its own mark"):
        load_watermark("required")


@pytest.mark.slow
def test_what_is_heard_is_marked_and_what_becomes_context_is_not():
    plain, marked = toy_generator(), toy_generator(watermark=Shift())
    expected = Shift().embed(plain.generate("hello", 1, [], **TURN), 50)
    assert torch.equal(marked.generate("hello", 1, [], **TURN), expected)
    assert torch.equal(torch.cat(list(marked.stream("hello", 1, [], **TURN))), expected)
    turn, same = (generator.generate_segment("hello", 1, [], **TURN) for generator in (marked, plain))
    assert torch.equal(turn.audio, same.audio) and torch.equal(turn.codes, same.codes)

    conversations = [Conversation(generator, [Segment(0, "Hi.", torch.rand(9))]) for generator in (marked, plain)]
    with_mark, without = (torch.cat(list(one.stream("hello", 1, **TURN))) for one in conversations)
    assert torch.equal(with_mark, Shift().embed(without, 50))
    with_mark, without = (one.say("and so on", 0, **TURN) for one in conversations)
    assert torch.equal(with_mark.codes, without.codes) and torch.equal(with_mark.audio, without.audio)


def test_a_marked_stream_that_is_closed_frees_the_slot():
    generator = toy_generator(slots=1, watermark=Shift())
    stream = generator.stream("hello", 1, [], **TURN)
    next(stream)
    stream.close()
    assert stream.request.finished == "cancelled" and generator.engine.slots == [None]
    assert generator.streams.listeners == []


def test_files_are_marked_and_searched_on_the_command_line(mark, speech, tmp_path, monkeypatch, capsys):
    stereo = torch.stack([speech, 0.5 * speech.roll(999)], dim=1).numpy()
    soundfile.write(tmp_path / "plain.wav", stereo, 24_000)
    plain, marked = str(tmp_path / "plain.wav"), str(tmp_path / "marked.wav")
    monkeypatch.setattr("sys.argv", ["csm", "watermark", "embed", plain, marked])
    main()
    channels, rate = load_channels(marked)
    assert channels.shape == (2, len(speech)) and rate == 24_000
    monkeypatch.setattr("sys.argv", ["csm", "watermark", "detect", plain, marked])
    main()
    first, second, third = capsys.readouterr().out.splitlines()
    assert first == f"{marked}: 4.00 s, marked by perth"
    assert second.startswith(f"{plain}: 0.") and second.endswith("(no mark of perth)")
    assert third.startswith(f"{marked}: ") and third.endswith("(marked by perth)")


def test_speech_of_the_command_line_is_marked_unless_it_is_told_otherwise(mark, tmp_path, monkeypatch, capsys):
    torch.manual_seed(7)
    codec = SpectralCodec.fit([make_babble(48_000, seed=1)], num_codebooks=5, codebook_size=23)
    config = replace(tiny_config(), text_vocab_size=258, codebook_size=23, max_seq_len=512)
    (tmp_path / "export").mkdir()
    write_native(
        tmp_path / "export",
        weights=lazy(CSM(config).state_dict()),
        config=config,
        codec=CodecConfig(kind=CodecKind.spectral, num_codebooks=5, codebook_size=23),
        codec_info=codec.info,
        fitted_codec=codec,
        tokenizer=load_tokenizer(TokenizerConfig(kind=TokenizerKind.bytes, vocab_size=258)),
        training={"step": 0},
    )
    base = [
        "csm",
        "generate",
        str(tmp_path / "export"),
        "--text",
        "Hi.",
        "--seed",
        "3",
        "--max-audio-length-ms",
        "1600",
    ]
    spoken = {}
    for wanted, note in (("auto", "marked by perth"), ("none", "not marked")):
        out = tmp_path / f"{wanted}.wav"
        monkeypatch.setattr("sys.argv", [*base, "--watermark", wanted, "--out", str(out)])
        main()
        assert f"s, {note}" in capsys.readouterr().out
        spoken[wanted] = load_audio(out, 24_000)
    assert mark.detect(spoken["none"], 24_000) < 0.9 <= mark.detect(spoken["auto"], 24_000)
    rounded = (mark.embed(spoken["none"], 24_000) - spoken["auto"]).norm()  # files have 16 bits
    assert rounded < 0.02 * (spoken["auto"] - spoken["none"]).norm()


def test_mistakes_on_the_command_line_are_one_line(tmp_path, monkeypatch, capsys):
    for words, message in (
        (["detect", str(tmp_path / "no.wav")], "no.wav"),
        (["embed", str(DEMO / "urgent.flac"), str(tmp_path / "out.mp3")], "only WAV files are written"),
        (["detect", str(DEMO / "urgent.flac"), "--backend", "none"], "choose a backend"),
        (["embed", str(DEMO / "urgent.flac"), str(tmp_path / "out.wav"), "--backend", "none"], "puts no mark"),
    ):
        monkeypatch.setattr("sys.argv", ["csm", "watermark", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        error = capsys.readouterr().err
        assert ended.value.code == 2 and message in error and error.count("\n") == 1
        assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_perth_loads_where_setuptools_has_no_pkg_resources():
    script = """
import importlib.util, sys
import torch
from csm.watermark import perth

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name == "pkg_resources":
            raise ModuleNotFoundError(name)

found = importlib.util.find_spec
perth.find_spec = lambda name: None if name == "pkg_resources" else found(name)
sys.meta_path.insert(0, Hidden())
noise = 0.1 * torch.randn(24_000, generator=torch.Generator().manual_seed(0))
mark = perth.Perth()
assert mark.detect(mark.embed(noise, 24_000), 24_000) > 0.9
assert "pkg_resources" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)
