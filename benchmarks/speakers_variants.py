"""Voices, conversations with known turns, and how they are recorded, for data_speakers.py."""

from __future__ import annotations

import subprocess
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
from scipy.signal import butter, sosfiltfilt

RATE = 16_000
FLITE = ("slt", "rms", "awb", "kal16")
ESPEAK = ("en-us+f3", "en-gb+m3")
LINES = 60  # of each voice
SPEECH = 0.05  # RMS
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
    delay: float = 0.03  # seconds of the crosstalk
    interview: bool = False  # the first speaker asks at length, the second one gives short answers
    music_db: float | None = None  # below the speech
    pan_db: float | None = None  # stereo: of each speaker on the other one's side
    gain_db: float = 0.0  # of the recording, whose samples are clipped at full scale

    @property
    def call(self) -> bool:
        return self.crosstalk_db is not None


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
    rooms = [Variant(f"room {db} dB", delay=0.005, crosstalk_db=db, backchannels=0.2)
             for db in (-30.0, -25.0, -20.0, -16.0, -12.0, -9.0, -6.0)]  # fmt: skip
    apart = Variant("call -20 dB, levels 20 dB apart", telephone=True, crosstalk_db=-20.0, levels_db=20.0)
    # a variant's seed is its place: later ones come last
    others = [
        Variant("call -26 dB, half a second late", telephone=True, crosstalk_db=-26.0, delay=0.5, backchannels=0.2),
        Variant("clipped +20 dB", 3, gain_db=20.0),
        Variant("one voice", 1),
        Variant("music 14 dB", 3, music_db=14.0),
        Variant("stereo, panned by 3 dB", 2, pan_db=-3.0, backchannels=0.2),
        Variant("interview", 2, interview=True),
    ]
    return [*mono, *calls, *rooms, apart, *others]


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
            voices[name].append((text, SPEECH * samples / np.sqrt(np.mean(samples**2))))
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
        if variant.speakers > 1:
            speaker = int((speaker + rng.integers(1, variant.speakers)) % variant.speakers)
        short = speaker == 1 if variant.interview else rng.random() < variant.short
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
    """Recording of the voices, float32 [channels, N]."""
    rng = np.random.default_rng(seed)
    if variant.telephone:
        tracks = sosfiltfilt(butter(4, [300, 3400], "bandpass", fs=RATE, output="sos"), tracks, axis=1)
    if variant.crosstalk_db is not None:
        late = np.pad(tracks, ((0, 0), (round(variant.delay * RATE), 0)))[:, : tracks.shape[1]]
        heard = tracks + 10 ** (variant.crosstalk_db / 20) * late[::-1]
    elif variant.pan_db is not None:
        heard = tracks + 10 ** (variant.pan_db / 20) * tracks[::-1]
    else:
        heard = tracks.sum(axis=0, keepdims=True)
    if variant.music_db is not None:
        heard = heard + SPEECH * 10 ** (-variant.music_db / 20) * music(rng, heard.shape[1])
    level = -60.0 if variant.noise_db is None else 20 * np.log10(SPEECH) - variant.noise_db
    heard = heard + 10 ** (level / 20) * rng.standard_normal(heard.shape)
    heard = (10 ** (variant.gain_db / 20) * heard).clip(-1, 1)
    if variant.telephone:  # mu-law
        coded = np.round(np.sign(heard) * np.log1p(255 * np.abs(heard)) / np.log(256) * 127) / 127
        heard = np.sign(coded) * (256 ** np.abs(coded) - 1) / 255
    return heard.astype(np.float32)


def music(rng: np.random.Generator, samples: int) -> np.ndarray:
    """Chords of decaying harmonics, two a second, with a beat: float [N], RMS 1."""
    found = np.zeros(samples)
    for first in range(0, samples, RATE // 2):
        time = np.arange(min(RATE // 2, samples - first)) / RATE
        root = 110 * 2 ** (rng.integers(12) / 12)
        waves = [np.sin(2 * np.pi * root * tone * n * time) / n for tone in (1, 1.25, 1.5, 2) for n in range(1, 6)]
        chord = np.sum(waves, axis=0) * np.exp(-3 * time)
        found[first : first + len(time)] = chord + rng.standard_normal(len(time)) * np.exp(-60 * time)
    return found / np.sqrt(np.mean(found**2))
