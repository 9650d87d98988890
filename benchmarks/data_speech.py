"""How well speech is found, told apart, written down and cut, on real recordings whose truth is known.

    python benchmarks/data_speech.py --call FOLDER --prompts FOLDER --texts core-sounds-en.txt.gz

Everything runs offline on a CPU: silero-vad, clustering of resemblyzer's embeddings, Whisper tiny.en.

**The call**: 30 s of two people on the telephone, `sample.wav`, `.rttm` and `.stm` of the package pyannote.audio (in
`pyannote/audio/sample/`). All annotation is withheld. Printed are the number of speakers; the diarization error rate
(missed + false + confused speaker time over all speaker time, overlapping speech included, speakers matched one to one
at their best), with no collar and with 0.25 s around each reference boundary left out, of stage `diarize` and of the
turns; and the word error rate of all turns' text, by start, against the STM's, after Whisper's English normalization.

**The prompts**: the 568 English prompts of Debian's asterisk-core-sounds-en-g722 (one voice), in the order of their
names, with silence of 0.3 to 2.5 s (uniform, seed 1) between them: one recording of 38 minutes. The truth does not
come from the models under test: a prompt sounds where the level of 10 ms is less than 35 dB below its loudest.
Prompts without speech (tones, screaming monkeys, silence; their transcripts are only `[...]` or `(...)`) stay in the
recording but ask for no text and are not counted as speech: words invented for them count as errors. Printed are

  - speech kept: share of the sounding time of prompts with speech that lies in turns which are not rejected;
  - word error rate of the turns' text, by start, against the transcripts, brackets taken out, in the order of the
    prompts, both after Whisper's English normalization;
  - edges outside words: share of the turns' starts and ends that do not lie inside a sounding stretch of a prompt
    with speech (pauses up to 0.2 s belong to it) by more than 100 ms;
  - the share of the most frequent speaker, of whom there is one.
"""

from __future__ import annotations

import argparse
import gzip
import re
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import soundfile
from scipy.optimize import linear_sum_assignment

from csm.audio import load_channels
from csm.evaluation.text_norm import load_normalizer
from data_prep.audio.recording import RecordingAudio
from data_prep.config import DiarizeBackend, DiarizeConfig, TranscribeConfig, TurnsConfig, VadConfig
from data_prep.records import Locator, Recording, Speakers, Transcript, Turns
from data_prep.stages.base import Item
from data_prep.stages.diarize import DiarizeStage
from data_prep.stages.transcribe import TranscribeStage
from data_prep.stages.turns import TurnsStage
from data_prep.stages.vad import VadStage

RATE = 16_000
FRAME = RATE // 100
SOUNDING_DB = -35.0
PAUSE_SECONDS = 0.2
TOLERANCE_SECONDS = 0.1

Segment = tuple[float, float, str]  # start, end, speaker


def run_stages(file: Path) -> dict[str, Any]:
    """Results of all stages, by name, of a mono file at 16 kHz."""
    seconds = soundfile.info(file).duration
    recording = Recording(
        id="a/b",
        source="a",
        audio="b",
        locator=Locator(str(file)),
        group="b",
        split=None,
        lang="en",
        licence="",
        sha256="",
        seconds=seconds,
        sample_rate=RATE,
        channels=1,
        codec_format="wav/pcm_16",
    )
    item = Item(recording, RecordingAudio(recording), {})
    vad = VadConfig()
    for stage in (
        VadStage(vad),
        DiarizeStage(DiarizeConfig(backend=DiarizeBackend.cluster)),
        TranscribeStage(TranscribeConfig(model="bundled")),
        TurnsStage(TurnsConfig(), vad),
    ):
        begun = time.perf_counter()
        (item.results[stage.name],) = stage.process([item])
        took = time.perf_counter() - begun
        print(f"  {stage.name:<10} {took:7.1f} s, {seconds / took:6.0f} times real time")
    return item.results


def der(reference: Sequence[Segment], found: Sequence[Segment], collar: float = 0.0) -> float:
    """Diarization error rate on a grid of 10 ms, but for `collar` seconds around the reference's boundaries."""
    end = max(segment[1] for segment in [*reference, *found])
    times = np.arange(0.005, end, 0.01)
    counted = np.ones(len(times), bool)
    if collar:
        for start, stop, _ in reference:
            counted &= (np.abs(times - start) > collar) & (np.abs(times - stop) > collar)
    truth, guess = _activity(reference, times[counted]), _activity(found, times[counted])
    common = (truth[:, None] & guess[None]).sum(axis=2)
    correct = common[linear_sum_assignment(-common)].sum()
    return float((np.maximum(truth.sum(axis=0), guess.sum(axis=0)).sum() - correct) / truth.sum())


def _activity(segments: Sequence[Segment], times: np.ndarray) -> np.ndarray:
    """Activity of each speaker at each time, bool [speakers, times]."""
    rows = {speaker: np.zeros(len(times), bool) for _, _, speaker in segments}
    for start, end, speaker in segments:
        rows[speaker] |= (start <= times) & (times < end)
    return np.stack(list(rows.values()))


def text_of(turns: Turns) -> str:
    return " ".join(turn.text for turn in turns.turns)


def measure_call(folder: Path) -> None:
    rttm = [line.split() for line in (folder / "sample.rttm").read_text().splitlines()]
    reference = [(float(row[3]), float(row[3]) + float(row[4]), row[7]) for row in rttm]
    text = " ".join(line.split(maxsplit=5)[5] for line in (folder / "sample.stm").read_text().splitlines())
    print("call")
    results = run_stages(folder / "sample.wav")
    speakers: Speakers = results["diarize"]
    turns: Turns = results["turns"]
    spans = [(span.start, span.end, span.speaker) for span in speakers.spans]
    cut = [(turn.start, turn.end, turn.speaker) for turn in turns.turns]
    normalize = load_normalizer("en")
    print(f"  speakers                        {len({span.speaker for span in speakers.spans})}")
    print(f"  DER, no collar / 0.25 s         {der(reference, spans):.3f} / {der(reference, spans, 0.25):.3f}")
    print(f"  DER of turns, no collar         {der(reference, cut):.3f}")
    print(f"  WER                             {jiwer.wer(normalize(text), normalize(text_of(turns))):.3f}")


class Prompts:
    """The prompts in one recording, and what is true of it."""

    def __init__(self, folder: Path, texts: Path) -> None:
        known = _texts(texts)
        rng = np.random.default_rng(1)
        pieces: list[np.ndarray] = []
        words: list[str] = []
        sounding: list[np.ndarray] = []
        for file in sorted(folder.rglob("*.g722")):
            audio, rate = load_channels(file)
            assert rate == RATE
            gap = np.zeros(int(rng.uniform(0.3, 2.5) * RATE) // FRAME * FRAME, np.float32)
            prompt = audio[0].numpy()
            prompt = np.pad(prompt, (0, -len(prompt) % FRAME))
            text = known[file.relative_to(folder).with_suffix("").as_posix()]
            pieces += [gap, prompt]
            sounding += [np.zeros(len(gap) // FRAME, bool), _sounding(prompt) & bool(text)]
            words.append(text)
        self.samples = np.concatenate(pieces)
        self.sounding = np.concatenate(sounding)  # bool, each 10 ms
        self.text = " ".join(words)

    def stretches(self) -> list[tuple[float, float]]:
        """Where words are, in seconds: sounding frames and the short pauses between them."""
        frames = np.flatnonzero(self.sounding)
        breaks = np.flatnonzero(np.diff(frames) > PAUSE_SECONDS * 100)
        starts = frames[np.concatenate([[0], breaks + 1])]
        ends = frames[np.concatenate([breaks, [len(frames) - 1]])] + 1
        return [(start / 100, end / 100) for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]


def _texts(path: Path) -> dict[str, str]:
    """Name of a prompt -> its words; "" for one without."""
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    pairs = [line.split(":", 1) for line in lines if ":" in line and not line.startswith(";")]
    texts = {name.strip(): re.sub(r"\[.*?\]|\(.*?\)", "", text).strip() for name, text in pairs}
    return {name: text if re.search(r"\w", text) else "" for name, text in texts.items()}


def _sounding(prompt: np.ndarray) -> np.ndarray:
    level = np.sqrt(np.square(prompt.astype(np.float64)).reshape(-1, FRAME).mean(axis=1))
    return level > max(level.max() * 10 ** (SOUNDING_DB / 20), 1e-4)


def measure_prompts(prompts: Prompts) -> None:
    print("prompts")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "prompts.wav"
        soundfile.write(file, prompts.samples, RATE, subtype="FLOAT")
        results = run_stages(file)
    print_prompts(prompts, results["diarize"], results["transcribe"], results["turns"])


def print_prompts(prompts: Prompts, speakers: Speakers, transcript: Transcript, turns: Turns) -> None:
    kept = [turn for turn in turns.turns if turn.rejection is None]
    inside = np.zeros(len(prompts.sounding), bool)
    for turn in kept:
        inside[round(turn.start * 100) : round(turn.end * 100)] = True
    edges = np.array([edge for turn in kept for edge in (turn.start, turn.end)])
    cut = np.zeros(len(edges), bool)
    for start, end in prompts.stretches():
        cut |= (edges > start + TOLERANCE_SECONDS) & (edges < end - TOLERANCE_SECONDS)
    time_of: Counter[str] = Counter()
    for span in speakers.spans:
        time_of[span.speaker] += span.end - span.start
    normalize = load_normalizer("en")
    wer = jiwer.wer(normalize(prompts.text), normalize(text_of(turns)))
    longest = max(clip.end - clip.start for clip in transcript.clips)
    print(f"  clips, the longest              {len(transcript.clips)}, {longest:.1f} s")
    print(f"  turns, of them rejected         {len(turns.turns)}, {len(turns.turns) - len(kept)}")
    print(f"  speech kept                     {(inside & prompts.sounding).sum() / prompts.sounding.sum():.4f}")
    print(f"  WER                             {wer:.4f}")
    print(f"  edges outside words             {1 - cut.mean():.4f} ({int(cut.sum())} of {len(cut)} inside)")
    print(f"  share of the main speaker       {max(time_of.values()) / sum(time_of.values()):.3f} of {len(time_of)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--call", type=Path, required=True, help="folder with sample.wav, sample.rttm, sample.stm")
    parser.add_argument("--prompts", type=Path, required=True, help="folder with the .g722 files")
    parser.add_argument("--texts", type=Path, required=True, help="core-sounds-en.txt.gz")
    args = parser.parse_args()
    measure_call(args.call)
    measure_prompts(Prompts(args.prompts, args.texts))


if __name__ == "__main__":
    main()
