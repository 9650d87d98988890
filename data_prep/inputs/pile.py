"""The files of a source, of which each reader takes those it understands; what is left at the end is set aside."""

from __future__ import annotations

import gzip
import os.path
import posixpath
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property

from data_prep.audio.storage import is_url, open_path
from data_prep.inputs.files import Files
from data_prep.inputs.kinds import is_audio
from data_prep.inputs.notes import Notes
from data_prep.inputs.side_files import decode_text
from data_prep.records import Locator

_SNIFFED = 1 << 20  # bytes of a file that are looked at to tell what it is


@dataclass
class Pile:
    """Files below `files.root`, by name relative to it. `left` are those that no reader has taken yet."""

    files: Files
    notes: Notes
    left: dict[str, None] = field(default_factory=dict)
    text_column: str | None = None
    kinds: dict[str, str | None] = field(default_factory=dict)  # what readers found files to be, see `kind`
    asked: bool = False  # the layout is named by the user, so a reader need not be sure of it

    def __post_init__(self) -> None:
        self.left = dict.fromkeys(self.files.names)

    def take(self, names: Iterable[str]) -> None:
        for name in names:
            self.left.pop(name, None)

    def named(self, *endings: str) -> list[str]:
        """Names left that end so, in lower or upper case, sorted."""
        return [name for name in self.left if name.lower().endswith(endings)]

    @property
    def audio(self) -> list[str]:
        return [name for name in self.left if is_audio(name)]

    def by_folder(self) -> dict[str, list[str]]:
        """Folder -> the names left in it, for readers that look at each folder by itself."""
        folders: dict[str, list[str]] = {}
        for name in self.left:
            folders.setdefault(name.rpartition("/")[0], []).append(name)
        return folders

    def path(self, name: str) -> str:
        return self.files.path(name)

    def text(self, name: str) -> str:
        """The text of a file, of a .gz the unpacked one. Raises ValueError, which names it, if it is not UTF-8."""
        with open_path(self.path(name)) as file:
            content = file.read()
        try:
            return decode_text(gzip.decompress(content) if name.lower().endswith(".gz") else content)
        except (ValueError, OSError, EOFError) as error:
            raise ValueError(f"{self.path(name)}: {error}") from error

    def head(self, name: str) -> str:
        """The first complete lines of a file, for a look at its form; "" if it is not text."""
        try:
            with open_path(self.path(name)) as file, gzip.GzipFile(fileobj=file) as unpacked:
                content = (unpacked if name.lower().endswith(".gz") else file).read(_SNIFFED)
            whole = content if len(content) < _SNIFFED else content[: content.rfind(b"\n") + 1]
            return decode_text(whole)
        except (ValueError, OSError, EOFError):
            return ""

    def kind(self, name: str, of: str, look: Callable[[str], str | None]) -> str | None:
        """`look` at the first lines of a file, once; `of` names the reader that looks.

        The side file of an audio file, of the same name, is None: there may be millions.
        """
        if name.lower().endswith(".json") and name.rpartition(".")[0] in self._stems:
            return None
        key = f"{of}:{name}"
        if key not in self.kinds:
            self.kinds[key] = look(self.head(name))
        return self.kinds[key]

    def find(self, reference: str, table: str) -> tuple[str, Locator]:
        """The audio file that a table names -> its name in the source, and where its bytes are.

        A path is relative to the table's folder or to the source, or absolute. One of another machine is found by its
        last parts if they are unique in the source. If nothing is found the recording is rejected as missing later.
        """
        if is_url(reference):
            return reference, Locator(reference)
        folder = posixpath.dirname(table)
        for candidate in (posixpath.join(folder, reference), reference):
            name = posixpath.normpath(candidate)
            if name in self._names:
                return name, Locator(self.path(name))
        if os.path.isabs(reference) and os.path.isfile(reference):
            root = self.files.root.rstrip("/") + "/"
            return reference.removeprefix(root), Locator(reference)
        parts = [part for part in reference.split("/") if part not in ("", ".", "..")]
        for count in range(len(parts), 0, -1):
            found = self._by_ending.get("/".join(parts[-count:]), [])
            if len(found) == 1:
                return found[0], Locator(self.path(found[0]))
        local = (
            reference if os.path.isabs(reference) else self.path(posixpath.normpath(posixpath.join(folder, reference)))
        )
        return reference, Locator(local)

    @cached_property
    def _names(self) -> set[str]:
        return set(self.files.names)

    @cached_property
    def _stems(self) -> set[str]:
        return {name.rpartition(".")[0] for name in filter(is_audio, self.files.names)}

    @cached_property
    def _by_ending(self) -> dict[str, list[str]]:
        """Last one, two, ... parts of the paths of audio files -> names."""
        endings: dict[str, list[str]] = {}
        for name in filter(is_audio, self.files.names):
            parts = name.split("/")
            for count in range(1, len(parts) + 1):
                endings.setdefault("/".join(parts[-count:]), []).append(name)
        return endings
