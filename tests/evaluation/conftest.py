"""Real speech, a dataset prepared from it, and an untrained model that fits the dataset."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from csm.codec import SpectralCodec
from csm.config import (
    CodecConfig,
    CodecKind,
    CSMConfig,
    TokenizerConfig,
    TokenizerKind,
    TransformerConfig,
)
from csm.data.dataset import ShardedDataset
from csm.formats.native import write_native
from csm.formats.tensors import lazy
from csm.model.csm import CSM
from csm.text import load_tokenizer
from data_prep.config import DataPrepConfig, ExecutorConfig, ExecutorKind
from data_prep.prepare import prepare
from tests.demo_speech import DEMO, SpokenTurn, records, spoken_turns

CONVERSATIONS = ["urgent", "echo", "weasels", "recorded"]  # four turns each; the last is split "val"
CODEC = CodecConfig(kind=CodecKind.spectral, num_codebooks=5, codebook_size=23)


@pytest.fixture(scope="session")
def speech() -> dict[str, list[SpokenTurn]]:
    """Demo conversations by id, turn by turn."""
    return spoken_turns(CONVERSATIONS)


@pytest.fixture(scope="session")
def dataset_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The four conversations prepared with a small codec; the recordings lie in the sibling folder `recordings`."""
    folder = tmp_path_factory.mktemp("evaluation")
    recordings = folder / "recordings"
    recordings.mkdir()
    for record in records(CONVERSATIONS):
        shutil.copy(DEMO / record["audio"], recordings)
    lines = "".join(json.dumps(record) + "\n" for record in records(CONVERSATIONS))
    (recordings / "manifest.jsonl").write_text(lines)
    inline = ExecutorConfig(ExecutorKind.inline)
    output = str(folder / "dataset")
    prepare(DataPrepConfig(input=str(recordings / "manifest.jsonl"), output=output, codec=CODEC, executor=inline))
    return folder / "dataset"


@pytest.fixture(scope="session")
def checkpoint(dataset_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory with random weights."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = load_tokenizer(TokenizerConfig(kind=TokenizerKind.bytes, vocab_size=258))
    config = CSMConfig(
        backbone=TransformerConfig(layers=2, dim=48, heads=4, kv_heads=2, ffn_dim=80),
        decoder=TransformerConfig(layers=1, dim=24, heads=3, kv_heads=1, ffn_dim=40),
        text_vocab_size=258,
        codebook_size=CODEC.codebook_size,
        num_codebooks=CODEC.num_codebooks,
        max_seq_len=512,
    )
    torch.manual_seed(7)
    dataset = ShardedDataset(dataset_path)
    (folder / "export").mkdir()
    write_native(
        folder / "export",
        weights=lazy(CSM(config).state_dict()),
        config=config,
        codec=CODEC,
        codec_info=dataset.codec,
        fitted_codec=SpectralCodec.load(dataset.codec_file),
        tokenizer=tokenizer,
        training={"step": 0, "name": "untrained", "seed": 7, "data": str(dataset_path)},
    )
    return folder / "export"
