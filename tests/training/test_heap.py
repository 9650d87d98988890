"""Freed memory of a training step on the CPU goes back to the system within the step."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys, torch
from csm.config import CSMConfig, TransformerConfig
from csm.model.csm import CSM
from csm.training.heap import return_freed_memory

torch.manual_seed(0)
torch.set_num_threads(1)
model = CSM(CSMConfig(TransformerConfig(8, 256, 4, 2, 1024), TransformerConfig(1, 32, 2, 1, 32), text_vocab_size=64,
                      codebook_size=2000, num_codebooks=32))
if sys.argv[1] == "return":
    return_freed_memory(model)
tokens = torch.randint(0, 60, (2, 512, 33))
inputs = (tokens, torch.ones_like(tokens, dtype=torch.bool), torch.arange(512)[None],
          torch.ones(2, 512, dtype=torch.bool), torch.randint(1, 512, (2, 4)), torch.ones(2, 4))

def memory(field):
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith(field))

for step in range(4):
    sums = model(*inputs, chunk=8)
    if step:  # the first one's memory is all new
        open("/proc/self/clear_refs", "w").write("5")  # resets VmHWM
    model.zero_grad()
    (sums.c0 + sums.decoder).backward()
print(memory("VmHWM"), model.audio_embeddings.weight.grad.norm().item())
"""


def peak(mode: str) -> tuple[float, str]:
    """MiB of a backward pass at its highest, and the norm of a gradient."""
    result = subprocess.run([sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    size, value = result.stdout.split()
    return float(size), value


def test_a_backward_pass_gives_its_holes_back():
    keeping, returning = peak("keep"), peak("return")
    assert returning[0] < keeping[0] - 20
    assert returning[1] == keeping[1]
