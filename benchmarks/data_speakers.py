"""Accuracy of speakers, turns and words in conversations whose turns are known, in many acoustic variants.

    python -m benchmarks.data_speakers FOLDER [--half tuning|unseen] [--only PATTERN] [--minutes 2] [--piper COMMAND]

Conversations are made of synthetic voices: flite (slt, awb, rms, kal16) and espeak-ng, whose commands must be in PATH,
and with --piper a voice of piper. Lines are kept in FOLDER and made once. Each variant is a conversation of its own
seed; even seeds are for tuning constants, odd ones are to be looked at once.

Printed for each variant: speakers in truth and found; diarization error rate with a collar of 0.25 s; words with the
wrong speaker, below; share of the speech that turns without a rejection cover (or, of a backchannel, an event), and
that those cover which also pass the loose and strict limits (of calls over the telephone, none on DNSMOS or voices,
which are not measured); word error rate of the texts of the latter against the words said within their times, and that
of the recognizer on the whole recording (for a call: on each side by itself, over the telephone, but without crosstalk;
for stereo: on the mean); events. Record results in docs/benchmarks.md. Of what is clipped, the strict limits are meant
to keep little or nothing.

A word has the wrong speaker if a turn of somebody else holds it, instead of the speaker's own turns or besides, within
a second of where it is said. Each speaker's words are aligned by themselves: in one alignment of all, words of two who
speak at once come in another order, and every word that the recognizer adds, whoever's turn it is in, would count as
the wrong speaker's. Results in docs/benchmarks.md that are marked as counted so are not comparable.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import jiwer
import numpy as np
import soundfile
import torch
from omegaconf import OmegaConf
from scipy.optimize import linear_sum_assignment

from benchmarks.speakers_variants import RATE, Said, Variant, conversation, make_voices, recorded, variants
from csm.evaluation.text_norm import load_normalizer
from data_prep.audio.recording import RecordingAudio
from data_prep.config import (
    DiarizeBackend,
    DiarizeConfig,
    LimitsConfig,
    ScoreConfig,
    TranscribeConfig,
    TurnsConfig,
    VadConfig,
)
from data_prep.records import DraftTurn, Event, Locator, Recording, Span, SpeakerSpan
from data_prep.speech.limits import RateCounts, check
from data_prep.speech.words import united
from data_prep.stages.base import Item
from data_prep.stages.diarize import DiarizeStage
from data_prep.stages.score import ScoreStage
from data_prep.stages.transcribe import TranscribeStage
from data_prep.stages.turns import TurnsStage
from data_prep.stages.vad import VadStage

FRAME = 0.01  # seconds, of the error rate
COLLAR = 0.25
ALONE_DB = -200.0  # crosstalk that nobody hears
LIMITS = Path(__file__).parents[1] / "configs" / "data_prep"
WORD_SECONDS = 1.0
"""Furthest that a word in another speaker's turn is from where it is said; the true times are estimates, too."""


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


def covered(said: list[Said], turns: list[DraftTurn], events: list[Event], calls: bool, of: dict[str, str]) -> float:
    """Share of the speech that turns cover. A backchannel within another's turn is covered by its event."""
    total = common = 0.0
    for turn in said:
        own_events = [event for event in events if of.get(event.speaker) == str(turn.speaker)]
        if any(turn.start - COLLAR <= event.time <= turn.end for event in own_events):  # speech is found with a margin
            total, common = total + turn.end - turn.start, common + turn.end - turn.start
            continue
        own = [t for t in turns if not calls or of.get(t.speaker) == str(turn.speaker)]
        spans = united([Span(max(t.start, turn.start), min(t.end, turn.end)) for t in own
                        if t.end > turn.start and t.start < turn.end])  # fmt: skip
        total += turn.end - turn.start
        common += sum(span.end - span.start for span in spans)
    return common / total


def within_limits(item: Item, turns: list[DraftTurn], telephone: bool) -> list[DraftTurn]:
    """The turns that pass the presets of the loose and strict limits; the recording is a source of its own."""
    scores = {score.number: score for score in item.results["score"].turns}
    counts = RateCounts()
    for turn in turns:
        counts.add(turn)
    found = turns
    for preset, rates in (("loose/default", None), ("strict/calls" if telephone else "strict/default", counts.rates())):
        values = OmegaConf.merge(OmegaConf.structured(LimitsConfig), OmegaConf.load(LIMITS / f"{preset}.yaml"))
        limits = OmegaConf.to_object(values)
        assert isinstance(limits, LimitsConfig)
        found = [turn for turn in found if check(turn, scores.get(turn.number), limits, rates) is None]
    return found


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
        ScoreStage(ScoreConfig(fingerprint=False)),
    )
    print("variant                              true found   DER  wrong  turns   kept   text  whole  events")
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
        kept = within_limits(item, turns, variant.telephone)
        found = len({turn.speaker for turn in turns})
        events = item.results["turns"].events
        print(
            f"{variant.name:36} {variant.speakers:4} {found:5} {der:6.3f} "
            f"{wrong_speaker(said, turns, of, normalize):6.3f} {covered(said, turns, events, variant.call, of):6.3f} "
            f"{covered(said, kept, events, variant.call, of):6.3f} "
            f"{text_error(said, kept, variant.call, of, normalize):6.3f} "
            f"{_whole(stages[2], _sides(variant, tracks, samples, seed), said, variant.call, normalize):6.3f} "
            f"{len(events):6}",
            flush=True,
        )
        item.audio.close()


def _sides(variant: Variant, tracks: np.ndarray, samples: np.ndarray, seed: int) -> np.ndarray:
    """The tracks on which the recognizer is heard alone: each side of a call without the other one, or the mix."""
    if variant.call:
        return recorded(replace(variant, crosstalk_db=ALONE_DB), tracks, seed)
    return samples.mean(axis=0, keepdims=True)


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
