"""The arithmetic of seed-tts-eval on a fixture that was computed by hand from the protocol."""

from fractions import Fraction

import numpy as np
import pytest
import soundfile
import torch
import torchaudio

from csm.evaluation.seedtts import (
    RATE,
    audio_for_recognition,
    audio_for_similarity,
    error_table,
    item_errors,
    outputs,
    read_items,
    similarity_table,
)
from csm.judges.sinc import sinc_resample

# (text, transcript, WER, substitutions, deletions, insertions), each as the script counts it
ENGLISH = [
    # hyphens vanish without a space, on both sides or on one
    ("A well-known fact.", "A wellknown fact", 0, 0, 0, 0),
    ("A well-known fact.", "a well known fact", Fraction(2, 3), Fraction(1, 3), 0, Fraction(1, 3)),
    # digits stay digits
    ("It costs fifty dollars.", "It costs $50.", Fraction(2, 4), Fraction(1, 4), Fraction(1, 4), 0),
    # the apostrophe of the keyboard stays, the typographic one goes
    ("Don't stop", "don't stop!", 0, 0, 0, 0),
    ("Don't stop", "Don\u2019t stop", Fraction(1, 2), Fraction(1, 2), 0, 0),
    # an empty output, and one of punctuation only: every word is deleted
    ("Nothing was said here", "", 1, 0, 1, 0),
    ("Nothing was said here", " ... ", 1, 0, 1, 0),
    # above 100 %, which stays
    ("Hello", "oh hello there my old friend", 5, 0, 0, 5),
    # a dash between blanks leaves two, of which one pass makes one
    ("yes \u2014 no", "yes no", 0, 0, 0, 0),
    # two dashes leave three, of which one pass makes two: the rates of kinds count an empty word, the WER does not
    ("yes - - no", "yes", Fraction(1, 2), 0, Fraction(1, 3), 0),
    # case goes, spelling stays
    ("The COLOUR grey", "the color gray", Fraction(2, 3), Fraction(2, 3), 0, 0),
]
CHINESE = [
    ("今天，天气很好。", "今天天气很好", 0, 0, 0, 0),  # noqa: RUF001
    ("今天天气很好", "今天天汽好", Fraction(2, 6), Fraction(1, 6), Fraction(1, 6), 0),
    ("你好", "", 1, 0, 1, 0),
    ("OK吗", "ok吗", Fraction(2, 3), Fraction(2, 3), 0, 0),  # case stays
    # a blank becomes three blanks, which count as empty words in the rates of kinds alone: "好 # # 的" of four
    ("好 的", "好", Fraction(1, 2), 0, Fraction(1, 4), 0),
]


@pytest.mark.parametrize(("language", "fixture"), [("en", ENGLISH), ("zh", CHINESE)])
def test_equals_the_protocol(language, fixture):
    found = [item_errors(text, transcript, language) for text, transcript, *_ in fixture]
    for row, one in zip(fixture, found, strict=True):
        assert (one.wer, one.substitutions, one.deletions, one.insertions) == pytest.approx(
            [float(value) for value in row[2:]], abs=1e-9
        ), row
    table = error_table(found)
    columns = [[Fraction(row[column]) for row in fixture] for column in (2, 3, 4, 5)]
    means = [float(100 * sum(column) / len(fixture)) for column in columns]
    assert [table.wer, table.substitutions, table.deletions, table.insertions] == pytest.approx(means, abs=1e-9)
    kept = [rate for rate in columns[0] if rate <= Fraction(1, 2)]  # exactly 50 % is kept
    assert table.below_50 == pytest.approx(float(100 * sum(kept) / len(kept)), abs=1e-9)
    assert (table.above_50_items, table.items) == (len(fixture) - len(kept), len(fixture))


def test_similarity_is_a_plain_mean():
    table = similarity_table([0.5, -0.1, None, 0.9])  # an output without a voice counts
    assert table.sim == pytest.approx(1.3 / 4, abs=1e-9)
    assert table.variance == pytest.approx((0.25 + 0.01 + 0.81) / 4 - (1.3 / 4) ** 2, abs=1e-9)
    assert (table.items, table.without_voice) == (4, 1)
    for empty in (similarity_table, error_table):
        with pytest.raises(ValueError, match="no items to average"):
            empty([])


def test_texts_without_a_word_have_no_rate():
    with pytest.raises(ValueError, match=r"text '\?!' has no word"):
        item_errors("?!", "what", "en")


@pytest.fixture
def published(tmp_path):
    """A data set in the published layout: en/meta.lst beside en/prompt-wavs, stereo and at another rate."""
    (tmp_path / "en" / "prompt-wavs").mkdir(parents=True)
    rng = np.random.default_rng(0)
    left, right = rng.normal(0, 0.1, (2, 24_000))
    soundfile.write(tmp_path / "en/prompt-wavs/p1.wav", np.stack([left, right], axis=1), 24_000, "FLOAT")
    lines = ["a-1|We asked.|prompt-wavs/p1.wav|Hello there.", "b-2|We asked.|prompt-wavs/p1.wav|Bye.|wavs/b-2.wav"]
    (tmp_path / "en/meta.lst").write_text("\n".join(lines) + "\n")
    return tmp_path / "en", left.astype(np.float32)


def test_reads_the_published_layout_and_nothing_is_missing(published, tmp_path):
    folder, left = published
    items = read_items(folder / "meta.lst")
    assert [(item.utterance, item.text) for item in items] == [("a-1", "Hello there."), ("b-2", "Bye.")]
    # of a stereo prompt, the first channel
    expected = sinc_resample(torch.from_numpy(left), 24_000, RATE)
    assert torch.equal(audio_for_similarity(items[0].prompt_audio, prompt=True), expected)

    soundfile.write(tmp_path / "a-1.wav", np.zeros(100), 24_000)
    with pytest.raises(ValueError, match=r"lacks 1 of 2 outputs, e\.g\. b-2\.wav"):
        outputs(items, tmp_path)
    soundfile.write(tmp_path / "b-2.wav", np.zeros((100, 2)), 24_000)
    mono, stereo = outputs(items, tmp_path)
    assert len(audio_for_similarity(mono)) == 67  # ceil(100 * 2 / 3)
    for read in (audio_for_recognition, audio_for_similarity):
        with pytest.raises(ValueError, match=r"b-2\.wav: has 2 channels; seed-tts-eval is defined for mono"):
            read(stereo)
        soundfile.write(tmp_path / "empty.wav", np.zeros(0), 24_000)
        assert len(read(tmp_path / "empty.wav")) == 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a|b|prompt-wavs/p1.wav", r"meta\.lst:1: has 3 fields"),
        ("a|b|prompt-wavs/no.wav|Hi.", r"meta\.lst:1: audio file .*no\.wav does not exist"),
        ("a|b|prompt-wavs/p1.wav|...", r"meta\.lst:1: its text '\.\.\.' has no word"),
        ("a|b|prompt-wavs/p1.wav|Hi.\na|b|prompt-wavs/p1.wav|Ho.", r"meta\.lst:2: utterance 'a' occurs twice"),
        ("", "holds no items"),
    ],
)
def test_bad_lists_are_refused(published, line, message):
    folder, _ = published
    (folder / "meta.lst").write_text(line)
    with pytest.raises(ValueError, match=message):
        read_items(folder / "meta.lst")


def test_recognition_hears_thirty_seconds_resampled_in_the_frequency_domain(tmp_path):
    tone = np.sin(2 * np.pi * 440 * np.arange(24_001) / 24_000).astype(np.float32)
    soundfile.write(tmp_path / "tone.wav", tone, 24_000, "FLOAT")
    spectrum = np.fft.rfft(tone.astype(np.float64))[: 16_000 // 2 + 1]  # 16000 of 24001 samples: int(), not round()
    spectrum[-1] = spectrum[-1].real * 2
    expected = np.fft.irfft(spectrum, 16_000) * 16_000 / 24_001
    np.testing.assert_allclose(audio_for_recognition(tmp_path / "tone.wav").numpy(), expected, atol=1e-6)
    soundfile.write(tmp_path / "long.wav", np.zeros(31 * RATE), RATE)
    assert len(audio_for_recognition(tmp_path / "long.wav")) == 30 * RATE


@pytest.mark.parametrize("old", [8_000, 16_000, 22_050, 24_000, 44_100, 48_000])
def test_sinc_resampling_is_torchaudios(old):
    audio = torch.randn(old // 3 + 7, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        sinc_resample(audio, old, RATE), torchaudio.transforms.Resample(old, RATE)(audio), atol=1e-6, rtol=0
    )
