"""seed-tts-eval's speaker encoder against another implementation of it, and checkpoints that are not its own."""

import math
import re

import pytest
import torch
import torch.nn.functional as F
import torchaudio
from transformers import WavLMConfig

from csm.files import sha256_of
from csm.judges import wavlm_ecapa
from csm.judges.hub import ModelUnavailable
from csm.judges.wavlm_ecapa import LARGE, SpeakerNet, WavLMEcapa, load_published, read_weights

HEADS, DIM, LAYERS, BUCKETS, DISTANCE = 2, 16, 3, 12, 40
CHANNELS, WIDE, OUT, GROUPS, BOTTLENECK = 8, 20, 6, 4, 5
KERNELS, STRIDES = (10, 3), (5, 2)


def small() -> SpeakerNet:
    config = {
        **LARGE,
        "hidden_size": DIM,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": 28,
        "num_buckets": BUCKETS,
        "max_bucket_distance": DISTANCE,
        "conv_dim": (12, 14),
        "conv_kernel": KERNELS,
        "conv_stride": STRIDES,
        "num_feat_extract_layers": 2,
        "num_conv_pos_embeddings": 8,
        "num_conv_pos_embedding_groups": 2,
    }
    return SpeakerNet(WavLMConfig(**config), CHANNELS, WIDE, OUT, GROUPS, BOTTLENECK)


@pytest.fixture(scope="module")
def published() -> dict[str, torch.Tensor]:
    """Random weights of the small encoder under the names of the published file, written out here."""
    generator = torch.Generator().manual_seed(0)
    weights: dict[str, torch.Tensor] = {}

    def add(name: str, *shape: int) -> None:
        weights[name] = torch.randn(*shape, generator=generator) * (0.3 if len(shape) > 1 else 0.5)

    def norm(name: str, size: int) -> None:
        add(f"{name}.weight", size)
        add(f"{name}.bias", size)

    def linear(name: str, size: int, *inputs: int) -> None:
        add(f"{name}.weight", size, *inputs)
        add(f"{name}.bias", size)

    def batch_norm(name: str, size: int) -> None:
        norm(name, size)
        add(f"{name}.running_mean", size)
        weights[f"{name}.running_var"] = torch.rand(size, generator=generator) + 0.5
        weights[f"{name}.num_batches_tracked"] = torch.tensor(7)

    wavlm = "feature_extract.model"
    for i, (inputs, size) in enumerate(((1, 12), (12, 14))):
        add(f"{wavlm}.feature_extractor.conv_layers.{i}.0.weight", size, inputs, KERNELS[i])
        norm(f"{wavlm}.feature_extractor.conv_layers.{i}.2.1", size)
    norm(f"{wavlm}.layer_norm", 14)
    linear(f"{wavlm}.post_extract_proj", DIM, 14)
    add(f"{wavlm}.mask_emb", DIM)
    add(f"{wavlm}.encoder.pos_conv.0.weight_g", 1, 1, 8)
    add(f"{wavlm}.encoder.pos_conv.0.weight_v", DIM, DIM // 2, 8)
    add(f"{wavlm}.encoder.pos_conv.0.bias", DIM)
    norm(f"{wavlm}.encoder.layer_norm", DIM)
    add(f"{wavlm}.encoder.layers.0.self_attn.relative_attention_bias.weight", BUCKETS, HEADS)
    for i in range(LAYERS):
        layer = f"{wavlm}.encoder.layers.{i}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            linear(f"{layer}.self_attn.{part}", DIM, DIM)
        linear(f"{layer}.self_attn.grep_linear", 8, DIM // HEADS)
        add(f"{layer}.self_attn.grep_a", 1, HEADS, 1, 1)
        norm(f"{layer}.self_attn_layer_norm", DIM)
        linear(f"{layer}.fc1", 28, DIM)
        linear(f"{layer}.fc2", DIM, 28)
        norm(f"{layer}.final_layer_norm", DIM)
    add("feature_weight", LAYERS + 1)
    linear("layer1.conv", CHANNELS, DIM, 5)
    batch_norm("layer1.bn", CHANNELS)
    for number in (2, 3, 4):
        for part in ("Conv1dReluBn1", "Conv1dReluBn2"):
            linear(f"layer{number}.{part}.conv", CHANNELS, CHANNELS, 1)
            batch_norm(f"layer{number}.{part}.bn", CHANNELS)
        for i in range(GROUPS - 1):
            width = CHANNELS // GROUPS
            linear(f"layer{number}.Res2Conv1dReluBn.convs.{i}", width, width, 3)
            batch_norm(f"layer{number}.Res2Conv1dReluBn.bns.{i}", width)
        linear(f"layer{number}.SE_Connect.linear1", BOTTLENECK, CHANNELS)
        linear(f"layer{number}.SE_Connect.linear2", CHANNELS, BOTTLENECK)
    linear("conv", WIDE, 3 * CHANNELS, 1)
    linear("pooling.linear1", BOTTLENECK, WIDE, 1)
    linear("pooling.linear2", WIDE, BOTTLENECK, 1)
    batch_norm("bn", 2 * WIDE)
    linear("linear", OUT, 2 * WIDE)
    add("loss_calculator.projection.weight", 11, OUT)  # training's
    return weights


def independent(weights: dict[str, torch.Tensor], audio: torch.Tensor) -> torch.Tensor:
    """The encoder in float64, function by function, from the papers and the published names; [N] -> [OUT]."""
    w = {name.removeprefix("feature_extract.model."): tensor.double() for name, tensor in weights.items()}

    def layer_norm(x, name):  # over the last dimension
        centered = x - x.mean(-1, keepdim=True)
        scale = (centered.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return centered / scale * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def gelu(x):
        return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))

    x = audio.double()
    x = ((x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt())[None]  # [1, N]
    for i in range(2):
        x = F.conv1d(x, w[f"feature_extractor.conv_layers.{i}.0.weight"], stride=STRIDES[i])
        x = gelu(layer_norm(x.T, f"feature_extractor.conv_layers.{i}.2.1")).T
    x = linear(layer_norm(x.T, "layer_norm"), "post_extract_proj")  # [T, D]
    direction, length = w["encoder.pos_conv.0.weight_v"], w["encoder.pos_conv.0.weight_g"]
    kernel = direction / direction.square().sum((0, 1), keepdim=True).sqrt() * length
    positions = F.conv1d(x.T, kernel, w["encoder.pos_conv.0.bias"], padding=4, groups=2)[:, :-1]
    x = x + gelu(positions).T

    # relative positions: half of the buckets for each direction, of those half one by one, the others logarithmic
    frames, half = len(x), BUCKETS // 2
    bias = torch.zeros(HEADS, frames, frames, dtype=torch.float64)
    table = w["encoder.layers.0.self_attn.relative_attention_bias.weight"]
    for query in range(frames):
        for key in range(frames):
            distance = abs(key - query)
            exact = half // 2
            if distance < exact:
                bucket = distance
            else:
                share = math.log(distance / exact) / math.log(DISTANCE / exact)
                bucket = min(half - 1, exact + int(share * (half - exact)))
            bias[:, query, key] = table[bucket + (half if key > query else 0)]
    states = []
    for i in range(LAYERS):
        states.append(x)
        name = f"encoder.layers.{i}"
        y = layer_norm(x, f"{name}.self_attn_layer_norm")
        size = DIM // HEADS
        heads = []
        for head in range(HEADS):
            part = slice(head * size, (head + 1) * size)
            query, key, value = (linear(y, f"{name}.self_attn.{p}")[:, part] for p in ("q_proj", "k_proj", "v_proj"))
            gates = torch.sigmoid(linear(y[:, part], f"{name}.self_attn.grep_linear").view(frames, 2, 4).sum(-1))
            scale = w[f"{name}.self_attn.grep_a"][0, head, 0, 0]
            gate = gates[:, 0] * (gates[:, 1] * scale - 1) + 2  # gated relative position bias, WavLM, section 3.1
            scores = query @ key.T / math.sqrt(size) + gate[:, None] * bias[head]
            heads.append(scores.softmax(-1) @ value)
        x = x + linear(torch.cat(heads, -1), f"{name}.self_attn.out_proj")
        y = layer_norm(x, f"{name}.final_layer_norm")
        x = x + linear(gelu(linear(y, f"{name}.fc1")), f"{name}.fc2")
    states.append(layer_norm(x, "encoder.layer_norm"))

    shares = w["feature_weight"].exp() / w["feature_weight"].exp().sum()
    x = sum(share * state for share, state in zip(shares, states, strict=True)).T + 1e-6  # [D, T]
    x = (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt()

    def conv(x, name, **where):
        return F.conv1d(x, w[f"{name}.weight"], w[f"{name}.bias"], **where)

    def batch_norm(x, name):
        shape = (-1,) + (1,) * (x.ndim - 1)
        mean, variance = (w[f"{name}.running_{part}"].view(shape) for part in ("mean", "var"))
        return (x - mean) / (variance + 1e-5).sqrt() * w[f"{name}.weight"].view(shape) + w[f"{name}.bias"].view(shape)

    x = batch_norm(conv(x, "layer1.conv", padding=2).relu(), "layer1.bn")
    outs = []
    for number, dilation in ((2, 2), (3, 3), (4, 4)):
        name = f"layer{number}"
        y = batch_norm(conv(x, f"{name}.Conv1dReluBn1.conv").relu(), f"{name}.Conv1dReluBn1.bn")
        parts, before = [], 0.0
        for i in range(GROUPS - 1):
            width = CHANNELS // GROUPS
            here = conv(
                y[i * width : (i + 1) * width] + before,
                f"{name}.Res2Conv1dReluBn.convs.{i}",
                padding=dilation,
                dilation=dilation,
            )
            before = batch_norm(here.relu(), f"{name}.Res2Conv1dReluBn.bns.{i}")
            parts.append(before)
        y = torch.cat([*parts, y[(GROUPS - 1) * width :]])
        y = batch_norm(conv(y, f"{name}.Conv1dReluBn2.conv").relu(), f"{name}.Conv1dReluBn2.bn")
        gate = linear(linear(y.mean(1), f"{name}.SE_Connect.linear1").relu(), f"{name}.SE_Connect.linear2").sigmoid()
        x = x + y * gate[:, None]
        outs.append(x)
    x = conv(torch.cat(outs), "conv").relu()
    attention = conv(conv(x, "pooling.linear1").tanh(), "pooling.linear2").softmax(-1)
    mean = (attention * x).sum(-1)
    deviation = ((attention * x * x).sum(-1) - mean * mean).clamp(min=1e-9).sqrt()
    return linear(batch_norm(torch.cat([mean, deviation]), "bn"), "linear")


def test_equals_an_independent_implementation(published):
    net = small().eval()
    load_published(net, published, "random")
    for seed, samples in ((1, 803), (2, 1500)):
        audio = 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(seed))
        with torch.inference_mode():
            found = net(audio[None])[0]
        expected = independent(published, audio).float()
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_the_published_file_has_as_many_tensors_as_the_large_encoder():
    with torch.device("meta"):
        net = SpeakerNet(WavLMConfig(**LARGE))
    assert len(net.state_dict()) + 1 == 711  # and one of training


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: {re.sub("^feature_extract.model", "wavlm", k): v for k, v in w.items()}, "no tensor's name begins"),
        (lambda w: {k: v for k, v in w.items() if k != "layer3.SE_Connect.linear1.bias"}, r"lacks 1 .*layer3\.excite"),
        (lambda w: w | {"feature_extract.model.new": w["bn.bias"]}, r"has unknown 1 .*wavlm\.new"),
        (lambda w: w | {"linear.bias": w["bn.bias"]}, r"has other shapes of 1 .*linear\.bias"),
    ],
)
def test_other_weights_are_refused(published, change, message):
    with pytest.raises(ModelUnavailable, match=message) as error:
        load_published(small(), change(published), "w.pth")
    assert "\n" not in str(error.value)


def test_a_file_without_its_checksum_is_refused(published, tmp_path):
    with pytest.raises(ModelUnavailable, match=r"w\.pth: no such file .*; get wavlm_large_finetune\.pth"):
        WavLMEcapa(tmp_path / "w.pth", "cpu")
    torch.save({"model": published}, tmp_path / "w.pth")
    with pytest.raises(ModelUnavailable, match=r"w\.pth: its SHA-256 is .*, not 51f07e3b94d9\.\.\. of the published"):
        WavLMEcapa(tmp_path / "w.pth", "cpu")
    assert read_weights(tmp_path / "w.pth").keys() == published.keys()
    torch.save(published, tmp_path / "bare.pth")
    with pytest.raises(ModelUnavailable, match="is not a checkpoint with tensors under 'model'"):
        read_weights(tmp_path / "bare.pth")


def test_the_loaded_encoder_hears_whole_files_at_16_khz(published, tmp_path, monkeypatch):
    """The small encoder in the place of the large one, whose weights cannot be part of a test."""
    path = tmp_path / "w.pth"
    torch.save({"model": published, "step": 3}, path)
    monkeypatch.setattr(wavlm_ecapa, "PUBLISHED", sha256_of(path))
    monkeypatch.setattr(wavlm_ecapa, "SpeakerNet", lambda config: small())
    encoder = WavLMEcapa(path, "cpu")
    audio = 0.1 * torch.randn(2400, generator=torch.Generator().manual_seed(5))
    expected = independent(published, torchaudio.transforms.Resample(24_000, 16_000)(audio)).float()
    torch.testing.assert_close(encoder.embed(audio, 24_000), F.normalize(expected, dim=0), atol=1e-5, rtol=1e-5)
    assert encoder.embed(audio[:1000], 24_000) is None
    assert encoder.describe()["weights_sha256"] == sha256_of(path)
