"""Hydra programs and the YAML files under configs/ that they are composed of.

Each program has a folder of its own (configs/train, configs/evaluate, configs/data_prep), of which `--help` lists the
groups. Groups used by two programs (codec, tokenizer) are in configs/shared, help text and logging of all programs in
configs/terminal. These folders are appended to Hydra's search path of the programs that use them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from hydra import compose, initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf

from csm.command_line import read_overrides
from csm.config import RENAMED_OPTIONS, EvaluateConfig, TrainConfig
from csm.options import options_text

APPENDED = {"train": ("shared", "terminal"), "evaluate": ("terminal",), "data_prep": ("shared", "terminal")}
"""Folders below configs/ that follow a program's own one on its search path."""

Options = TypeVar("Options")


@dataclass(frozen=True)
class Program(Generic[Options]):
    """A Hydra program of the project."""

    name: str
    """Name of its folder below configs/, and of the YAML file there that it starts from."""
    schema: type[Options]
    """Root dataclass of its options."""
    renamed: Mapping[str, str]
    """Earlier names of options -> names of today."""

    def read_words(self, words: Sequence[str]) -> list[str]:
        """Makes the program known to Hydra and returns `words`, its command line, as Hydra should read them.

        Raises ValueError for an option that was renamed (csm/command_line.py).
        """
        ConfigStore.instance().store(name=f"{self.name}_schema", node=self.schema)
        Plugins.instance().register(AppendedConfigs)
        OmegaConf.register_new_resolver("help_on_options", _help_on(self.schema), replace=True)
        return read_overrides(words, self.schema, self.renamed)

    def compose(self, words: Sequence[str]) -> DictConfig:
        """The configuration as the program itself would compose it from its command line, `words`.

        Raises ValueError, and Hydra's and OmegaConf's errors, where the program would reject a word.
        """
        overrides = self.read_words(words)
        with initialize_config_dir(str(config_folder(self.name)), version_base="1.3"):
            return compose(self.name, overrides=overrides)

    def options(self, config: DictConfig) -> Options:
        """A composed configuration as the program's dataclass; raises OmegaConf's errors for missing values."""
        options = OmegaConf.to_object(config)
        assert isinstance(options, self.schema), "the primary YAML file names the schema first"
        return options


def config_folder(name: str) -> Path:
    """Folder of the YAML files of a program, such as "train".

    In a checkout it is configs/<name>. A wheel holds configs/ as a part of the package, at csm/configs/<name>.
    Raises FileNotFoundError if neither is there.
    """
    package = Path(__file__).resolve().parent
    places = [package.parent / "configs" / name, package / "configs" / name]
    for place in places:
        if place.is_dir():
            return place
    raise FileNotFoundError(f"the configuration files are missing; expected {' or '.join(map(str, places))}")


class AppendedConfigs(SearchPathPlugin):
    """Appends the folders of APPENDED to the search path; hydra.searchpath is left to the user."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        paths = {element.path.removeprefix("file://") for element in search_path.get_path()}
        for name, folders in APPENDED.items():
            if str(config_folder(name)) in paths:
                for folder in folders:
                    search_path.append(provider="csm", path=f"file://{config_folder(folder)}")


def _help_on(schema: type) -> Callable[..., str]:
    """A resolver for configs/terminal/hydra/help: `--help` shows the values that the command line gives."""

    def help_on_options(*, _root_: DictConfig) -> str:
        return options_text(schema, _root_).replace("$", "$$")  # the text goes through string.Template

    return help_on_options


TRAIN = Program("train", TrainConfig, RENAMED_OPTIONS)
EVALUATE = Program("evaluate", EvaluateConfig, {})
