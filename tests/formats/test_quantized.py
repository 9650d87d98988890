"""Quantized models: kept bit for bit, refused in one line where they cannot run, and spoken from by the engine."""

import json
import shutil

import pytest
import torch
import torchao
from safetensors.torch import load_file

from csm.cli import main
from csm.codec import SpectralCodec
from csm.config import CodecConfig, CodecKind
from csm.data.dataset import ShardedDataset
from csm.formats.export import export
from csm.formats.init_weights import init_weights_from
from csm.formats.load import load_generator, load_model
from csm.formats.native import write_native
from csm.formats.open import open_checkpoint
from csm.formats.quantize import quantize
from csm.formats.tensors import lazy
from csm.model.csm import CSM
from csm.quantization.schemes import PARTS, Quantization, quantize_weight
from csm.quantization.tensors import fuse_rows, is_quantized, leaves
from csm.text import ByteTokenizer
from tests.tiny import tiny_config, tiny_model

ON_CPU = ("int8", "int8-dynamic", "fp8")


@pytest.fixture(scope="module")
def source(tmp_path_factory, small_dataset):
    """A tiny model that speaks through the spectral codec."""
    dataset, config = ShardedDataset(small_dataset), tiny_config()
    config.text_vocab_size, config.codebook_size = 258, dataset.codec.codebook_size
    torch.manual_seed(3)
    config.initializer_std = 0.1
    folder = tmp_path_factory.mktemp("source") / "model"
    folder.mkdir()
    codec = SpectralCodec.load(dataset.codec_file)
    spectral = CodecConfig(kind=CodecKind.spectral)
    weights = lazy(CSM(config).state_dict())
    write_native(folder, weights, config, spectral, dataset.codec, codec, ByteTokenizer(), training={"step": 3})
    return folder


def all_leaves(model):
    return {f"{name} {path}": leaf for name, t in model.state_dict().items() for path, leaf in leaves(t).items()}


def assert_equal_models(a, b):
    ours, others = all_leaves(a), all_leaves(b)
    assert ours.keys() == others.keys()
    for name, leaf in ours.items():
        assert leaf.dtype == others[name].dtype and torch.equal(leaf.float(), others[name].float()), name


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("scheme", ON_CPU)
def test_a_written_model_is_the_one_quantized_in_memory_bit_for_bit(source, tmp_path, scheme, dtype):
    quantize(open_checkpoint(source), scheme, PARTS, tmp_path / "small", dtype=dtype)
    written = load_model(tmp_path / "small")
    in_memory = load_generator(source, dtype=dtype, quantize=scheme).model
    assert_equal_models(written, in_memory)
    quantized = {name for name, tensor in written.state_dict().items() if is_quantized(tensor)}
    expected = {
        name
        for name, tensor in tiny_model().state_dict().items()
        if ".layers." in name and tensor.ndim == 2  # the linear layers of the stacks, nothing else
    }
    assert quantized == expected
    assert written.codebook0_head.weight.dtype == (dtype or torch.float32)
    stored = load_file(tmp_path / "small" / "model.safetensors")
    assert all(type(tensor) is torch.Tensor for tensor in stored.values())


@pytest.mark.parametrize("scheme", ON_CPU)
def test_a_quantized_model_computes_nearly_the_same(source, scheme):
    whole, small = load_model(source), load_generator(source, quantize=scheme).model
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 13, (1, 20, 6), generator=generator)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    positions = torch.arange(20)[None]
    wanted = whole.backbone_states(tokens, mask, positions)
    found = small.backbone_states(tokens, mask, positions)
    error = (found - wanted).norm() / wanted.norm()
    assert 1e-5 < error < 0.1
    logits = whole.decoder_logits(wanted[0], tokens[0, :, :4])
    error = (small.decoder_logits(wanted[0], tokens[0, :, :4]) - logits).norm() / logits.norm()
    assert 1e-5 < error < 0.1


def test_only_the_parts_that_were_asked_for(source, tmp_path):
    for part in PARTS:
        quantize(open_checkpoint(source), "int8", (part,), tmp_path / part)
        model = load_model(tmp_path / part)
        assert {n.split(".")[0] for n, t in model.state_dict().items() if is_quantized(t)} == {part}


def test_quantized_layers_take_less_than_0_3_of_their_fp32_bytes():
    config = tiny_config()
    config.backbone.dim, config.backbone.ffn_dim, config.decoder.dim, config.decoder.ffn_dim = 144, 216, 128, 160
    model = CSM(config)
    for scheme in ON_CPU:
        small = whole = 0
        for name in Quantization(scheme).layers(config):
            weight = model.get_parameter(name).detach()
            small += sum(leaf.nbytes for leaf in leaves(quantize_weight(weight, scheme)).values())
            whole += weight.nbytes
        assert small < 0.3 * whole


@pytest.mark.parametrize("scheme", ON_CPU)
def test_fused_rows_are_the_parts_and_share_their_memory(source, scheme):
    attention = load_generator(source, quantize=scheme).model.backbone.layers[1].attn
    weights = [attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]
    fused, parts = fuse_rows(weights)
    x = torch.randn(4, fused.shape[1], generator=torch.Generator().manual_seed(0))
    wanted = torch.cat([torch.nn.functional.linear(x, weight) for weight in weights], dim=-1)
    torch.testing.assert_close(torch.nn.functional.linear(x, fused), wanted, atol=1e-6, rtol=0)
    fused_leaves = leaves(fused)
    for part, weight in zip(parts, weights, strict=True):
        for path, leaf in leaves(part).items():
            assert torch.equal(leaf.float(), leaves(weight)[path].float())
            assert leaf.untyped_storage().data_ptr() == fused_leaves[path].untyped_storage().data_ptr()


@pytest.mark.parametrize("scheme", ON_CPU)
def test_the_engine_speaks_from_a_quantized_directory(source, tmp_path, scheme):
    quantize(open_checkpoint(source), scheme, PARTS, tmp_path / "small")
    spoken = load_generator(tmp_path / "small").generate_segment("Hi.", 0, [], 800, temperature=0)
    same = load_generator(source, quantize=scheme).generate_segment("Hi.", 0, [], 800, temperature=0)
    assert spoken.frames > 0 and torch.equal(spoken.codes, same.codes)
    sampled = [load_generator(tmp_path / "small", slots=n).generate_segment("Hi.", 0, [], 800, seed=4) for n in (1, 3)]
    assert torch.equal(sampled[0].codes, sampled[1].codes)


def test_the_commands_quantize_and_speak(source, tmp_path, monkeypatch, capsys):
    out = tmp_path / "small"
    monkeypatch.setattr("sys.argv", ["csm", "quantize", str(source), "--scheme", "int8", "--out", str(out)])
    main()
    assert json.loads((out / "config.json").read_text())["quantization"] == {
        "scheme": "int8",
        "parts": ["backbone", "decoder"],
        "torchao": torchao.__version__,
    }
    speak = ["csm", "generate", str(out), "--text", "Hi.", "--out", str(tmp_path / "hi.wav"), "--seed", "1"]
    monkeypatch.setattr("sys.argv", [*speak, "--max-audio-length-ms", "400"])
    main()
    assert (tmp_path / "hi.wav").is_file()
    assert "small" in capsys.readouterr().out


def edit_config(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config["quantization"])
    (folder / "config.json").write_text(json.dumps(config))


def one_line(error):
    return "\n" not in str(error.value)


def test_what_cannot_be_done_is_said_in_one_line(source, tmp_path):
    small = tmp_path / "small"
    quantize(open_checkpoint(source), "int8", PARTS, small)

    with pytest.raises(ValueError, match=r"small is quantized \(int8\) and can only be spoken from; give the model"):
        export(open_checkpoint(small), tmp_path / "again")
    with pytest.raises(ValueError, match="can only be spoken from"):
        init_weights_from(load_model(source), str(small))
    with pytest.raises(ValueError, match="can only be spoken from"):
        quantize(open_checkpoint(small), "fp8", PARTS, tmp_path / "again")
    with pytest.raises(ValueError, match="can only be spoken from"):
        load_generator(small, quantize="int8")
    assert not (tmp_path / "again").exists()

    with pytest.raises(ValueError, match=r"int4 needs a GPU: .* choose int8") as error:
        load_generator(source, quantize="int4", dtype=torch.bfloat16)
    assert one_line(error)
    with pytest.raises(ValueError, match="int4 needs weights in bfloat16, and these are float32"):
        Quantization("int4").check("cuda", torch.float32)
    with pytest.raises(ValueError, match="'int3': must be one of int8, int8-dynamic, int4, fp8"):
        load_generator(source, quantize="int3")
    with pytest.raises(ValueError, match="'codec': must be some of backbone, decoder"):
        load_generator(source, quantize="int8", quantize_parts=["codec"])

    other = tmp_path / "other"
    shutil.copytree(small, other)
    edit_config(other, lambda q: q.update(torchao="0.14.1"))
    with pytest.raises(
        ValueError, match=rf"other was quantized with torchao 0\.14\.1, and {torchao.__version__}"
    ) as error:
        load_generator(other)
    assert one_line(error)
    edit_config(other, lambda q: q.update(torchao=torchao.__version__, scheme="fp8"))
    with pytest.raises(
        ValueError, match=r"tensor backbone\.layers\.0\.attn\.q_proj\.weight\.qdata is missing"
    ) as error:
        load_generator(other)
    assert one_line(error)
    edit_config(other, lambda q: q.pop("parts"))
    with pytest.raises(ValueError, match=r"config\.json: not a quantization \('parts'\); quantize the model again"):
        load_generator(other)
