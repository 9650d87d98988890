"""moshi need not be installed unless Mimi is asked for; then its absence is one line."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from csm.codec.mimi_transformers import has_sliding_window
from tests.conftest import ROOT

WITHOUT_MOSHI = """
import sys
sys.modules["moshi"] = None  # as if it were not installed
import csm.cli, csm.evaluation.run, csm.formats.export, csm.programs, csm.training.build, data_prep.cli
from csm.codec import load_codec
from csm.config import CodecConfig
from csm.errors import user_errors
from data_prep.main import main

try:
    with user_errors():
        load_codec(CodecConfig())
except SystemExit as exit:
    print("asked for Mimi: exit code", exit.code)
sys.argv = ["data_prep", *sys.argv[1:]]
main()
"""


@pytest.mark.slow
def test_everything_else_works_and_asking_for_mimi_is_one_line(small_dataset, tmp_path):
    command = [sys.executable, "-c", WITHOUT_MOSHI, "verify", f"output={small_dataset}", f"hydra.run.dir={tmp_path}"]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=offline, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "OK: no problems found" in done.stdout, done.stderr
    assert "asked for Mimi: exit code 2" in done.stdout
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    if has_sliding_window():  # transformers serves as well; nothing is downloaded in tests
        assert line.startswith("error: Mimi's weights") and "codec.path=FILE" in line
    else:
        assert line.startswith("error: Mimi needs the package moshi") and "pip install moshi" in line
