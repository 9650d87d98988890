"""Documentation, comments of configurations and messages: options, files and links that they name exist."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from csm.compose import EVALUATE, TRAIN
from csm.config import REMOVED_OPTIONS, PlanConfig
from csm.options import sections
from csm.planning.request import read_request
from data_prep.config import DATA_PREP
from data_prep.main import COMMANDS
from tests.conftest import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
OTHER_TEXTS = sorted([ROOT / "Makefile", *(ROOT / "examples").rglob("*.*"), *(ROOT / "configs").rglob("*.yaml")])
SOURCES = sorted([*(ROOT / "csm").rglob("*.py"), *(ROOT / "data_prep").rglob("*.py"), *ROOT.glob("*.py")])
PROGRAMS = [TRAIN, EVALUATE, DATA_PREP]

FILE_SUFFIXES = {
    "bin",
    "ckpt",
    "html",
    "json",
    "jsonl",
    "md",
    "npy",
    "parquet",
    "pt",
    "py",
    "safetensors",
    "tar",
    "wav",
    "yaml",
}
WRITTEN_BY_EXAMPLES = {"configs/train/data/talk.yaml"}
OPTION = re.compile(r"(?<![\w./@$-])([a-z_]+(?:\.[a-z_0-9]+)+)(?![\w(/\[*-])")
FILE = re.compile(r"(?<![\w./-])((?:csm|data_prep|docs|configs|tests|examples|benchmarks)/[\w./-]*[\w/])(?![\w*<{])")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


@cache
def options() -> set[str]:
    """Full names of all options, of their groups, and of options that were renamed or removed."""
    schemas = [*(program.schema for program in PROGRAMS), PlanConfig]
    keys = {
        option.key
        for schema in schemas
        for section in sections(schema, OmegaConf.structured(schema))
        for option in section.options
    }
    groups = {".".join(key.split(".")[:depth]) for key in keys for depth in range(1, key.count(".") + 1)}
    renamed = {old for program in PROGRAMS for old in program.renamed}
    return keys | groups | renamed | set(REMOVED_OPTIONS)


@cache
def first_parts() -> set[str]:
    return {key.split(".")[0] for key in options() if "." in key}


def is_option(key: str) -> bool:
    """Whether `key` is an option, or lies below one that holds a dictionary."""
    parts = key.split(".")
    if parts[0] == "logger" or parts[:2] == ["executor", "slurm"]:
        return True
    if parts[:2] == ["data", "sources"] and len(parts) > 2:
        parts[2] = "NAME"
    return ".".join(parts) in options()


def named_options(text: str) -> list[str]:
    keys = [match[1] for match in OPTION.finditer(text)]
    return [key for key in keys if key.split(".")[0] in first_parts() and key.rsplit(".", 1)[1] not in FILE_SUFFIXES]


def literals(path: Path) -> str:
    """String literals of a module, docstrings included, one a line; places of f-strings are left empty."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return "\n".join(
        node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def text_of(path: Path) -> str:
    return literals(path) if path.suffix == ".py" else path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", [*PAGES, *OTHER_TEXTS, *SOURCES], ids=lambda path: str(path.relative_to(ROOT)))
def test_options_and_files_that_are_named_exist(path):
    text = text_of(path)
    named = named_options(text)
    if path.suffix == ".py":  # there, model.* are names of weights
        named = [key for key in named if not key.startswith("model.")]
    assert [key for key in named if not is_option(key)] == []
    files = {name.rstrip("./") for name in FILE.findall(text)}
    missing = [name for name in files if not (ROOT / name.replace("csm/configs", "configs")).exists()]
    assert set(missing) <= WRITTEN_BY_EXAMPLES


def test_a_misspelled_option_would_be_found():
    text = "use `data.max_sequence_len` or turns.max_turn_seconds=3; data.path, plan.json and csm.data.sample are fine"
    assert [key for key in named_options(text) if not is_option(key)] == [
        "data.max_sequence_len",
        "turns.max_turn_seconds",
    ]


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub and mkdocs make of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(page):
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target


def commands(page: Path) -> Iterator[str]:
    """Commands of Hydra programs in a page's code blocks, continued lines joined."""
    for block in re.findall(r"^```\w*\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            yield from (part.strip() for part in line.split("&&") if COMMAND.match(part))


COMMAND = re.compile(
    r"\s*(python (train|evaluate)\.py(?! (compare|index|listening))|python -m data_prep|csm plan"
    r"|csm-(train|evaluate|data-prep)) "
)
NOT_COMPOSED = re.compile(
    r"-m|--.*|sweep=.*|launcher=.*|hydra\..*|data=talk|.*=[\d.e-]+,.*|.*\$.*|\[.*\]|.*\.\.\.|.*\|.*"
)
"""Flags, sweeps, files that examples write, shell variables and placeholders."""


@pytest.mark.parametrize(("page", "command"), [(page.name, command) for page in PAGES for command in commands(page)])
def test_commands_of_the_documentation_compose(page, command):
    words = shlex.split(command, comments=True)
    start = {"csm": 2, "python": 3 if words[1] == "-m" else 2}.get(words[0], 1)
    rest = [word for word in words[start:] if not NOT_COMPOSED.fullmatch(word)]
    match words:
        case ["csm", "plan", *_]:
            read_request(rest)
        case ["python", "train.py", *_] | ["csm-train", *_]:
            TRAIN.options(TRAIN.compose(["data.path=x", *rest]))
        case ["python", "evaluate.py", *_] | ["csm-evaluate", *_]:
            EVALUATE.options(EVALUATE.compose(["checkpoint=x", *rest]))
        case _:
            rest = [f"command={word}" if word in COMMANDS else word for word in rest]
            DATA_PREP.options(DATA_PREP.compose(["output=x", *rest]))
