"""moshi need not be installed unless Mimi is asked for; then its absence is one line."""

from __future__ import annotations

import os
import subprocess
import sys

from csm.codec.mimi_transformers import has_sliding_window
from tests.conftest import ROOT

IMPORTS = """
import sys
sys.modules["moshi"] = None  # as if it were not installed
import csm.cli, csm.evaluation.run, csm.formats.export, csm.programs, csm.training.build, data_prep.cli
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", IMPORTS + code]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, cwd=ROOT, env=offline, capture_output=True, text=True, timeout=120)


def test_everything_else_works_without_moshi(small_dataset, tmp_path):
    words = ["verify", f"output={small_dataset}", f"hydra.run.dir={tmp_path}"]
    done = run(f"sys.argv = ['data_prep', *{words}]\nfrom data_prep.main import main\nmain()")
    assert done.returncode == 0, done.stderr


def test_asking_for_mimi_is_one_line():
    done = run(
        "from csm.codec import load_codec; from csm.config import CodecConfig; from csm.errors import user_errors\n"
        "with user_errors(): load_codec(CodecConfig())"
    )
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    if has_sliding_window():  # transformers serves as well; nothing is downloaded in tests
        assert line.startswith("error: Mimi's weights") and "codec.path=FILE" in line
    else:
        assert line.startswith("error: Mimi needs the package moshi") and "pip install moshi" in line
