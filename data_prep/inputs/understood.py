"""The account that `plan` gives of a source: nothing is used, left out or transcribed without a line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from data_prep.inputs.notes import Notes, listed
from data_prep.reasons import Reason
from data_prep.records import UNKNOWN_LANGUAGE, Recording, Rejection

_MEANT = (Reason.test_split,)  # left out because the data say so, which is no loss


@dataclass
class Understood:
    """One source, as it was listed and probed."""

    source: str
    notes: Notes
    transcribed: bool  # whether there is a speech recognizer
    with_turns: list[str] = field(default_factory=list)  # names of recordings, each in one of these three
    with_text: list[str] = field(default_factory=list)
    with_nothing: list[str] = field(default_factory=list)
    turns: int = 0
    turns_without_text: int = 0
    seconds: float = 0.0
    languages: Counter[str] = field(default_factory=Counter)
    splits: Counter[str] = field(default_factory=Counter)
    splits_of_group: dict[str, set[str]] = field(default_factory=dict)
    left_out: dict[Reason, list[Rejection]] = field(default_factory=dict)

    def add(self, recording: Recording) -> None:
        self.seconds += recording.seconds
        self.languages[recording.lang or f"{UNKNOWN_LANGUAGE} (detected later)"] += 1
        self.splits[recording.split or "not given"] += 1
        if recording.split:
            self.splits_of_group.setdefault(recording.group, set()).add(recording.split)
        turns = recording.turns or []
        self.turns += len(turns)
        self.turns_without_text += sum(turn.text is None for turn in turns)
        whole = len(turns) == 1 and turns[0].start == 0 and turns[0].end is None and turns[0].text is not None
        group = self.with_text if whole else self.with_turns if turns else self.with_nothing
        group.append(recording.audio)

    def losses(self) -> list[str]:
        """Lines on whatever is not used, or lacks its other half; empty if all of the source is understood."""
        lines = self.notes.losses
        annotated = self.with_turns or self.with_text
        if annotated and self.with_nothing:
            lines.append(f"audio without annotation: {listed(self.with_nothing)}")
        for reason, found in sorted(self.left_out.items()):
            if reason not in _MEANT:
                names = listed([rejection.audio for rejection in found])
                lines.append(f"left out, {reason}: {names} ({found[0].message})")
        if not self.transcribed and (self.with_nothing or self.turns_without_text):
            lines.append(
                f"without a text, and there is no recognizer (transcribe=none): {len(self.with_nothing)} recordings, "
                f"{self.turns_without_text} turns"
            )
        return lines

    def warning(self) -> str:
        """The losses in one line, without names; "" if there are none."""
        parts = [f"{len(names)} {kind} set aside" for kind, names in sorted(self.notes.set_aside.items())]
        left_out = sum(len(found) for reason, found in self.left_out.items() if reason not in _MEANT)
        counts = {
            "annotations without audio": len(self.notes.without_audio),
            "annotations that are not used in full": sum(map(len, self.notes.unused.values())),
            "recordings without annotation": len(self.with_nothing) if self.with_turns or self.with_text else 0,
            "left out": left_out,
        }
        return "; ".join(parts + [f"{count} {words}" for words, count in counts.items() if count])

    def lines(self) -> list[str]:
        """The whole account, for the terminal."""
        layouts = ", ".join(f"{layout} {count}" for layout, count in self.notes.layouts.most_common()) or "none"
        lines = [
            f"{self.source}: {self.recordings} recordings, {self.seconds / 3600:.2f} hours, as {layouts}",
            f"  {len(self.with_turns)} with turns ({self.turns} turns in all), {len(self.with_text)} with a text only, "
            f"{len(self.with_nothing)} with nothing",
            f"  languages: {_counts(self.languages)}",
        ]
        if self.transcribed:
            wordless = f"{self.turns_without_text} turns without a text"
            lines.append(f"  to be transcribed: {len(self.with_nothing)} recordings, and {wordless}")
        if set(self.splits) - {"not given"}:
            lines.append(f"  splits: {_counts(self.splits)}")
        torn = [group for group, splits in self.splits_of_group.items() if len(splits) > 1]
        if torn:
            lines.append(f"  groups on both sides of the split, as the data give it: {listed(torn)}")
        lines += [f"  {text}: {listed(names)}" for text, names in sorted(self.notes.remarks.items())]
        lines += [
            f"  left out as the data say, {reason}: {len(self.left_out[reason])}"
            for reason in _MEANT
            if reason in self.left_out
        ]
        return lines + [f"  {line}" for line in self.losses()]

    @property
    def recordings(self) -> int:
        return len(self.with_turns) + len(self.with_text) + len(self.with_nothing)


def understand(
    notes: dict[str, Notes], recordings: Iterable[Recording], rejections: Iterable[Rejection], transcribed: bool
) -> list[Understood]:
    """Accounts of all sources, by name. notes: source -> the notes of its listing."""
    found = {source: Understood(source, of_source, transcribed) for source, of_source in sorted(notes.items())}
    for recording in recordings:
        found[recording.source].add(recording)
    for rejection in rejections:
        found[rejection.source].left_out.setdefault(rejection.reason, []).append(rejection)
    return list(found.values())


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.most_common())
