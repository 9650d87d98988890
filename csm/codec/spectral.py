"""The built-in codec: residual k-means over blocks of a log-mel spectrogram, fitted to the user's own recordings.

It needs no download, so that the whole project can be run and tested anywhere. It is a stand-in for a neural codec:
speech stays intelligible and keeps the timbre of its voice, but sounds like a vocoder.

    24 kHz audio -> 80-band log-mel, 100 frames/s -> blocks of 8 (80 ms, 640 values) -> PCA to 96 values
                 -> 32 codebooks of 256 entries, each refining the residual of those before

Entry 0 of codebook 0 is reserved: it decodes to silence and `encode` never uses it. So no encoded frame is all zeros,
the frame that ends a turn.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from csm.codec import mel
from csm.codec.base import Codec, CodecInfo, check_audio, check_codes, hash_tensors
from csm.codec.spectral_streaming import SpectralStreamingDecoder
from csm.files import write_tensors

FORMAT = "csm-spectral-codec-1"  # raise the number when the signal constants here or in mel.py change
MELS_PER_FRAME = 8
SAMPLES_PER_FRAME = MELS_PER_FRAME * mel.HOP  # 1920, 80 ms
PCA_DIM = 96
GRIFFIN_LIM_ITERATIONS = 32

FIT_SHIFTS = (0, 2, 4, 6)  # fitting sees every clip several times, its blocks shifted by this many mel frames
FIT_BLOCKS_PER_ENTRY = 64  # at most, which bounds the time of fitting
FIT_ITERATIONS = 5  # Lloyd iterations per codebook
_PIECE_FRAMES = 32  # frames encoded at once, see `encode`


class SpectralCodec(Codec):
    """See the module's docstring. All computation is float32 on `device`; results are deterministic per device."""

    def __init__(self, mean: Tensor, components: Tensor, codebooks: Tensor, device: torch.device | str = "cpu") -> None:
        """mean [640], components [640, D] with orthonormal columns, codebooks [K, V, D]; use `fit` or `load`."""
        self.device = torch.device(device)
        self._tensors = {"mean": mean, "components": components, "codebooks": codebooks}
        self.info = CodecInfo(
            name="spectral",
            weights_hash=hash_tensors(self._tensors),
            num_codebooks=codebooks.shape[0],
            codebook_size=codebooks.shape[1],
            frame_rate=mel.SAMPLE_RATE / SAMPLES_PER_FRAME,
            sample_rate=mel.SAMPLE_RATE,
        )
        self.mean, self.components, self.codebooks = (t.to(self.device) for t in (mean, components, codebooks))
        self.filterbank = mel.mel_filterbank(self.device)

    # ------------------------------------------------------------------------------------------- fitting

    @classmethod
    def fit(
        cls, waveforms: Iterable[Tensor], num_codebooks: int = 32, codebook_size: int = 256, seed: int = 0
    ) -> SpectralCodec:
        """Fits a codec to 1-D float waveforms at 24 kHz; 5 minutes of speech are enough. Runs on the CPU.

        It holds 8 MB per minute of audio while it runs, so give it a sample of a large collection. Deterministic for
        the same waveforms in the same order, seed and machine.

        Raises:
            ValueError: too little audio for `codebook_size` entries.
        """
        generator = torch.Generator().manual_seed(seed)
        filterbank = mel.mel_filterbank()
        clips = []
        for waveform in waveforms:
            audio = _pad_to_multiple(waveform.float().cpu(), SAMPLES_PER_FRAME)
            logs = mel.log_mel(mel.stft(mel.add_margins(audio)).abs(), filterbank)
            clips += [_blocks(logs[shift:]) for shift in FIT_SHIFTS if len(logs) >= shift + MELS_PER_FRAME]
        blocks = torch.cat(clips) if clips else torch.empty(0, MELS_PER_FRAME * mel.NUM_MELS)
        if len(blocks) < codebook_size:
            seconds = len(blocks) * SAMPLES_PER_FRAME / mel.SAMPLE_RATE / len(FIT_SHIFTS)
            needed = codebook_size * SAMPLES_PER_FRAME / mel.SAMPLE_RATE / len(FIT_SHIFTS)
            raise ValueError(
                f"fitting {codebook_size} entries per codebook needs at least {needed:.0f} s of audio, got "
                f"{seconds:.1f} s; give more recordings or a smaller codebook_size"
            )
        most = FIT_BLOCKS_PER_ENTRY * codebook_size
        if len(blocks) > most:
            blocks = blocks[torch.randperm(len(blocks), generator=generator)[:most]]

        mean = blocks.mean(dim=0)
        covariance = torch.cov((blocks - mean).double().T)
        components = torch.linalg.eigh(covariance).eigenvectors[:, -PCA_DIM:].flip(1).float().contiguous()
        silence = (mel.LOG_FLOOR - mean) @ components
        residual = (blocks - mean) @ components
        codebooks = []
        for level in range(num_codebooks):
            reserved = silence[None, :] if level == 0 else silence.new_empty(0, PCA_DIM)
            entries = _kmeans(residual, codebook_size - len(reserved), generator)
            residual = residual - entries[_nearest(residual, entries)]
            codebooks.append(torch.cat([reserved, entries]))
        return cls(mean, components, torch.stack(codebooks))

    # --------------------------------------------------------------------------------- encoding, decoding

    @torch.inference_mode()
    def encode(self, audio: Tensor) -> Tensor:
        """Float audio [B, 1, N] at 24 kHz -> int64 codes [B, K, ceil(N / 1920)]; the end is padded with silence.

        The work is cut into pieces of one shape, whatever B and N are, because the shape of a matrix product decides
        how its sums are rounded: so a turn's codes are bit for bit the same alone and padded in a batch.
        """
        check_audio(audio)
        num_frames = -(-audio.shape[-1] // SAMPLES_PER_FRAME)
        piece = _PIECE_FRAMES * SAMPLES_PER_FRAME
        rows = []
        for row in audio[:, 0].to(self.device, torch.float32):
            padded = mel.add_margins(_pad_to_multiple(row, piece))
            pieces = padded.unfold(0, piece + 2 * mel.MARGIN, piece)
            rows.append(torch.cat([self._encode_piece(p) for p in pieces])[:num_frames].T)
        return torch.stack(rows)

    def _encode_piece(self, audio: Tensor) -> Tensor:
        """Audio of _PIECE_FRAMES frames with margins -> codes [_PIECE_FRAMES, K]."""
        blocks = _blocks(mel.log_mel(mel.stft(audio).abs(), self.filterbank))
        residual = (blocks - self.mean) @ self.components
        codes = []
        for level, entries in enumerate(self.codebooks):
            first = 1 if level == 0 else 0  # entry 0 of codebook 0 is reserved
            code = _nearest(residual, entries[first:]) + first
            residual = residual - entries[code]
            codes.append(code)
        return torch.stack(codes, dim=1)

    @torch.inference_mode()
    def decode(self, codes: Tensor) -> Tensor:
        """Integer codes [B, k, T] of the first k codebooks -> float32 audio [B, 1, T * 1920], each row on its own.

        Raises ValueError for codes of another shape or out of range.
        """
        check_codes(codes, self.info)
        rows = [mel.griffin_lim(self.log_mel(row), self.filterbank, GRIFFIN_LIM_ITERATIONS, seed=0) for row in codes]
        return torch.stack(rows)[:, None]

    def streaming_decoder(self, slots: int) -> SpectralStreamingDecoder:
        return SpectralStreamingDecoder(self.log_mel, self.num_codebooks, SAMPLES_PER_FRAME, self.filterbank, slots)

    def log_mel(self, codes: Tensor) -> Tensor:
        """Codes [k, T] -> log-mel frames [T * MELS_PER_FRAME, NUM_MELS]."""
        levels = torch.arange(len(codes), device=self.device)[:, None]
        entries = self.codebooks[levels, codes.to(self.device)]  # [k, T, D]
        blocks = entries.sum(dim=0) @ self.components.T + self.mean
        return blocks.reshape(-1, mel.NUM_MELS).clamp_min(mel.LOG_FLOOR)

    # ------------------------------------------------------------------------------------ saving, loading

    def save(self, path: str | Path) -> None:
        """Writes one safetensors file; it appears under its name only when it is complete."""
        # One key: safetensors writes several in any order, and equal codecs must give equal files.
        metadata = {"codec": json.dumps({"format": FORMAT, "info": self.info.to_dict()})}
        tensors = {name: tensor.contiguous() for name, tensor in self._tensors.items()}
        write_tensors(Path(path), tensors, metadata)

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> SpectralCodec:
        """Reads a file that `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is not a spectral codec, or is damaged.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(
                f"{path}: no such spectral codec file; give the file of a prepared dataset or model"
            )
        try:
            with safe_open(path, framework="pt") as file:
                metadata = json.loads((file.metadata() or {}).get("codec", "{}"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except SafetensorError as error:
            raise ValueError(f"{path}: not a readable safetensors file ({error}); fit or copy it again") from error
        if metadata.get("format") != FORMAT:
            raise ValueError(f"{path}: not a spectral codec (format {metadata.get('format')!r}, expected {FORMAT!r})")
        codec = cls(tensors["mean"], tensors["components"], tensors["codebooks"], device)
        if codec.info != CodecInfo.from_dict(metadata["info"]):
            raise ValueError(f"{path}: its contents do not match the hash recorded in it; fit or copy it again")
        return codec


def _pad_to_multiple(audio: Tensor, size: int) -> Tensor:
    """Appends silence to [N] until N is a multiple of `size`."""
    return torch.nn.functional.pad(audio, (0, -audio.numel() % size))


def _blocks(logs: Tensor) -> Tensor:
    """Log-mel frames [F, NUM_MELS] -> whole blocks [F // 8, 8 * NUM_MELS]."""
    whole = len(logs) // MELS_PER_FRAME * MELS_PER_FRAME
    return logs[:whole].reshape(-1, MELS_PER_FRAME * mel.NUM_MELS)


def _nearest(points: Tensor, entries: Tensor) -> Tensor:
    """Index of the nearest entry: points [N, D], entries [V, D] -> int64 [N]."""
    return ((entries**2).sum(dim=1) - 2 * points @ entries.T).argmin(dim=1)


def _kmeans(points: Tensor, num_entries: int, generator: torch.Generator) -> Tensor:
    """Lloyd's algorithm, begun at random points: points [N, D] -> entries [num_entries, D]; unused ones stay put."""
    entries = points[torch.randperm(len(points), generator=generator)[:num_entries]]
    for _ in range(FIT_ITERATIONS):
        code = _nearest(points, entries)
        counts = torch.bincount(code, minlength=num_entries)[:, None]
        sums = torch.zeros_like(entries).index_add_(0, code, points)
        entries = torch.where(counts > 0, sums / counts.clamp_min(1), entries)
    return entries
