"""The wheel: its programs run from any directory, without a checkout."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import csm
from tests.conftest import ROOT, TINY_OVERRIDES


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with the wheel's contents, installed by pip; console scripts are in its bin/."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder / "dist"), str(ROOT)]
    subprocess.run(build, check=True)
    (wheel,) = (folder / "dist").glob("csm_train-*.whl")
    assert wheel.name.startswith(f"csm_train-{csm.__version__}-")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(folder / "site"), str(wheel)], check=True)
    return folder / "site"


def run(installed: Path, cwd: Path, *words: str) -> str:
    """Runs a console script (or `python -c`) in `cwd`, where only the installed package is found."""
    command = [sys.executable, *words] if words[0] == "-c" else [str(installed / "bin" / words[0]), *words[1:]]
    environment = os.environ | {"PYTHONPATH": str(installed)}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_wheel_trains_prepares_and_evaluates_without_a_checkout(installed, small_dataset, tmp_path):
    script = "import csm, data_prep; print(csm.__file__, data_prep.__file__)"
    assert run(installed, tmp_path, "-c", script).split() == [
        str(installed / "csm" / "__init__.py"),
        str(installed / "data_prep" / "__init__.py"),
    ]
    for marker in ("csm/py.typed", "data_prep/py.typed"):
        assert (installed / marker).is_file()
    assert "csm_1b, csm_3b, csm_8b, csm_tiny" in run(installed, tmp_path, "csm-train", "--help")
    assert "name: finetune_voice" in run(
        installed, tmp_path, "csm-train", "experiment=finetune_voice", "data.path=x", "--cfg", "job"
    )
    words = [*TINY_OVERRIDES, f"data.path={small_dataset}", "trainer.max_steps=2", "trainer.val_every_steps=2"]
    run(installed, tmp_path, "csm-train", *words, "trainer.checkpoint_every_steps=2", "run_dir=run")
    assert (tmp_path / "run" / "export" / "model.safetensors").is_file()
    assert "quickstart, seedtts_en" in " ".join(run(installed, tmp_path, "csm-evaluate", "--help").split())
    run(installed, tmp_path, "csm-data-prep", "verify", f"output={small_dataset}")
    assert "62.8M parameters" in run(installed, tmp_path, "csm", "plan", "model=csm_tiny", "gpu=cpu")


@pytest.mark.parametrize("module", ["csm.config", "data_prep.records", "tests.conftest", "csm"])
def test_a_deprecated_call_of_ours_is_an_error(module):
    with pytest.raises(DeprecationWarning):
        exec("import warnings; warnings.warn('old', DeprecationWarning)", {"__name__": module})


@pytest.mark.parametrize("module", ["torch.nn", "csmfoo", "somewhere.csm"])
def test_a_deprecated_call_of_others_is_not(module):
    exec("import warnings; warnings.warn('old', DeprecationWarning)", {"__name__": module})
