"""Training that starts from weights: LoRA, full, and from a text model."""

from __future__ import annotations

import logging
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from csm import load_model
from csm.checkpoint.contents import read_training_checkpoint
from csm.config import RopeConfig
from csm.formats.export import export
from csm.formats.init_weights import init_weights_from
from csm.formats.open import open_checkpoint
from csm.model.csm import CSM
from csm.training.build import train
from csm.training.loggers import read_lines
from tests.conftest import compose_train
from tests.hf_reference import hf_inputs, hf_model
from tests.tiny import conversation, tiny_config

LORA = ["lora.rank=4", "lora.alpha=8", "optim.lr=2e-2", "optim.warmup_steps=1", "data.context_dropout=0"]


@pytest.fixture(scope="module")
def base(small_dataset, tmp_path_factory) -> Path:
    """An exported model of one training step."""
    from tests.conftest import TINY_OVERRIDES

    folder = tmp_path_factory.mktemp("base")
    steps = ["trainer.max_steps=1", "trainer.val_every_steps=1"]
    train(compose_train([*TINY_OVERRIDES, *steps, f"data.path={small_dataset}", f"run_dir={folder}"]))
    return folder / "export"


def losses(run: Path) -> list[float]:
    return [line["train/loss"] for line in read_lines(run / "metrics.jsonl") if "train/loss" in line]


@pytest.mark.slow
def test_lora_run_from_start_to_adapter(base, tiny_overrides, tmp_path):
    overrides = [*tiny_overrides, *LORA, f"init_from={base}", "trainer.max_steps=8", "trainer.checkpoint_every_steps=4"]
    train(compose_train(overrides))
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    found = losses(tmp_path / "run")
    assert found[-1] < found[0] - 0.05, found

    stored = {name.removeprefix("model."): t for name, t in read_training_checkpoint(last)["state_dict"].items()}
    original = load_model(base).state_dict()
    assert all(torch.equal(stored[name], tensor) for name, tensor in original.items())  # the base is as it was
    assert sum(".lora_" in name for name in stored) == 2 * 7 * (2 + 1)

    # The merged export differs from the base in the adapted layers, and only there.
    exported = load_model(tmp_path / "run" / "export").state_dict()
    assert exported.keys() == original.keys()
    changed = {name for name, tensor in exported.items() if not torch.equal(tensor, original[name])}
    assert changed == {name.removesuffix("lora_a") + "weight" for name in stored if name.endswith("lora_a")}

    # The adapter on transformers' model computes what the merged model computes.
    export(open_checkpoint(last), tmp_path / "adapter", "peft")
    assert set(load_file(tmp_path / "adapter" / "adapter_model.safetensors")) >= {
        "base_model.model.depth_decoder.model.layers.0.mlp.down_proj.lora_A.weight"
    }
    model = load_model(tmp_path / "run" / "export")
    reference = peft.PeftModel.from_pretrained(hf_model(load_model(base)), tmp_path / "adapter").eval()
    frames = conversation(3, codebooks=5)
    with torch.no_grad():
        inputs = hf_inputs(reference.get_base_model(), frames)
        states = model.backbone_states(frames.tokens[None], frames.mask[None], torch.arange(len(frames))[None])
        theirs = reference(inputs_embeds=inputs).logits
        torch.testing.assert_close(model.codebook0_head(states), theirs, atol=1e-4, rtol=1e-4)
        with reference.disable_adapter():
            assert not torch.allclose(reference(inputs_embeds=inputs).logits, theirs, atol=1e-3)
        where = frames.targets.nonzero()[:, 0]
        hidden, codes = states[0, where - 1], frames.tokens[where, :-1]
        depth = reference.get_base_model().depth_decoder(
            input_ids=torch.nn.functional.pad(codes[:, :-1], (1, 0)), backbone_last_hidden_state=hidden
        )
        ours = model.decoder_logits(hidden, codes[:, :-1]).transpose(0, 1)
        torch.testing.assert_close(ours, depth.logits, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_lora_resumes_bit_for_bit_and_only_with_the_same_options(base, tiny_overrides, tmp_path):
    def run(name: str, steps: int, *more: str) -> Path:
        run_dir = tmp_path / name
        train(
            compose_train(
                [
                    *(*tiny_overrides, *LORA, f"init_from={base}", f"run_dir={run_dir}", f"trainer.max_steps={steps}"),
                    *("trainer.val_every_steps=2", "trainer.checkpoint_every_steps=2", "optim.schedule=wsd", *more),
                ]
            )
        )
        return run_dir / "checkpoints" / "last.ckpt"

    whole = read_training_checkpoint(run("whole", 4))
    run("halves", 2)
    halves = read_training_checkpoint(run("halves", 4, "ckpt_path=last"))
    assert whole["state_dict"].keys() == halves["state_dict"].keys()
    assert all(torch.equal(halves["state_dict"][name], tensor) for name, tensor in whole["state_dict"].items())
    with pytest.raises(ValueError, match=r"other settings \(lora.alpha: 8.0 -> 9.0\)"):
        run("halves", 6, "ckpt_path=last", "lora.alpha=9")
    export_to = tmp_path / "plain"
    with pytest.raises(ValueError, match="has no LoRA adapter"):
        export(open_checkpoint(base.parent / "checkpoints" / "last.ckpt"), export_to, "peft")
    assert not export_to.exists()


@pytest.fixture
def llama(tmp_path):
    """A tiny random text model of our tiny backbone's shape, in two shards."""
    config = tiny_config().backbone
    torch.manual_seed(9)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=tiny_config().text_vocab_size,
            hidden_size=config.dim,
            intermediate_size=config.ffn_dim,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            rms_norm_eps=1e-5,
            rope_theta=500_000.0,
            rope_scaling={
                "rope_type": "llama3",
                "factor": 32.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
        )
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.uniform_(0.5, 1.5)  # norms begin as ones, which would prove nothing
    model.save_pretrained(tmp_path / "llama", max_shard_size="60KB")
    assert (tmp_path / "llama" / "model.safetensors.index.json").is_file()
    return model, tmp_path / "llama"


def test_backbone_from_llama_is_that_llama(llama, caplog):
    reference, path = llama
    torch.manual_seed(4)
    model = CSM(tiny_config())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with caplog.at_level(logging.INFO):
        init_weights_from(model, str(path))
    assert (
        "random: audio_head, audio_embeddings.weight, codebook0_head.weight, projection.weight, decoder.*"
        in caplog.text
    )
    assert "has to adapt" not in caplog.text  # the same rotary positions and norms
    for name, tensor in model.state_dict().items():
        random = name.startswith(("audio_", "codebook0_head", "projection", "decoder."))
        assert torch.equal(tensor, before[name]) == random, name
    ids = torch.randint(0, tiny_config().text_vocab_size, (1, 11))
    tokens = torch.zeros(1, 11, 6, dtype=torch.int64)
    tokens[..., -1] = ids
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    mask[..., -1] = True
    with torch.no_grad():
        states = model.backbone_states(tokens, mask, torch.arange(11)[None])
        torch.testing.assert_close(states, reference.model(ids).last_hidden_state, atol=1e-5, rtol=1e-5)


def test_llama_that_does_not_fit(llama, caplog):
    _, path = llama
    config = tiny_config()
    config.text_vocab_size += 1
    with pytest.raises(
        ValueError, match=r"model\.embed_tokens\.weight has shape \(41, 48\), the model's text_embeddings"
    ):
        init_weights_from(CSM(config), str(path))
    config = tiny_config()
    config.backbone.layers += 1
    with pytest.raises(ValueError, match="this Llama has 3 layers, the backbone 4"):
        init_weights_from(CSM(config), str(path))
    config = tiny_config()
    config.rope, config.norm_eps = RopeConfig(scale_factor=8.0), 1e-6
    with caplog.at_level(logging.WARNING):
        init_weights_from(CSM(config), str(path))
    for difference in ("rope is RopeConfig(base=500000.0, scale_factor=32.0", "norm_eps is 1e-05"):
        assert difference in caplog.text
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        init_weights_from(CSM(tiny_config()), "nowhere")


def test_init_from_another_shape_names_the_tensor(base):
    with pytest.raises(ValueError, match=r"tensor audio_head has shape \(4, 32, 26\), the model expects \(4, 32, 16\)"):
        init_weights_from(CSM(tiny_config()), str(base))
