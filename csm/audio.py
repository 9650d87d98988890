"""Reading, resampling, checking and writing audio.

In memory audio is float32 in [-1, 1]; files of any sample rate, channel count and common format are read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor

from csm.audio_bytes import UnreadableAudio
from csm.decode import open_audio
from csm.files import write_atomically

CANCELLED = 0.1
"""See `mono_channel`."""

LOUDEST = 10.0
"""20 dB over full scale: larger samples are in another scale than [-1, 1], most likely that of 16-bit integers."""


def load_audio(path: str | Path, sample_rate: int, channel: int | None = None) -> Tensor:
    """Reads a file as mono float32 [N] at `sample_rate` Hz: the mean of its channels, or only `channel` (from 0).

    Channels that cancel each other are not mixed, see `mono_channel`: these are the samples of data preparation.

    Raises:
        ValueError: the file is missing, not audio, corrupt or empty, or has no such channel; the message names it.
    """
    channels, file_rate = load_channels(path)
    if channel is None:
        mono = torch.from_numpy(mix_to_mono(channels.numpy().T)[0])
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
    with path.open("rb") as file:
        try:
            reader = open_audio(file, str(path))
            blocks = list(reader.blocks())
        except UnreadableAudio as error:
            raise ValueError(f"{error}; replace or remove the file") from error
    if not blocks:
        raise ValueError(f"{path}: holds no audio samples; replace or remove the file")
    samples = np.ascontiguousarray(np.concatenate(blocks).T)
    if not np.isfinite(samples).all():
        raise ValueError(f"{path}: holds NaN or infinite samples; replace or remove the file")
    return torch.from_numpy(samples), reader.header.sample_rate


def mix_to_mono(samples: np.ndarray) -> tuple[np.ndarray, int | None]:
    """All of a recording, float32 [N, C], as one channel, [N], and which one `mono_channel` chose; None: the mean."""
    if samples.shape[1] == 1:
        return np.ascontiguousarray(samples[:, 0]), None
    mean = mean_of_channels(samples)
    chosen = mono_channel(np.einsum("nc,nc->c", samples, samples), float(np.dot(mean, mean)))
    return (mean, None) if chosen is None else (np.ascontiguousarray(samples[:, chosen]), chosen)


def mono_channel(energies: np.ndarray, mean_energy: float) -> int | None:
    """Chooses how a recording is mixed to mono: None for the mean of its channels, or the index of the one to use.

    The mean of channels in opposite phase (a microphone wired the wrong way round, a "surround" effect) is silence or
    a faint residue. The mean of C uncorrelated channels has the energy sum(E_c) / C^2, and correlation adds to it.
    With less than a tenth of that the channels cancel each other, and the loudest one is used for the whole recording.

    energies: [C], sum of squares of each channel; mean_energy: the same of the mean of all.
    """
    expected = float(energies.sum()) / len(energies) ** 2
    return int(np.argmax(energies)) if mean_energy < CANCELLED * expected else None


def mean_of_channels(block: np.ndarray) -> np.ndarray:
    """Mean of all channels of float32 [n, C]; many times faster than `block.mean(axis=1)` for a few channels."""
    total = block[:, 0].copy()
    for channel in range(1, block.shape[1]):
        total += block[:, channel]
    return total / np.float32(block.shape[1])


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
