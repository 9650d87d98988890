"""Reading, resampling, checking and writing audio.

In memory audio is float32 in [-1, 1]; files of any sample rate, channel count and common format are read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor

from csm.files import write_atomically

RAW_G722 = ".g722"
"""Headerless G.722 at 64 kbit/s (16 kHz mono), as telephony systems store prompts; recognized by its suffix."""

LOUDEST = 10.0
"""20 dB over full scale: larger samples are in another scale than [-1, 1], most likely that of 16-bit integers."""


def load_audio(path: str | Path, sample_rate: int, channel: int | None = None) -> Tensor:
    """Reads a file as mono float32 [N] at `sample_rate` Hz: the mean of its channels, or only `channel` (from 0).

    Raises:
        ValueError: the file is missing, not audio, corrupt or empty, or has no such channel; the message names it.
    """
    channels, file_rate = load_channels(path)
    if channel is None:
        mono = channels.mean(dim=0)
    elif 0 <= channel < len(channels):
        mono = channels[channel]
    else:
        raise ValueError(f"{path}: has no channel {channel}, only 0..{len(channels) - 1}")
    return resample(mono, file_rate, sample_rate)


def load_channels(path: str | Path) -> tuple[Tensor, int]:
    """Reads a file as float32 [C, N] and its own sample rate in Hz. Raises ValueError as `load_audio` does."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such audio file")
    try:
        samples, sample_rate = _read_pyav(path) if path.suffix.lower() == RAW_G722 else _read_any(path)
    except (soundfile.LibsndfileError, av.FFmpegError, EOFError) as error:
        raise ValueError(f"{path}: cannot be decoded as audio ({error}); replace or remove the file") from error
    if samples.shape[1] == 0:
        raise ValueError(f"{path}: holds no audio samples; replace or remove the file")
    if not np.isfinite(samples).all():
        raise ValueError(f"{path}: holds NaN or infinite samples; replace or remove the file")
    return torch.from_numpy(samples), sample_rate


def _read_any(path: Path) -> tuple[np.ndarray, int]:
    """libsndfile where it knows the format (wav, flac, ogg, mp3, ...), FFmpeg for everything else (m4a, webm, ...)."""
    try:
        file = soundfile.SoundFile(path)
    except soundfile.LibsndfileError:
        return _read_pyav(path)
    with file:
        file.seek(0)  # without it, libsndfile 1.2.2 begins an Opus file with its priming samples
        return np.ascontiguousarray(file.read(dtype="float32", always_2d=True).T), file.samplerate


def _read_pyav(path: Path) -> tuple[np.ndarray, int]:
    """First audio stream of a file as float32 [C, N] and its rate."""
    container_format = "g722" if path.suffix.lower() == RAW_G722 else None
    with av.open(str(path), format=container_format) as container:
        if not container.streams.audio:
            raise EOFError("it has no audio stream")
        stream = container.streams.audio[0]
        to_float = av.AudioResampler(format="fltp")  # converts the sample format only, rate and layout stay
        frames = [out.to_ndarray() for frame in container.decode(stream) for out in to_float.resample(frame)]
        if not frames:
            raise EOFError("it has no audio frames")
        return np.concatenate(frames, axis=1), stream.rate


def resample(audio: Tensor, from_rate: int, to_rate: int) -> Tensor:
    """Converts mono float32 [N] between sample rates in Hz (soxr, high quality); N scales by to_rate / from_rate."""
    if from_rate == to_rate:
        return audio
    return torch.from_numpy(soxr.resample(audio.numpy(), from_rate, to_rate, quality="HQ"))


def as_audio(samples: Any) -> Tensor:
    """Mono samples in [-1, 1], a tensor, array or list of floats, as a float32 tensor `[num_samples]`.

    Raises ValueError for another shape, integers, NaN or infinity, and another scale. The message begins with "its", so
    that the caller can put before it what the audio belongs to.
    """
    try:
        audio = torch.as_tensor(samples)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"its audio is neither a path nor an array of samples ({error})") from error
    if audio.ndim != 1:
        raise ValueError(f"its audio must be mono, shape [num_samples]; got {tuple(audio.shape)}")
    if not audio.is_floating_point():  # integers have another full scale, which only their source knows
        raise ValueError(f"its samples are {audio.dtype}; they must be floating point, in [-1, 1]")
    if not audio.isfinite().all():
        raise ValueError("its audio has NaN or infinite samples")
    if len(audio) and audio.abs().max() > LOUDEST:
        raise ValueError(f"its samples reach {audio.abs().max():g}; scale them to [-1, 1]")
    return audio.float()


def check_wav_name(path: str | Path) -> None:
    """Raises ValueError unless the name says that the file is a WAV file, the only format that `save_wav` writes."""
    if Path(path).suffix.lower() != ".wav":
        raise ValueError(f"{path}: only WAV files are written; choose a name that ends in .wav")


def save_wav(path: str | Path, audio: Tensor, sample_rate: int) -> None:
    """Writes mono float audio [N] as 16-bit PCM; samples beyond [-1, 1] are limited.

    The file appears under its name only when it is complete. Raises ValueError for another suffix than .wav, and for
    audio of another shape.
    """
    check_wav_name(path)
    if audio.ndim != 1:
        raise ValueError(f"{path}: expected mono audio [N], got shape {tuple(audio.shape)}")
    limited = audio.detach().cpu().float().clamp(-1.0, 1.0).numpy()
    write_atomically(
        Path(path), lambda file: soundfile.write(file, limited, sample_rate, subtype="PCM_16", format="WAV")
    )
