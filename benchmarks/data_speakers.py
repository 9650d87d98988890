"""Accuracy of speakers, turns and words in conversations whose turns are known, in many acoustic variants.

    python benchmarks/data_speakers.py FOLDER [--half tuning|unseen] [--only PATTERN] [--minutes 2] [--piper COMMAND]

Conversations are made of synthetic voices: flite (slt, awb, rms, kal16) and espeak-ng, whose commands must be in PATH,
and with --piper a voice of piper. Lines are kept in FOLDER and made once. Each variant is a conversation of its own
seed; even seeds are for tuning constants, odd ones are to be looked at once.

Printed for each variant: speakers in truth and found; diarization error rate with a collar of 0.25 s; words with the
wrong speaker, below; share of the speech that turns without a rejection cover; word error rate of the turns' texts
against the words said within their times, and that of the recognizer on the whole recording (for a call: on each side
by itself, over the telephone, but without crosstalk); events. Record results in docs/benchmarks.md.

A word has the wrong speaker if a turn of somebody else holds it, instead of the speaker's own turns or besides, within
a second of where it is said. Each speaker's words are aligned by themselves: in one alignment of all, words of two who
speak at once come in another order, and every word that the recognizer adds, whoever's turn it is in, would count as
the wrong speaker's. Results in docs/benchmarks.md that are marked as counted so are not comparable.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import jiwer
import numpy as np
import soundfile
import soxr
import torch
from scipy.optimize import linear_sum_assignment
from scipy.signal import butter, sosfiltfilt

from csm.evaluation.text_norm import load_normalizer
from data_prep.audio.recording import RecordingAudio
from data_prep.config import DiarizeBackend, DiarizeConfig, TranscribeConfig, TurnsConfig, VadConfig
from data_prep.records import DraftTurn, Locator, Recording, Span, SpeakerSpan
from data_prep.speech.words import united
from data_prep.stages.base import Item
from data_prep.stages.diarize import DiarizeStage
from data_prep.stages.transcribe import TranscribeStage
from data_prep.stages.turns import TurnsStage
from data_prep.stages.vad import VadStage

RATE = 16_000
FRAME = 0.01  # seconds, of the error rate
COLLAR = 0.25
ALONE_DB = -200.0  # crosstalk that nobody hears
WORD_SECONDS = 1.0
"""Furthest that a word in another speaker's turn is from where it is said; the true times are estimates, too."""
FLITE = ("slt", "rms", "awb", "kal16")
ESPEAK = ("en-us+f3", "en-gb+m3")
LINES = 60  # of each voice
SHORT = (
    "Yes.",
    "No, never.",
    "Right.",
    "I think so.",
    "Of course.",
    "Really?",
    "Maybe.",
    "Not at all.",
    "Sure.",
    "Why?",
)
BACKCHANNELS = ("Mhm.", "Right.", "Yeah.", "Okay.")
WHO = ("the doctor", "my sister", "a neighbor", "the old teacher", "his brother", "our driver", "the young nurse")
DID = ("found", "painted", "sold", "borrowed", "repaired", "described", "carried", "forgot")
WHAT = ("a green bicycle", "the broken window", "seven letters", "the wooden table", "an expensive coat", "my umbrella")
WHERE = (
    "near the station",
    "behind the church",
    "in the kitchen",
    "on the island",
    "across the river",
    "at the market",
)
WHEN = ("last winter", "on Friday morning", "before dinner", "in the middle of the night", "after the long meeting")


@dataclass
class Said:
    """One true turn."""

    speaker: int
    start: float
    end: float
    text: str


@dataclass(frozen=True)
class Variant:
    """A conversation and its acoustics."""

    name: str
    speakers: int = 2
    gaps: tuple[float, float] = (0.1, 0.9)  # seconds between turns; negative: overlap
    short: float = 0.2  # share of short answers
    backchannels: float = 0.0  # share of the turns with one inside
    telephone: bool = False
    noise_db: float | None = None  # below the speech
    levels_db: float = 0.0  # of the second speaker below the first
    crosstalk_db: float | None = None  # a call: of the other side's voice on each channel
    room: bool = False  # two microphones in one room, not a telephone


def variants() -> list[Variant]:
    mono = [Variant(f"{n} speakers", speakers=n) for n in range(2, 7)]
    mono += [
        Variant("telephone", 3, telephone=True),
        Variant("noise 14 dB", 3, noise_db=14.0),
        Variant("levels 20 dB apart", 2, levels_db=20.0),
        Variant("short answers", 2, short=0.6),
        Variant("overlap", 3, gaps=(-0.5, 0.4), backchannels=0.3),
    ]
    calls = [Variant(f"call {db} dB", telephone=True, crosstalk_db=db, backchannels=0.2)
             for db in (-40.0, -30.0, -25.0, -20.0, -16.0, -12.0, -9.0, -6.0)]  # fmt: skip
    rooms = [Variant(f"room {db} dB", room=True, crosstalk_db=db, backchannels=0.2)
             for db in (-30.0, -25.0, -20.0, -16.0, -12.0, -9.0, -6.0)]  # fmt: skip
    apart = Variant("call -20 dB, levels 20 dB apart", telephone=True, crosstalk_db=-20.0, levels_db=20.0)
    return [*mono, *calls, *rooms, apart]


# ------------------------------------------------------------------------------------------------------ voices


def line(rng: np.random.Generator) -> str:
    who, did, what, where, when = (str(rng.choice(words)) for words in (WHO, DID, WHAT, WHERE, WHEN))
    patterns = (
        f"{who} {did} {what} {where}",
        f"{when} {who} {did} {what}",
        f"I heard that {who} {did} {what} {where} {when}",
    )
    text = patterns[int(rng.integers(len(patterns)))]
    return text[0].upper() + text[1:] + "."


def make_voices(folder: Path, piper: list[str]) -> dict[str, list[tuple[str, np.ndarray]]]:
    """(text, float32 [N] at 16 kHz) of each voice's lines: long ones, then the short ones and backchannels."""
    voices: dict[str, list[tuple[str, np.ndarray]]] = {}
    names = [*FLITE, *ESPEAK, *(["joe"] if piper else [])]
    for number, name in enumerate(names):
        rng = np.random.default_rng(number)
        texts = [line(rng) for _ in range(LINES)] + [*SHORT, *BACKCHANNELS]
        voices[name] = []
        for count, text in enumerate(texts):
            path = folder / name / f"{count}.wav"
            if not path.is_file():
                path.parent.mkdir(parents=True, exist_ok=True)
                _speak(name, text, path, piper)
            samples, rate = soundfile.read(path, dtype="float32")
            samples = _trimmed(soxr.resample(samples, rate, RATE))
            voices[name].append((text, 0.05 * samples / np.sqrt(np.mean(samples**2))))
    return voices


def _speak(name: str, text: str, path: Path, piper: list[str]) -> None:
    if name in FLITE:
        command, given = ["flite", "-voice", name, "-t", text, "-o", str(path)], None
    elif name in ESPEAK:
        command, given = ["espeak-ng", "-v", name, "-w", str(path), text], None
    else:
        command, given = [*piper, "-f", str(path)], text
    subprocess.run(command, input=given, text=True, check=True, capture_output=True)


def _trimmed(samples: np.ndarray) -> np.ndarray:
    loud = np.flatnonzero(np.abs(samples) > 0.02 * np.abs(samples).max())
    return samples[loud[0] : loud[-1] + 1]


# ----------------------------------------------------------------------------------------------- conversations


def conversation(
    variant: Variant, voices: dict[str, list[tuple[str, np.ndarray]]], seed: int, seconds: float
) -> tuple[np.ndarray, list[Said]]:
    """Each speaker's voice, float32 [speakers, N] at 16 kHz, and the turns by start."""
    rng = np.random.default_rng([seed, zlib.crc32(variant.name.encode())])
    chosen = [list(voices)[i] for i in rng.permutation(len(voices))[: variant.speakers]]
    parts: list[tuple[int, int, np.ndarray]] = []  # speaker, first sample, samples
    said: list[Said] = []

    def say(speaker: int, index: int, start: float) -> float:
        text, samples = voices[chosen[speaker]][index]
        parts.append((speaker, round(start * RATE), samples))
        said.append(Said(speaker, start, start + len(samples) / RATE, text))
        return start + len(samples) / RATE

    end, speaker = 0.5, 0
    while end < seconds:
        start = end + float(rng.uniform(*variant.gaps)) if said else end
        speaker = int((speaker + rng.integers(1, variant.speakers)) % variant.speakers)
        short = rng.random() < variant.short
        index = LINES + int(rng.integers(len(SHORT))) if short else int(rng.integers(LINES))
        end = say(speaker, index, start)
        if not short and rng.random() < variant.backchannels:
            other = (speaker + 1) % variant.speakers
            say(other, LINES + len(SHORT) + int(rng.integers(len(BACKCHANNELS))), (start + end) / 2)
    tracks = np.zeros((variant.speakers, round((end + 1.0) * RATE)), np.float32)
    for who, first, samples in parts:
        level = 10 ** (-variant.levels_db / 20) if who == 1 else 1.0
        tracks[who, first : first + len(samples)] += level * samples
    return tracks, sorted(said, key=lambda turn: (turn.start, turn.end))


def recorded(variant: Variant, tracks: np.ndarray, seed: int) -> np.ndarray:
    """What is recorded of the voices: float32 [channels, N]."""
    rng = np.random.default_rng(seed)
    if variant.telephone:
        tracks = sosfiltfilt(butter(4, [300, 3400], "bandpass", fs=RATE, output="sos"), tracks, axis=1)
    if variant.crosstalk_db is None:
        heard = tracks.sum(axis=0, keepdims=True)
    else:
        delay = round((0.005 if variant.room else 0.03) * RATE)
        leak = 10 ** (variant.crosstalk_db / 20) * np.pad(tracks, ((0, 0), (delay, 0)))[:, : tracks.shape[1]]
        heard = tracks + leak[::-1]
    level = -60.0 if variant.noise_db is None else 20 * np.log10(0.05) - variant.noise_db
    heard = heard + 10 ** (level / 20) * rng.standard_normal(heard.shape)
    if variant.telephone:  # mu-law
        heard = heard.clip(-1, 1)
        coded = np.round(np.sign(heard) * np.log1p(255 * np.abs(heard)) / np.log(256) * 127) / 127
        heard = np.sign(coded) * (256 ** np.abs(coded) - 1) / 255
    return heard.astype(np.float32)


# --------------------------------------------------------------------------------------------------------- scores


def active(spans: list[tuple[str | int, float, float]], seconds: float) -> np.ndarray:
    """bool [speakers, frames], speakers in sorted order."""
    times = np.arange(FRAME / 2, seconds, FRAME)
    found = []
    for who in sorted({str(span[0]) for span in spans}):
        row = np.zeros(len(times), bool)
        for name, start, end in spans:
            if str(name) == who:
                row |= (start <= times) & (times < end)
        found.append(row)
    return np.stack(found) if found else np.zeros((1, len(times)), bool)


def error_rate(said: list[Said], spans: list[SpeakerSpan], seconds: float) -> tuple[float, dict[str, str]]:
    """Diarization error rate with the collar, and the true speaker of each found one (best one-to-one mapping)."""
    truth = active([(turn.speaker, turn.start, turn.end) for turn in said], seconds)
    found = active([(span.speaker, span.start, span.end) for span in spans], seconds)
    times = np.arange(FRAME / 2, seconds, FRAME)
    scored = np.ones(len(times), bool)
    for edge in (edge for turn in said for edge in (turn.start, turn.end)):
        scored &= np.abs(times - edge) > COLLAR
    common = (truth[:, None] & found[None]).sum(axis=2)
    rows, columns = linear_sum_assignment(-common)
    names = sorted({span.speaker for span in spans})
    of = {names[c]: str(sorted({str(turn.speaker) for turn in said})[r]) for r, c in zip(rows, columns, strict=True)}
    correct = sum((truth[r] & found[c])[scored].sum() for r, c in zip(rows, columns, strict=True))
    wrong = np.maximum(truth.sum(axis=0), found.sum(axis=0))[scored].sum() - correct
    return wrong / truth[:, scored].sum(), of


def words_of(said: list[Said], normalize: Callable[[str], str]) -> list[tuple[str, str, float]]:
    """(word, speaker, middle in seconds) with times in proportion to letters, turn by turn."""
    found = []
    for turn in said:
        words = normalize(turn.text).split()
        lengths = np.array([len(word) + 1 for word in words], float)
        ends = np.cumsum(lengths) / lengths.sum()
        middles = turn.start + (turn.end - turn.start) * (ends - lengths / lengths.sum() / 2)
        found += [(word, str(turn.speaker), float(at)) for word, at in zip(words, middles, strict=True)]
    return found


def wrong_speaker(
    said: list[Said], turns: list[DraftTurn], of: dict[str, str], normalize: Callable[[str], str]
) -> float:
    """Share of the reference's words that another speaker's turns hold, instead of their own speaker's or besides.

    Each speaker's words are aligned with those of the speaker's own turns. What is left over there is wrong if another
    speaker says the same word within `WORD_SECONDS` of it; else it is an error of the recognizer.
    """
    reference = words_of(said, normalize)
    heard = [
        (part, of.get(turn.speaker, "?"), (word.start + word.end) / 2)
        for turn in turns
        for word in turn.words
        for part in normalize(word.text).split()
    ]
    wrong = 0
    free = [True] * len(reference)  # words that are not yet taken for those of another speaker's turn
    for who in sorted({speaker for _, speaker, _ in heard}):
        own = [word for word, speaker, _ in reference if speaker == who]
        found = [(word, at) for word, speaker, at in heard if speaker == who]
        matched = _equal(own, [word for word, _ in found])
        for index, (word, at) in enumerate(found):
            if index in matched:
                continue
            near = [
                (abs(time - at), number)
                for number, (other, speaker, time) in enumerate(reference)
                if free[number] and other == word and speaker != who and abs(time - at) <= WORD_SECONDS
            ]
            if near:
                free[min(near)[1]] = False
                wrong += 1
    return wrong / len(reference)


def _equal(reference: list[str], heard: list[str]) -> set[int]:
    """Indices of the words heard that are right, in the alignment with the fewest errors."""
    if not reference or not heard:
        return set()
    (chunks,) = jiwer.process_words(" ".join(reference), " ".join(heard)).alignments
    return {i for chunk in chunks if chunk.type == "equal" for i in range(chunk.hyp_start_idx, chunk.hyp_end_idx)}


def text_error(
    said: list[Said], turns: list[DraftTurn], calls: bool, of: dict[str, str], normalize: Callable[[str], str]
) -> float:
    """Word error rate of the turns' texts against the words said within their times (on a call: by their speaker)."""
    reference = words_of(said, normalize)
    errors = count = 0
    for turn in turns:
        inside = [
            w for w, who, at in reference if turn.start <= at < turn.end and (not calls or who == of.get(turn.speaker))
        ]
        heard = normalize(turn.text)
        if not inside:
            errors += len(heard.split())
            continue
        measured = jiwer.process_words(" ".join(inside), heard)
        errors += measured.substitutions + measured.deletions + measured.insertions
        count += len(inside)
    return errors / max(1, count)


def kept(said: list[Said], turns: list[DraftTurn], calls: bool, of: dict[str, str]) -> float:
    """Share of the speech that turns cover."""
    total = covered = 0.0
    for turn in said:
        own = [t for t in turns if not calls or of.get(t.speaker) == str(turn.speaker)]
        spans = united([Span(max(t.start, turn.start), min(t.end, turn.end)) for t in own
                        if t.end > turn.start and t.start < turn.end])  # fmt: skip
        total += turn.end - turn.start
        covered += sum(span.end - span.start for span in spans)
    return covered / total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--half", choices=("tuning", "unseen"), default="tuning")
    parser.add_argument("--only", default="*")
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--piper", help="command that speaks its input to -f FILE, with all its options")
    args = parser.parse_args()
    normalize = load_normalizer("en")
    voices = make_voices(args.folder / "voices", args.piper.split() if args.piper else [])
    stages = (
        VadStage(VadConfig()),
        DiarizeStage(DiarizeConfig(backend=DiarizeBackend.cluster)),
        TranscribeStage(TranscribeConfig(model="bundled")),
        TurnsStage(TurnsConfig(), VadConfig()),
    )
    print("variant                              true found   DER  wrong   kept   text  whole  events")
    for number, variant in enumerate(variants()):
        if not fnmatch(variant.name, args.only):
            continue
        seed = 2 * number + (args.half == "unseen")
        tracks, said = conversation(variant, voices, seed, 60 * args.minutes)
        samples = recorded(variant, tracks, seed)
        path = args.folder / f"{seed}.wav"
        soundfile.write(path, samples.T, RATE, subtype="FLOAT")
        seconds = samples.shape[1] / RATE
        recording = Recording(f"made/{seed}", "made", path.name, Locator(str(path)), "g", None, "en", "cc0", "",
                              seconds, RATE, len(samples), "wav/float")  # fmt: skip
        item = Item(recording, RecordingAudio(recording), {})
        for stage in stages:
            (item.results[stage.name],) = stage.process([item])
        turns = [turn for turn in item.results["turns"].turns if turn.rejection is None]
        der, of = error_rate(said, item.results["diarize"].spans, seconds)
        calls = variant.crosstalk_db is not None
        found = len({turn.speaker for turn in turns})
        sides = recorded(replace(variant, crosstalk_db=ALONE_DB), tracks, seed) if calls else samples
        whole = _whole(stages[2], sides, said, calls, normalize)
        print(
            f"{variant.name:36} {variant.speakers:4} {found:5} {der:6.3f} "
            f"{wrong_speaker(said, turns, of, normalize):6.3f} "
            f"{kept(said, turns, calls, of):6.3f} {text_error(said, turns, calls, of, normalize):6.3f} {whole:6.3f} "
            f"{len(item.results['turns'].events):6}",
            flush=True,
        )
        item.audio.close()


def _whole(
    stage: TranscribeStage, sides: np.ndarray, said: list[Said], calls: bool, normalize: Callable[[str], str]
) -> float:
    """Word error rate of the recognizer on all of each side, without voice activity and speakers."""
    model = stage._model
    assert model is not None
    errors = count = 0
    for number, side in enumerate(sides):
        text = " ".join(turn.text for turn in said if not calls or turn.speaker == number)
        heard = model.transcribe(torch.from_numpy(side.astype(np.float32)), RATE)
        measured = jiwer.process_words(normalize(text), normalize(heard))
        errors += measured.substitutions + measured.deletions + measured.insertions
        count += len(normalize(text).split())
    return errors / count


if __name__ == "__main__":
    main()
