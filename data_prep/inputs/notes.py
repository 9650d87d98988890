"""Notes that readers take while they list a source, for `plan` to tell: whatever is not used has a line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from data_prep.inputs.kinds import kind_of


@dataclass
class Notes:
    """The fate of the files of one source."""

    layouts: Counter[str] = field(default_factory=Counter)  # name of a reader -> recordings it found
    set_aside: dict[str, list[str]] = field(default_factory=dict)  # kind of file, in words -> names
    without_audio: list[str] = field(default_factory=list)  # annotations that found no audio
    remarks: dict[str, list[str]] = field(default_factory=dict)  # remark -> names of what it concerns
    unused: dict[str, list[str]] = field(default_factory=dict)  # part of annotations, in words -> names

    def put_aside(self, names: Iterable[str], kind: str | None = None) -> None:
        for name in names:
            self.set_aside.setdefault(kind or kind_of(name), []).append(name)

    def remark(self, text: str, name: str) -> None:
        self.remarks.setdefault(text, []).append(name)

    def not_used(self, part: str, name: str) -> None:
        self.unused.setdefault(part, []).append(name)

    @property
    def losses(self) -> list[str]:
        """Whatever of the source is not used, one line for each kind."""
        lines = [f"set aside: {listed(names)}, {kind}" for kind, names in sorted(self.set_aside.items())]
        if self.without_audio:
            lines.append(f"annotations without audio: {listed(self.without_audio)}")
        lines += [f"{part}: {listed(names)}" for part, names in sorted(self.unused.items())]
        return lines


def listed(names: list[str], shown: int = 3) -> str:
    """The number of names and the first of them: "5: a.csv, b.csv, c.csv, ..."."""
    first = ", ".join(sorted(names)[:shown])
    return f"{len(names)}: {first}{', ...' if len(names) > shown else ''}"
