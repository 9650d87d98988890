"""The speaker encoder of seed-tts-eval's SIM: WavLM-large, fine-tuned for verification, under an ECAPA-TDNN.

    waveform, normalized -> WavLM -> mean of its 25 hidden states, with learned weights -> instance norm
      -> ECAPA-TDNN (Desplanques et al. 2020; 512 channels) -> embedding [256]

Written from the description and the names of the published weights (`wavlm_large_finetune.pth`, UniSpeech's recipe of
speaker verification); WavLM itself is that of transformers. The published program loads with strict=False, which leaves
weights of other names silently random. Here every tensor must have its place, and the file its checksum.
"""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import WavLMConfig, WavLMModel

from csm.files import sha256_of
from csm.judges.hub import ModelUnavailable
from csm.judges.sinc import sinc_resample
from csm.provenance import package_versions

RATE = 16_000  # Hz
PUBLISHED = "51f07e3b94d9e0262a6a675ef5a087be3dd09e8c62e9d886827f44f82fe7f94b"
"""SHA-256 of wavlm_large_finetune.pth, 1,301,926,579 bytes (CC BY-SA 3.0)."""
PUBLISHED_FILE = "wavlm_large_finetune.pth"
WHERE = (
    f"get {PUBLISHED_FILE} (1.3 GB) by the link in seed-tts-eval's README, or from the hub repository "
    "k2-fsa/TTS_eval_models, and give its path as eval.speaker_model"
)
_MIN_SAMPLES = 720  # two frames of WavLM, over which the instance norm needs a variance

LARGE = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "conv_bias": False,
    "num_buckets": 320,
    "max_bucket_distance": 800,
}


class ConvReluNorm(nn.Module):
    """Convolution, ReLU, batch norm: [B, C, T] -> [B, C', T]."""

    def __init__(self, channels: int, out_channels: int, kernel: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, out_channels, kernel, padding=kernel // 2)
        self.bn = nn.BatchNorm1d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(F.relu(self.conv(x)))


class Res2(nn.Module):
    """Convolutions over groups of channels, each of which sees the result of the one before; the last group passes."""

    def __init__(self, channels: int, dilation: int, groups: int) -> None:
        super().__init__()
        self.width = width = channels // groups
        self.convs = nn.ModuleList(
            nn.Conv1d(width, width, 3, padding=dilation, dilation=dilation) for _ in range(groups - 1)
        )
        self.bns = nn.ModuleList(nn.BatchNorm1d(width) for _ in range(groups - 1))

    def forward(self, x: Tensor) -> Tensor:
        *parts, last = x.split(self.width, dim=1)
        found: list[Tensor] = []
        for part, conv, norm in zip(parts, self.convs, self.bns, strict=True):
            found.append(norm(F.relu(conv(part + found[-1] if found else part))))
        return torch.cat([*found, last], dim=1)


class SqueezeExcite(nn.Module):
    """Scales each channel by a gate that sees the mean of all."""

    def __init__(self, channels: int, bottleneck: int) -> None:
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(channels, bottleneck), nn.Linear(bottleneck, channels)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.linear2(F.relu(self.linear1(x.mean(dim=2)))))
        return x * gate[:, :, None]


class Block(nn.Module):
    """SE-Res2Block with its residual connection."""

    def __init__(self, channels: int, dilation: int, groups: int, bottleneck: int) -> None:
        super().__init__()
        self.first = ConvReluNorm(channels, channels)
        self.res2 = Res2(channels, dilation, groups)
        self.second = ConvReluNorm(channels, channels)
        self.excite = SqueezeExcite(channels, bottleneck)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.excite(self.second(self.res2(self.first(x))))


class AttentivePooling(nn.Module):
    """Weighted mean and standard deviation over time: [B, C, T] -> [B, 2C]."""

    def __init__(self, channels: int, bottleneck: int) -> None:
        super().__init__()
        self.linear1, self.linear2 = nn.Conv1d(channels, bottleneck, 1), nn.Conv1d(bottleneck, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.linear2(torch.tanh(self.linear1(x))).softmax(dim=2)
        mean = (weights * x).sum(dim=2)
        variance = (weights * x**2).sum(dim=2) - mean**2
        return torch.cat([mean, variance.clamp(min=1e-9).sqrt()], dim=1)


class SpeakerNet(nn.Module):
    """The whole encoder; the defaults of the sizes are those of the published weights."""

    def __init__(
        self,
        wavlm: WavLMConfig,
        channels: int = 512,
        wide: int = 1536,
        dim: int = 256,
        groups: int = 8,
        bottleneck: int = 128,
    ) -> None:
        super().__init__()
        self.wavlm = WavLMModel(wavlm)
        self.feature_weight = nn.Parameter(torch.zeros(wavlm.num_hidden_layers + 1))
        self.layer1 = ConvReluNorm(wavlm.hidden_size, channels, kernel=5)
        self.layer2, self.layer3, self.layer4 = (Block(channels, d, groups, bottleneck) for d in (2, 3, 4))
        self.conv = nn.Conv1d(3 * channels, wide, 1)
        self.pooling = AttentivePooling(wide, bottleneck)
        self.bn = nn.BatchNorm1d(2 * wide)
        self.linear = nn.Linear(2 * wide, dim)

    def forward(self, audio: Tensor) -> Tensor:
        """Embeddings [1, dim] of one recording [1, N] at 16 kHz; padding would enter norms and pooling."""
        audio = F.layer_norm(audio, audio.shape[1:])
        states = torch.stack(self.wavlm(audio, output_hidden_states=True).hidden_states)  # [L+1, 1, T, D]
        features = torch.einsum("l,lbtd->bdt", self.feature_weight.softmax(dim=0), states) + 1e-6
        x = self.layer1(F.instance_norm(features))
        outs = []
        for layer in (self.layer2, self.layer3, self.layer4):
            x = layer(x)
            outs.append(x)
        pooled = self.pooling(F.relu(self.conv(torch.cat(outs, dim=1))))
        return self.linear(self.bn(pooled))


_PREFIX = "feature_extract.model."
_TRAINING_ONLY = {"loss_calculator.projection.weight"}
# Names in the checkpoint, as regular expressions, and here; WavLM's are those of the original code.
_NAMES = (
    (r"^feature_extract\.model\.", "wavlm."),
    (r"(conv_layers\.\d+)\.0\.", r"\1.conv."),
    (r"(conv_layers\.\d+)\.2\.1\.", r"\1.layer_norm."),
    (r"^wavlm\.layer_norm\.", "wavlm.feature_projection.layer_norm."),
    (r"^wavlm\.post_extract_proj\.", "wavlm.feature_projection.projection."),
    (r"^wavlm\.mask_emb$", "wavlm.masked_spec_embed"),
    (r"\.pos_conv\.0\.weight_g$", ".pos_conv_embed.conv.parametrizations.weight.original0"),
    (r"\.pos_conv\.0\.weight_v$", ".pos_conv_embed.conv.parametrizations.weight.original1"),
    (r"\.pos_conv\.0\.bias$", ".pos_conv_embed.conv.bias"),
    (r"\.self_attn\.relative_attention_bias\.", ".attention.rel_attn_embed."),
    (r"\.self_attn\.grep_linear\.", ".attention.gru_rel_pos_linear."),
    (r"\.self_attn\.grep_a$", ".attention.gru_rel_pos_const"),
    (r"\.self_attn_layer_norm\.", ".layer_norm."),
    (r"\.self_attn\.", ".attention."),
    (r"\.fc1\.", ".feed_forward.intermediate_dense."),
    (r"\.fc2\.", ".feed_forward.output_dense."),
    (r"\.Conv1dReluBn1\.", ".first."),
    (r"\.Res2Conv1dReluBn\.", ".res2."),
    (r"\.Conv1dReluBn2\.", ".second."),
    (r"\.SE_Connect\.", ".excite."),
)


def load_published(net: SpeakerNet, weights: dict[str, Tensor], where: str) -> None:
    """Loads weights by their published names; every tensor must have its place, and every place its tensor.

    Raises:
        ModelUnavailable: they do not.
    """
    if not any(name.startswith(_PREFIX) for name in weights):
        raise ModelUnavailable(
            f"{where}: no tensor's name begins with {_PREFIX!r}, as those of WavLM do in seed-tts-eval's checkpoint "
            f"(the first is {next(iter(weights), 'none')!r}): another prefix would leave WavLM random"
        )
    renamed = {}
    for name, tensor in weights.items():
        if name in _TRAINING_ONLY:
            continue
        for pattern, replacement in _NAMES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    expected = net.state_dict()
    missing, surplus = sorted(expected.keys() - renamed.keys()), sorted(renamed.keys() - expected.keys())
    wrong = [name for name in expected.keys() & renamed.keys() if expected[name].shape != renamed[name].shape]
    for names, what in ((missing, "lacks"), (surplus, "has unknown"), (wrong, "has other shapes of")):
        if names:
            raise ModelUnavailable(f"{where}: {what} {len(names)} tensors of seed-tts-eval's encoder, e.g. {names[0]}")
    net.load_state_dict(renamed)


class WavLMEcapa:
    """The published encoder, loaded from its file; float32, one whole recording at a time.

    Raises:
        ModelUnavailable: the file is missing, has another checksum, or does not hold these weights.
    """

    name = "WavLM-large + ECAPA-TDNN (seed-tts-eval)"

    def __init__(self, path: Path, device: str) -> None:
        if not path.is_file():
            raise ModelUnavailable(f"{path}: no such file with seed-tts-eval's speaker encoder; {WHERE}")
        if (found := sha256_of(path)) != PUBLISHED:
            raise ModelUnavailable(
                f"{path}: its SHA-256 is {found[:12]}..., not {PUBLISHED[:12]}... of the published file; {WHERE}"
            )
        self._net = SpeakerNet(WavLMConfig(**LARGE))
        load_published(self._net, read_weights(path), str(path))
        self._net.to(device).eval()
        self._device = device

    @torch.inference_mode()
    def embed(self, audio: Tensor, sample_rate: int) -> Tensor | None:
        samples = sinc_resample(audio, sample_rate, RATE)
        if len(samples) < _MIN_SAMPLES:
            return None
        return F.normalize(self._net(samples[None].to(self._device))[0].cpu(), dim=0)

    def describe(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "weights_sha256": PUBLISHED,
            "preprocessing": f"{RATE} Hz (windowed sinc), whole file, float32",
            "packages": package_versions("transformers", "torch"),
        }


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors under "model" of a checkpoint. Raises ModelUnavailable if there are none."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        return dict(state["model"])
    except (OSError, RuntimeError, KeyError, TypeError, pickle.UnpicklingError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelUnavailable(f"{path}: is not a checkpoint with tensors under 'model': {reason}") from error
