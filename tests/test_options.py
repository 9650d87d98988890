"""The command line: text is taken as it is, renamed options name the new one, `--help` documents every option."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from operator import attrgetter
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from csm.command_line import read_overrides
from csm.compose import EVALUATE, TRAIN
from csm.config import EvaluateConfig, PlanConfig, TrainConfig
from csm.options import field_docs, sections
from data_prep.config import DATA_PREP, DataPrepConfig
from docs.generate_options import PAGE, page
from tests.conftest import ROOT

AWKWARD = [
    "r/été",
    "r/calls (2024)",
    "r/a=b/export",
    "r/[1]",
    "r/{x}",
    "r/a,b",
    "r/it's",
    'r/"quoted" part',
    "'",
    "r/~x",
    "r/back\\slash",
    "r/ends with \\",
    "r/$x",
    "r/100%",
    " r/ spaces ",
    "r/日本語",
    "2024_02",
    "1e3",
    "007",
    "1.50",
    "true",
    "=x",
    "choice(a,b)",
]
"""Values that Hydra's own grammar rejects, or reads as something else than this text."""


def run(*words: str, cwd: Path = ROOT, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], cwd=cwd, capture_output=True, text=True, timeout=timeout)


TEXT_OPTIONS = [
    (TRAIN, ["data.path", "run_dir", "init_from", "name", "codec.path", "ckpt_path"]),
    (EVALUATE, ["checkpoint", "output", "eval.prompts"]),
    (DATA_PREP, ["input", "output", "tokenizer.path"]),
]


@pytest.mark.parametrize(("program", "options"), TEXT_OPTIONS)
def test_paths_and_names_are_taken_as_they_are(program, options):
    """Several values to a composition, each in an option of its own."""
    for first in range(0, len(AWKWARD), len(options)):
        given = {option: AWKWARD[(first + i) % len(AWKWARD)] for i, option in enumerate(options)}
        config = program.options(program.compose([f"{option}={value}" for option, value in given.items()]))
        assert {option: attrgetter(option)(config) for option in options} == given


def test_a_path_of_a_mixture_is_taken_as_it_is():
    words = ["data=mix", "+data.sources={calls: {path: x}}", "data.sources.calls.path=a (1), é"]
    assert TRAIN.options(TRAIN.compose(words)).data.sources["calls"].path == "a (1), é"


def test_home_null_quotes_and_interpolations_keep_their_meaning():
    home = str(Path.home())
    words = ["data.path=~/ds (1)", "init_from=~", "ckpt_path=null", "run_dir=r/${name} é/${seed}", "name='a, \\'b\\''"]
    config = TRAIN.options(TRAIN.compose(words))
    assert [config.data.path, config.init_from, config.ckpt_path] == [f"{home}/ds (1)", home, None]
    assert (config.name, config.run_dir) == ("a, 'b'", "r/a, 'b' é/1234")
    assert TRAIN.options(TRAIN.compose(["data.path=x", 'run_dir="~/a"'])).run_dir == f"{home}/a"


def test_other_options_keep_hydras_grammar():
    words = [
        "data.path=x",
        "lora.targets=[q_proj,v_proj]",
        "model.backbone={layers: 2, dim: 48, heads: 6, kv_heads: 3, ffn_dim: 72}",
        "optim.lr=1e-3",
        "trainer.devices=auto",
        "+logger.mine={_target_: x.Y, name: 1e3}",
        "~logger.jsonl",
    ]
    config = TRAIN.options(TRAIN.compose(words))
    assert config.lora.targets == ["q_proj", "v_proj"] and config.optim.lr == 1e-3 and config.trainer.devices == "auto"
    assert config.model.backbone.kv_heads == 3 and config.logger == {"mine": {"_target_": "x.Y", "name": 1000.0}}
    assert read_overrides(["-m", "--config-dir=a b", "data=mix", "codec.kind=mimi"], TrainConfig, {}) == [
        "-m",
        "--config-dir=a b",
        "data=mix",
        "codec.kind=mimi",
    ]


def test_words_may_be_read_twice():
    """Processes that training starts get the words that were read already."""
    words = [f"data.path={value}" for value in [*AWKWARD, "~/x", "'a b'", "${name}"]]
    once = read_overrides(words, TrainConfig, {})
    assert read_overrides(once, TrainConfig, {}) == once


@pytest.mark.parametrize(
    ("value", "paths"),
    [
        ("a,b", ["a", "b"]),
        ("a (1),é=2,1e3", ["a (1)", "é=2", "1e3"]),
        ("'a,b',c", ["a,b", "c"]),
        ("it's,b's", ["it's", "b's"]),
        ("choice(a,b)", ["a", "b"]),
        ("${oc.env:NONE,x},y", ["x", "y"]),
    ],
)
def test_a_multirun_sweeps_over_text(tmp_path, value, paths):
    script = tmp_path / "sweep.py"
    script.write_text(
        "import sys, hydra\nfrom csm.compose import TRAIN, config_folder\n"
        "sys.argv[1:] = TRAIN.read_words(sys.argv[1:])\n"
        "@hydra.main(version_base='1.3', config_path=str(config_folder('train')), config_name='train')\n"
        "def main(config):\n    print('path', repr(config.data.path))\n"
        "main()\n"
    )
    words = ["-m", f"data.path={value}", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    command = [sys.executable, str(script), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path, env=environment())
    assert [line for line in done.stdout.splitlines() if line.startswith("path")] == [f"path {p!r}" for p in paths], (
        done
    )


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)}


@pytest.mark.slow
def test_preparation_finds_an_awkward_folder_and_writes_to_one(tmp_path):
    source = tmp_path / "été (2024) a=b"
    source.mkdir()
    (source / "echo.flac").write_bytes((ROOT / "data_prep/demo/echo.flac").read_bytes())
    (source / "echo.txt").write_text("You have heard an echo.")
    small = ["codec=spectral", "codec.num_codebooks=2", "codec.codebook_size=5", "transcribe=none", "executor=inline"]
    words = ["input=été (2024) a=b", "output=2024_02", "loose=off", "strict=off", "report.conversations=1", *small]
    command = [sys.executable, "-m", "data_prep", *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, env=environment())
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "2024_02" / "dataset.json").is_file() and (tmp_path / "2024_02.work").is_dir()


@pytest.mark.parametrize(
    ("words", "new"),
    [
        (["train.py", "data.path=x", "data.rows_per_step=4"], "data.global_batch_size"),
        (["-m", "data_prep", "output=x", "conversation.max_positions=4"], "conversation.max_seq_len"),
        (["-m", "csm.cli", "plan", "data.max_positions=4"], "data.max_seq_len"),
    ],
)
def test_a_renamed_option_names_the_new_one(words, new):
    done = run(*words)
    assert done.returncode == 2 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and done.stderr.strip().endswith(f"is now called {new}")


@pytest.mark.parametrize(
    ("word", "new"),
    [
        ("+data.rows_per_microbatch=4", "data.micro_batch_size"),
        ("++trainer.recompute=full", "trainer.activation_checkpointing"),
    ],
)
def test_a_renamed_option_may_be_added_or_forced(word, new):
    with pytest.raises(ValueError, match=f"is now called {new}$"):
        TRAIN.read_words(["data.path=x", word])


def test_a_renamed_option_in_a_yaml_file_names_the_new_one(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "old.yaml").write_text("# @package _global_\ndata:\n  rows_per_step: 4\n")
    done = run("train.py", f"hydra.searchpath=[file://{tmp_path}]", "experiment=old", "data.path=x")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert done.stderr.strip().endswith("data.rows_per_step is now called data.global_batch_size")


PROGRAMS = [
    (["train.py"], TRAIN, "model codec tokenizer data optim trainer strategy logger experiment sweep launcher"),
    (["evaluate.py"], EVALUATE, "eval"),
    (["-m", "data_prep"], DATA_PREP, "codec tokenizer vad diarize transcribe loose strict executor"),
]


@pytest.mark.parametrize(("words", "program", "groups"), PROGRAMS)
def test_help_lists_groups_documents_options_and_does_not_import_torch(words, program, groups):
    load = f"runpy.run_module({words[1]!r}" if words[0] == "-m" else f"runpy.run_path({words[0]!r}"
    report = "atexit.register(lambda: print('torch' in sys.modules, 'lightning' in sys.modules, file=sys.stderr))"
    code = f"import atexit, runpy, sys\n{report}\nsys.argv[1:] = ['--help']\n{load}, run_name='__main__')"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = run("-c", code)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0 and done.stderr.split() == ["False", "False"]
    listed = done.stdout.split("Groups (group=choice)")[1].split("Options (option=value)")[0]
    assert {line.split(":")[0] for line in listed.splitlines() if line} == set(groups.split())
    text = " ".join(done.stdout.split())
    for section in sections(program.schema, program.compose([])):
        for option in section.options:
            assert f"{option.key}=" in text and option.doc in text
    assert after.ru_utime - before.ru_utime < 10, "1.3 s of a core's time, however busy the machine"


def test_the_values_of_an_enumeration_are_listed_even_if_none_is_chosen():
    options = {
        option.key: option
        for section in sections(TrainConfig, TRAIN.compose(["data.path=x"]))
        for option in section.options
    }
    similarity = options["trainer.sample_similarity"]
    assert similarity.value == "null" and similarity.type == "wavlm | wavlm_ecapa | resemblyzer | null"
    assert [value for value, _ in similarity.choices] == ["wavlm", "wavlm_ecapa", "resemblyzer"]
    assert options["strategy.name"].type.endswith("deepspeed_zero3") and options["init_from"].choices == ()


def test_help_shows_the_values_that_the_command_line_gives():
    done = run("train.py", "experiment=quickstart", "name=été (1)", "--help")
    assert "\n  name=été (1)\n" in done.stdout and "\n  optim.lr=0.003\n" in done.stdout


@pytest.mark.parametrize("schema", [TrainConfig, EvaluateConfig, DataPrepConfig])
def test_every_option_is_documented(schema):
    config = OmegaConf.structured(schema)
    for section in sections(schema, config):
        assert section.doc and not section.doc.startswith(f"{schema.__name__}("), section
        for option in section.options:
            assert option.doc.endswith("."), option


def test_a_field_without_documentation_is_named():
    with pytest.raises(ValueError, match=r"test_options\.Undocumented\.second: no docstring"):
        field_docs(Undocumented)


class Undocumented:
    first: int = 1
    """Documented."""
    second: int = 2


def test_the_page_of_options_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == page(), "python -m docs.generate_options writes it anew"
    for name in field_docs(PlanConfig):
        assert f"**`{name}`**" in PAGE.read_text(encoding="utf-8")


@pytest.mark.slow
def test_warnings_reach_the_terminal(tmp_path):
    """The preparation warns of files that it does not read; Hydra's logging must not silence it."""
    source = tmp_path / "mixed"
    source.mkdir()
    (source / "echo.flac").write_bytes((ROOT / "data_prep/demo/echo.flac").read_bytes())
    (source / "echo.txt").write_text("You have heard an echo.")
    (source / "notes.xyz").write_text("not audio")
    done = run("-m", "data_prep", "plan", f"input={source}", f"output={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    assert "WARNING: " in done.stderr and "1 .xyz" in done.stderr
