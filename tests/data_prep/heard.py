"""Recordings in memory for the tests of measures: a stand-in for RecordingAudio, the demo's speech, lossy codecs."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import soundfile
import soxr

import data_prep
from csm.audio import load_audio, load_channels
from data_prep.records import DraftTurn, Locator, Recording, Rejection

DEMO = Path(data_prep.__file__).parent / "demo"


class AudioInMemory:
    """The interface of RecordingAudio over an array float32 [C, N]."""

    def __init__(self, samples: np.ndarray, rate: int) -> None:
        self.samples, self.rate = samples, rate

    def track(self, channel: int | None, rate: int, start: float = 0.0, end: float | None = None) -> np.ndarray:
        samples = self.samples.mean(axis=0) if channel is None else self.samples[channel]
        part = samples[round(start * self.rate) : None if end is None else round(end * self.rate)]
        return part if rate == self.rate else soxr.resample(part, self.rate, rate, quality="HQ")

    def close(self) -> None:
        pass


def recording(seconds: float, rate: int = 16_000, channels: int = 1, **more) -> Recording:
    values = {
        "id": "made/a",
        "source": "made",
        "audio": "a.wav",
        "locator": Locator("/a.wav"),
        "group": "a",
        "split": None,
        "lang": "en",
        "licence": "unknown",
        "sha256": "",
        "seconds": seconds,
        "sample_rate": rate,
        "channels": channels,
        "codec_format": "wav/pcm_16",
    }
    return Recording(**values | more)


def draft(
    number: int,
    start: float,
    end: float,
    text: str = "Hello there.",
    channel: int | None = None,
    rejection: Rejection | None = None,
    **more,
) -> DraftTurn:
    unknown = dict.fromkeys(["lang", "lang_prob", "avg_logprob", "no_speech_prob", "compression_ratio"])
    values = unknown | {"speaker": "s", "speaker_id": None, "words": [], "overlap": 0.0} | more
    return DraftTurn(number=number, start=start, end=end, text=text, channel=channel, rejection=rejection, **values)


def demo_recordings(rate: int = 16_000) -> dict[str, np.ndarray]:
    """The bundled recordings, two voices each, by name."""
    return {path.stem: load_audio(path, rate).numpy() for path in sorted(DEMO.glob("*.flac"))}


def demo_turns(min_seconds: float, rate: int = 16_000) -> dict[str, np.ndarray]:
    """Turns of the bundled recordings, by "recording number"."""
    turns = {}
    for line in (DEMO / "manifest.jsonl").read_text().splitlines():
        record = json.loads(line)
        channels, file_rate = load_channels(DEMO / record["audio"])
        audio = AudioInMemory(channels.numpy(), file_rate)
        for number, turn in enumerate(record["turns"]):
            if turn["end"] - turn["start"] >= min_seconds:
                turns[f"{record['id']} {number}"] = audio.track(None, rate, turn["start"], turn["end"])
    return turns


def encoded_again(audio: np.ndarray, rate: int, codec: str) -> np.ndarray:
    """Float32 [N] after "mp3" (32 kbit/s) or "opus" (18 kbit/s)."""
    file = io.BytesIO()
    if codec == "mp3":
        soundfile.write(file, audio, rate, format="MP3", bitrate_mode="CONSTANT", compression_level=0.8)
    else:
        soundfile.write(file, audio, rate, format="OGG", subtype="OPUS", compression_level=0.95)
    file.seek(0)
    again, again_rate = soundfile.read(file, dtype="float32")
    return again if again_rate == rate else soxr.resample(again, again_rate, rate)
