"""Sharded checkpoints, written by two processes that each hold half of every tensor (FSDP2, gloo)."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from csm import load_model
from csm.formats.open import open_checkpoint
from csm.training.build import train
from tests.conftest import TINY_OVERRIDES, compose_train

WRITER = """
import sys
from pathlib import Path
import torch
import torch.distributed as dist
from lightning.fabric.strategies.fsdp import _distributed_checkpoint_save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from csm.checkpoint.contents import config_of, read_training_checkpoint
from csm.model.csm import CSM

source, target = sys.argv[1:]
dist.init_process_group("gloo")
checkpoint = read_training_checkpoint(Path(source))
module = torch.nn.Module()
module.model = CSM(config_of(checkpoint).model)
module.load_state_dict(checkpoint["state_dict"])
mesh = init_device_mesh("cpu", (2,))
for block in [*module.model.backbone.layers, *module.model.decoder.layers, module]:
    fully_shard(block, mesh=mesh)
_distributed_checkpoint_save({"state_dict": module.state_dict()}, target)
if dist.get_rank() == 0:
    kept = {key: value for key, value in checkpoint.items() if key not in ("state_dict", "optimizer_states")}
    torch.save(kept, f"{target}/meta.pt")
dist.barrier()
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def checkpoints(small_dataset, tmp_path_factory) -> tuple[Path, Path]:
    """(an ordinary checkpoint, the same sharded over two processes)."""
    folder = tmp_path_factory.mktemp("run")
    steps = ["trainer.max_steps=1", "trainer.val_every_steps=1"]
    train(compose_train([*TINY_OVERRIDES, *steps, f"data.path={small_dataset}", f"run_dir={folder}"]))
    whole, sharded = folder / "checkpoints" / "last.ckpt", folder / "sharded"
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29641"]
    (folder / "writer.py").write_text(WRITER)
    command = [*launch, str(folder / "writer.py"), str(whole), str(sharded)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    return whole, sharded


@pytest.mark.slow
def test_read_without_processes_bit_for_bit(checkpoints):
    whole, sharded = checkpoints
    assert len(list(sharded.glob("*.distcp"))) == 2
    expected = load_model(whole).state_dict()
    opened = open_checkpoint(sharded)
    assert opened.layout == "training" and opened.training == open_checkpoint(whole).training
    found = opened.load_model().state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert opened.read_tokenizer().vocab_size == 258 and opened.read_codec("cpu").name == "spectral"


@pytest.mark.slow
def test_index_with_code_is_refused(checkpoints, tmp_path):
    _, sharded = checkpoints
    (tmp_path / "meta.pt").write_bytes((sharded / "meta.pt").read_bytes())

    class Payload:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "owned"),))

    (tmp_path / ".metadata").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(ValueError, match=r"\.metadata is damaged, or holds Python objects"):
        open_checkpoint(tmp_path)
    assert not (tmp_path / "owned").exists()
    (tmp_path / ".metadata").write_bytes((sharded / ".metadata").read_bytes()[:200])
    with pytest.raises(ValueError, match=r"\.metadata is damaged"):
        open_checkpoint(tmp_path)
    (tmp_path / ".metadata").write_bytes((sharded / ".metadata").read_bytes())
    # The parts are not there.
    with pytest.raises(ValueError, match=r"damaged: \S+\.distcp, tensor state_dict\.model\.\S+: No such file"):
        load_model(tmp_path)
