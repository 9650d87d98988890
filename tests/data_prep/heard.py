"""Audio for tests: made-up recordings and turns, the demo's speech, lossy codecs."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import soundfile
import soxr

import data_prep
from csm.audio import load_audio, load_channels
from data_prep.audio.recording import RecordingAudio
from data_prep.records import DraftTurn, Locator, Recording, Rejection, Turns
from data_prep.stages.base import Item

DEMO = Path(data_prep.__file__).parent / "demo"


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
        "codec_format": "wav/float",
    }
    return Recording(**values | more)


def item(path: Path, samples: np.ndarray, rate: int, turns: list[DraftTurn]) -> Item:
    """A recording of float32 samples [C, N], written to `path` as they are, and the turns in it."""
    soundfile.write(path, samples.T, rate, subtype="FLOAT")
    rec = recording(samples.shape[1] / rate, rate, len(samples), audio=path.name, locator=Locator(str(path)))
    return Item(rec, RecordingAudio(rec), {"turns": Turns(turns, [])})


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
        mono = channels.numpy().mean(axis=0)
        for number, turn in enumerate(record["turns"]):
            if turn["end"] - turn["start"] >= min_seconds:
                turns[f"{record['id']} {number}"] = soxr.resample(
                    mono[round(turn["start"] * file_rate) : round(turn["end"] * file_rate)], file_rate, rate
                )
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
