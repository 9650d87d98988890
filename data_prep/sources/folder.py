"""Audio files with their side files, in a folder or a tar file: pairs by name, `calls/17.wav` with `calls/17.txt`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import PurePosixPath

from data_prep.audio.storage import open_bytes, patiently
from data_prep.reasons import Reason
from data_prep.records import Locator
from data_prep.sources.annotations import SIDE_SUFFIXES, Annotation, parse_side_file
from data_prep.sources.entry import BadEntry, Entry

# fmt: off
AUDIO_SUFFIXES = (
    ".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".m4a", ".aac", ".g722", ".aiff", ".aif", ".webm", ".w64",
    ".caf", ".au", ".wma", ".amr", ".mka", ".mp4",
)
# fmt: on


def is_audio(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in AUDIO_SUFFIXES


def pair_files(files: dict[str, Locator], where: str) -> Iterator[Entry | BadEntry]:
    """Each audio file with what its side file says, by name.

    A text, STM or RTTM file without audio is listed as a recording that is missing, so that it shows in the report.

    files: name -> where it lies
    Raises ValueError if two audio files share a side file, as it can describe but one of them.
    """
    stems = {name: str(PurePosixPath(name).with_suffix("")) for name in files}
    audio = [name for name in files if is_audio(name)]
    sides: dict[str, dict[str, str]] = {}  # stem -> suffix -> name
    for name in sorted(files):
        suffix = PurePosixPath(name).suffix.lower()
        if suffix in SIDE_SUFFIXES:
            sides.setdefault(stems[name], {})[suffix] = name
    with_audio = Counter(stems[name] for name in audio)
    for stem in sorted(sides):
        suffix = next((suffix for suffix in SIDE_SUFFIXES if suffix in sides[stem]), "")
        if with_audio[stem] > 1:
            raise ValueError(f"{where}: two audio files have the name {stem!r} of {sides[stem][suffix]!r}; remove one")
        if with_audio[stem] == 0 and set(sides[stem]) != {".json"}:
            message = f"{sides[stem][suffix]} describes it, but there is no audio file of that name"
            yield BadEntry(stem, Reason.audio_missing, message)
    for name in sorted(audio):
        side = sides.get(stems[name], {})
        suffix = next((suffix for suffix in SIDE_SUFFIXES if suffix in side), None)
        if suffix is None:
            yield Entry(name, files[name], name)
            continue
        try:
            found = _read(suffix, files[side[suffix]], PurePosixPath(name).stem)
        except ValueError as error:
            yield BadEntry(name, Reason.bad_annotation, f"{side[suffix]}: {error}")
        except OSError as error:
            yield BadEntry(name, Reason.failed, f"{side[suffix]}: {error}")
        else:
            yield Entry(name, files[name], name, found.group, split=found.split, turns=found.turns)


def _read(suffix: str, locator: Locator, stem: str) -> Annotation:
    def read() -> bytes:
        with open_bytes(locator) as file:
            return file.read()

    return parse_side_file(suffix, patiently(read), stem)
