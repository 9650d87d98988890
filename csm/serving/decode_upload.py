"""A process that decodes one uploaded file, under limits: python -m csm.serving.decode_upload SECONDS < FILE.

Prints a line of JSON, {"sample_rate", "channels"} or {"error"}, then the samples, float32 [n, channels]. The file may
have been made to attack its decoder: this process has little time and memory and can open nothing, whatever the file
refers to. The format is read from the first bytes; formats that other files can be named in are refused.
"""

from __future__ import annotations

import io
import json
import os
import resource
import sys

import av.subtitles.stream  # noqa: F401  PyAV imports it for every file, when nothing can be opened any more
import numpy as np

from csm.audio_bytes import UnreadableAudio
from csm.decode import open_audio

MEMORY = 2 << 30
CPU_SECONDS = 20
LONGEST_DECODING = 2 * CPU_SECONDS  # of the clock
LOWEST_RATE, HIGHEST_RATE, MOST_CHANNELS = 8_000, 192_000, 2

_AUDIO = {b"fLaC": "flac", b"OggS": "ogg", b"ID3": "mp3", b"\x1aE\xdf\xa3": "matroska", b"caff": "caf"}
_FOREIGN = {
    b"PK": "a ZIP archive",
    b"\x1f\x8b": "gzip data",
    b"BZh": "bzip2 data",
    b"\xfd7zXZ": "xz data",
    b"(\xb5/\xfd": "zstd data",
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"%PDF": "a PDF document",
    b"\x7fELF": "a program",
    b"MZ": "a program",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"GIF8": "a GIF image",
    b"#EXTM3U": "a playlist",
    b"FLV": "an FLV video",
    b"{": "text",
    b"<": "text",
    b"#": "text",
}


def command(most_seconds: float) -> list[str]:
    """The process, for whoever starts it."""
    return [sys.executable, "-m", "csm.serving.decode_upload", str(most_seconds)]


def decoded(output: bytes, returncode: int | None) -> tuple[int, np.ndarray]:
    """Sample rate and samples float32 [n, channels] that a process has printed. Raises Refused if it has not."""
    line, _, rest = output.partition(b"\n")
    if returncode or not line:
        raise Refused("it is damaged, its decoder failed")
    head = json.loads(line)
    if "error" in head:
        raise Refused(head["error"])
    return head["sample_rate"], np.frombuffer(rest, np.float32).reshape(-1, head["channels"])


def main() -> None:
    most_seconds = float(sys.argv[1])
    data = sys.stdin.buffer.read()
    limit_process()
    try:
        rate, samples = decode(data, most_seconds)
    except (UnreadableAudio, Refused, MemoryError) as error:
        _head({"error": " ".join(str(error).split()) or "the file needs too much memory"})
        return
    _head({"sample_rate": rate, "channels": samples.shape[1]})
    sys.stdout.buffer.write(samples.tobytes())


class Refused(ValueError):
    """A file that is not decoded, and why."""


def limit_process() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    highest = max(map(int, os.listdir("/proc/self/fd")), default=2) if os.path.isdir("/proc/self/fd") else 2
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(highest, 3), min(highest, 3)))  # no file or socket more


def decode(data: bytes, most_seconds: float) -> tuple[int, np.ndarray]:
    """Sample rate and samples float32 [n, channels]. Raises Refused and UnreadableAudio."""
    check_kind(data)
    reader = open_audio(io.BytesIO(data), "audio")
    header = reader.header
    rate, channels = header.sample_rate, header.channels
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise Refused(f"its sample rate is {rate} Hz; {LOWEST_RATE} to {HIGHEST_RATE} Hz are taken")
    if not 1 <= channels <= MOST_CHANNELS:
        raise Refused(f"it has {channels} channels; give mono or stereo")
    if header.samples is not None and header.samples > most_seconds * rate:
        raise Refused(f"it lasts {header.samples / rate:.0f} s; at most {most_seconds:g} s are taken")
    blocks, count = [], 0
    for block in reader.blocks():
        count += len(block)
        if count > most_seconds * rate:
            raise Refused(f"it lasts more than {most_seconds:g} s, the most that are taken")
        blocks.append(block)
    if not blocks:
        raise Refused("it holds no audio samples")
    samples = np.concatenate(blocks)
    if not np.isfinite(samples).all():
        raise Refused("it holds NaN or infinite samples")
    return rate, samples


def check_kind(data: bytes) -> None:
    """Raises Refused, naming what it is, unless the file begins as WAV, FLAC, Ogg, MP3, AAC, MP4, WebM, AIFF or CAF."""
    head = data[:16]
    if not head:
        raise Refused("the file is empty")
    wav = head[:4] in (b"RIFF", b"RF64") and head[8:12] == b"WAVE"
    aiff = head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC")
    frames = len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0 and not head.startswith(b"\xff\xd8")
    if wav or aiff or frames or head[4:8] == b"ftyp" or any(head.startswith(magic) for magic in _AUDIO):
        return
    found = next((name for magic, name in _FOREIGN.items() if head.startswith(magic)), "of an unknown format")
    raise Refused(f"it is {found}; give WAV, FLAC, Ogg, MP3, AAC, MP4 or WebM audio")


def _head(values: dict[str, object]) -> None:
    sys.stdout.buffer.write(json.dumps(values).encode() + b"\n")


if __name__ == "__main__":
    main()
